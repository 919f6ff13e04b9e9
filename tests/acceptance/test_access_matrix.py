"""Every state of the keys, every kind of token, every operation and every door: what came of it, and over which rung.

The tables in docs/access.md are made of these cells, and this fails where the page says something else:
`make access-table` writes them. What must hold whatever the tables say is asserted beside.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

import boto3
import pytest
from moto.server import ThreadedMotoServer

from functions.clients.supabase import Rpc
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.support.access import (
    BESIDE_THE_LADDER,
    DECLARED,
    LET_IN,
    NOBODY,
    NOBODYS,
    OF_OPERATORS,
    OPERATIONS,
    Cell,
    Operation,
    Sandbox,
    newcomer,
    play,
    play_door,
    sandbox,
    settled,
)
from tests.support.access_states import Keys, in_state, states_of
from tests.support.people import database_of
from tests.support.secrets_used import leaks, remember
from tests.support.tokens import ANOTHER_USERS, BAD_TOKENS, GOOD_TOKENS, NO_TOKEN, admins_token

pytestmark = pytest.mark.timeout(900)

PAGE = CHECKOUT / "docs" / "access.md"
MATRIX = ("<!-- the matrix: make access-table -->\n", "<!-- the end of the matrix -->\n")
DOORS = ("<!-- the doors: make access-table -->\n", "<!-- the end of the doors -->\n")
SECRET_ID = "doorkey/matrix"
STATES = 7
# So many sandboxes, or so many calls of doors.
SANDBOXES_AT_ONCE = 8
DOORS_AT_ONCE = 32
USERS = (*GOOD_TOKENS, *ANOTHER_USERS)
OPERATORS = ("the operator token", "an admin's JWT")
NOBODY_ASKS = ""
# In the order of the page.
WHATS = (*OPERATIONS, *OF_OPERATORS, *NOBODYS, *BESIDE_THE_LADDER, *sorted(f"`{rpc.name}`" for rpc in DECLARED))

# By kind of token (none: nobody asked), operation or door, and state of the keys.
Matrix = dict[tuple[str, str, str], Cell]


class Play(NamedTuple):
    """One operation as it is asked for, in any state."""

    kind: str
    what: str
    operation: Operation
    token: str | None
    about: uuid.UUID


@pytest.fixture(scope="module")
async def place() -> AsyncIterator[Stack]:
    """A stack of this module's own: its gateway fails on order, and nobody rings."""
    async with running_stack(StackOptions(sweep_seconds=0, forgets=True)) as stack:
        await database_of(stack).run("update doorkey.settings set webhook_url = null, max_keys_per_hour = null")
        yield stack


@pytest.fixture(scope="module")
def states(place: Stack) -> Iterator[dict[str, Keys]]:
    """The columns. Secrets Manager is played by moto, with the right key in a stage's secret."""
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
        yield states_of(place, SECRET_ID)
    server.stop()


async def side_by_side(acts: Iterable[Callable[[], Awaitable[None]]], turn: asyncio.Semaphore) -> None:
    """A few at once: most of them wait for somebody. Each is a task, and so hears its own calls."""

    async def one(act: Callable[[], Awaitable[None]]) -> None:
        async with turn:
            await act()

    async with asyncio.TaskGroup() as group:
        for act in acts:
            group.create_task(one(act))


async def plays_of(stack: Stack, shared: uuid.UUID, other: uuid.UUID) -> list[Play]:
    """All that is asked with a token, each for somebody who is as it needs them. Made while all is well."""
    plays = []
    nothing_yet = (await newcomer(stack)).user_id
    for what, operation in (OPERATIONS | OF_OPERATORS).items():
        for kind, make in {**GOOD_TOKENS, **ANOTHER_USERS}.items():
            user_id = other if kind in ANOTHER_USERS else shared
            if "nothing yet" in what:
                user_id = (await newcomer(stack)).user_id
            elif "rotate" in what:
                user_id = (await settled(stack)).user_id
            plays.append(Play(kind, what, operation, make(stack, user_id), shared))
        for kind, bad in BAD_TOKENS.items():
            user_id = nothing_yet if "nothing yet" in what else shared
            plays.append(Play(kind, what, operation, bad(stack, user_id), shared))
    for what, operation in OF_OPERATORS.items():
        for kind, token in zip(OPERATORS, (stack.secrets.operator_token, admins_token(stack, other)), strict=True):
            # Of somebody whose plan nobody changed yet.
            about = (await settled(stack)).user_id if "plan" in what else shared
            plays.append(Play(kind, what, operation, token, about))
    return plays


