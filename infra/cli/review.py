"""``doorkey review``: welcomes that are held, because their users look as if they had been here before."""

from __future__ import annotations

import json
import uuid
from contextlib import aclosing
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from functions.clients.outside import build_clients
from functions.kit.amounts import in_dollars
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.offers import store
from functions.offers.reviews import read_reviews
from functions.offers.store import HeldWelcome
from infra.cli.actor import operator_name
from infra.cli.running import errors, run_command

MAX_ROWS = 1_000_000

app = typer.Typer(
    name="review",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Welcomes that are held until somebody has looked. Needs the functions' environment (docs/settings.md).",
)
console = Console()

User = Annotated[uuid.UUID, typer.Argument(help="Whose welcome: the user's id.")]


@app.command("list", epilog="Example: [bold]doorkey review list --rows 20[/bold]")
def list_(
    rows: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="At most so many.")] = 100,
    after: Annotated[
        uuid.UUID | None, typer.Option(help="Goes on behind this user, with whom the last list ended.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Shows whose welcome is held and why, who waits longest first. Shows no address."""
    run_command(_list(rows, after, as_json))


@app.command(epilog="Example: [bold]doorkey review release 7b0c7a0e-5c1f-4a55-9d3e-0f3f2f6f4f10[/bold]")
def release(user: User) -> None:
    """Gives a held welcome, and what came with a referral. The key's limit follows within a minute."""
    run_command(_release(user))


@app.command(
    "claw-back",
    epilog="Example: [bold]doorkey review claw-back 7b0c7a0e-5c1f-4a55-9d3e-0f3f2f6f4f10 --reason 'not new'[/bold]",
)
def claw_back(
    user: User, reason: Annotated[str, typer.Option(help="Why; the user sees it among their transactions.")]
) -> None:
    """Refuses a held welcome, or takes back one that was given, by a reversing entry: what was spent of it is owed.

    What others were promised for bringing this user is not given any more.
    """
    run_command(_claw_back(user, reason))


async def _list(rows: int, after: uuid.UUID | None, as_json: bool) -> None:
    clients = build_clients(Settings.from_environment())
    async with clients.http, aclosing(read_reviews(clients.supabase, rows=rows, after_user=after)) as reading:
        held = [welcome async for page in reading for welcome in page]
    if as_json:
        console.print_json(json.dumps([_as_json(welcome) for welcome in held]))
        return
    if not held:
        console.print("No further welcome is held." if after else "No welcome is held.")
        return
    console.print(_table(held))
    if len(held) == rows:
        console.print(f"{_first(rows)} held{' after that' if after else ''}.")
        # On one line at any width: it is copied.
        console.print(f"Go on with: doorkey review list --rows {rows} --after {held[-1].user_id}", soft_wrap=True)
    else:
        console.print(f"{counted(len(held), 'welcome is', 'welcomes are')} held.")


def _first(rows: int) -> str:
    return "This is the first welcome that is" if rows == 1 else f"These are the first {rows:,} welcomes that are"


async def _release(user: uuid.UUID) -> None:
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        given = await store.release_welcome(clients.supabase, user, actor=operator_name(), request_id=uuid.uuid4().hex)
    console.print(f"{in_dollars(given)} given; the key's limit follows within a minute.")


async def _claw_back(user: uuid.UUID, reason: str) -> None:
    if not 1 <= len(reason.strip()) <= 500:
        errors.print("--reason takes 1 to 500 characters.", style="bold red")
        raise typer.Exit(2)
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        taken = await store.claw_back_welcome(
            clients.supabase, user, reason=reason, actor=operator_name(), request_id=uuid.uuid4().hex
        )
    console.print(f"{in_dollars(taken)} taken back; what was promised is not given any more.")


def _table(held: list[HeldWelcome]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("user", "since", "welcome"):
        # Whole at any width: it is copied into the next command.
        table.add_column(name, no_wrap=True)
    table.add_column("because", overflow="fold", min_width=15)
    table.add_column("by")
    for welcome in held:
        chosen_by = welcome.offer_code or (welcome.experiment and f"{welcome.experiment} / {welcome.arm}") or "plan"
        table.add_row(
            str(welcome.user_id),
            f"{welcome.created_at:%Y-%m-%d}",
            in_dollars(welcome.amount_micros),
            ", ".join(welcome.reasons),
            f"{chosen_by}, referred" if welcome.referrer_id else chosen_by,
        )
    return table


def _as_json(welcome: HeldWelcome) -> dict[str, object]:
    return {
        **vars(welcome),
        "user_id": str(welcome.user_id),
        "created_at": welcome.created_at.isoformat(),
        "referrer_id": str(welcome.referrer_id) if welcome.referrer_id else None,
    }
