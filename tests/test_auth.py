"""The handshake's functions, which are pure, and the key file."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniray import AuthenticationError, RemoteWorker, auth
from miniray.connection import server_status

KEY = auth.make_key()
HELLO = auth.hello("c" * 64)
CHALLENGE = auth.challenge(KEY, HELLO, "5" * 64)
REQUEST = {"type": "worker", "name": "rank0"}
RESPONSE = auth.response(KEY, HELLO, CHALLENGE, REQUEST)
REPLY = {"worker": 1, "pid": 4711}
WELCOME = auth.welcome(KEY, HELLO, CHALLENGE, RESPONSE, REPLY)
json_values = st.recursive(
    # JSON can say lone surrogates too.
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_a_new_key_is_256_random_bits() -> None:
    first, second = (bytes.fromhex(auth.make_key().decode()) for _ in range(2))
    assert len(first) == len(second) == 32
    assert first != second


def test_both_sides_with_one_key_agree() -> None:
    assert auth.read_response(KEY, HELLO, CHALLENGE, RESPONSE) == REQUEST
    assert auth.read_welcome(KEY, HELLO, CHALLENGE, RESPONSE, WELCOME) == REPLY


def test_client_notices_a_server_with_another_key() -> None:
    forged = auth.challenge(auth.make_key(), HELLO, "5" * 64)
    with pytest.raises(AuthenticationError, match="different key"):
        auth.response(KEY, HELLO, forged, REQUEST)


def test_server_notices_a_client_with_another_key() -> None:
    proof = auth._prove(auth.make_key(), "client", HELLO, CHALLENGE, REQUEST)
    with pytest.raises(AuthenticationError, match="different key"):
        auth.read_response(KEY, HELLO, CHALLENGE, {"request": REQUEST, "proof": proof})


def test_a_proof_of_the_server_is_no_proof_of_a_client() -> None:
    for proof in (CHALLENGE["proof"], WELCOME["proof"]):
        with pytest.raises(AuthenticationError):
            auth.read_response(KEY, HELLO, CHALLENGE, {"request": REQUEST, "proof": proof})


def test_a_client_that_plays_the_server_cannot_use_what_a_client_said() -> None:
    reflected = {**CHALLENGE, "proof": RESPONSE["proof"]}
    with pytest.raises(AuthenticationError):
        auth.response(KEY, HELLO, reflected, REQUEST)
    with pytest.raises(AuthenticationError):
        auth.read_welcome(
            KEY, HELLO, CHALLENGE, RESPONSE, {"reply": REPLY, "proof": RESPONSE["proof"]}
        )


def test_a_recorded_response_fails_against_a_new_nonce() -> None:
    later = auth.challenge(KEY, HELLO, "6" * 64)
    with pytest.raises(AuthenticationError):
        auth.read_response(KEY, HELLO, later, RESPONSE)


def test_a_recorded_challenge_fails_against_a_new_nonce() -> None:
    with pytest.raises(AuthenticationError):
        auth.response(KEY, auth.hello("d" * 64), CHALLENGE, REQUEST)


def test_a_changed_request_or_reply_is_noticed() -> None:
    with pytest.raises(AuthenticationError):
        auth.read_response(
            KEY, HELLO, CHALLENGE, {**RESPONSE, "request": {**REQUEST, "type": "lease"}}
        )
    with pytest.raises(AuthenticationError):
        auth.read_welcome(
            KEY, HELLO, CHALLENGE, RESPONSE, {**WELCOME, "reply": {**REPLY, "pid": 1}}
        )


def test_another_version_is_named() -> None:
    with pytest.raises(AuthenticationError, match=f"version 99 on the other side, {auth.VERSION}"):
        auth.challenge(KEY, {**HELLO, "version": 99}, "5" * 64)


@given(st.dictionaries(st.sampled_from(["version", "nonce", "proof", "request"]), json_values))
def test_malformed_messages_raise_nothing_but_authentication_errors(message: Any) -> None:
    for call in (
        lambda: auth.challenge(KEY, message, "5" * 64),
        lambda: auth.response(KEY, HELLO, message, REQUEST),
        lambda: auth.read_response(KEY, HELLO, CHALLENGE, message),
        lambda: auth.read_welcome(KEY, HELLO, CHALLENGE, RESPONSE, message),
    ):
        with pytest.raises(AuthenticationError):
            call()


ODD_VALUES = ["\ud800", "é", "", "x" * 4000, None, 0, 1.0, True, [], {}, [[[[]]]], 10**4000]


@pytest.mark.parametrize("odd", ODD_VALUES, ids=lambda odd: repr(odd)[:12])
@pytest.mark.parametrize("field", ["version", "nonce", "proof", "request", "reply"])
def test_a_field_of_another_type_or_alphabet_is_an_authentication_error(
    field: str, odd: Any
) -> None:
    for message, call in (
        (HELLO, lambda message: auth.challenge(KEY, message, "5" * 64)),
        (CHALLENGE, lambda message: auth.response(KEY, HELLO, message, REQUEST)),
        (RESPONSE, lambda message: auth.read_response(KEY, HELLO, CHALLENGE, message)),
        (WELCOME, lambda message: auth.read_welcome(KEY, HELLO, CHALLENGE, RESPONSE, message)),
    ):
        if field in message:
            with pytest.raises(AuthenticationError):
                call({**message, field: odd})


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("field", ["version", "nonce", "proof", "request"])
def test_a_field_as_deep_as_json_allows_is_an_authentication_error(field: str) -> None:
    for depth in (10, 500, *range(850, 1000, 10)):
        with pytest.raises(AuthenticationError):
            auth.challenge(KEY, {**HELLO, field: nested(depth)}, "5" * 64)
        response = {**RESPONSE, "proof": "no", field: nested(depth)}
        with pytest.raises(AuthenticationError):
            auth.read_response(KEY, HELLO, CHALLENGE, response)


def test_a_reply_as_deep_as_json_allows_is_an_authentication_error() -> None:
    for depth in range(850, 1000, 10):
        with pytest.raises(AuthenticationError):
            auth.read_welcome(
                KEY, HELLO, CHALLENGE, RESPONSE, {**WELCOME, "reply": {"x": nested(depth)}}
            )


def test_a_response_that_says_more_than_its_proof_covers_is_refused() -> None:
    with pytest.raises(AuthenticationError):
        auth.read_response(KEY, HELLO, CHALLENGE, {**RESPONSE, "more": 1})


@pytest.mark.parametrize("message", [{"x": b""}, {1, 2}, {1: 1, "x": 1}, object(), nested(2000)])
def test_what_has_no_digest_is_not_what_was_promised(message: Any) -> None:
    with pytest.raises(AuthenticationError):
        auth.check_digest({"digest": auth.digest({})}, message)


@given(st.integers(0, 63), st.sampled_from("0123456789abcdef"))
def test_a_proof_with_one_character_changed_is_refused(place: int, character: str) -> None:
    proof = RESPONSE["proof"][:place] + character + RESPONSE["proof"][place + 1 :]
    if proof == RESPONSE["proof"]:
        return
    with pytest.raises(AuthenticationError, match="different key"):
        auth.read_response(KEY, HELLO, CHALLENGE, {**RESPONSE, "proof": proof})


def test_a_response_for_another_hello_is_refused() -> None:
    with pytest.raises(AuthenticationError):
        auth.read_response(KEY, auth.hello("d" * 64), CHALLENGE, RESPONSE)


def test_a_welcome_for_another_request_is_refused() -> None:
    other = auth.response(KEY, HELLO, CHALLENGE, {"type": "status"})
    with pytest.raises(AuthenticationError):
        auth.read_welcome(KEY, HELLO, CHALLENGE, other, WELCOME)


def test_a_reply_in_a_servers_name_needs_the_servers_key() -> None:
    forged = auth.welcome(auth.make_key(), HELLO, CHALLENGE, RESPONSE, REPLY)
    with pytest.raises(AuthenticationError):
        auth.read_welcome(KEY, HELLO, CHALLENGE, RESPONSE, forged)


def test_every_handshake_has_a_nonce_of_its_own() -> None:
    nonces = {auth.make_nonce() for _ in range(100)}
    assert len(nonces) == 100
    assert {len(nonce) for nonce in nonces} == {auth.NONCE_CHARS}


def test_no_message_holds_the_key() -> None:
    for message in (HELLO, CHALLENGE, RESPONSE, WELCOME):
        assert KEY.decode() not in repr(message)


def test_key_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "key"
    key = auth.load_key(file)
    assert len(key) >= auth.KEY_CHARS_MIN
    assert file.stat().st_mode & 0o777 == 0o600
    assert auth.load_key(file) == key
    assert [path.name for path in file.parent.iterdir()] == ["key"]


def test_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    auth.load_key(file)
    file.chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        auth.load_key(file)


def test_key_file_that_holds_no_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("short\n")
    file.chmod(0o600)
    with pytest.raises(ValueError, match="holds 5 characters"):
        auth.load_key(file)


def test_environment_names_the_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRAY_KEY_FILE", str(tmp_path / "mine"))
    key = auth.load_key()
    assert (tmp_path / "mine").read_bytes().strip() == key


def test_who_connects_makes_no_key_and_hears_which_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "no" / "key"
    monkeypatch.setenv("MINIRAY_KEY_FILE", str(file))
    for ask in (RemoteWorker, server_status):
        with pytest.raises(FileNotFoundError, match=f"no key in {file}: copy that of the server"):
            ask("localhost", 1)
    assert not file.parent.exists()


def test_a_different_key_is_told_with_the_file_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRAY_KEY_FILE", str(tmp_path / "mine"))
    forged = auth.challenge(auth.make_key(), HELLO, "5" * 64)
    with pytest.raises(AuthenticationError, match=f"different key: .* in {tmp_path}/mine"):
        auth.response(KEY, HELLO, forged, REQUEST)


def _load(file: Path, queue: Any) -> None:
    queue.put(auth.load_key(file))


def test_many_processes_that_make_the_key_at_once_get_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    makers = [context.Process(target=_load, args=(tmp_path / "key", queue)) for _ in range(8)]
    for maker in makers:
        maker.start()
    keys = {queue.get() for _ in makers}
    for maker in makers:
        maker.join()
        maker.close()
    queue.close()
    assert keys == {auth.load_key(tmp_path / "key")}
    assert os.listdir(tmp_path) == ["key"]
