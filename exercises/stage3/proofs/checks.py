"""What a proof is good for."""

import string
from types import ModuleType

from exercises.checking import expect

KEY, OTHER = b"k" * 32, b"q" * 32
A, B, C = "a" * 16, "b" * 16, "c" * 16


def check_agreement(answer: ModuleType) -> None:
    """prove the same twice, and look at it"""
    proofs = {answer.prove(KEY, "client", A, B, "worker") for _ in range(2)}
    expect(len(proofs) == 1, expected="one and the same proof", happened=f"{len(proofs)} of them")
    (proof,) = proofs
    digits = (
        isinstance(proof, str) and len(proof) == 64 and not set(proof) - set("0123456789abcdef")
    )
    expect(digits, expected="64 hexadecimal digits", happened=repr(proof))


def check_key(answer: ModuleType) -> None:
    """prove the same with two keys"""
    differ = answer.prove(KEY, "client", A, B, "x") != answer.prove(OTHER, "client", A, B, "x")
    expect(differ, expected="two proofs", happened="the same proof, whatever the key")


def check_reflection(answer: ModuleType) -> None:
    """say a server's proof back to it, as if it were a client's"""
    server = answer.prove(KEY, "server", A, B, "worker")
    client = answer.prove(KEY, "client", A, B, "worker")
    expect(server != client, expected="another proof for each role", happened="the same proof")


def check_replay(answer: ModuleType) -> None:
    """record a client's proof, and say it again to a server with another nonce"""
    first = answer.prove(KEY, "client", A, B, "worker")
    again = answer.prove(KEY, "client", A, C, "worker")
    expect(first != again, expected="another proof", happened="the server's nonce changes nothing")
    fresh = answer.prove(KEY, "server", C, B, "worker")
    stale = answer.prove(KEY, "server", A, B, "worker")
    expect(fresh != stale, expected="another proof", happened="the client's nonce changes nothing")


def check_request(answer: ModuleType) -> None:
    """take the proof of the request "status", and ask for "worker" with it"""
    status = answer.prove(KEY, "client", A, B, "status")
    worker = answer.prove(KEY, "client", A, B, "worker")
    expect(status != worker, expected="another proof", happened="the same proof for any request")


def check_borders(answer: ModuleType) -> None:
    """move a letter from the end of one part to the beginning of the next, with each separator"""
    for separator in ("", *string.punctuation, *string.whitespace, "\0", "\x1f"):
        moved = "nothing" if not separator else f"{separator!r}"
        for one, other in (
            ((f"aa{separator}x", "bb", "stop"), ("aa", f"x{separator}bb", "stop")),
            (("aa", f"bb{separator}x", "stop"), ("aa", "bb", f"x{separator}stop")),
        ):
            same = answer.prove(KEY, "client", *one) == answer.prove(KEY, "client", *other)
            happened = f"the same proof, with {moved} in between"
            expect(not same, expected="another proof", happened=happened)
    swapped = answer.prove(KEY, "client", A, B, "worker") == answer.prove(
        KEY, "client", B, A, "worker"
    )
    expect(not swapped, expected="another proof", happened="the same proof with the nonces swapped")
