"""A person's own doors at the Data API of the running stack: what arrives is what was signed, and nothing else does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from functions.clients.proofs import Proofs
from functions.kit.clock import Clock, system_clock
from functions.kit.settings import decode_webhook_secret
from infra.local.stack import Stack
from tests.support.own_doors import OWN_DOORS, SAMPLES
from tests.support.people import Person, database_of, insert_person, until_state

CREDITS = 5_000_000
CROWD = 64
ODD_TEXTS = ["", "a:b,c", "é 日本語 🔑", '"quoted" \\ and\nbroken', "null", "-", "%00", "<script>"]


@dataclass(frozen=True)
class Caller:
    """Somebody signed in, with their app's key; and the functions, when they sign."""

    stack: Stack
    http: httpx.AsyncClient
    person: Person

    def proof(
        self, door: str, arguments: Mapping[str, Any], user_id: uuid.UUID | None = None, clock: Clock = system_clock
    ) -> dict[str, Any]:
        """As the functions make it; for somebody else, or at another time."""
        secret = decode_webhook_secret(self.stack.secrets.webhook_secret)
        return dict(Proofs([secret], clock).sign(door, user_id or self.person.user_id, arguments))

    async def call(self, door: str, proof: Mapping[str, Any] | None = None, **arguments: object) -> httpx.Response:
        """Calls a door, by default with a proof of its own; what is not given is as in its sample."""
        sent = SAMPLES[door] | arguments
        return await self.http.post(
            f"{self.stack.supabase_url}/rest/v1/rpc/{door}",
            headers={"apikey": self.stack.secrets.publishable_key, **self.person.headers},
            json={**sent, **(self.proof(door, sent) if proof is None else proof)},
        )

    async def row(self, door: str, **arguments: object) -> dict[str, Any]:
        """The row that it answers."""
        answer = await self.call(door, None, **arguments)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()
        return dict(row)


@pytest.fixture
async def caller(stack: Stack, http: httpx.AsyncClient) -> Caller:
    """Somebody with a key."""
    person = await insert_person(stack)
    await until_state(stack, person.user_id)
    return Caller(stack, http, person)


def word(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["message"]


@pytest.mark.parametrize("text", ODD_TEXTS)
async def test_whatever_stands_in_an_argument_arrives_as_it_was_signed(caller: Caller, text: str) -> None:
    hold = await caller.row("reserve_my_credits", amount_micros=100, idempotency_key=f"{uuid.uuid4()}{text}")
    settled = {"hold_id": hold["hold_id"], "cost_micros": "12.340", "provider": text, "model": None}
    assert await caller.row("settle_my_hold", **settled) == {"charged_micros": 12, "owed_micros": 0}
    assert await caller.row("settle_my_hold", **settled) == {"charged_micros": 12, "owed_micros": 0}
    stored = await database_of(caller.stack).value(
        "select provider from doorkey.credit_holds where id = %s", (hold["hold_id"],)
    )
    assert stored == text


@pytest.mark.parametrize("door", SAMPLES)
async def test_by_hand_the_doors_are_shut(caller: Caller, door: str) -> None:
    other = uuid.uuid4()
    wrong = {
        "none": {},
        "empty": dict.fromkeys(("proof_id", "proof_expires_at", "proof")),
        "forged": caller.proof(door, SAMPLES[door]) | {"proof": "v1," + "A" * 43 + "="},
        "another door's": caller.proof(OWN_DOORS[door].name, SAMPLES[door]),
        "another user's": caller.proof(door, SAMPLES[door], other),
        "expired": caller.proof(door, SAMPLES[door], clock=lambda: 1_700_000_000.0),
    }
    answers = {name: await caller.call(door, proof) for name, proof in wrong.items()}
    assert answers.pop("none").json()["code"] == "PGRST202"
    assert word(answers.pop("expired")) == (403, "proof_expired")
    assert {word(answer) for answer in answers.values()} == {(403, "proof_invalid")}
    with_user = await caller.call(door, user_id=str(other))
    assert with_user.json()["code"] == "PGRST202"


async def test_a_proof_that_was_seen_opens_nothing_more(caller: Caller) -> None:
    hold = await caller.row("reserve_my_credits", idempotency_key=uuid.uuid4().hex)
    arguments = {**SAMPLES["settle_my_hold"], "hold_id": hold["hold_id"]}
    proof = caller.proof("settle_my_hold", arguments)
    cheaper = await caller.call("settle_my_hold", proof, **{**arguments, "cost_micros": "0"})
    assert word(cheaper) == (403, "proof_invalid")
    assert (await caller.call("settle_my_hold", proof, **arguments)).status_code == 200
    assert word(await caller.call("settle_my_hold", proof, **arguments)) == (403, "proof_used")


async def test_of_64_holds_at_once_exactly_those_are_given_that_the_balance_covers(caller: Caller) -> None:
    answers = await asyncio.gather(
        *(
            caller.call("reserve_my_credits", amount_micros=CREDITS // 10, idempotency_key=uuid.uuid4().hex)
            for _ in range(CROWD)
        )
    )
    assert sum(answer.status_code == 200 for answer in answers) == 10
    assert {word(answer) for answer in answers if answer.status_code != 200} == {(402, "insufficient_credits")}
