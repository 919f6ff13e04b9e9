"""The access ladder, rung by rung: what each call carried, what is remembered, and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import httpx
import pytest

from functions.clients.secrets_manager import SecretUnreadable
from functions.clients.supabase import (
    DatabaseRefused,
    ProofRejected,
    PublishableKeyRejected,
    Rpc,
    ServiceKeyRejected,
    Supabase,
    SupabaseAnswerLost,
    SupabaseUnreachable,
)
from functions.kit.errors import DoorkeyError, RlsDenied, UserTokenRejected
from functions.kit.observability import logger, start_logging
from functions.web.sessions import Session
from tests.support.environment import COMPLETE, OTHER_WEBHOOK_SECRET, WEBHOOK_SECRET, settings
from tests.unit.clients.test_supabase import GATEWAY, postgrest

USER = UUID(int=7)
TOKEN = "eyJ.a-persons.token"
SOMEBODY = Session(USER, TOKEN, is_anonymous=False)
BOTH = Rpc("do_something", ("user_id", "amount", "request_id"), "service_role", own_door="do_my_something")
SERVICE_ONLY = Rpc("list_something", ("user_id", "amount", "request_id"), "service_role")
OWN = Rpc("get_my_something", (), "authenticated")
ARGUMENTS = {"user_id": str(USER), "amount": 5, "request_id": "r"}
OLD, NEW = COMPLETE["SUPABASE_SECRET_KEY"], "sb_secret_that-took-its-place"
OLD_PUBLIC, NEW_PUBLIC = COMPLETE["SUPABASE_PUBLISHABLE_KEY"], "sb_publishable_that-took-its-place"
SECRET_ID = "doorkey/prod"


class Gateway:
    """Lets in who has a valid key, and keeps what came: ``service``, ``own`` and the door."""

    def __init__(self, *valid: str) -> None:
        self.valid = set(valid)
        self.refusal: dict[str, str] = GATEWAY["deleted key"]
        self.answer: httpx.Response | Exception = httpx.Response(200, json="done")
        self.calls: list[tuple[str, str]] = []
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        key = request.headers["apikey"]
        self.calls.append((key, request.url.path.rpartition("/")[2]))
        self.requests.append(request)
        if key not in self.valid:
            return httpx.Response(401, json=self.refusal)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Vault:
    """Secrets Manager: what the stage's secret holds, and how often it was read."""

    def __init__(self, **content: str) -> None:
        self.content: dict[str, str] | SecretUnreadable = content
        self.reads: list[str] = []

    def __call__(self, secret_id: str) -> Mapping[str, str]:
        self.reads.append(secret_id)
        if isinstance(self.content, SecretUnreadable):
            raise self.content
        return self.content


