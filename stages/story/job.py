"""The job: workers read a text in shares, and learn together to guess its next letter.

The model is a table: for each letter, a weight for each letter that may come next. It is as small
as a model can be, and it is trained as large ones are: each worker computes the gradient of its
share, the coordinator takes their mean, makes a step, and sends the new weights.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ALPHABET = " etaoinshrdlcumwfgypbvkjxqz"
TEXT = Path(__file__).parents[2] / "LICENSE"
STEPS, RATE = 40, 12.0

Table = list[list[float]]


def read_shares(count: int, letters: int = len(ALPHABET)) -> list[str]:
    """Return the licence of this repository, in so many pieces, with the first letters alone."""
    text = "".join(letter for letter in TEXT.read_text().lower() if letter in ALPHABET[:letters])
    size = -(-len(text) // count)
    return [text[start : start + size] for start in range(0, len(text), size)]


def make_weights(letters: int = len(ALPHABET)) -> Table:
    """Return a table that knows nothing: every letter is as likely as any other."""
    return [[0.0] * letters for _ in range(letters)]


def compute(weights: Table, share: str) -> dict[str, Any]:
    """Return the loss of a share, in nats a letter, and its gradient."""
    size = len(weights)
    counts = [[0] * size for _ in weights]
    for first, second in itertools.pairwise(share):
        counts[ALPHABET.index(first)][ALPHABET.index(second)] += 1
    pairs, loss, gradient = len(share) - 1, 0.0, []
    for row, seen in zip(weights, counts, strict=True):
        exponentials = [math.exp(weight) for weight in row]
        whole = sum(exponentials)
        shares = [one / whole for one in exponentials]
        loss -= sum(count * math.log(p) for count, p in zip(seen, shares, strict=True) if count)
        many = sum(seen)
        gradient.append([(many * p - n) / pairs for p, n in zip(shares, seen, strict=True)])
    return {"loss": loss / pairs, "gradient": gradient}


def make_step(weights: Table, answers: list[dict[str, Any]]) -> tuple[Table, float]:
    """Return the weights after a step, and the mean loss before it."""
    count = len(answers)
    gradients: list[Table] = [answer["gradient"] for answer in answers]
    moved = [
        [
            weight - RATE * sum(row) / count
            for weight, *row in zip(line, *(table[index] for table in gradients), strict=True)
        ]
        for index, line in enumerate(weights)
    ]
    losses: list[float] = [answer["loss"] for answer in answers]
    return moved, sum(losses) / count


def train(workers: list[Any], steps: int, receive: Callable[[Any], Any]) -> list[float]:
    """Have workers that know their shares compute, and make steps; return and print the losses."""
    weights, losses = make_weights(), []
    for step in range(steps):
        for worker in workers:
            worker.send(weights)
        weights, loss = make_step(weights, [receive(worker) for worker in workers])
        losses.append(loss)
        print(f"   step {step:2}  loss {loss:.4f}")
    return losses


def write(weights: Table, length: int = 48) -> Iterator[str]:
    """Yield letters as the table has learned them: always the likeliest that is not stale yet."""
    letter, stale = 0, [[0.0] * len(weights) for _ in weights]
    for _ in range(length):
        row = [weight - dull for weight, dull in zip(weights[letter], stale[letter], strict=True)]
        following = row.index(max(row))
        stale[letter][following] += 0.7  # else it would go in circles
        letter = following
        yield ALPHABET[letter]


def train_alone(count: int) -> list[float]:
    """Return the losses of the same job in one process, to which nothing ever happens."""
    weights, losses = make_weights(), []
    shares = read_shares(count)
    for _ in range(STEPS):
        weights, loss = make_step(weights, [compute(weights, share) for share in shares])
        losses.append(loss)
    return losses
