"""The RPCs that Python declares are the ones that the database has: same names, same arguments, same callers."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from functions.clients.supabase import Rpc
from infra.local.stack import CHECKOUT
from tests.support.databases import Database

STORES = sorted((CHECKOUT / "functions").glob("*/store.py"))
CALLERS = ("anon", "authenticated", "service_role")
# What an own door takes besides.
PROOF = ("proof_id", "proof_expires_at", "proof")


def declared_rpcs() -> list[Rpc]:
    """Every `Rpc` in a store, and every own door as the call that it is."""
    found = []
    for path in STORES:
        module = importlib.import_module(".".join(path.relative_to(CHECKOUT).with_suffix("").parts))
        found += [value for value in vars(module).values() if isinstance(value, Rpc)]
    return found + [
        Rpc(rpc.own_door, (*(name for name in rpc.arguments if name != "user_id"), *PROOF), "authenticated")
        for rpc in found
        if rpc.own_door is not None
    ]


def test_stores_declare_rpcs() -> None:
    assert len(STORES) >= 3
    assert len(declared_rpcs()) >= 7


@pytest.mark.parametrize("rpc", declared_rpcs(), ids=lambda rpc: rpc.name)
async def test_declared_rpc_exists_with_these_arguments_for_exactly_this_role(rpc: Rpc, database: Database) -> None:
    found = await database.rows(
        "select p.oid, p.proargnames[1:p.pronargs] as arguments from pg_proc p"
        " where p.pronamespace = 'public'::regnamespace and p.proname = %s",
        (rpc.name,),
    )
    assert len(found) == 1, f"{rpc.name} must exist once: PostgREST can't choose between overloads"
    assert tuple(found[0]["arguments"] or ()) == rpc.arguments
    callers = [
        role
        for role in CALLERS
        if await database.value("select has_function_privilege(%s, %s::oid, 'execute')", (role, found[0]["oid"]))
    ]
    assert callers == [rpc.role]


async def test_every_door_in_public_is_declared_in_a_store(database: Database) -> None:
    """A door that nobody calls is a door to guard for nothing."""
    doors = {
        row["proname"]
        for row in await database.rows(
            "select proname from pg_proc where pronamespace = 'public'::regnamespace and prokind = 'f'"
        )
    }
    assert doors == {rpc.name for rpc in declared_rpcs()}


async def test_arguments_of_doors_are_scalars_or_arrays(database: Database) -> None:
    """json arguments arrive double-encoded at some servers (supabase.md 11)."""
    types = {
        row["type"]
        for row in await database.rows(
            "select distinct format_type(t.oid, null) as type from pg_proc p, unnest(p.proargtypes) as a"
            " join pg_type t on t.oid = a where p.pronamespace = 'public'::regnamespace"
        )
    }
    assert not types & {"json", "jsonb", "record", "hstore"}


def test_rpc_names_stand_only_in_stores() -> None:
    """Whoever needs a new call adds it to the store of its noun: that is the whole SQL vocabulary, on one page."""
    names = {rpc.name for rpc in declared_rpcs()}
    elsewhere = [
        f"{path.relative_to(CHECKOUT)}:{node.lineno} {node.value}"
        for path in _python_files()
        if path not in STORES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert not elsewhere


def _python_files() -> list[Path]:
    return sorted((CHECKOUT / "functions").rglob("*.py"))
