"""``doorkey ledger``: whether what is stored about everybody's money is what the ledger's entries say.

The surprising thing: it mends nothing. What differs is a fault of ours, and both figures are wanted to find it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from functions.clients.outside import build_clients
from functions.credits.ledger import Difference, Page, verify
from functions.kit.amounts import plain
from functions.kit.counting import counted
from functions.kit.settings import Settings
from infra.cli.running import errors, run_command

MAX_DIFFERENCES_KEPT = 10_000
MAX_ROWS_SHOWN = 50

app = typer.Typer(
    name="ledger",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The ledger itself. Needs the functions' environment (docs/settings.md).",
)
console = Console()


@app.callback()
def _ledger() -> None:
    """So that one command is still a command of its own."""


@app.command("verify", epilog="Example: [bold]doorkey ledger verify --json[/bold]")
def verify_command(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Recomputes every balance, hold, lot and debt from the ledger's entries, and names what differs. Changes nothing.

    It may run while everybody works: what is posted meanwhile makes no difference. The exit code is 0 when nothing
    differs, and 1 when something does: that is a fault of doorkey's, please report it.
    """
    # What is read by a program goes out alone.
    run_command(_verify(console, errors if as_json else console, as_json=as_json))


async def _verify(out: Console, notes: Console, *, as_json: bool) -> None:
    counts = _Counts()
    found: list[Difference] = []
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        with Progress(console=notes, transient=True) as progress:
            task = progress.add_task("Verifying", total=None)
            async for page in verify(clients.supabase):
                counts.add(page)
                found += page.differences[: MAX_DIFFERENCES_KEPT - len(found)]
                if page.all_users is not None:
                    progress.update(task, total=page.all_users)
                progress.update(task, completed=counts.users, description=counts.doing())
    if as_json:
        out.print_json(_report(counts, found))
    elif found:
        out.print(_table(found))
        if counts.different > MAX_ROWS_SHOWN:
            out.print(f"... and {counts.different - MAX_ROWS_SHOWN} more; --json has up to {MAX_DIFFERENCES_KEPT}.")
    notes.print(_sentence(counts))
    if counts.different:
        raise typer.Exit(1)


@dataclass
class _Counts:
    """How far it has come; `of_one`: transactions of the user who is not finished yet."""

    users: int = 0
    transactions: int = 0
    receipts: int = 0
    different: int = 0
    unfinished: UUID | None = None
    of_one: int = 0

    def add(self, page: Page) -> None:
        """Counts a page in."""
        self.users += page.users
        self.transactions += page.transactions
        self.receipts += page.receipts
        self.different += page.different
        self.of_one = page.transactions + (self.of_one if page.unfinished == self.unfinished else 0)
        self.unfinished = page.unfinished

    def doing(self) -> str:
        """What it is at, in a few words."""
        if self.unfinished is not None:
            return f"Verifying {self.unfinished}: {counted(self.of_one, 'transaction')}"
        return f"Verifying receipts: {self.receipts:,}" if self.receipts else "Verifying"


def _report(counts: _Counts, found: list[Difference]) -> str:
    return json.dumps(
        {
            "users": counts.users,
            "transactions": counts.transactions,
            "receipts": counts.receipts,
            "different": counts.different,
            "differences": [
                {
                    "user_id": str(difference.user_id),
                    "transaction_id": difference.transaction_id,
                    "what": difference.what,
                    "stored_micros": _exact(difference.stored_micros),
                    "computed_micros": _exact(difference.computed_micros),
                }
                for difference in found
            ],
        }
    )


def _exact(micros: Decimal | None) -> int | str | None:
    """For programs: a whole number; a cost with a fraction as text, so that nobody rounds it."""
    if micros is None:
        return None
    return int(micros) if micros == micros.to_integral_value() else plain(micros)


def _table(found: list[Difference]) -> Table:
    table = Table("User", "Transaction", "What", "Stored", "By the entries", title="In micro-dollars")
    for difference in found[:MAX_ROWS_SHOWN]:
        transaction = "" if difference.transaction_id is None else str(difference.transaction_id)
        table.add_row(
            str(difference.user_id),
            transaction,
            difference.what,
            _shown(difference.stored_micros),
            _shown(difference.computed_micros),
        )
    return table


def _shown(micros: Decimal | None) -> str:
    return "" if micros is None else plain(micros, is_grouped=True)


def _sentence(counts: _Counts) -> str:
    scope = f"{counted(counts.users, 'account')}, {counted(counts.transactions, 'transaction')}"
    if not counts.different:
        return f"Nothing differs: {scope}, and every figure is what its entries say."
    return f"{counted(counts.different, 'figure differs', 'figures differ')} from the entries ({scope})."
