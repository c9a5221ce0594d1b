"""What a proof is good for."""

import hmac
import importlib
import string
from typing import Any

from exercises.checking import expect

KEY, OTHER = b"k" * 32, b"q" * 32
A, B, C = ({"version": 1, "nonce": letter * 64} for letter in "abc")
WORKER, STATUS = {"type": "worker", "name": "rank0"}, {"type": "status", "name": "rank0"}


def check_agreement(answer: Any) -> None:
    """prove the same twice, and look at it"""
    proofs = {answer.auth._prove(KEY, "client", A, B, WORKER) for _ in range(2)}
    expect(len(proofs) == 1, expected="one and the same proof", happened=f"{len(proofs)} of them")
    (proof,) = proofs
    digits = (
        isinstance(proof, str) and len(proof) == 64 and not set(proof) - set("0123456789abcdef")
    )
    expect(digits, expected="64 hexadecimal digits", happened=repr(proof))


def check_key(answer: Any) -> None:
    """prove the same with two keys"""
    proofs = [answer.auth._prove(key, "client", A, B, WORKER) for key in (KEY, OTHER)]
    expect(
        proofs[0] != proofs[1], expected="two proofs", happened="the same proof, whatever the key"
    )


def check_reflection(answer: Any) -> None:
    """say a server's proof back to it, as if it were a client's"""
    server = answer.auth._prove(KEY, "server", A, B, WORKER)
    client = answer.auth._prove(KEY, "client", A, B, WORKER)
    expect(server != client, expected="another proof for each role", happened="the same proof")


def check_replay(answer: Any) -> None:
    """record a proof, and say it again to somebody with another nonce"""
    first = answer.auth._prove(KEY, "client", A, B, WORKER)
    again = answer.auth._prove(KEY, "client", A, C, WORKER)
    expect(first != again, expected="another proof", happened="the server's nonce changes nothing")
    fresh = answer.auth._prove(KEY, "server", C, B)
    stale = answer.auth._prove(KEY, "server", A, B)
    expect(fresh != stale, expected="another proof", happened="the client's nonce changes nothing")


def check_request(answer: Any) -> None:
    """take the proof of the request "status", and ask for "worker" with it"""
    status = answer.auth._prove(KEY, "client", A, B, STATUS)
    worker = answer.auth._prove(KEY, "client", A, B, WORKER)
    expect(status != worker, expected="another proof", happened="the same proof for any request")


def check_order(answer: Any) -> None:
    """prove the same messages, with their fields in another order"""
    turned = [dict(reversed(one.items())) for one in (A, B, WORKER)]
    same = answer.auth._prove(KEY, "client", A, B, WORKER) == answer.auth._prove(
        KEY, "client", *turned
    )
    expect(same, expected="the same proof", happened="another one, for the same fields")


def check_borders(answer: Any) -> None:
    """move a letter from the end of one field to the beginning of the next"""
    for separator in ("", *string.punctuation, *string.whitespace, "\0", "\x1f"):
        moved = "nothing" if not separator else f"{separator!r}"
        one = {"name": f"aa{separator}x", "type": "bb"}
        other = {"name": "aa", "type": f"x{separator}bb"}
        same = answer.auth._prove(KEY, "client", A, B, one) == answer.auth._prove(
            KEY, "client", A, B, other
        )
        happened = f"the same proof, with {moved} in between"
        expect(not same, expected="another proof", happened=happened)
    swapped = answer.auth._prove(KEY, "client", A, B, WORKER) == answer.auth._prove(
        KEY, "client", B, A, WORKER
    )
    expect(not swapped, expected="another proof", happened="the same proof with the nonces swapped")


def check_hmac(answer: Any) -> None:
    """look whether an HMAC is made for a proof"""
    made = []

    def watch(function: Any) -> Any:
        return lambda *arguments, **named: made.append(1) or function(*arguments, **named)

    before = {name: getattr(hmac, name) for name in ("new", "digest", "HMAC")}
    for name, function in before.items():
        setattr(hmac, name, watch(function))
    try:
        importlib.reload(answer.auth)._prove(KEY, "client", A, B, WORKER)
    finally:
        for name, function in before.items():
            setattr(hmac, name, function)
    expect(made, expected="an HMAC", happened="a hash, and no HMAC")


def check_other_borders(answer: Any) -> None:
    """move a letter from a value to its name, a field to the next message, and quote a number"""
    pairs: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
        ([{"a": "bc"}], [{"ab": "c"}]),
        ([{"a": "1"}, {"b": "2"}], [{"a": "1", "b": "2"}]),
        ([{"a": "1"}, {}], [{"a": "1"}]),
        ([{"a": 1}], [{"a": "1"}]),
    ]
    for one, other in pairs:
        same = answer.auth._prove(KEY, "client", *one) == answer.auth._prove(KEY, "client", *other)
        happened = f"the same proof for {one} and {other}"
        expect(not same, expected="another proof", happened=happened)


def check_every_field(answer: Any) -> None:
    """change the field "proof" of the message that came before"""
    given = [
        answer.auth._prove(KEY, "client", A, {**B, "proof": proof}, WORKER) for proof in ("x", "y")
    ]
    happened = "the same proof, whatever the field 'proof' says"
    expect(given[0] != given[1], expected="another proof", happened=happened)
