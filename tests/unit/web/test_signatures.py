"""Webhook signatures. The `standardwebhooks` package is the oracle: each accepts what the other does."""

from __future__ import annotations

import base64
import hmac
import json
import os
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from functions.kit.settings import decode_webhook_secret
from functions.web.signatures import SignatureWrong, verify_shared_secret, verify_signature
from tests.support.environment import OTHER_WEBHOOK_SECRET, WEBHOOK_SECRET

NOW = 1_800_000_000
BODY = b'{"type": "INSERT"}'
KEY = decode_webhook_secret(WEBHOOK_SECRET)
OTHER_KEY = decode_webhook_secret(OTHER_WEBHOOK_SECRET)
SHARED = "a-shared-secret-of-some-length"


def signature(key: bytes, body: bytes = BODY, *, message_id: str = "msg_1", timestamp: str = str(NOW)) -> str:
    """The signature by the scheme's own words: base64 of the HMAC of id.timestamp.body."""
    return "v1," + base64.b64encode(hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")).decode()


def signed(
    key: bytes = KEY, body: bytes = BODY, *, timestamp: str = str(NOW), message_id: str = "msg_1"
) -> dict[str, str]:
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(key, body, message_id=message_id, timestamp=timestamp),
    }


def accepts(headers: dict[str, str], body: bytes = BODY, keys: tuple[bytes, ...] = (KEY,), now: float = NOW) -> bool:
    try:
        verify_signature(headers, body, keys, now_seconds=now)
    except SignatureWrong:
        return False
    return True


@given(body=st.text(), message_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True), at=st.integers(1, 10**10))
def test_what_the_reference_signs_is_accepted(body: str, message_id: str, at: int) -> None:
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": Webhook(WEBHOOK_SECRET).sign(message_id, datetime.fromtimestamp(at, UTC), body),
    }
    verify_signature(headers, body.encode(), (KEY,), now_seconds=at)


def test_what_we_accept_the_reference_accepts() -> None:
    now = str(int(time.time()))
    for body in (BODY, b"{}", json.dumps({"name": "Ünïcödé 🔑"}, ensure_ascii=False).encode()):
        headers = signed(body=body, timestamp=now)
        verify_signature(headers, body, (KEY,), now_seconds=int(now))
        Webhook(WEBHOOK_SECRET).verify(body, headers)


@pytest.mark.parametrize("age", [0, 1, 299, 300, -1, -299, -300])
def test_five_minutes_either_way_are_accepted(age: int) -> None:
    assert accepts(signed(), now=NOW + age)


@pytest.mark.parametrize("age", [301, 300.001, 3600, -301, -300.001, -3600, NOW])
def test_more_than_five_minutes_either_way_are_refused(age: float) -> None:
    assert not accepts(signed(), now=NOW + age)


def test_the_tolerance_counts_from_what_was_signed() -> None:
    stale = signed(timestamp=str(NOW - 301))
    assert not accepts({**stale, "webhook-timestamp": str(NOW)})


@pytest.mark.parametrize(
    "timestamp", ["", " ", "-1", "1e9", "١٢٣", "²", "18000000000000", f"+{NOW}", f" {NOW}", f"{NOW}.0", "nan"]
)
def test_a_timestamp_that_is_no_number_of_seconds_is_refused(timestamp: str) -> None:
    assert not accepts(signed(timestamp=timestamp), now=NOW)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_every_header_is_needed(missing: str) -> None:
    headers = signed()
    del headers[missing]
    assert not accepts(headers)
    assert not accepts({**headers, missing: ""})


def test_another_body_id_or_time_is_refused() -> None:
    assert accepts(signed())
    assert not accepts(signed(), b'{"type": "DELETE"}')
    assert not accepts(signed(), BODY + b" ")
    assert not accepts({**signed(), "webhook-id": "msg_2"})
    assert not accepts({**signed(), "webhook-timestamp": str(NOW + 1)})


