"""``doorkey ledger``: whether what is stored about everybody's money is what the ledger's entries say.

The surprising thing: it mends nothing. What differs is a fault of ours, and both figures are wanted to find it.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from functions.clients.outside import build_clients
from functions.credits.ledger import Difference, verify
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

    The exit code is 0 when nothing differs, and 1 when something does: that is a fault of doorkey's, please report it.
    """
    # What is read by a program goes out alone.
    run_command(_verify(console, errors if as_json else console, as_json=as_json))


async def _verify(out: Console, notes: Console, *, as_json: bool) -> None:
    users = transactions = different = 0
    found: list[Difference] = []
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        with Progress(console=notes, transient=True) as progress:
            task = progress.add_task("Verifying", total=None)
            async for page in verify(clients.supabase):
                users += page.users
                transactions += page.transactions
                different += page.different
                found += page.differences[: MAX_DIFFERENCES_KEPT - len(found)]
                if page.all_users is not None:
                    progress.update(task, total=page.all_users)
                progress.update(task, completed=users)
    if as_json:
        out.print_json(_report(users, transactions, different, found))
    elif found:
        out.print(_table(found))
        if different > MAX_ROWS_SHOWN:
            out.print(f"... and {different - MAX_ROWS_SHOWN} more; --json has up to {MAX_DIFFERENCES_KEPT}.")
    notes.print(_sentence(users, transactions, different))
    if different:
        raise typer.Exit(1)


def _report(users: int, transactions: int, different: int, found: list[Difference]) -> str:
    return json.dumps(
        {
            "users": users,
            "transactions": transactions,
            "different": different,
            "differences": [
                {
                    "user_id": str(difference.user_id),
                    "transaction_id": difference.transaction_id,
                    "what": difference.what,
                    "stored_micros": difference.stored_micros,
                    "computed_micros": difference.computed_micros,
                }
                for difference in found
            ],
        }
    )


def _table(found: list[Difference]) -> Table:
    table = Table("User", "Transaction", "What", "Stored", "By the entries", title="In micro-dollars")
    for difference in found[:MAX_ROWS_SHOWN]:
        transaction = "" if difference.transaction_id is None else str(difference.transaction_id)
        table.add_row(
            str(difference.user_id),
            transaction,
            difference.what,
            f"{difference.stored_micros:,}",
            f"{difference.computed_micros:,}",
        )
    return table


def _sentence(users: int, transactions: int, different: int) -> str:
    scope = f"{users:,} accounts, {transactions:,} transactions"
    if not different:
        return f"Nothing differs: {scope}, and every figure is what its entries say."
    return f"{different:,} {'figure differs' if different == 1 else 'figures differ'} from the entries ({scope})."
