"""``doorkey strays``: the keys at OpenRouter that nobody holds; shown, and deleted when asked to.

The sweep deletes them by itself, unless DOORKEY_STRAYS says otherwise. This is for those who want to look first.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table

from functions.clients.outside import build_clients
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.provisioning.strays import collect_strays

MAX_ROWS_SHOWN = 50


async def run(console: Console, *, deletes: bool) -> None:
    """Lists the strays, newest first; deletes them if told so, a bounded number a run.

    Raises:
        SettingsInvalid: the functions' environment is needed here too.
        DoorkeyError: OpenRouter or the database refused or can't be reached.
    """
    settings = Settings.from_environment()
    clients = build_clients(settings)
    now = datetime.now(UTC)
    async with clients.http:
        with console.status("Looking through the keys at OpenRouter"):
            report = await collect_strays(
                clients.openrouter,
                clients.supabase,
                project=settings.doorkey_project,
                now=now,
                min_age=timedelta(seconds=settings.doorkey_stray_age_seconds),
                is_dry_run=not deletes,
            )
    if report.strays:
        table = Table("Name", "Made", "Age")
        for key in report.strays[:MAX_ROWS_SHOWN]:
            age = timedelta(seconds=int((now - key.created_at).total_seconds()))
            table.add_row(key.name, f"{key.created_at:%Y-%m-%d %H:%M:%S}", str(age))
        console.print(table)
        if len(report.strays) > MAX_ROWS_SHOWN:
            console.print(f"... and {len(report.strays) - MAX_ROWS_SHOWN} more.")
    if report.foreign_keys:
        console.print(_foreign_sentence(report.foreign_keys), style="yellow")
    if not report.is_complete:
        console.print("There are more keys than one run looks through: only the newest were.", style="yellow")
    console.print(_sentence(len(report.strays), report.deleted))


def _foreign_sentence(found: int) -> str:
    them, they_are = ("it", "It is") if found == 1 else ("them", "They are")
    return (
        f"{counted(found, 'key goes', 'keys go')} by the name of this project, and this database never made {them}:"
        f" does a copy of it use the same DOORKEY_PROJECT? {they_are} left alone."
    )


def _sentence(found: int, deleted: int) -> str:
    if not found:
        return "No strays: every key by our name is known, or too young to tell."
    if not deleted:
        return f"{counted(found, 'stray')}. Nothing was deleted; --delete does that."
    left = "" if deleted == found else f" {counted(found - deleted, 'is', 'are')} left for the next run."
    return f"{counted(deleted, 'stray is', 'strays are')} deleted.{left}"
