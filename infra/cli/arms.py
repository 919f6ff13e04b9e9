"""``doorkey arms``: what the arms of the welcome experiment get.

The surprising thing: an arm is not removed. With weight 0 nobody comes to it any more.
"""

from __future__ import annotations

import json
import uuid
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from functions.clients.outside import build_clients
from functions.kit.amounts import in_exact_dollars
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.offers import store
from functions.offers.store import WelcomeArm
from infra.cli.actor import operator_name
from infra.cli.dollars import micros_of, refuse
from infra.cli.running import run_command

PAGE_ROWS = 1_000
MAX_PAGES = 1_000
MAX_DAYS = 36_500
MAX_WEIGHT = 1_000_000
MAX_NAME_CHARACTERS = 63
SWITCH_ON = "update doorkey.settings set welcome_experiment = '...';"

app = typer.Typer(
    name="arms",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What the arms of the welcome experiment get. Needs the functions' environment (docs/settings.md).",
)
console = Console()


@app.command("list", epilog="Example: [bold]doorkey arms list[/bold]")
def list_(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Shows every arm of every experiment: how much, how long, and its weight."""
    run_command(_list(as_json))


@app.command(
    "set", epilog="Example: [bold]doorkey arms set greeting-size large --dollars 8 --weight 1 --days 30[/bold]"
)
def set_(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    arm: Annotated[str, typer.Argument(help="The arm's name.")],
    dollars_given: Annotated[str, typer.Option("--dollars", help="What who is in it gets instead of the plan's.")],
    weight: Annotated[
        int, typer.Option(min=0, max=MAX_WEIGHT, help="Its share among the weights of all; 0: nobody comes to it.")
    ],
    days: Annotated[
        int | None, typer.Option(min=1, max=MAX_DAYS, help="How long it lasts them; for ever if not said.")
    ] = None,
) -> None:
    """Adds an arm, or has it be so from now on, for who is yet to be welcomed. Whoever was keeps what they have."""
    for name, what in ((experiment, "EXPERIMENT"), (arm, "ARM")):
        if not (name.strip() and name.isprintable() and len(name) <= MAX_NAME_CHARACTERS):
            refuse(what, f"1 to {MAX_NAME_CHARACTERS} characters that can be printed.")
    run_command(_set(experiment, arm, micros_of(dollars_given, "--dollars"), weight, days))


async def _list(as_json: bool) -> None:
    clients = build_clients(Settings.from_environment())
    arms: list[WelcomeArm] = []
    async with clients.http:
        for _ in range(MAX_PAGES):
            page = await store.list_arms(clients.supabase, after=arms[-1] if arms else None, arm_rows=PAGE_ROWS)
            arms += page
            if len(page) < PAGE_ROWS:
                break
    if as_json:
        console.print_json(json.dumps([vars(arm) for arm in arms]))
        return
    if not arms:
        console.print("There is no arm.")
        return
    console.print(_table(arms))
    console.print(f"{counted(len(arms), 'arm')}, {sum(arm.is_running for arm in arms):,} of the experiment that runs.")


async def _set(experiment: str, arm: str, amount_micros: int, weight: int, days: int | None) -> None:
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        is_running = await store.set_arm(
            clients.supabase,
            experiment,
            arm,
            weight=weight,
            amount_micros=amount_micros,
            days=days,
            actor=operator_name(),
            request_id=uuid.uuid4().hex,
        )
    lasting = f" for {counted(days, 'day')}" if days else ""
    console.print(
        f"Who comes to {arm} of {experiment} gets {in_exact_dollars(amount_micros)}{lasting} (weight {weight:,}).",
        highlight=False,
        markup=False,
    )
    if not is_running:
        console.print("This experiment doesn't run, so nobody comes to it:", style="yellow")
        # On one line at any width: it is copied.
        console.print(f"  -> {SWITCH_ON}   (as postgres)", style="bold", soft_wrap=True, highlight=False)


def _table(arms: list[WelcomeArm]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    # Whole at any width: they are copied into the next command.
    for name in ("experiment", "arm"):
        table.add_column(name, no_wrap=True)
    for name in ("weight", "welcome", "days"):
        table.add_column(name, justify="right")
    table.add_column("now")
    for arm in arms:
        table.add_row(
            Text(arm.experiment),
            Text(arm.arm),
            f"{arm.weight:,}",
            in_exact_dollars(arm.amount_micros),
            str(arm.days or "-"),
            "runs" if arm.is_running else "-",
        )
    return table
