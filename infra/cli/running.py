"""Runs a command to its end: Ctrl-C stops it in good order, and what fails is a sentence and an exit code.

The surprising thing: only the first Ctrl-C counts, because whoever insists must not interrupt the stopping.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import typer
from rich.console import Console

from functions.kit.errors import DoorkeyError
from functions.kit.settings import SettingsInvalid
from infra.cli.backfill import BackfillStopped
from infra.cli.demo import DemoFailed
from infra.cli.key_deletion import KeysNotDeleted
from infra.cli.uninstall import UninstallStopped
from infra.connection.plans import CannotGoOn
from infra.local.supervisor import PartFailed

errors = Console(stderr=True)

# Errors whose message is what a person is told.
SENTENCES = (CannotGoOn, DemoFailed, BackfillStopped, UninstallStopped, KeysNotDeleted, SettingsInvalid)

WHERE_FROM = (
    "They are the functions' environment (docs/settings.md). It gets into a shell by "
    'eval "$(doorkey environment --stage NAME)", or --env-file PATH; doorkey dev says where its own is.'
)


def run_command(work: Coroutine[Any, Any, None], interrupted_code: int = 130) -> None:
    """Runs a command to its end; Ctrl-C and SIGTERM end it in good order, and everything it started with it."""
    try:
        asyncio.run(_until_told(work))
    except PartFailed as failure:
        for line in failure.last_lines:
            errors.print(f"  {failure.part} | {line}", style="dim", markup=False, highlight=False)
        errors.print(f"{failure.part} {failure.reason}.", style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except SENTENCES as failure:
        errors.print(str(failure), style="bold red", markup=False, highlight=False)
        if isinstance(failure, SettingsInvalid):
            errors.print(WHERE_FROM, markup=False, highlight=False)
        raise typer.Exit(1) from None
    except DoorkeyError as failure:
        errors.print(f"{failure.sentence} ({failure.code})", style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except asyncio.CancelledError:
        raise typer.Exit(interrupted_code) from None


async def _until_told(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def told() -> None:
        # Whoever insists, by a second Ctrl-C, must not interrupt the stopping.
        for number in signals:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in signals:
        loop.add_signal_handler(number, told)
    await task