class Sandbox:
    """One sandbox: its memory, its clock, its log."""

    def __init__(self, gateway: Gateway, vault: Vault | None = None, **changes: str) -> None:
        self.now = 1_000_020.0
        self.gateway = gateway
        self.vault = vault or Vault()
        usual = {"DOORKEY_WEBHOOK_SECRETS": f"{WEBHOOK_SECRET},{OTHER_WEBHOOK_SECRET}"}
        chosen = settings(**{**usual, **({"DOORKEY_SECRET_ID": SECRET_ID} if vault else {}), **changes})
        http = httpx.AsyncClient(transport=httpx.MockTransport(gateway))
        self.database = Supabase(http, chosen, lambda: self.now, self.vault)

    async def call(self, rpc: Rpc = BOTH, session: Session | None = SOMEBODY) -> Any:
        return await self.database.call(rpc, {name: ARGUMENTS[name] for name in rpc.arguments}, session=session)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as on Lambda."""
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    stream = io.StringIO()
    start_logging(stream, metrics_stage="prod")
    yield stream
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


def lines_of(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == event]


async def test_a_good_service_key_carries_the_call_and_the_token_stays_here() -> None:
    gateway = Gateway(OLD, OLD_PUBLIC)
    assert await Sandbox(gateway).call() == "done"
    assert gateway.calls == [(OLD, "do_something")]
    assert TOKEN not in str(gateway.requests[0].headers.raw)


async def test_a_rejected_key_that_was_rotated_is_read_again_and_used_from_then_on(log: io.StringIO) -> None:
    gateway, vault = Gateway(NEW, OLD_PUBLIC), Vault(SUPABASE_SECRET_KEY=NEW, OPENROUTER_MANAGEMENT_KEY="sk-other")
    sandbox = Sandbox(gateway, vault)
    assert await sandbox.call(SERVICE_ONLY, None) == "done"
    assert await sandbox.call() == "done"
    assert [key for key, _ in gateway.calls] == [OLD, NEW, NEW]
    assert vault.reads == [SECRET_ID]
    assert lines_of(log, "key.rejected") == []
    (line,) = lines_of(log, "key.replaced")
    assert line["key"] == "SUPABASE_SECRET_KEY"
    assert NEW not in log.getvalue()


async def test_a_key_that_stays_rejected_opens_nothing_and_the_secret_is_read_once_a_minute() -> None:
    gateway, vault = Gateway(OLD_PUBLIC), Vault(SUPABASE_SECRET_KEY=OLD)
    sandbox = Sandbox(gateway, vault)
    for _ in range(5):
        with pytest.raises(ServiceKeyRejected):
            await sandbox.call(SERVICE_ONLY)
    assert gateway.calls == [(OLD, "list_something")], "a key that is known to be bad costs no round trip"
    assert vault.reads == [SECRET_ID]
    sandbox.now += 61
    with pytest.raises(ServiceKeyRejected):
        await sandbox.call(SERVICE_ONLY)
    assert len(gateway.calls) == len(vault.reads) == 2


async def test_a_key_that_is_mended_where_it_is_heals_within_a_minute() -> None:
    gateway = Gateway(OLD_PUBLIC)
    sandbox = Sandbox(gateway)
    with pytest.raises(ServiceKeyRejected):
        await sandbox.call(SERVICE_ONLY)
    gateway.valid.add(OLD)
    sandbox.now += 59
    with pytest.raises(ServiceKeyRejected):
        await sandbox.call(SERVICE_ONLY)
    sandbox.now += 2
    assert await sandbox.call(SERVICE_ONLY) == "done"


async def test_a_crowd_that_is_rejected_reads_the_secret_once_and_all_are_served() -> None:
    gateway, vault = Gateway(NEW), Vault(SUPABASE_SECRET_KEY=NEW)
    sandbox = Sandbox(gateway, vault)
    assert await asyncio.gather(*(sandbox.call(SERVICE_ONLY) for _ in range(20))) == ["done"] * 20
    assert vault.reads == [SECRET_ID]
    assert [key for key, _ in gateway.calls].count(NEW) == 20


async def test_both_keys_are_taken_from_one_reading() -> None:
    """Legacy keys go off as a pair, and are replaced as a pair."""
    gateway = Gateway(NEW, NEW_PUBLIC)
    gateway.refusal = GATEWAY["legacy keys off"]
    vault = Vault(SUPABASE_SECRET_KEY=NEW, SUPABASE_PUBLISHABLE_KEY=NEW_PUBLIC)
    sandbox = Sandbox(gateway, vault)
    assert await sandbox.call(SERVICE_ONLY) == "done"
    assert await sandbox.call(OWN) == "done"
    assert [key for key, _ in gateway.calls] == [OLD, NEW, NEW_PUBLIC]
    assert vault.reads == [SECRET_ID]


async def test_a_publishable_key_that_was_rotated_is_read_again_too() -> None:
    gateway, vault = Gateway(OLD, NEW_PUBLIC), Vault(SUPABASE_PUBLISHABLE_KEY=NEW_PUBLIC)
    sandbox = Sandbox(gateway, vault)
    assert await sandbox.call(OWN) == "done"
    assert (await sandbox.database.sign_up(b"{}", "", None, {})).status == 200
    assert [key for key, _ in gateway.calls] == [OLD_PUBLIC, NEW_PUBLIC, NEW_PUBLIC]


async def test_a_signup_alone_finds_the_rotated_key_too() -> None:
    sandbox = Sandbox(Gateway(NEW_PUBLIC), Vault(SUPABASE_PUBLISHABLE_KEY=NEW_PUBLIC))
    assert (await sandbox.database.sign_up(b"{}", "", None, {})).status == 200
    assert [key for key, _ in sandbox.gateway.calls] == [OLD_PUBLIC, NEW_PUBLIC]


async def test_a_call_on_the_own_door_that_is_made_again_has_a_proof_of_its_own() -> None:
    class Late(Vault):
        def __call__(self, secret_id: str) -> Mapping[str, str]:
            sandbox.now += 5
            return super().__call__(secret_id)

    sandbox = Sandbox(Gateway(OLD_PUBLIC), vault := Late())
    assert await sandbox.call() == "done"
    # The rejection is remembered still, and the secret may be read again.
    sandbox.now += 57
    sandbox.gateway.valid, vault.content = {NEW_PUBLIC}, {"SUPABASE_PUBLISHABLE_KEY": NEW_PUBLIC}
    assert await sandbox.call() == "done"
    assert [key for key, _ in sandbox.gateway.calls][-2:] == [OLD_PUBLIC, NEW_PUBLIC]
    first, again = (json.loads(request.content)["proof_id"] for request in sandbox.gateway.requests[-2:])
    assert first != again


@pytest.mark.parametrize(
    "content",
    [
        {"SUPABASE_SECRET_KEY": NEW_PUBLIC},
        {"SUPABASE_SECRET_KEY": "two words of a secret"},
        {"SUPABASE_SECRET_KEY": "short"},
        {"SUPABASE_SECRET_KEY": "  "},
        {},
        SecretUnreadable("AccessDeniedException"),
    ],
    ids=["publishable", "two words", "short", "empty", "nothing", "unreadable"],
)
async def test_what_is_no_usable_key_is_not_taken(content: dict[str, str] | SecretUnreadable, log: io.StringIO) -> None:
    gateway, vault = Gateway(OLD_PUBLIC), Vault()
    vault.content = content
    with pytest.raises(ServiceKeyRejected):
        await Sandbox(gateway, vault).call(SERVICE_ONLY)
    assert gateway.calls == [(OLD, "list_something")]
    assert "two words" not in log.getvalue()
    if content and content != {"SUPABASE_SECRET_KEY": "  "}:
        assert len(lines_of(log, "secret.not_taken")) == 1


async def test_without_a_secret_to_read_nobody_is_asked() -> None:
    sandbox = Sandbox(Gateway(OLD_PUBLIC))
    with pytest.raises(ServiceKeyRejected):
        await sandbox.call(SERVICE_ONLY)
    assert sandbox.vault.reads == []


@pytest.mark.parametrize("session", [None, SOMEBODY])
async def test_without_an_own_door_or_a_token_the_answer_is_that_the_key_is_rejected(session: Session | None) -> None:
    gateway = Gateway(OLD_PUBLIC)
    with pytest.raises(ServiceKeyRejected):
        await Sandbox(gateway).call(BOTH if session is None else SERVICE_ONLY, session)
    assert [key for key, _ in gateway.calls] == [OLD]


async def test_nobody_is_asked_for_by_somebody_else() -> None:
    other = Session(UUID(int=8), TOKEN, is_anonymous=False)
    gateway = Gateway(OLD, OLD_PUBLIC)
    with pytest.raises(TypeError, match="user it is about"):
        await Sandbox(gateway).call(session=other)
    assert gateway.calls == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (postgrest(401, "42501"), RlsDenied),
        (postgrest(403, "42501"), RlsDenied),
        (httpx.Response(403, json=GATEWAY["wrong key"]), DoorkeyError),
        (httpx.Response(500), DoorkeyError),
        (httpx.Response(503), SupabaseAnswerLost),
        (httpx.ReadTimeout("x"), SupabaseAnswerLost),
        (httpx.ConnectError("x"), SupabaseUnreachable),
        (postgrest(409, "PT409", "lease_lost"), DatabaseRefused),
    ],
)
async def test_only_a_rejection_leads_to_the_next_rung(
    answer: httpx.Response | Exception, expected: type[DoorkeyError], log: io.StringIO
) -> None:
    gateway, vault = Gateway(OLD, OLD_PUBLIC), Vault(SUPABASE_SECRET_KEY=NEW)
    gateway.answer = answer
    sandbox = Sandbox(gateway, vault)
    for _ in range(2):
        with pytest.raises(expected):
            await sandbox.call()
    # Asked again the second time: nothing is remembered of it.
    assert gateway.calls == [(OLD, "do_something")] * 2
    assert vault.reads == []
    assert "KeysRejected" not in log.getvalue()


async def test_a_rejection_is_said_once_a_minute_with_the_metric_and_how_many_calls_it_met(log: io.StringIO) -> None:
    sandbox = Sandbox(Gateway(OLD_PUBLIC))
    for minute in range(60):
        for second in range(0, 60, 20):
            sandbox.now = 1_000_020.0 + 60 * minute + second
            with pytest.raises(ServiceKeyRejected):
                await sandbox.call(SERVICE_ONLY)
    lines = lines_of(log, "key.rejected")
    assert [line["KeysRejected"] for line in lines] == [1] * 60
    assert [line["calls"] for line in lines] == [1] + [3] * 59
    assert {line["key"] for line in lines} == {"SUPABASE_SECRET_KEY"}
    assert {line["code"] for line in lines} == {"service_key_rejected"}
    assert "deleted, rotated" in lines[-1]["detail"]
    assert OLD not in log.getvalue()


async def test_legacy_keys_that_are_off_are_told_apart_by_the_gateways_words() -> None:
    gateway = Gateway()
    gateway.refusal = GATEWAY["legacy keys off"]
    for rpc, expected in ((SERVICE_ONLY, ServiceKeyRejected), (OWN, PublishableKeyRejected)):
        with pytest.raises(expected) as caught:
            await Sandbox(gateway).call(rpc)
        assert "the legacy keys are switched off, both of them" in caught.value.private


async def test_a_rejected_service_key_leads_to_the_own_door_with_the_persons_token_and_a_proof() -> None:
    gateway = Gateway(OLD_PUBLIC)
    sandbox = Sandbox(gateway)
    assert await sandbox.call() == "done"
    assert await sandbox.call() == "done"
    own = (OLD_PUBLIC, "do_my_something")
    assert gateway.calls == [(OLD, "do_something"), own, own], "the second time one round trip, as with a good key"
    ids = set()
    for request in gateway.requests[1:]:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert OLD not in str(request.headers.raw)
        content = json.loads(request.content)
        assert list(content) == ["amount", "request_id", "proof_id", "proof_expires_at", "proof"]
        assert len(content["proof"].split()) == 2, "one for each secret that is known"
        assert sandbox.now < content["proof_expires_at"] <= sandbox.now + 300
        ids.add(content["proof_id"])
    assert len(ids) == 2, "a proof holds once"


async def test_one_persons_token_is_not_kept_for_the_next_call_on_the_own_door() -> None:
    gateway = Gateway(OLD_PUBLIC)
    sandbox = Sandbox(gateway)
    await sandbox.call()
    with pytest.raises(ServiceKeyRejected):
        await sandbox.call(session=None)
    other = Session(UUID(int=8), "eyJ.anothers.token", is_anonymous=False)
    await sandbox.database.call(BOTH, {**ARGUMENTS, "user_id": str(other.user_id)}, session=other)
    assert TOKEN not in str(gateway.requests[-1].headers.raw)


async def test_without_a_webhook_secret_there_is_nothing_to_prove_with() -> None:
    gateway = Gateway(OLD_PUBLIC)
    with pytest.raises(ServiceKeyRejected):
        await Sandbox(gateway, DOORKEY_WEBHOOK_SECRETS="").call()
    assert [key for key, _ in gateway.calls] == [OLD]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (postgrest(401, "PGRST303", "JWT expired"), UserTokenRejected),
        (postgrest(401, "PGRST302"), UserTokenRejected),
        (postgrest(403, "42501"), RlsDenied),
        (postgrest(403, "PT403", "proof_invalid"), ProofRejected),
        (postgrest(403, "PT403", "proof_used"), ProofRejected),
        (postgrest(409, "PT409", "lease_lost"), DatabaseRefused),
        (httpx.Response(401, json=GATEWAY["deleted key"]), PublishableKeyRejected),
        (httpx.ReadTimeout("x"), SupabaseAnswerLost),
    ],
)
async def test_what_the_own_door_refuses_is_named_by_whose_credentials_failed(
    answer: httpx.Response | Exception, expected: type[DoorkeyError]
) -> None:
    gateway = Gateway(OLD_PUBLIC)
    gateway.answer = answer
    with pytest.raises(expected):
        await Sandbox(gateway).call()
    assert [key for key, _ in gateway.calls] == [OLD, OLD_PUBLIC]


async def test_a_legacy_pair_that_is_off_leaves_no_rung_and_the_public_key_is_named(log: io.StringIO) -> None:
    gateway = Gateway()
    gateway.refusal = GATEWAY["legacy keys off"]
    sandbox = Sandbox(gateway)
    for _ in range(3):
        with pytest.raises(PublishableKeyRejected):
            await sandbox.call()
    assert [key for key, _ in gateway.calls] == [OLD, OLD_PUBLIC]
    assert {line["key"] for line in lines_of(log, "key.rejected")} == {
        "SUPABASE_SECRET_KEY",
        "SUPABASE_PUBLISHABLE_KEY",
    }


async def test_no_token_or_key_is_logged_on_any_rung(log: io.StringIO) -> None:
    vault = Vault(SUPABASE_SECRET_KEY=NEW, SUPABASE_PUBLISHABLE_KEY=NEW_PUBLIC)
    for gateway in (Gateway(), Gateway(NEW), Gateway(NEW_PUBLIC), Gateway(OLD_PUBLIC)):
        sandbox = Sandbox(gateway, vault)
        with contextlib.suppress(DoorkeyError):
            await sandbox.call()
    for secret in (OLD, NEW, OLD_PUBLIC, NEW_PUBLIC, TOKEN, WEBHOOK_SECRET):
        assert secret not in log.getvalue()
