"""What a person may see of their own: under their token; with the secret key only where the publishable one fails."""

from __future__ import annotations

import json

import httpx
import pytest

from functions.clients.supabase import (
    PublishableKeyRejected,
    Rpc,
    SupabaseAnswerLost,
    SupabaseError,
)
from functions.kit.errors import RlsDenied, UserTokenRejected
from tests.unit.clients.test_access import OLD, OLD_PUBLIC, TOKEN, USER, Gateway, Sandbox
from tests.unit.clients.test_supabase import postgrest

MINE = Rpc("list_my_something", ("amount",), "authenticated", service_door="list_something")


async def test_with_good_keys_the_persons_token_carries_it_and_the_secret_key_stays_at_home() -> None:
    gateway = Gateway(OLD, OLD_PUBLIC)
    assert await Sandbox(gateway).call(MINE) == "done"
    assert gateway.calls == [(OLD_PUBLIC, "list_my_something")]
    assert gateway.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


async def test_where_the_publishable_key_is_rejected_the_secret_key_reads_it_for_that_very_person() -> None:
    gateway = Gateway(OLD)
    sandbox = Sandbox(gateway)
    assert await sandbox.call(MINE) == "done"
    assert await sandbox.call(MINE) == "done"
    served = (OLD, "list_something")
    assert gateway.calls == [(OLD_PUBLIC, "list_my_something"), served, served], "the second time one round trip"
    for request in gateway.requests[1:]:
        assert json.loads(request.content) == {"user_id": str(USER), "amount": 5}
        assert TOKEN not in str(request.headers.raw)


async def test_where_both_are_rejected_the_publishable_key_is_named() -> None:
    gateway = Gateway()
    with pytest.raises(PublishableKeyRejected):
        await Sandbox(gateway).call(MINE)
    assert [key for key, _ in gateway.calls] == [OLD_PUBLIC, OLD]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (postgrest(401, "PGRST303", "JWT expired"), UserTokenRejected),
        (postgrest(403, "42501"), RlsDenied),
        (httpx.Response(503, text="down"), SupabaseError),
        (httpx.ReadTimeout("x"), SupabaseAnswerLost),
    ],
)
async def test_nothing_but_a_rejection_brings_the_secret_key_into_it(
    answer: httpx.Response | Exception, expected: type[Exception]
) -> None:
    gateway = Gateway(OLD, OLD_PUBLIC)
    gateway.answer = answer
    with pytest.raises(expected):
        await Sandbox(gateway).call(MINE)
    assert [key for key, _ in gateway.calls] == [OLD_PUBLIC]
