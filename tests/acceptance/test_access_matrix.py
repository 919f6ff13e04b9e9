"""Every state of the keys, every kind of token, every operation: the outcome and the rung that carried it.

The table in docs/access.md is made of these cells, and this fails where the page says something else:
`make access-table` writes it. What must hold whatever the table says is asserted beside.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from functions.clients.supabase import Rpc
from functions.kit.errors import DoorkeyError
from functions.web.sessions import Session
from infra.local.edge import legacy_key
from infra.local.faults import EDGE, FaultControl
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.support.access import (
    ANOTHER_USERS,
    DECLARED,
    GOOD_TOKENS,
    NOBODY,
    NOBODYS,
    OPERATIONS,
    TOKENS,
    WRONG_KEY,
    Cell,
    Sandbox,
    newcomer,
    play,
    sandbox,
    settled,
)
from tests.support.people import database_of, token_for
from tests.support.secrets_used import leaks, remember

pytestmark = pytest.mark.timeout(900)

PAGE = CHECKOUT / "docs" / "access.md"
BEGIN, END = "<!-- the matrix: make access-table -->\n", "<!-- the end of the matrix -->\n"
SECRET_ID = "doorkey/matrix"
DATA_API = ["POST /rest/v1/rpc/"]
TIMEOUT_SECONDS = "0.2"


@dataclass(frozen=True)
class Keys:
    """A state of the keys, and of what they open.

    Attributes:
        changes: of the functions' settings.
        faults: what is ordered of the gateway.
        legacy: whether the legacy pair is on.
    """

    changes: dict[str, str]
    faults: dict[str, Any]
    legacy: bool = True


def states_of(stack: Stack, secret_id: str) -> dict[str, Keys]:
    """The columns of the table."""
    secret = stack.secrets.legacy_jwt_secret
    pair = {
        "SUPABASE_SECRET_KEY": legacy_key(secret, "service_role"),
        "SUPABASE_PUBLISHABLE_KEY": legacy_key(secret, "anon"),
    }
    rejected = {"SUPABASE_SECRET_KEY": WRONG_KEY}
    return {
        "good key": Keys({}, {}),
        "good legacy pair": Keys(pair, {}),
        "rejected": Keys(rejected, {}),
        "rejected, then rotated": Keys({**rejected, "DOORKEY_SECRET_ID": secret_id}, {}),
        "legacy pair off": Keys(pair, {}, legacy=False),
        "database down": Keys({}, {"errors": 1.0, "error_status": 503, "only": DATA_API}),
        "slow": Keys({"DOORKEY_OUTSIDE_TIMEOUT_SECONDS": TIMEOUT_SECONDS}, {"latency_ms": 600, "only": DATA_API}),
    }


@pytest.fixture(scope="module")
async def place() -> AsyncIterator[Stack]:
    """A stack of this module's own: its gateway fails on order, and nobody rings."""
    async with running_stack(StackOptions(sweep_seconds=0, forgets=True)) as stack:
        await database_of(stack).run("update doorkey.settings set webhook_url = null, max_keys_per_hour = null")
        yield stack


