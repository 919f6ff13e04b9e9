"""``doorkey plans``: what users are given, and what a call costs them.

The surprising thing: a change touches nobody's key. The sweep finds the keys whose limits are to be other ones now, and
the command says within which time.
"""

from __future__ import annotations

import json
import uuid
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from functions.clients.outside import build_clients
from functions.kit.amounts import in_exact_dollars, plain
from functions.kit.counting import counted
from functions.kit.errors import UnknownPlan
from functions.kit.settings import Settings
from functions.plans import store
from functions.plans.store import PlanEdit
from functions.provisioning.sweeping import USERS_PER_SWEEP
from infra.cli.actor import operator_name
from infra.cli.plan_columns import COLUMNS, read_columns
from infra.cli.running import errors, run_command

PAGE_ROWS = 1_000
MAX_PAGES = 1_000
# With one sweep a minute, and OpenRouter as slow as it is in life (docs/scaling.md).
KEYS_PER_MINUTE = 2_000

app = typer.Typer(
    name="plans",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What users are given, and what a call costs them. Needs the functions' environment (docs/settings.md).",
)
console = Console()

PlanId = Annotated[str, typer.Argument(metavar="ID", help="The plan, such as starter.")]
Typed = str | None


@app.command("list", epilog="Example: [bold]doorkey plans list[/bold]")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="For programs; money in micro-dollars.")] = False,
) -> None:
    """Shows every plan, closed ones too, and how many accounts are on it."""
    run_command(_list(as_json))


@app.command(epilog="Example: [bold]doorkey plans show starter[/bold]")
def show(plan_id: PlanId) -> None:
    """Shows all that there is to a plan."""
    run_command(_show(plan_id))


@app.command("set", epilog="Example: [bold]doorkey plans set starter --price 25 --markup 1.2[/bold]")
def set_(
    plan_id: PlanId,
    is_new: Annotated[
        bool, typer.Option("--new", help="Adds it; what isn't said is as docs/settings.md says.")
    ] = False,
    name: Annotated[Typed, typer.Option(help="For people.")] = None,
    price: Annotated[Typed, typer.Option(help="What a period costs, in dollars; for the app to read.")] = None,
    period_days: Annotated[Typed, typer.Option(help="Days of a period, 1 to 366, or none.")] = None,
    credits_per_period: Annotated[Typed, typer.Option(help="What each period brings, in dollars.")] = None,
    monthly_cap: Annotated[
        Typed, typer.Option(help="The most that a period's calls may cost, in dollars, or none.")
    ] = None,
    welcome: Annotated[Typed, typer.Option(help="What a new user is greeted with, in dollars.")] = None,
    welcome_days: Annotated[Typed, typer.Option(help="How long that lasts, or none: for ever.")] = None,
    charge_by: Annotated[Typed, typer.Option(help="cost (times the markup) or tokens (at the token price).")] = None,
    markup: Annotated[Typed, typer.Option(help="What the provider's cost is multiplied by, 1 or more.")] = None,
    token_price: Annotated[Typed, typer.Option(help="Dollars for 1,000 tokens, or none.")] = None,
    is_uncapped: Annotated[
        bool | None, typer.Option("--uncapped/--capped", help="Keys without a limit; what is used is to be billed.")
    ] = None,
    requests_per_minute: Annotated[Typed, typer.Option(help="A number, or none; for the app to read.")] = None,
    requests_per_day: Annotated[Typed, typer.Option(help="A number, or none; for the app to read.")] = None,
    models: Annotated[Typed, typer.Option(help="Models with commas between them, or all; for the app to read.")] = None,
    features: Annotated[Typed, typer.Option(help="A JSON object, for the app to read.")] = None,
    is_open: Annotated[
        bool | None, typer.Option("--open/--close", help="Whether somebody may come to it; whoever is on it stays.")
    ] = None,
) -> None:
    """Sets what is said of a plan, and leaves the rest of it as it is.

    What was charged stays as it was charged. Whoever is on the plan has the new price from now on, for calls under way
    too, and the new allowance from their next period on. The audit log notes who did it, and what was before and after.
    """
    values = read_columns(
        {
            "--name": name,
            "--price": price,
            "--period-days": period_days,
            "--credits-per-period": credits_per_period,
            "--monthly-cap": monthly_cap,
            "--welcome": welcome,
            "--welcome-days": welcome_days,
            "--charge-by": charge_by,
            "--markup": markup,
            "--token-price": token_price,
            "--uncapped": _switch(is_uncapped),
            "--requests-per-minute": requests_per_minute,
            "--requests-per-day": requests_per_day,
            "--models": models,
            "--features": features,
            "--open": _switch(is_open),
        }
    )
    if not values or (is_new and name is None):
        sentence = "A new plan needs a --name." if is_new else "Say what to set, such as --price 25."
        errors.print(sentence, style="bold red", highlight=False)
        raise typer.Exit(2)
    run_command(_set(plan_id, values, is_new))


