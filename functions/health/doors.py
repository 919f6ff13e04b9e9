"""Which doors there ought to be in the database, and who may go through each: read off from the stores.

The surprising thing: the stores are looked for, not listed, so that a new noun can't be forgotten.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import functions
from functions.clients.proofs import PROOF_ARGUMENTS
from functions.clients.supabase import Rpc


@cache
def declared_doors() -> tuple[Rpc, ...]:
    """Every door that a store declares, and behind them people's own ones to the same."""
    nouns = sorted(path.parent.name for root in functions.__path__ for path in Path(root).glob("*/store.py"))
    stores = [importlib.import_module(f"functions.{noun}.store") for noun in nouns]
    doors = tuple(value for store in stores for value in vars(store).values() if isinstance(value, Rpc))
    return doors + tuple(_own(rpc, rpc.own_door) for rpc in doors if rpc.own_door is not None)


def _own(rpc: Rpc, name: str) -> Rpc:
    """Whose door it is the token says, and that a function asks the proof."""
    arguments = (argument for argument in rpc.arguments if argument != "user_id")
    return Rpc(name, (*arguments, *PROOF_ARGUMENTS), "authenticated")


def missing_doors(found: list[dict[str, Any]]) -> list[str]:
    """Doors that are declared and not there, or with other arguments.

    Args:
        found: the functions in `public` that the database reports.
    """
    there = {(door["name"], tuple(door["arguments"])) for door in found}
    return [rpc.name for rpc in declared_doors() if (rpc.name, rpc.arguments) not in there]


def shut_doors(found: list[dict[str, Any]]) -> list[str]:
    """Doors through which those they were made for can't go."""
    return [
        door["name"]
        for door, role in _with_role(found)
        if role not in door["callers"] or role not in door["callers_behind"]
    ]


def wide_open_doors(found: list[dict[str, Any]]) -> list[str]:
    """Doors that somebody else may use too."""
    return [door["name"] for door, role in _with_role(found) if {*door["callers"], *door["callers_behind"]} - {role}]


def open_inside(found: list[dict[str, Any]], inside: list[dict[str, Any]]) -> list[str]:
    """Functions of schema `doorkey` that somebody may call besides those whose door they stand behind.

    Args:
        found: the functions in `public`, each with what is behind it.
        inside: the functions in `doorkey` that somebody may call, and who.
    """
    behind = {(name, role) for door, role in _with_role(found) for name in door["behind"]}
    return [
        f"doorkey.{function['name']}"
        for function in inside
        if {(function["name"], role) for role in function["callers"]} - behind
    ]


def _with_role(found: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    roles = {rpc.name: rpc.role for rpc in declared_doors()}
    return [(door, roles[door["name"]]) for door in found if door["name"] in roles]