@pytest.fixture(scope="module")
def vault(place: Stack) -> Iterator[str]:
    """Secrets Manager, played by moto, with the right key in a stage's secret; its id."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "tell-nobody",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }.items():
            patch.setenv(name, value)
        content = json.dumps({"SUPABASE_SECRET_KEY": place.secrets.secret_key, "SUPABASE_PUBLISHABLE_KEY": ""})
        boto3.client("secretsmanager").create_secret(Name=SECRET_ID, SecretString=content)
        yield SECRET_ID
    server.stop()


async def switch_legacy(stack: Stack, *, on: bool) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.put(
            f"{stack.supabase_url}/edge/legacy-keys", json={"enabled": on}, headers={EDGE.header: "1"}
        )
        assert answer.status_code == 204


Matrix = dict[tuple[str, str, str], Cell]


@pytest.fixture(scope="module")
async def matrix(place: Stack, vault: str) -> Matrix:
    """All of it, by kind of token, operation and state of the keys. No token: nobody asked."""
    faults = FaultControl(EDGE, place.supabase_url)
    cells: Matrix = {}
    shared, other = await settled(place), await settled(place)
    for state, keys in states_of(place, vault).items():
        for what, operation in OPERATIONS.items():
            for kind in (*TOKENS, ANOTHER_USERS):
                caller = other if kind == ANOTHER_USERS else shared
                if "nothing yet" in what:
                    caller = await newcomer(place)
                elif "rotate" in what:
                    caller = await settled(place)
                make = TOKENS.get(kind, token_for)
                token = make(place, caller.user_id)
                cells[kind, what, state] = await in_state(place, faults, keys, operation, token, shared.user_id)
        for what, operation in NOBODYS.items():
            person = await (settled if "operator" in what else newcomer)(place)
            cells["", what, state] = await in_state(place, faults, keys, operation, None, person.user_id)
    return cells


async def in_state(
    stack: Stack, faults: FaultControl, keys: Keys, operation: Any, token: str | None, user_id: uuid.UUID
) -> Cell:
    """One cell while the keys and the gateway are so."""
    try:
        if keys.faults:
            await faults.order(**keys.faults)
        if not keys.legacy:
            await switch_legacy(stack, on=False)
        return await play(stack, keys.changes, operation, token, user_id)
    finally:
        if keys.faults:
            await faults.clear()
        if not keys.legacy:
            await switch_legacy(stack, on=True)


def table_of(matrix: Matrix, kind: str) -> str:
    """One kind of token: operations by states."""
    states = list(dict.fromkeys(state for _, _, state in matrix))
    operations = list(dict.fromkeys(what for k, what, _ in matrix if k == kind))
    lines = ["| what is asked | " + " | ".join(states) + " |", "| --- |" + " --- |" * len(states)]
    lines += [f"| {what} | " + " | ".join(str(matrix[kind, what, s]) for s in states) + " |" for what in operations]
    return "\n".join(lines) + "\n"


def page_of(matrix: Matrix) -> str:
    """Kinds of tokens that come to the same stand together."""
    alike: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kind for kind, _, _ in matrix):
        alike.setdefault(table_of(matrix, kind), []).append(kind)
    parts = []
    for table, kinds in alike.items():
        title = "Nobody asks" if kinds == [""] else "With " + "; ".join(kinds)
        parts.append(f"### {title}\n\n{table}")
    return "\n".join(parts)


async def test_the_page_says_what_happens(matrix: Matrix, request: pytest.FixtureRequest) -> None:
    written = PAGE.read_text()
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    right = f"{before}{BEGIN}\n{page_of(matrix)}\n{END}{after}"
    if request.config.getoption("--write"):
        PAGE.write_text(right)
    else:
        assert written == right, "Run make access-table, and look at the difference."


def test_who_is_nobodys_session_opens_nothing_in_any_state_of_the_keys(matrix: Matrix) -> None:
    bad = [cell for (kind, _, _), cell in matrix.items() if kind not in (*GOOD_TOKENS, ANOTHER_USERS, "")]
    assert len(bad) == 5 * len(OPERATIONS) * 7
    assert set(bad) == {Cell(401, "user_token_rejected", NOBODY)}


def test_with_the_service_key_rejected_everybody_who_brings_a_token_is_served(matrix: Matrix) -> None:
    for kind in (*GOOD_TOKENS, ANOTHER_USERS):
        for what in OPERATIONS:
            assert matrix[kind, what, "rejected"].status == matrix[kind, what, "good key"].status == 200, (kind, what)
            assert matrix[kind, what, "rejected"].rung in ("3", "own")
            assert matrix[kind, what, "rejected, then rotated"].rung in ("2", "own")


def test_only_a_rejection_leads_to_another_rung(matrix: Matrix) -> None:
    for (_, what, state), cell in matrix.items():
        if state in ("good key", "good legacy pair", "database down", "slow"):
            assert cell.rung in ("1", "own", NOBODY), (what, state)
        if state in ("database down", "slow") and cell.rung != NOBODY:
            assert cell.code == "supabase_answer_lost", (what, state)


def test_a_legacy_pair_that_is_off_is_named_by_the_key_that_was_the_last_chance(matrix: Matrix) -> None:
    for kind in (*GOOD_TOKENS, ANOTHER_USERS):
        for what in OPERATIONS:
            assert matrix[kind, what, "legacy pair off"] == Cell(503, "publishable_key_rejected", NOBODY), what
    for what in NOBODYS:
        assert matrix["", what, "legacy pair off"] == Cell(503, "service_key_rejected", NOBODY)


async def test_another_users_token_shows_nothing_of_mine_on_any_rung(place: Stack, vault: str) -> None:
    mine, theirs = await settled(place), await settled(place)
    for keys in (states_of(place, vault)[name] for name in ("good key", "rejected", "rejected, then rotated")):
        for what, operation in OPERATIONS.items():
            cell = await play(place, keys.changes, operation, theirs.token, mine.user_id)
            assert cell.status == 200
            assert str(mine.user_id) not in cell.body, what


# What each state comes to where there is an own door and a token to open it, and where not: the rung, or the code.
WALKS = {
    "good key": ("1", "1"),
    "good legacy pair": ("1", "1"),
    "rejected": ("3", "service_key_rejected"),
    "rejected, then rotated": ("2", "2"),
    "legacy pair off": ("publishable_key_rejected", "service_key_rejected"),
}


@pytest.mark.parametrize("state", WALKS)
async def test_every_door_that_a_store_declares_walks_the_same_rungs(place: Stack, vault: str, state: str) -> None:
    """Without any content: what a door says to that is its own business."""
    person = await newcomer(place)
    session = Session(person.user_id, person.token, is_anonymous=False)
    keys = states_of(place, vault)[state]
    await switch_legacy(place, on=keys.legacy)
    try:
        async with sandbox(place, keys.changes) as made:
            for rpc in (rpc for rpc in DECLARED if rpc.role == "service_role"):
                arguments = {name: str(person.user_id) if name == "user_id" else None for name in rpc.arguments}
                for caller in (session, None):
                    made.wire.heard.clear()
                    code = await code_of(made, rpc, arguments, caller)
                    expected = WALKS[state][0 if caller is not None and rpc.own_door is not None else 1]
                    assert expected in (made.rung, code), (rpc.name, caller is not None, made.rung, code)
                    assert (made.rung == NOBODY) == code.endswith("_key_rejected"), (rpc.name, code)
    finally:
        await switch_legacy(place, on=True)


async def code_of(made: Sandbox, rpc: Rpc, arguments: dict[str, Any], caller: Session | None) -> str:
    """The error's, if there is one."""
    try:
        await made.clients.supabase.call(rpc, arguments, session=caller)
    except DoorkeyError as error:
        return error.code
    return ""


def test_no_secret_is_among_the_answers(matrix: Matrix, place: Stack) -> None:
    for value in place.secrets.all_values():
        remember("a secret of the stack", value)
    for (_, what, _), cell in matrix.items():
        # The one route that is there to show a secret.
        if "key" not in what:
            assert leaks(cell.body.encode()) <= {"an e-mail address", "an e-mail address of a person"}, what