def _switch(is_on: bool | None) -> str | None:
    return None if is_on is None else str(is_on).lower()


async def _list(as_json: bool) -> None:
    plans = await _read()
    if as_json:
        console.print_json(json.dumps(plans, default=float))
        return
    console.print(_table(plans))
    console.print(f"{counted(len(plans), 'plan')}, {sum(plan['is_active'] for plan in plans):,} open.")


async def _show(plan_id: str) -> None:
    plan = next((plan for plan in await _read() if plan["id"] == plan_id), None)
    if plan is None:
        raise UnknownPlan
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("id", Text(plan_id))
    for column in COLUMNS:
        table.add_row(column.label, Text(column.show(plan[column.name])))
    console.print(table)
    newcomers = " New users come to it." if plan["is_default"] else ""
    console.print(f"{counted(plan['accounts'], 'account is', 'accounts are')} on it.{newcomers}")


async def _set(plan_id: str, values: dict[str, str | None], is_new: bool) -> None:
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        edit = await store.set_plan(
            clients.supabase, plan_id, values, is_new=is_new, actor=operator_name(), request_id=uuid.uuid4().hex
        )
    if edit.before is None:
        console.print(f"{plan_id} is added: doorkey plans show {plan_id}", highlight=False, markup=False)
        return
    _say_changed(plan_id, edit, edit.before)


def _say_changed(plan_id: str, edit: PlanEdit, before: dict[str, Any]) -> None:
    changed = [column for column in COLUMNS if before[column.name] != edit.after[column.name]]
    if not changed:
        console.print(f"{plan_id} was so already: nothing was changed.", highlight=False, markup=False)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in changed:
        was, is_ = (column.show(plan[column.name]) for plan in (before, edit.after))
        table.add_row(column.label, Text(f"{was} -> {is_}"), column.counts)
    console.print(table)
    if edit.accounts and any(column.moves_limits for column in changed):
        minutes = 1 + max(edit.users // USERS_PER_SWEEP, edit.accounts // KEYS_PER_MINUTE)
        console.print(
            f"The limits of their keys follow in about {counted(minutes, 'minute')}: the sweep walks round all users,"
            f" {USERS_PER_SWEEP:,} a minute, and sets some {KEYS_PER_MINUTE:,} keys a minute right at OpenRouter."
        )
    on_it = counted(edit.accounts, "account is", "accounts are")
    console.print(f"{plan_id} is changed; {on_it} on it.", highlight=False, markup=False)


async def _read() -> list[dict[str, Any]]:
    clients = build_clients(Settings.from_environment())
    plans: list[dict[str, Any]] = []
    async with clients.http:
        for _ in range(MAX_PAGES):
            after = plans[-1]["id"] if plans else None
            page = await store.list_plans(clients.supabase, after_id=after, plan_rows=PAGE_ROWS)
            plans += page
            if len(page) < PAGE_ROWS:
                break
    return plans


def _table(plans: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    # Whole at any width: it is copied into the next command.
    table.add_column("id", no_wrap=True)
    table.add_column("name", overflow="fold")
    for heading in ("price", "days", "credits", "cap", "a call costs", "welcome", "accounts"):
        table.add_column(heading, justify="right")
    table.add_column("now")
    for plan in plans:
        table.add_row(
            plan["id"],
            Text(plan["name"]),
            in_exact_dollars(plan["price_micros"]),
            _or_dash(plan["period_days"]),
            in_exact_dollars(plan["credits_per_period_micros"]),
            "no limit" if plan["is_uncapped"] else _dollars(plan["monthly_cap_micros"]),
            _charge(plan),
            _welcome(plan),
            f"{plan['accounts']:,}",
            ("open" if plan["is_active"] else "closed") + (", default" if plan["is_default"] else ""),
        )
    return table


def _charge(plan: dict[str, Any]) -> str:
    if plan["charges_by"] == "tokens":
        return f"{in_exact_dollars(plan['token_price_micros_per_1k'])}/1k tokens"
    return f"cost x {plain(plan['markup'])}"


def _welcome(plan: dict[str, Any]) -> str:
    if not plan["welcome_credits_micros"]:
        return "-"
    days = plan["welcome_credits_days"]
    return in_exact_dollars(plan["welcome_credits_micros"]) + (f", {counted(days, 'day')}" if days else "")


def _dollars(micros: int | None) -> str:
    return "-" if micros is None else in_exact_dollars(micros)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
