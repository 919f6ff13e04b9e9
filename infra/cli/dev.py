"""``doorkey dev``: the stack, left running, with a log that people like to read."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from infra.local.functions import WEBHOOK_PATH
from infra.local.running import ENVIRONMENT_FILE, announce
from infra.local.stack import Stack, StackOptions, running_stack

POLL_SECONDS = 0.1
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")
PREFIX_WIDTH = 11


async def run(console: Console, options: StackOptions) -> None:
    """Starts a stack and shows its logs until it is told to stop or a part dies.

    Raises:
        PartFailed: a part did not start, or died; the others are stopped.
    """
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("Starting the stack")
        async with running_stack(options, lambda step: progress.update(task, description=f"Starting: {step}")) as stack:
            progress.stop()
            await announce(stack)
            console.print(_addresses(stack))
            console.print("Ctrl-C stops everything and removes it.\n", style="dim")
            followers = [
                LogFollower(name, stack.supervisor.log_path(name), COLOURS[i % len(COLOURS)])
                for i, name in enumerate(["postgres", *stack.parts])
            ]
            following = asyncio.ensure_future(_follow(console, followers))
            try:
                raise await stack.supervisor.death()
            finally:
                following.cancel()
                for follower in followers:
                    follower.show(console)
                console.print("Stopping.", style="dim")


def _addresses(stack: Stack) -> Table:
    table = Table(title="doorkey is running", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    made = stack.secrets
    for name, value in (
        ("Supabase URL", stack.supabase_url),
        ("Publishable key", made.publishable_key),
        ("Secret key", made.secret_key),
        ("Functions", stack.functions_url),
        ("API description", f"{stack.functions_url}/openapi.json"),
        ("Webhook", f"{stack.functions_url}{WEBHOOK_PATH}"),
        ("Operator token", made.operator_token),
        ("OpenRouter", f"{stack.openrouter_url}  (simulator)"),
        ("Management key", made.management_key),
        ("Database", stack.database_url),
        ("Environment", str(stack.folder / ENVIRONMENT_FILE)),
        ("Logs", str(stack.log_folder)),
    ):
        table.add_row(name, value)
    return table


async def _follow(console: Console, followers: list[LogFollower]) -> None:
    while True:
        for follower in followers:
            follower.show(console)
        await asyncio.sleep(POLL_SECONDS)


@dataclass
class LogFollower:
    """Shows what is added to one part's log, line by line, prefixed with its name."""

    name: str
    path: Path
    colour: str
    _file: IO[str] | None = field(default=None, repr=False)
    _rest: str = ""

    def show(self, console: Console) -> None:
        """Prints the lines that came since the last time."""
        if self._file is None:
            if not self.path.exists():
                return
            self._file = self.path.open(errors="replace")
        lines = (self._rest + self._file.read()).split("\n")
        self._rest = lines.pop()
        for line in lines:
            prefix = Text(f"{self.name:<{PREFIX_WIDTH}}| ", style=self.colour)
            console.print(prefix + readable(line), soft_wrap=True, highlight=False)


def readable(line: str) -> Text:
    """A structured line as people like to read it; any other line as it is."""
    try:
        fields = json.loads(line)
    except ValueError:
        return Text(line)
    if not isinstance(fields, dict) or "event" not in fields:
        return Text(line)
    level = fields.pop("level", "info")
    style = {"warning": "yellow", "error": "bold red"}.get(level, "")
    time = str(fields.pop("time", ""))[11:23]
    steps = fields.pop("steps_ms", {})
    total_ms = fields.pop("total_ms", None)
    text = Text(f"{time} ", style="dim") + Text(f"{fields.pop('event')} ", style=style or "bold")
    outcome = fields.pop("outcome", None)
    if outcome is not None:
        text += Text(f"{outcome} ", style=style or "green")
    if total_ms is not None:
        text += Text(f"in {total_ms} ms ")
    if steps:
        text += Text("(" + ", ".join(f"{name} {ms}" for name, ms in steps.items()) + ") ", style="dim")
    return text + Text(" ".join(f"{name}={value}" for name, value in fields.items()), style="dim")
