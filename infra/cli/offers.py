"""``doorkey offers``: what new users get who name a code at their signup.

The surprising thing: an offer is not edited. Users were told what it says: it is ended, and the next has another code.
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
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
from functions.offers.store import WelcomeOffer
from infra.cli.actor import operator_name
from infra.cli.dollars import micros_of
from infra.cli.running import errors, run_command

PAGE_ROWS = 1_000
MAX_PAGES = 1_000
MAX_DAYS = 36_500
MAX_GRANTS = 1_000_000_000
CODE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
OFF = "Offers are switched off, so nobody gets one:"
SWITCH_ON = "update doorkey.settings set welcome_offers = true;"
STANDINGS = {"open": "open", "to_come": "to come", "over": "over", "used_up": "used up"}

app = typer.Typer(
    name="offers",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What new users get who name a code. Needs the functions' environment (docs/settings.md).",
)
console = Console()

Code = Annotated[str, typer.Argument(help="What an app puts into its signups; small letters, digits, dots, dashes.")]


@app.command("list", epilog="Example: [bold]doorkey offers list[/bold]")
def list_(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Shows every offer: how much, how long, for how many, and whether it is open."""
    run_command(_list(as_json))


@app.command(epilog="Example: [bold]doorkey offers add launch26 --dollars 20 --days 60 --ends 2026-12-24[/bold]")
def add(
    code: Code,
    dollars_given: Annotated[
        str, typer.Option("--dollars", help="What they get instead of what their plan gives, such as 20 or 7.50.")
    ],
    days: Annotated[
        int | None, typer.Option(min=1, max=MAX_DAYS, help="How long it lasts them; for ever if not said.")
    ] = None,
    ends: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="Until when it is open, in UTC; no end if not said."),
    ] = None,
    at_most: Annotated[
        int | None, typer.Option(min=1, max=MAX_GRANTS, help="Only for so many users; no bound if not said.")
    ] = None,
) -> None:
    """Offers more, or less, from now on to whoever signs up with this code as `campaign` or `referral_source`.

    Codes are compared without regard to case, and are no secret: bound an offer by --ends or --at-most.
    """
    chosen = _code(code)
    run_command(_add(chosen, micros_of(dollars_given, "--dollars"), days, ends and ends.replace(tzinfo=UTC), at_most))


@app.command(epilog="Example: [bold]doorkey offers end launch26[/bold]")
def end(code: Code) -> None:
    """Ends an offer now. Who has it keeps it."""
    run_command(_end(_code(code)))


async def _list(as_json: bool) -> None:
    clients = build_clients(Settings.from_environment())
    offers: list[WelcomeOffer] = []
    async with clients.http:
        for _ in range(MAX_PAGES):
            after = offers[-1].code if offers else None
            page = await store.list_offers(clients.supabase, after_code=after, offer_rows=PAGE_ROWS)
            offers += page
            if len(page) < PAGE_ROWS:
                break
    if as_json:
        console.print_json(json.dumps([_as_json(offer) for offer in offers]))
        return
    if not offers:
        console.print("There is no offer.")
        return
    console.print(_table(offers))
    console.print(f"{counted(len(offers), 'offer')}, {sum(offer.standing == 'open' for offer in offers):,} open.")
    if not offers[0].is_switched_on:
        _say_off()


async def _add(code: str, amount_micros: int, days: int | None, ends_at: datetime | None, at_most: int | None) -> None:
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        is_switched_on = await store.add_offer(
            clients.supabase,
            code,
            amount_micros=amount_micros,
            days=days,
            ends_at=ends_at,
            max_grants=at_most,
            actor=operator_name(),
            request_id=uuid.uuid4().hex,
        )
    lasting = f" for {counted(days, 'day')}" if days else ""
    bound = f", the first {counted(at_most, 'user')}" if at_most else ""
    until = f", until {ends_at:%Y-%m-%d %H:%M} UTC" if ends_at else ""
    console.print(f"{code} is offered: {in_dollars(amount_micros)}{lasting}{bound}{until}.", highlight=False)
    if not is_switched_on:
        _say_off()


async def _end(code: str) -> None:
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        ended_at = await store.end_offer(clients.supabase, code, actor=operator_name(), request_id=uuid.uuid4().hex)
    console.print(f"{code} is over since {ended_at:%Y-%m-%d %H:%M:%S} UTC. Who has it keeps it.", highlight=False)


def _say_off() -> None:
    console.print(OFF, style="yellow")
    # On one line at any width: it is copied.
    console.print(f"  -> {SWITCH_ON}   (as postgres)", style="bold", soft_wrap=True, highlight=False)


def _code(given: str) -> str:
    code = given.strip().lower()
    if not CODE.fullmatch(code):
        errors.print("A code has up to 63 letters, digits, dots, dashes and underscores.", style="bold red")
        raise typer.Exit(2)
    return code


def _table(offers: list[WelcomeOffer]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    # Whole at any width: it is copied into the next command.
    table.add_column("code", no_wrap=True)
    for name in ("welcome", "days", "users", "of"):
        table.add_column(name, justify="right")
    table.add_column("until")
    table.add_column("now")
    for offer in offers:
        table.add_row(
            offer.code,
            in_dollars(offer.amount_micros),
            str(offer.days or "-"),
            # Without a bound nobody counts.
            f"{offer.granted:,}" if offer.max_grants else "-",
            f"{offer.max_grants:,}" if offer.max_grants else "-",
            f"{offer.ends_at:%Y-%m-%d %H:%M}" if offer.ends_at else "-",
            STANDINGS[offer.standing],
        )
    return table


def _as_json(offer: WelcomeOffer) -> dict[str, object]:
    ends_at = offer.ends_at.isoformat() if offer.ends_at else None
    return {**vars(offer), "starts_at": offer.starts_at.isoformat(), "ends_at": ends_at}
