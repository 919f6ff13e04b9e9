"""A person's own doors: a function of ours may do for them what it may do with the service key, and nobody else may.

Everything is tried as that person, by their JWT's claims: the doors without a proof, or with one that is wrong in any
way, and all that somebody would try by hand who wants more than is theirs.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import SEALED, Doors, key_hash, refused
from tests.support.environment import OTHER_WEBHOOK_SECRET, WEBHOOK_SECRET
from tests.support.own_doors import OWN_DOORS, SAMPLES, Arguments, OwnDoors

CREDITS = 1000
CROWD = 64
# Everything that a call could change, but the audit log's ids.
STATE = (
    "doorkey.provisioning",
    "doorkey.credit_holds",
    "doorkey.credit_lots",
    "doorkey.ledger_entries",
    "doorkey.sealed_secrets",
    "doorkey.settings",
    "doorkey.used_proofs",
    "doorkey.audit_log",
    "public.credit_accounts",
    "public.credit_transactions",
    "public.openrouter_user_keys",
    "public.profiles",
)


@pytest.fixture
async def installed(database: Database) -> Database:
    await database.run("update doorkey.settings set webhook_secret = %s", (WEBHOOK_SECRET,))
    await database.run("update public.plans set welcome_credits_micros = %s", (CREDITS,))
    return database


@pytest.fixture
async def mine(installed: Database) -> OwnDoors:
    """Of somebody who is due."""
    return OwnDoors(installed, await installed.insert_user())


@pytest.fixture
async def ready(mine: OwnDoors) -> OwnDoors:
    """Of somebody with a key."""
    await Doors(mine.database).make_ready(mine.user_id)
    return mine


async def state_of(database: Database) -> dict[str, list[Row]]:
    return {table: await database.rows(f"select * from {table} as t order by t::text") for table in STATE}


def test_every_own_door_is_tried_here() -> None:
    assert SAMPLES.keys() == OWN_DOORS.keys()
    for door, rpc in OWN_DOORS.items():
        assert tuple(SAMPLES[door]) == tuple(name for name in rpc.arguments if name != "user_id")


# What the doors do


async def test_a_whole_life_under_ones_own_token(mine: OwnDoors) -> None:
    claim = await mine.row("claim_my_provisioning")
    assert (claim["user_id"], claim["action"], claim["limit_micros"]) == (mine.user_id, "create", CREDITS)
    finished: Arguments = {"attempt": claim["attempt"], "limit_micros": CREDITS, "key_label": "sk-or-v1-abc...123"}
    assert [await mine.word("finish_my_provisioning", **finished) for _ in range(2)] == ["ready", "ready"]
    assert await mine.row("reveal_my_key") == {"revealed_key_hash": key_hash("mine"), "sealed_secret": SEALED}

    first, second = [(await mine.reserve(300, key)) for key in ("first", "second")]
    assert (await mine.reserve(300, "first"))["hold_id"] == first["hold_id"]
    assert await mine.settle(first["hold_id"], 350) == {"charged_micros": 350, "owed_micros": 0}
    assert await mine.settle(first["hold_id"], 350) == {"charged_micros": 350, "owed_micros": 0}
    assert await mine.word("release_my_hold", hold_id=str(second["hold_id"])) == "released"

    assert await mine.word("request_my_key_rotation") == "due"
    claim = await mine.row("claim_my_provisioning")
    made: Arguments = {"attempt": claim["attempt"], "key_hash": key_hash("new"), "key_name": "new"}
    assert await mine.word("finish_my_provisioning", **made, limit_micros=claim["limit_micros"]) == "due"
    for _ in range(4):
        rows = await mine.call("claim_my_provisioning", SAMPLES["claim_my_provisioning"])
        if not rows:
            break
        claim = rows[0]
        done: Arguments = {"attempt": claim["attempt"], "key_hash": claim["key_hash"]}
        if claim["action"] == "update":
            limit: Arguments = {"limit_micros": claim["limit_micros"], "is_enabled": claim["is_enabled"]}
            assert await mine.word("finish_my_key_update", **done, **limit)
        else:
            assert await mine.word("finish_my_key_deletion", **done)
    keys = await Doors(mine.database).keys(mine.user_id)
    assert [(key["key_name"], key["status"]) for key in keys] == [("mine", "deleted"), ("new", "active")]
    assert await Doors(mine.database).state(mine.user_id) == "ready"

    assert await mine.word("recheck_my_key") == "due"
    assert await mine.word("defer_my_provisioning", attempt=await claimed(mine)) == "due"
    await mine.database.run("update doorkey.provisioning set due_at = now()")
    assert await mine.word("hold_my_provisioning", attempt=await claimed(mine)) == "due"
    held = await mine.database.value("select held_reason from doorkey.settings")
    assert held == SAMPLES["hold_my_provisioning"]["error"]
    assert await Credits(mine.database).balances(mine.user_id) == (CREDITS - 350, 0, 0)
    assert await Credits(mine.database).broken_rules() == []


async def claimed(mine: OwnDoors) -> int:
    return int((await mine.row("claim_my_provisioning"))["attempt"])


async def test_claiming_enrols_whom_the_trigger_missed_and_nobody_from_before(installed: Database) -> None:
    missed, old = [OwnDoors(installed, await installed.insert_user()) for _ in range(2)]
    await installed.run("delete from doorkey.provisioning")
    await installed.run("update auth.users set created_at = '2020-01-01' where id = %s", (old.user_id,))
    assert (await missed.row("claim_my_provisioning"))["limit_micros"] == CREDITS
    assert await old.call("claim_my_provisioning", SAMPLES["claim_my_provisioning"]) == []


async def test_claims_at_once_over_either_door_are_one_lease_and_one_welcome(mine: OwnDoors) -> None:
    doors = Doors(mine.database)
    answers = await asyncio.gather(
        *(mine.call("claim_my_provisioning", SAMPLES["claim_my_provisioning"]) for _ in range(8)),
        *(doors.claim(mine.user_id) for _ in range(8)),
    )
    assert sum(bool(answer) for answer in answers) == 1
    await doors.expire_lease(mine.user_id)
    assert (await mine.row("claim_my_provisioning"))["attempt"] == 2
    assert await mine.database.value("select count(*) from public.credit_transactions where type = 'bonus'") == 1
    assert await Credits(mine.database).balances(mine.user_id) == (CREDITS, 0, 0)


@pytest.mark.parametrize("doors", ["own", "either"])
async def test_of_64_holds_at_once_exactly_those_are_given_that_the_balance_covers(ready: OwnDoors, doors: str) -> None:
    credit_doors = Credits(ready.database)
    answers = await asyncio.gather(
        *(
            credit_doors.reserve(ready.user_id, CREDITS // 10)
            if doors == "either" and n % 2
            else ready.reserve(CREDITS // 10, f"own {n}")
            for n in range(CROWD)
        ),
        return_exceptions=True,
    )
    refusals = [answer for answer in answers if isinstance(answer, psycopg.Error)]
    assert {refusal.diag.message_primary for refusal in refusals} == {"insufficient_credits"}
    assert len(refusals) == CROWD - 10
    assert await credit_doors.balances(ready.user_id) == (0, CREDITS, 0)
    assert await credit_doors.broken_rules() == []


# What they refuse


@pytest.mark.parametrize(
    "secrets",
    [(WEBHOOK_SECRET, OTHER_WEBHOOK_SECRET), (OTHER_WEBHOOK_SECRET, WEBHOOK_SECRET)],
    ids=["not_yet_known", "known_before"],
)
async def test_while_a_secret_rotates_either_will_do(ready: OwnDoors, secrets: tuple[str, ...]) -> None:
    rotating = OwnDoors(ready.database, ready.user_id, secrets)
    assert await rotating.row("reveal_my_key")


FORGED = "v1," + base64.b64encode(bytes(32)).decode()


def with_a_bit_turned(proof: Arguments) -> Arguments:
    signature = bytearray(base64.b64decode(proof["proof"].removeprefix("v1,")))
    signature[-1] ^= 1
    return proof | {"proof": "v1," + base64.b64encode(signature).decode()}


# What is done to a right proof of this call, and the word that answers.
WRONG_PROOFS: dict[str, tuple[Callable[[OwnDoors, str, Arguments], Arguments], str]] = {
    "none": (lambda *_: dict.fromkeys(("proof_id", "proof_expires_at", "proof")), "proof_invalid"),
    "empty": (lambda m, d, a: m.proof(d, a) | {"proof": ""}, "proof_invalid"),
    "forged": (lambda m, d, a: m.proof(d, a) | {"proof": FORGED}, "proof_invalid"),
    "nearly_right": (lambda m, d, a: with_a_bit_turned(m.proof(d, a)), "proof_invalid"),
    "by_another_secret": (
        lambda m, d, a: OwnDoors(m.database, m.user_id, (OTHER_WEBHOOK_SECRET,)).proof(d, a),
        "proof_invalid",
    ),
    "another_users": (lambda m, d, a: m.of(uuid.uuid4()).proof(d, a), "proof_invalid"),
    "another_doors": (lambda m, d, a: m.proof(f"{d}s", a), "proof_invalid"),
    "the_service_doors": (lambda m, d, a: m.proof(OWN_DOORS[d].name, a), "proof_invalid"),
    "of_fewer_arguments": (lambda m, d, a: m.proof(d, dict(list(a.items())[:-1])), "proof_invalid"),
    "of_more_arguments": (lambda m, d, a: m.proof(d, a | {"more": None}), "proof_invalid"),
    "with_another_id": (lambda m, d, a: m.proof(d, a) | {"proof_id": str(uuid.uuid4())}, "proof_invalid"),
    "made_to_last": (
        lambda m, d, a: (proof := m.proof(d, a)) | {"proof_expires_at": proof["proof_expires_at"] + 1},
        "proof_invalid",
    ),
    "behind_too_many": (
        lambda m, d, a: (proof := m.proof(d, a)) | {"proof": " ".join([FORGED] * 8 + [proof["proof"]])},
        "proof_invalid",
    ),
    "expired": (lambda m, d, a: OwnDoors(m.database, m.user_id, skew_seconds=-160).proof(d, a), "proof_expired"),
    "for_too_long": (lambda m, d, a: OwnDoors(m.database, m.user_id, skew_seconds=160).proof(d, a), "proof_expired"),
}


@pytest.mark.parametrize("door", SAMPLES)
async def test_an_own_door_wants_the_proof_of_a_function(mine: OwnDoors, door: str) -> None:
    arguments = SAMPLES[door]
    await Doors(mine.database).claimed(mine.user_id)
    before = await state_of(mine.database)
    for change, word in WRONG_PROOFS.values():
        with refused("PT403", word):
            await mine.call(door, arguments, change(mine, door, arguments))
    for other in SAMPLES.keys() - {door}:
        with refused("PT403", "proof_invalid"):
            await mine.call(door, arguments, mine.proof(other, arguments))
    assert await state_of(mine.database) == before


OTHER_VALUES: dict[type, Any] = {int: 2, bool: False, str: "other", type(None): "other"}


@pytest.mark.parametrize(("door", "name"), [(door, name) for door, sample in SAMPLES.items() for name in sample])
async def test_a_proof_is_over_every_argument(mine: OwnDoors, door: str, name: str) -> None:
    """Another cost, another key, another limit: none of it can be put in the place of what the function asked."""
    arguments = SAMPLES[door]
    value = arguments[name]
    changed: object = not value if isinstance(value, bool) else OTHER_VALUES[type(value)]
    if name == "hold_id":
        changed = str(uuid.uuid4())
    elif name == "cost_micros":
        changed = "0"
    with refused("PT403", "proof_invalid"):
        await mine.call(door, arguments | {name: changed}, mine.proof(door, arguments))
    with refused("PT403", "proof_invalid"):
        await mine.call(door, arguments | {name: None if value is not None else ""}, mine.proof(door, arguments))


async def test_a_proof_holds_once(ready: OwnDoors) -> None:
    arguments = SAMPLES["reserve_my_credits"]
    proof = ready.proof("reserve_my_credits", arguments)
    await ready.call("reserve_my_credits", arguments, proof)
    before = await state_of(ready.database)
    for _ in range(2):
        with refused("PT403", "proof_used"):
            await ready.call("reserve_my_credits", arguments, proof)
    assert await state_of(ready.database) == before


async def test_a_proof_sent_many_times_at_once_holds_once(ready: OwnDoors) -> None:
    arguments = SAMPLES["request_my_key_rotation"]
    proof = ready.proof("request_my_key_rotation", arguments)
    answers = await asyncio.gather(
        *(ready.call("request_my_key_rotation", arguments, proof) for _ in range(16)), return_exceptions=True
    )
    words = [answer.diag.message_primary for answer in answers if isinstance(answer, psycopg.Error)]
    assert words == ["proof_used"] * 15


async def test_a_call_that_came_to_nothing_has_used_no_proof(ready: OwnDoors) -> None:
    arguments = SAMPLES["reserve_my_credits"] | {"amount_micros": CREDITS + 1}
    proof = ready.proof("reserve_my_credits", arguments)
    for _ in range(2):
        with refused("PT402", "insufficient_credits"):
            await ready.call("reserve_my_credits", arguments, proof)
    await Doors(ready.database).grant(ready.user_id, 1, "one more")
    assert await ready.call("reserve_my_credits", arguments, proof)


async def test_without_a_signing_secret_the_doors_are_shut(ready: OwnDoors) -> None:
    await ready.database.run("update doorkey.settings set webhook_secret = null, webhook_url = null")
    for proof in (None, ready.proof("reveal_my_key", SAMPLES["reveal_my_key"]) | {"proof": ""}):
        with refused("PT403", "proof_invalid"):
            await ready.call("reveal_my_key", SAMPLES["reveal_my_key"], proof)


async def test_what_signs_a_hint_makes_no_proof(ready: OwnDoors) -> None:
    """Both are made with one secret. Even who could have any hint signed could not have a proof signed."""
    arguments = SAMPLES["reveal_my_key"]
    proof = ready.proof("reveal_my_key", arguments)
    parts = [
        "doorkey.proof",
        "reveal_my_key",
        str(ready.user_id),
        "r",
        proof["proof_id"],
        str(proof["proof_expires_at"]),
    ]
    signed = "".join(f"{len(part)}:{part}," for part in parts)
    # As a hint is signed: id, time and body.
    for cut in range(0, len(signed), 7):
        hint = await ready.database.value(
            "select doorkey.sign_webhook(%s, %s, '1800000000', %s)", (WEBHOOK_SECRET, signed[:cut], signed[cut:])
        )
        with refused("PT403", "proof_invalid"):
            await ready.call("reveal_my_key", arguments, proof | {"proof": hint})


async def test_only_a_hold_of_ones_own_can_be_closed(ready: OwnDoors) -> None:
    somebody = ready.of(await ready.database.insert_user())
    await Doors(ready.database).make_ready(somebody.user_id)
    hold_id = str((await somebody.reserve(100, "theirs"))["hold_id"])
    before = await Credits(ready.database).hold(uuid.UUID(hold_id))
    with refused("PT404", "hold_not_found"):
        await ready.word("settle_my_hold", hold_id=hold_id)
    with refused("PT404", "hold_not_found"):
        await ready.word("release_my_hold", hold_id=hold_id)
    assert await Credits(ready.database).hold(uuid.UUID(hold_id)) == before


# What no function of ours would ask, though it be signed: by door and argument, and what answers.
ABSURD: list[tuple[str, str, Any, str]] = [
    *(
        ("settle_my_hold", "cost_micros", cost, "amount_out_of_range")
        for cost in ("-1", "NaN", "Infinity", "1" + "0" * 30)
    ),
    ("settle_my_hold", "tokens", -1, "amount_out_of_range"),
    *(("reserve_my_credits", "ttl_seconds", ttl, "ttl_out_of_range") for ttl in (None, 0, -1, 86_401, 2**31 - 1)),
    *(("reserve_my_credits", "amount_micros", amount, "amount_out_of_range") for amount in (None, 0, -1, 2**63 - 1)),
]


@pytest.mark.parametrize(("door", "name", "value", "word"), ABSURD)
async def test_an_absurd_value_is_refused_by_hand_and_with_a_right_proof_alike(
    ready: OwnDoors, door: str, name: str, value: object, word: str
) -> None:
    hold_id = str((await ready.reserve(100, "mine"))["hold_id"])
    arguments = SAMPLES[door] | {name: value} | ({"hold_id": hold_id} if door == "settle_my_hold" else {})
    before = await state_of(ready.database)
    with refused("PT403", "proof_invalid"):
        await ready.call(door, arguments, dict.fromkeys(("proof_id", "proof_expires_at", "proof"), None))
    with pytest.raises(psycopg.Error, match=word) as caught:
        await ready.call(door, arguments)
    assert str(caught.value.sqlstate).startswith("PT4")
    assert await state_of(ready.database) == before


async def test_a_token_without_a_person_opens_nothing(ready: OwnDoors) -> None:
    """Not even with a proof for nobody: behind the door, nobody's hold would be anybody's."""
    hold_id = str((await ready.reserve(100, "mine"))["hold_id"])
    expires_at = int(time.time()) + 60
    parts = ["doorkey.proof", "release_my_hold", None, hold_id, "r", "id", str(expires_at)]
    proof = await ready.database.value("select doorkey.sign_proof(%s, %s)", (WEBHOOK_SECRET, parts))
    async with ready.database.acting_as("authenticated") as connection:
        with refused("PT403", "proof_invalid"):
            await connection.execute(
                "select public.release_my_hold(%s, 'r', 'id', %s, %s)", (hold_id, expires_at, proof)
            )


ODD_VALUES: list[Any] = [
    *(
        None,
        "",
        "-",
        "-,",
        "0:,",
        "1:a,",
        "a:b",
        "a,b",
        "é",
        "日本語 🔑",
        "\\",
        "'",
        '"',
        "%s",
        "\n",
        " x ",
        "null",
        "true",
    ),
    *(True, False, 0, -1, 2**63 - 1, -(2**63)),
]


async def test_the_database_and_the_functions_sign_alike(mine: OwnDoors) -> None:
    """Whatever stands in the arguments, and wherever one ends and the next begins."""
    types = {bool: "boolean", int: "bigint", str: "text", type(None): "text"}
    async with mine.database.connect() as connection:
        await connection.execute(
            "select set_config('request.jwt.claims', %s, false)", (f'{{"sub": "{mine.user_id}"}}',)
        )
        await connection.execute("select set_config('request.jwt.claim.sub', %s, false)", (str(mine.user_id),))
        for values in [[value] for value in ODD_VALUES] + [ODD_VALUES, []]:
            proof = mine.proof("any_door", {str(n): value for n, value in enumerate(values)})
            texts = ", ".join(f"%s::{types[type(value)]}::text" for value in values)
            statement = f"select doorkey.use_proof('any_door', array[{texts}]::text[], %s, %s, %s) as user_id"
            (row,) = await (await connection.execute(statement, (*values, *proof.values()))).fetchall()
            assert row["user_id"] == mine.user_id
