"""What a statement has read: the plans of it and of all that it called, as they were carried out.

Nothing is timed: a quick machine hides a plan that reads a whole table for each row of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from psycopg.errors import Diagnostic

from tests.support.databases import Database, Row

Node = dict[str, Any]

EXPLAINED = (
    "load 'auto_explain'",
    "set auto_explain.log_min_duration = 0",
    "set auto_explain.log_nested_statements = on",
    "set auto_explain.log_analyze = on",
    "set auto_explain.log_timing = off",
    "set auto_explain.log_format = json",
    "set client_min_messages = log",
)


async def explain(
    database: Database, statement: str, parameters: Sequence[object] = (), about: str = ""
) -> tuple[list[Row], list[Node]]:
    """What the statement returned, and the plans of all statements within in which these words stand."""
    plans: list[Node] = []

    def note(diagnostic: Diagnostic) -> None:
        _, _, plan = (diagnostic.message_primary or "").partition("plan:\n")
        if plan and about in plan:
            plans.append(json.loads(plan)["Plan"])

    async with database.connect() as connection:
        for setting in EXPLAINED:
            await connection.execute(setting)
        connection.add_notice_handler(note)
        return await (await connection.execute(statement, parameters)).fetchall(), plans


def nodes_of(plans: list[Node]) -> Iterator[Node]:
    """Every node of these plans that was carried out at all."""
    for plan in plans:
        if plan["Actual Loops"]:
            yield plan
        yield from nodes_of(plan.get("Plans", []))


def rows_read(node: Node) -> float:
    """What a node has looked at."""
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])