@pytest.fixture(scope="module")
async def matrix(place: Stack, states: dict[str, Keys]) -> Matrix:
    """Every operation."""
    shared, other = (await settled(place)).user_id, (await settled(place)).user_id
    turn = asyncio.Semaphore(SANDBOXES_AT_ONCE)
    cells: Matrix = {}
    for state, keys in states.items():

        async def one(asked: Play, state: str = state, keys: Keys = keys) -> None:
            async with sandbox(place, keys.changes) as made:
                cells[asked.kind, asked.what, state] = await play(made, *asked[2:])

        async def all_refused(plays: list[Play], state: str = state, keys: Keys = keys) -> None:
            # They get nowhere, and leave a sandbox as it was.
            async with sandbox(place, keys.changes) as made:
                for asked in plays:
                    cells[asked.kind, asked.what, state] = await play(made, *asked[2:])

        plays = await plays_of(place, shared, other)
        hinted = (await newcomer(place)).user_id
        refused = [[asked for asked in plays if asked.kind == kind] for kind in BAD_TOKENS]
        async with in_state(place, keys):
            acts = [partial(one, asked) for asked in plays if asked.kind not in BAD_TOKENS]
            await side_by_side([*acts, *(partial(all_refused, of_kind) for of_kind in refused)], turn)
            for what, operation in (NOBODYS | BESIDE_THE_LADDER).items():
                await asyncio.create_task(one(Play(NOBODY_ASKS, what, operation, None, hinted)))
    return cells


@pytest.fixture(scope="module")
async def doors(place: Stack, states: dict[str, Keys]) -> Matrix:
    """Every door that a store declares, without any content: what it says to that is its own business."""
    mine, theirs = (await newcomer(place)).user_id, (await newcomer(place)).user_id
    tokens = {kind: make(place, mine) for kind, make in (GOOD_TOKENS | BAD_TOKENS).items()}
    tokens |= {kind: make(place, theirs) for kind, make in ANOTHER_USERS.items()}
    # As a handler meets it: without a token nobody's session is there to be passed on.
    tokens |= {NO_TOKEN: "", NOBODY_ASKS: None}
    turn = asyncio.Semaphore(DOORS_AT_ONCE)
    cells: Matrix = {}
    for state, keys in states.items():
        async with in_state(place, keys), AsyncExitStack() as sandboxes:
            acts = []
            for kind in tokens:
                made = await sandboxes.enter_async_context(sandbox(place, keys.changes))

                async def one(kind: str, rpc: Rpc, made: Sandbox = made, state: str = state) -> None:
                    cells[kind, f"`{rpc.name}`", state] = await play_door(made, rpc, tokens[kind], mine)

                asked = [rpc for rpc in DECLARED if kind != NOBODY_ASKS or rpc.role == "service_role"]
                acts += [partial(one, kind, rpc) for rpc in asked]
            await side_by_side(acts, turn)
    return cells


# The page


def rows_of(matrix: Matrix, kind: str) -> dict[str, list[Cell]]:
    """One kind of token: each operation in all states."""
    states = list(dict.fromkeys(state for _, _, state in matrix))
    return {
        what: [matrix[kind, what, state] for state in states] for what in WHATS if (kind, what, states[0]) in matrix
    }


def table_of(rows: dict[str, list[Cell]], states: list[str], first: str) -> str:
    """Operations by states."""
    lines = [f"| {first} | " + " | ".join(states) + " |", "| --- |" + " --- |" * len(states)]
    lines += [f"| {what} | " + " | ".join(map(str, cells)) + " |" for what, cells in rows.items()]
    return "\n".join(lines) + "\n"


