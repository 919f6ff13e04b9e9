"""Proofs as they are made. That the database reckons the same is seen in database/test_own_doors.py."""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from functions.clients.proofs import PROOF_SECONDS, Argument, Proofs
from functions.kit.settings import decode_webhook_secret
from tests.support.environment import OTHER_WEBHOOK_SECRET, WEBHOOK_SECRET

NOW = 1_800_000_000.9
KEY = decode_webhook_secret(WEBHOOK_SECRET)
OTHER_KEY = decode_webhook_secret(OTHER_WEBHOOK_SECRET)
USER = uuid.UUID("A0000000-0000-4000-8000-00000000000B")
ARGUMENTS = st.lists(st.none() | st.booleans() | st.integers() | st.text("é€:,-0123t", max_size=5), max_size=4)


def signed(*secrets: bytes, door: str = "a_door", arguments: dict[str, Argument] | None = None) -> dict[str, Any]:
    return dict(Proofs(secrets, clock=lambda: NOW).sign(door, USER, arguments or {}))


def test_the_signature_is_over_door_user_arguments_id_and_expiry() -> None:
    arguments: dict[str, Argument] = {"a": None, "b": True, "c": -7, "d": "é:,", "e": ""}
    proof = signed(KEY, arguments=arguments)
    expected = (
        b"13:doorkey.proof,6:a_door,36:a0000000-0000-4000-8000-00000000000b,"
        b"-,4:true,2:-7,4:\xc3\xa9:,,0:," + f"36:{proof['proof_id']},10:{1_800_000_000 + PROOF_SECONDS},".encode()
    )
    signature = base64.b64encode(hmac.new(KEY, expected, hashlib.sha256).digest()).decode()
    assert proof["proof"] == f"v1,{signature}"
    assert proof["proof_expires_at"] == 1_800_000_000 + PROOF_SECONDS


def test_every_known_secret_signs_and_without_one_there_is_no_signature() -> None:
    first, second = signed(KEY, OTHER_KEY)["proof"].split(" ")
    assert first != second
    assert signed()["proof"] == ""


def test_no_two_proofs_are_the_same() -> None:
    assert signed(KEY)["proof_id"] != signed(KEY)["proof_id"]


@given(one=ARGUMENTS, other=ARGUMENTS)
@example(one=["a,b"], other=["a", "b"])
@example(one=[None], other=["-"])
def test_other_arguments_have_another_signature(one: list[Argument], other: list[Argument]) -> None:
    texts = [
        [None if a is None else str(a).lower() if isinstance(a, bool) else str(a) for a in x] for x in (one, other)
    ]
    proof_id = uuid.uuid4()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uuid, "uuid4", lambda: proof_id)
        proofs = [signed(KEY, arguments={str(n): a for n, a in enumerate(x)})["proof"] for x in (one, other)]
    assert (proofs[0] == proofs[1]) == (texts[0] == texts[1])


@pytest.mark.parametrize("value", [0.1, Decimal(1), ["a"], {"a": 1}, b"a", USER])
def test_what_the_database_may_write_otherwise_is_not_signed(value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        signed(KEY, arguments={"a": value})