def test_no_byte_of_the_signature_can_be_altered() -> None:
    version, _, encoded = signed()["webhook-signature"].partition(",")
    raw = bytearray(base64.b64decode(encoded))
    for place in range(len(raw)):
        altered = bytes(b ^ (1 if n == place else 0) for n, b in enumerate(raw))
        assert not accepts({**signed(), "webhook-signature": f"{version},{base64.b64encode(altered).decode()}"})
    assert not accepts({**signed(), "webhook-signature": f"v1,{base64.b64encode(bytes(raw[:16])).decode()}"})


@pytest.mark.parametrize("version", ["v1a", "v2", "V1", "", "v1 "])
def test_only_version_one_counts(version: str) -> None:
    assert not accepts({**signed(), "webhook-signature": f"{version},{signature(KEY)[3:]}"})


def test_one_good_signature_among_several_is_enough() -> None:
    for words in (
        [signature(OTHER_KEY), signature(KEY)],
        [signature(KEY), signature(OTHER_KEY)],
        ["v1a,AAAA", "garbage", "v1,???", signature(KEY)],
    ):
        assert accepts({**signed(), "webhook-signature": " ".join(words)})


def test_a_flood_of_signatures_is_not_searched() -> None:
    flood = [signature(OTHER_KEY)] * 8
    assert accepts({**signed(), "webhook-signature": " ".join([*flood[:7], signature(KEY)])})
    assert not accepts({**signed(), "webhook-signature": " ".join([*flood, signature(KEY)])})


def test_while_rotating_both_secrets_are_accepted_and_afterwards_one() -> None:
    assert accepts(signed(KEY), keys=(OTHER_KEY, KEY))
    assert accepts(signed(OTHER_KEY), keys=(OTHER_KEY, KEY))
    assert not accepts(signed(KEY), keys=(OTHER_KEY,))


@pytest.mark.parametrize("keys", [(), (b"",), (b"", b"")])
def test_without_a_secret_everything_is_refused_even_what_the_empty_key_signed(keys: tuple[bytes, ...]) -> None:
    assert not accepts(signed(b""), keys=keys)
    assert not accepts(signed(KEY), keys=keys)
    assert not accepts({}, keys=keys)


@pytest.mark.parametrize("secret", [None, ""])
@pytest.mark.parametrize("headers", [{}, {"x-webhook-secret": ""}, {"x-webhook-secret": SHARED}])
def test_without_a_shared_secret_everything_is_refused_even_an_empty_header(
    headers: dict[str, str], secret: str | None
) -> None:
    with pytest.raises(SignatureWrong, match="configured"):
        verify_shared_secret(headers, secret)


def test_only_the_shared_secret_itself_is_accepted() -> None:
    verify_shared_secret({"x-webhook-secret": SHARED}, SHARED)
    for sent in ("", SHARED[:-1], SHARED + " ", SHARED.upper(), "ü" + SHARED):
        with pytest.raises(SignatureWrong):
            verify_shared_secret({"x-webhook-secret": sent}, SHARED)
    with pytest.raises(SignatureWrong):
        verify_shared_secret({}, SHARED)


@pytest.mark.parametrize("text", ["\ud800", "msg_\udfff", "msg_ü", "\x00"])
def test_text_that_no_header_can_hold_is_refused_like_any_other(text: str) -> None:
    # An event is JSON, and JSON may hold half of a surrogate pair.
    headers = signed()
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert not accepts({**headers, name: text})
    with pytest.raises(SignatureWrong):
        verify_shared_secret({"x-webhook-secret": text}, SHARED)


anything = st.text(st.characters(), max_size=80)


@given(
    headers=st.fixed_dictionaries(
        {},
        optional={
            "webhook-id": anything,
            "webhook-timestamp": st.one_of(anything, st.just(str(NOW)), st.integers().map(str)),
            "webhook-signature": st.one_of(anything, anything.map(lambda text: f"v1,{text} v1,")),
            "x-webhook-secret": anything,
        },
    ),
    body=st.binary(max_size=50),
)
def test_garbage_only_ever_raises_signature_wrong(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(SignatureWrong):
        verify_signature(headers, body, (os.urandom(32),), now_seconds=NOW)
    with pytest.raises(SignatureWrong):
        verify_shared_secret(headers, SHARED)