def together(rows: dict[str, list[Cell]]) -> dict[str, list[Cell]]:
    """Doors that come to the same stand together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for what, cells in rows.items():
        alike.setdefault(tuple(map(str, cells)), []).append(what)
    return {", ".join(whats): rows[whats[0]] for whats in alike.values()}


def tables_of(matrix: Matrix, *, is_of_doors: bool) -> str:
    """Kinds of tokens that come to the same stand together."""
    states = list(dict.fromkeys(state for _, _, state in matrix))
    there = {kind for kind, _, _ in matrix}
    alike: dict[str, list[str]] = {}
    for kind in (kind for kind in (*USERS, *OPERATORS, *BAD_TOKENS, NOBODY_ASKS) if kind in there):
        rows = rows_of(matrix, kind)
        table = table_of(together(rows), states, "doors") if is_of_doors else table_of(rows, states, "what is asked")
        alike.setdefault(table, []).append(kind)
    parts = []
    for table, kinds in alike.items():
        title = "Nobody asks" if kinds == [NOBODY_ASKS] else "With " + "; ".join(kinds)
        parts.append(f"{'####' if is_of_doors else '###'} {title}\n\n{table}")
    return "\n".join(parts)


def compare(request: pytest.FixtureRequest, marks: tuple[str, str], tables: str) -> None:
    """Holds the page against the tables, or writes them into it."""
    begin, end = marks
    written = PAGE.read_text()
    before, _, rest = written.partition(begin)
    _, _, after = rest.partition(end)
    right = f"{before}{begin}\n{tables}\n{end}{after}"
    if request.config.getoption("--write"):
        PAGE.write_text(right)
    else:
        assert written == right, "Run make access-table, and look at the difference."


async def test_the_page_says_what_happens(matrix: Matrix, request: pytest.FixtureRequest) -> None:
    compare(request, MATRIX, tables_of(matrix, is_of_doors=False))


async def test_the_page_says_what_becomes_of_each_door(doors: Matrix, request: pytest.FixtureRequest) -> None:
    compare(request, DOORS, tables_of(doors, is_of_doors=True))


# Whatever the page says


def test_all_of_it_was_played(matrix: Matrix, doors: Matrix) -> None:
    asked = len(USERS) + len(BAD_TOKENS)
    by_users, by_operators = asked * len(OPERATIONS | OF_OPERATORS), len(OPERATORS) * len(OF_OPERATORS)
    assert len(matrix) == (by_users + by_operators + len(NOBODYS | BESIDE_THE_LADDER)) * STATES
    by_nobody = [rpc for rpc in DECLARED if rpc.role == "service_role"]
    assert len(doors) == (asked * len(DECLARED) + len(by_nobody)) * STATES


def test_who_is_nobodys_session_opens_nothing_in_any_state_of_the_keys(matrix: Matrix, doors: Matrix) -> None:
    bad = {key: cell for key, cell in {**matrix, **doors}.items() if key[0] in BAD_TOKENS}
    refused, not_an_operators = (Cell(401, code, NOBODY) for code in ("user_token_rejected", "operator_token_rejected"))
    for (kind, what, state), cell in bad.items():
        expected = not_an_operators if what in OF_OPERATORS and kind == NO_TOKEN else refused
        assert cell == expected, (kind, what, state)


def test_what_is_an_operators_opens_for_no_user_and_by_the_service_key_alone(matrix: Matrix) -> None:
    for (kind, what, state), cell in matrix.items():
        if what in OF_OPERATORS and kind in USERS:
            assert cell == Cell(403, "admin_required", NOBODY), (kind, what, state)
        elif kind in OPERATORS:
            # An admin's own token shows who asks; it is no rung.
            assert cell.rung in ("1", "2", NOBODY), (kind, what, state)
            assert (cell.rung == NOBODY) == (cell.code == "service_key_rejected"), (kind, what, state)


def test_with_the_service_key_rejected_everybody_who_brings_a_token_is_served(matrix: Matrix) -> None:
    for kind in USERS:
        for what in OPERATIONS:
            assert matrix[kind, what, "rejected"].status == matrix[kind, what, "good key"].status == 200, (kind, what)
            assert matrix[kind, what, "rejected"].rung in ("3", "own")
            assert matrix[kind, what, "rejected, then rotated"].rung in ("2", "own")


def test_only_a_rejection_leads_to_another_rung(matrix: Matrix, doors: Matrix) -> None:
    for (_, what, state), cell in {**matrix, **doors}.items():
        if state in ("good key", "good legacy pair", "database down", "slow"):
            assert cell.rung in ("1", "own", NOBODY), (what, state)
        if state in ("database down", "slow") and cell.rung != NOBODY and what not in BESIDE_THE_LADDER:
            assert cell.code == "supabase_answer_lost", (what, state)


def test_a_legacy_pair_that_is_off_is_named_by_the_key_that_was_the_last_chance(matrix: Matrix) -> None:
    for kind in USERS:
        for what in OPERATIONS:
            assert matrix[kind, what, "legacy pair off"] == Cell(503, "publishable_key_rejected", NOBODY), what
    for what in NOBODYS:
        assert matrix[NOBODY_ASKS, what, "legacy pair off"] == Cell(503, "service_key_rejected", NOBODY)


def test_a_signup_needs_the_publishable_key_alone_and_readiness_says_what_is_broken(matrix: Matrix) -> None:
    signup, ready = BESIDE_THE_LADDER
    for state in {state for _, _, state in matrix}:
        is_off = state == "legacy pair off"
        expected = PUBLISHABLE_KEY_REJECTED if is_off else Cell(200, "", NOBODY)
        assert matrix[NOBODY_ASKS, signup, state] == expected, state
        is_well = state in ("good key", "good legacy pair", "rejected, then rotated")
        cell = matrix[NOBODY_ASKS, ready, state]
        assert (cell.status, cell.code) == ((200, "") if is_well else (503, "broken")), state


SERVICE_KEY_REJECTED = Cell(503, "service_key_rejected", NOBODY)
PUBLISHABLE_KEY_REJECTED = Cell(503, "publishable_key_rejected", NOBODY)
# What each state comes to: with an own door and a token to open it; without; for what is one's own from the start.
WALKS = {
    "good key": (Cell(LET_IN, "", "1"), Cell(LET_IN, "", "1"), Cell(LET_IN, "", "own")),
    "good legacy pair": (Cell(LET_IN, "", "1"), Cell(LET_IN, "", "1"), Cell(LET_IN, "", "own")),
    "rejected": (Cell(LET_IN, "", "3"), SERVICE_KEY_REJECTED, Cell(LET_IN, "", "own")),
    "rejected, then rotated": (Cell(LET_IN, "", "2"), Cell(LET_IN, "", "2"), Cell(LET_IN, "", "own")),
    "legacy pair off": (PUBLISHABLE_KEY_REJECTED, SERVICE_KEY_REJECTED, PUBLISHABLE_KEY_REJECTED),
    **dict.fromkeys(
        ("database down", "slow"),
        tuple(Cell(504, "supabase_answer_lost", rung) for rung in ("1", "1", "own")),
    ),
}


def walk_of(rpc: Rpc, kind: str) -> int:
    if rpc.role == "authenticated":
        return 2
    return 0 if kind in USERS and rpc.own_door is not None else 1


def test_every_door_that_a_store_declares_walks_the_same_rungs(doors: Matrix) -> None:
    for (kind, what, state), cell in doors.items():
        if kind not in BAD_TOKENS:
            (rpc,) = (rpc for rpc in DECLARED if f"`{rpc.name}`" == what)
            assert cell == WALKS[state][walk_of(rpc, kind)], (kind, what, state)


async def test_another_users_token_shows_nothing_of_mine_on_any_rung(place: Stack, states: dict[str, Keys]) -> None:
    mine, theirs = await settled(place), await settled(place)
    for keys in (states[name] for name in ("good key", "rejected", "rejected, then rotated")):
        for what, operation in OPERATIONS.items():
            async with sandbox(place, keys.changes) as made:
                cell = await play(made, operation, theirs.token, mine.user_id)
            assert cell.status == 200
            assert str(mine.user_id) not in cell.body, what


def test_no_secret_is_among_the_answers(matrix: Matrix, place: Stack) -> None:
    for value in place.secrets.all_values():
        remember("a secret of the stack", value)
    for (_, what, _), cell in matrix.items():
        # The one route that is there to show a secret.
        if "key" not in what:
            assert leaks(cell.body.encode()) <= {"an e-mail address", "an e-mail address of a person"}, what
