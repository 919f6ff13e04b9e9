"""``doorkey report drift``: the keys for which ledger, receipts and OpenRouter differ on a day, and why.

The surprising thing: a difference with a cause is no fault. Calls are billed before midnight and settled after it, and
calls that went past us have no receipt; only `unknown` wants somebody.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from functions.clients.outside import build_clients
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.metering.drift import UNKNOWN, Totals, choose_day, read_pages
from functions.metering.drift_pages import DriftOfKey, totals_of
from functions.metering.store import KeyDay

MAX_KEYS_KEPT = 10_000
MAX_ROWS_SHOWN = 50
KEY_CHARACTERS = 8
# Of an amount, so that four of them and a cause stand in 80 columns.
MAX_CHARACTERS = 14
COLUMNS = ("ledger", "receipts", "OpenRouter", "difference")
# As they are shown, in this order.
CAUSES = {UNKNOWN: "unknown", "byok": "BYOK", "unseen": "unseen", "unread": "unread", "in_flight": "in flight"}
_SHOWN_STEP = Decimal("0.001")


async def run(out: Console, notes: Console, day: date | None, *, as_json: bool) -> None:
    """Reads a day, adds it up and shows the keys that differ.

    Raises:
        typer.Exit: 1, when a difference has no known cause.
        DayNotBegun: the day is in the future.
        SettingsInvalid: the functions' environment is needed here too.
        DoorkeyError: the database refused or can't be reached.
    """
    chosen = choose_day(day, datetime.now(UTC).date())
    totals = Totals()
    differing: list[KeyDay] = []
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        with notes.status("Comparing") as status:
            async for page in read_pages(clients.supabase, chosen):
                totals.add(page)
                differing = _worst(differing, page)
                status.update(f"Comparing: {counted(totals.keys, 'key')}")
    if as_json:
        out.print_json(_report(chosen, totals, differing))
    elif totals.keys:
        out.print(table_of(totals, differing))
        if totals.differing > MAX_ROWS_SHOWN:
            out.print(f"... and {totals.differing - MAX_ROWS_SHOWN:,} more; --json has up to {MAX_KEYS_KEPT:,}.")
    notes.print(sentence_of(chosen, totals))
    if totals.causes[UNKNOWN]:
        raise typer.Exit(1)


def table_of(totals: Totals, differing: list[KeyDay]) -> Table:
    """The keys that differ, those without a known cause first; below them what all keys come to."""
    # No wider than it must be: 80 columns hold it.
    table = Table("key", box=box.SIMPLE_HEAD, show_edge=False, padding=0, show_footer=True)
    table.title = "In micro-dollars"
    sums = (totals.ledger_micros, totals.receipts_micros, totals.openrouter_micros, totals.difference_micros)
    table.columns[0].footer = "all keys"
    for name, amount in zip(COLUMNS, sums, strict=True):
        table.add_column(name, justify="right", footer=_micros(amount), overflow="fold")
    table.add_column("cause", footer=f"{totals.keys:,}")
    for key in differing[:MAX_ROWS_SHOWN]:
        amounts = (key.ledger_micros, key.receipts_micros, key.openrouter_micros, key.difference_micros)
        table.add_row(key.key_hash[:KEY_CHARACTERS], *map(_micros, amounts), CAUSES[key.cause or UNKNOWN])
    return table


def sentence_of(day: date, totals: Totals) -> str:
    """What it comes to."""
    if not totals.keys:
        return f"No key was used on {day}, as far as is known."
    keys = counted(totals.keys, "key")
    if not totals.differing:
        return f"Nothing differs on {day}: {keys}, each the same in ledger, receipts and OpenRouter."
    if totals.causes[UNKNOWN]:
        return (
            f"{totals.causes[UNKNOWN]:,} of {keys} {_differ(totals.causes[UNKNOWN])} on {day} without a known cause, "
            f"by {_micros(totals.unknown_micros)} micro-dollars."
        )
    causes = ", ".join(f"{totals.causes[cause]:,} {name}" for cause, name in CAUSES.items() if totals.causes[cause])
    differ = _differ(totals.differing)
    return f"{totals.differing:,} of {keys} {differ} on {day}, and every difference has its cause: {causes}."


def _differ(keys: int) -> str:
    return "differs" if keys == 1 else "differ"


def _worst(before: list[KeyDay], page: list[KeyDay]) -> list[KeyDay]:
    """Those that differ, in the order of their causes; what is unknown is the last to be left out."""
    order = list(CAUSES)
    found = [*before, *(key for key in page if key.cause is not None)]
    return sorted(found, key=lambda key: order.index(key.cause or UNKNOWN))[:MAX_KEYS_KEPT]


def _report(day: date, totals: Totals, differing: list[KeyDay]) -> str:
    keys = [DriftOfKey.model_validate(key, from_attributes=True).model_dump(mode="json") for key in differing]
    return json.dumps({"day": day.isoformat(), "totals": totals_of(totals).model_dump(mode="json"), "keys": keys})


def _micros(amount: Decimal) -> str:
    """To a thousandth of a micro-dollar, as long as there is room for it."""
    # Plus zero: never -0.
    shown = f"{amount.quantize(_SHOWN_STEP) + 0:,f}".rstrip("0").rstrip(".")
    return shown if len(shown) <= MAX_CHARACTERS else f"{amount:,.0f}"
