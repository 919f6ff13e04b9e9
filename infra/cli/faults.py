"""``doorkey faults``: what shall go wrong in a running `doorkey dev`, on order.

The options of the two commands that order are made from the plan's fields, so that a new fault needs no line here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from infra.local.faults import EDGE, OPENROUTER, PARTS, ControlFailed, FaultControl, FaultReport
from infra.local.faults.plan import PlanInvalid
from infra.local.faults.remote import FaultyPart
from infra.local.running import Addresses, running_stacks

app = typer.Typer(
    name="faults",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What shall go wrong in a running [bold]doorkey dev[/bold]: answers lost after the work, stalls, refusals.",
)
console = Console()
errors = Console(stderr=True)
Result = TypeVar("Result")
Reports = list[tuple[FaultControl, FaultReport]]

Url = Annotated[
    str | None,
    typer.Option(help="An address of the stack, or of a part that runs alone; needed where several stacks run."),
]


@app.command(epilog="Example: [bold]doorkey faults show[/bold]")
def show(url: Url = None) -> None:
    """Says what is on, and how often each fault was injected."""
    reports = _run(_ask_all(_controls(url), FaultControl.report))
    if any(report.counts for _, report in reports):
        console.print(_table(reports))
        console.print("[bold]doorkey faults clear[/bold] ends it.", highlight=False)
    else:
        console.print("No faults are on.")


@app.command(epilog="Example: [bold]doorkey faults clear[/bold]")
def clear(url: Url = None) -> None:
    """Ends all faults, and says what they came to."""
    reports = _run(_ask_all(_controls(url), FaultControl.clear))
    if any(report.counts for _, report in reports):
        console.print(_table(reports))
        console.print("No faults are on any more.")
    else:
        console.print("No faults were on.")


def _ordering(part: FaultyPart) -> Callable[..., None]:
    """The function behind ``doorkey faults <part>``, with an option for each field of the plan."""

    def order(url: str | None, **fields: Any) -> None:
        chosen = {name: value for name, value in fields.items() if value != part.plan_type.model_fields[name].default}
        control = next(control for control in _controls(url) if control.part is part)
        report = _run(control.order(**{name: value for name, value in chosen.items() if value not in (None, [])}))
        console.print(_table([(control, report)]))
        console.print("[bold]doorkey faults show[/bold] counts, [bold]doorkey faults clear[/bold] ends it.")

    options = {name: _option(name, field) for name, field in part.plan_type.model_fields.items()}
    options["url"] = (Url, None)
    order.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    vars(order)["__signature__"] = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in options.items()
        ]
    )
    return order


def _option(name: str, field: FieldInfo) -> tuple[Any, Any]:
    """Type and default of the option for one field; the plan itself checks the value."""
    word = f"--{name.replace('_', '-')}"
    if isinstance(field.default, tuple):
        return Annotated[list[str] | None, typer.Option(word, help=field.description)], None
    is_default_telling = bool(field.default)
    option = typer.Option(word, help=field.description, show_default=is_default_telling)
    return Annotated[field.annotation, option], field.default


for _part, _does, _example in (
    (
        OPENROUTER,
        "Orders faults of the OpenRouter simulator, in place of those that are on.",
        "doorkey faults openrouter --lose-answers 0.1 --only 'POST /keys'",
    ),
    (
        EDGE,
        "Orders faults of the Supabase gateway, in place of those that are on.",
        "doorkey faults edge --stall 0.05 --stall-seconds 12",
    ),
):
    app.command(_part.name, help=_does, epilog=f"Example: [bold]{_example}[/bold]", no_args_is_help=True)(
        _ordering(_part)
    )


def _controls(url: str | None) -> list[FaultControl]:
    """The switches of the one stack that is meant."""
    stacks = running_stacks()
    if url is None:
        if not stacks:
            raise _failed("No doorkey dev runs on this machine. Start one, or name a part that runs alone: --url.")
        if len(stacks) > 1:
            known = "\n".join(f"  --url {stack.edge}" for stack in stacks)
            raise _failed(f"Several doorkey dev run on this machine. Say which:\n{known}")
        chosen = stacks[0]
    else:
        if not _is_address(url):
            raise _failed("--url takes an address such as http://127.0.0.1:8787.", code=2)
        chosen = next((stack for stack in stacks if stack.has(url)), Addresses(url, url, url))
    return [FaultControl(part, getattr(chosen, part.name)) for part in PARTS]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


async def _ask_all(
    controls: list[FaultControl], ask: Callable[[FaultControl], Coroutine[Any, Any, FaultReport]]
) -> Reports:
    """What each says. A part that runs alone has only one of the switches."""
    reports, failures = [], []
    for control in controls:
        try:
            reports.append((control, await ask(control)))
        except ControlFailed as failure:
            failures.append(failure)
    if not reports:
        raise failures[0]
    return reports


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return asyncio.run(work)
    except (ControlFailed, PlanInvalid) as failure:
        raise _failed(str(failure)) from None


def _failed(sentence: str, code: int = 1) -> typer.Exit:
    errors.print(sentence, style="bold red", markup=False, highlight=False)
    return typer.Exit(code)


def _table(reports: Reports) -> Table:
    table = Table(title="Faults", title_justify="left")
    for heading in ("Part", "Fault", "Ordered", "Injected"):
        table.add_column(heading, justify="right" if heading == "Injected" else "left", overflow="fold")
    for control, report in reports:
        for name, count in report.counts.items():
            table.add_row(control.part.name, name, str(getattr(report.plan, name)), str(count))
        details = report.plan.model_dump(exclude=set(report.plan.names()), exclude_defaults=True)
        for name, value in details.items():
            shown = ", ".join(value) if isinstance(value, tuple) else str(value)
            table.add_row(control.part.name, name, shown, "", style="dim")
        if report.counts:
            table.add_row(control.part.name, "requests that it was about", "", str(report.requests), style="dim")
            table.add_section()
    return table
