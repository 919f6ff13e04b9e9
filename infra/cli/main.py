"""The command line: ``doorkey``.

Every command says what it is doing while it does it, and ends with a plain sentence and a code that isn't 0 when it
failed.
"""

from __future__ import annotations

import inspect
import os
import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from functions.kit.settings import base_url
from functions.provisioning.store import OldUsers
from infra.cli import arms as arms_commands
from infra.cli import backfill as backfill_command
from infra.cli import connect as connect_command
from infra.cli import demo as demo_command
from infra.cli import dev as dev_command
from infra.cli import doctor as doctor_command
from infra.cli import domains as domains_commands
from infra.cli import environment as environment_command
from infra.cli import faults as faults_commands
from infra.cli import ledger as ledger_commands
from infra.cli import offers as offers_commands
from infra.cli import plans as plans_commands
from infra.cli import redrive as redrive_command
from infra.cli import report as report_commands
from infra.cli import review as review_commands
from infra.cli import rotate_sealing_key as rotate_sealing_key_command
from infra.cli import strays as strays_command
from infra.cli import uninstall as uninstall_command
from infra.cli.running import errors
from infra.cli.running import run_command as _run
from infra.connection.environments import EnvFile, Home, Terminal
from infra.connection.plans import CannotGoOn
from infra.connection.stages import StageSecret
from infra.local.stack import StackOptions

app = typer.Typer(
    name="doorkey",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="A signup in a Supabase app becomes a profile, trial credits in a ledger and an OpenRouter key of its own.",
    pretty_exceptions_enable=False,
)
app.add_typer(faults_commands.app)
app.add_typer(report_commands.app)
app.add_typer(review_commands.app)
app.add_typer(plans_commands.app)
app.add_typer(offers_commands.app)
app.add_typer(arms_commands.app)
app.add_typer(domains_commands.app)
app.add_typer(ledger_commands.app)
console = Console()

LogFolder = Annotated[
    Path | None,
    typer.Option(help="Where the parts' logs go, one file each; without it they go away with the stack."),
]
LatencyMs = Annotated[int, typer.Option(min=0, max=60_000, help="How long the OpenRouter simulator takes to answer.")]


EnvFilePath = Annotated[
    Path | None,
    typer.Option(
        "--env-file", help="Keep the functions' environment in this file; made for you alone if it isn't there."
    ),
]
Stage = Annotated[
    str | None, typer.Option(help="Keep its secrets in AWS Secrets Manager, in the secret called doorkey/STAGE.")
]
ReadEnvFile = Annotated[Path | None, typer.Option("--env-file", help="Read the functions' environment in this file.")]
ReadStage = Annotated[
    str | None, typer.Option("--stage", help="Read it in AWS Secrets Manager, in the secret called doorkey/STAGE.")
]
Prints = Annotated[bool, typer.Option("--print", help="Print it, secrets and all, for you to keep.")]

Port = typer.Option(min=1, max=65_535, help="A fixed port, for an app that has the address in its configuration.")


@app.callback()
def _commands() -> None:
    """So that one command is still a command."""


@app.command(epilog="Example: [bold]doorkey demo --latency-ms 300[/bold]")
def demo(log_folder: LogFolder = None, latency_ms: LatencyMs = 0) -> None:
    """Starts everything on this machine, signs three people up, shows what they get, and stops.

    Needs no Docker and no account, and leaves nothing behind. Takes about ten seconds.
    """
    options = replace(_options(log_folder, latency_ms), database_url=None)
    _run(demo_command.run(console, options), interrupted_code=130)


@app.command(epilog="Example: [bold]doorkey dev --supabase-port 54321 --log-folder build/logs[/bold]")
def dev(
    log_folder: LogFolder = None,
    latency_ms: LatencyMs = 0,
    supabase_port: Annotated[int | None, Port] = None,
    functions_port: Annotated[int | None, Port] = None,
) -> None:
    """Starts everything on this machine and leaves it running until Ctrl-C.

    Prints the addresses and keys, then each part's log, prefixed.

    With DATABASE_URL set, that database is used instead of the embedded one, and stays as it is afterwards: it must be
    empty, and the user a superuser.
    """
    # Ctrl-C is how it is meant to end.
    chosen = {"edge": supabase_port, "functions": functions_port}
    ports = {name: port for name, port in chosen.items() if port is not None}
    if supabase_port is not None and supabase_port == functions_port:
        errors.print("Two parts can't have the same port.", style="bold red")
        raise typer.Exit(2)
    options = replace(_options(log_folder, latency_ms), ports=ports)
    _run(dev_command.run(console, options), interrupted_code=0)


@app.command(epilog="Example: [bold]doorkey doctor --stage prod[/bold]")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs; docs/doctor.md says what is in it.")] = False,
    env_file: ReadEnvFile = None,
    stage: ReadStage = None,
    database_url: Annotated[
        str | None, typer.Option(help="Without a password; one with it belongs into DATABASE_URL.")
    ] = None,
) -> None:
    """Looks at everything that doorkey needs, and says of each thing whether it is well, and what mends it.

    Without options it looks at what the shell's environment says, or else at the doorkey dev on this machine. Changes
    nothing, and shows no secret. With DATABASE_URL, of role postgres, it sees the database even where a key is wrong.

    The exit code is 0 when all is well, 1 when something should be looked after, 2 when something is broken.
    """
    home = _home(env_file, stage, prints=False) if env_file is not None or stage is not None else None
    # What is read by a program goes out alone.
    work = doctor_command.run(errors if as_json else console, home, database_url, as_json=as_json)
    _run(work, interrupted_code=130)


@app.command(epilog="Example: [bold]doorkey redrive --error openrouter_refused[/bold]")
def redrive(
    user: Annotated[uuid.UUID | None, typer.Option(help="Only this user.")] = None,
    error: Annotated[
        str | None, typer.Option(help="Only those whose last error has this code; see docs/errors.md.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody who was given up or waits.")] = False,
) -> None:
    """Gives users whose provisioning was given up, or waits for its next try, another chance now.

    Needs the functions' environment (docs/settings.md). The next sweep does the work.
    """
    if (user is not None) + (error is not None) + everybody != 1:
        errors.print("Say whom: --user ID, --error CODE or --all.", style="bold red")
        raise typer.Exit(2)
    _run(redrive_command.run(console, user, error), interrupted_code=130)


@app.command(epilog="Example: [bold]doorkey strays --delete[/bold]")
def strays(
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it they are only shown.")] = False,
) -> None:
    """Shows the keys at OpenRouter that were made for users here and that nobody holds.

    The sweep deletes such keys by itself, unless DOORKEY_STRAYS is `report`. Needs the functions' environment
    (docs/settings.md).
    """
    _run(strays_command.run(console, deletes=delete), interrupted_code=130)


@app.command(epilog="Example: [bold]doorkey backfill --created-since 2026-01-01 --yes --per-hour 400[/bold]")
def backfill(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this nothing is changed.")] = False,
    user: Annotated[uuid.UUID | None, typer.Option(help="Only this user.")] = None,
    created_since: Annotated[datetime | None, typer.Option(help="Only users created then or later, in UTC.")] = None,
    created_before: Annotated[datetime | None, typer.Option(help="Only users created earlier, in UTC.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many users in this run.")] = None,
    per_hour: Annotated[
        int | None, typer.Option(min=1, help="How many keys an hour; half of max_keys_per_hour if not said.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=backfill_command.MAX_BATCH, help="How many users are enrolled at a time.")
    ] = 100,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow until they have their keys, or enrol everybody and leave.")
    ] = True,
) -> None:
    """Serves users from before doorkey was installed: a dry run that says users, money and hours; with --yes, the work.

    Needs the functions' environment (docs/settings.md). The sweep makes the keys; this command enrols the next batch
    when the last one is nearly done. It may be stopped at any time: the sweep finishes what is under way. Run again, it
    goes on where it was.
    """
    chosen = OldUsers(user, *(moment and moment.replace(tzinfo=UTC) for moment in (created_since, created_before)))
    plan = backfill_command.BackfillPlan(chosen, limit, per_hour, batch, is_dry_run=not yes, waits=wait)
    _run(backfill_command.run(console, plan), interrupted_code=130)


@app.command(epilog="Example: [bold]doorkey connect --env-file functions.env --url https://api.example.com[/bold]")
def connect(
    url: Annotated[
        str | None, typer.Option(help="The functions' address: once it is known, and when it has changed.")
    ] = None,
    env_file: EnvFilePath = None,
    stage: Stage = None,
    prints: Prints = False,
    give_up_sealed_secrets: Annotated[
        bool,
        typer.Option(
            "--give-up-sealed-secrets",
            help="Go on though the key that sealed the users' stored keys is lost: nobody will open them again.",
        ),
    ] = False,
) -> None:
    """Connects the database and the functions: makes what they must share, and stores it on both sides.

    The first time it makes the signing secret and the sealing key, writes the functions' environment where you say, and
    tells the database where to ring. Without --url it only writes: deploy first, see which address the functions get,
    and run it again with that. A sealing key that is there is never replaced.

    Run again, it rotates the signing secret in two runs with a deployment between them: the first puts a new secret
    beside the one that signs; the second switches the database, once the functions have shown that they accept it. At
    every moment the functions know the secret that the database signs with. Interrupted, just run it again.

    What the functions need otherwise (docs/settings.md) is taken from the environment, or from where it is kept.
    """
    home = _home(env_file, stage, prints)
    functions_url = None
    if url is not None:
        try:
            functions_url = base_url(url)
        except ValueError as error:
            errors.print(f"--url {error}.", style="bold red", markup=False)
            raise typer.Exit(2) from None
    # What is printed to be kept goes out alone.
    _run(
        connect_command.run(errors if prints else console, home, functions_url, gives_up_sealed=give_up_sealed_secrets),
        interrupted_code=130,
    )


@app.command("rotate-sealing-key", epilog="Example: [bold]doorkey rotate-sealing-key --stage prod[/bold]")
def rotate_sealing_key(
    env_file: EnvFilePath = None,
    stage: Stage = None,
    prints: Prints = False,
    remove_old: Annotated[
        bool, typer.Option("--remove-old", help="Take the old key out, once nothing is sealed with it any more.")
    ] = False,
) -> None:
    """Replaces the key that seals the users' stored keys, and seals them anew.

    Run it three times, deploying the functions after the first and the second: the new key is added, then it seals,
    then all that is stored is sealed anew. Each time it asks the functions whether they run with what was deployed. At
    last --remove-old, and a deployment. Users notice nothing. Interrupted, just run it again.
    """
    home = _home(env_file, stage, prints)
    command = rotate_sealing_key_command.run(errors if prints else console, home, removes_old=remove_old)
    _run(command, interrupted_code=130)


@app.command(epilog='Example: [bold]eval "$(doorkey environment --stage prod)"[/bold]')
def environment(env_file: ReadEnvFile = None, stage: ReadStage = None) -> None:
    """Gives the functions' environment to a shell, for the commands that need it, such as backfill or strays.

    Prints secrets, and so refuses to print on a terminal.
    """
    if env_file is None and stage is None:
        errors.print("Say where the functions' environment is kept: --env-file PATH or --stage NAME.", style="bold red")
        raise typer.Exit(2)
    _run(environment_command.run(_home(env_file, stage, prints=False)), interrupted_code=130)


def _home(env_file: Path | None, stage: str | None, prints: bool) -> Home:
    if (env_file is not None) + (stage is not None) + prints != 1:
        errors.print(
            "Say where the functions' environment is kept: --env-file PATH, --stage NAME or --print.", style="bold red"
        )
        raise typer.Exit(2)
    if env_file is not None:
        return EnvFile(env_file)
    try:
        return StageSecret(stage) if stage is not None else Terminal()
    except CannotGoOn as error:
        errors.print(str(error), style="bold red", markup=False)
        raise typer.Exit(2) from None


@app.command(epilog="Example: [bold]doorkey uninstall --keep-ledger --delete-keys[/bold]")
def uninstall(
    keep_ledger: Annotated[
        bool, typer.Option("--keep-ledger", help="Keep who was given what and what they spent, as an archive.")
    ] = False,
    delete_keys: Annotated[
        bool,
        typer.Option("--delete-keys", help="Delete every live key at OpenRouter first; else they can still spend."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Don't ask; without it the project's name is to be typed.")
    ] = False,
    database_url: Annotated[
        str | None, typer.Option(help="Without a password; one with it belongs into DATABASE_URL.")
    ] = None,
) -> None:
    """Takes doorkey out of a database: triggers, functions and tables go, and the host is as it was before.

    Needs a Postgres address of role `postgres` in DATABASE_URL, because the service key may not drop anything; with
    --delete-keys also OPENROUTER_MANAGEMENT_KEY. All or nothing, in one transaction; only the deletion of keys comes
    before it, and goes on where it was if it is run again.
    """
    try:
        plan = uninstall_command.UninstallPlan(keeps_ledger=keep_ledger, deletes_keys=delete_keys)
        url = uninstall_command.database_url(database_url, os.environ)
        work = uninstall_command.Uninstallation(console, url, plan, os.environ)
        _run(work.look(), interrupted_code=130)
        if not work.is_needed:
            return
        if not yes:
            work.confirm()
    except uninstall_command.UninstallStopped as failure:
        errors.print(str(failure), style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    _run(work.run(), interrupted_code=130)


def _options(log_folder: Path | None, latency_ms: int) -> StackOptions:
    return StackOptions(
        log_folder=log_folder.resolve() if log_folder else None,
        database_url=os.environ.get("DATABASE_URL") or None,
        openrouter_latency_ms=latency_ms,
    )


def _flowing(commands: typer.Typer) -> None:
    """Typer breaks a help text where the source's lines end, whatever the terminal's width."""
    for command in commands.registered_commands:
        text = command.help or inspect.getdoc(command.callback) or ""
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", text)


for _commands_of in (
    app,
    faults_commands.app,
    report_commands.app,
    review_commands.app,
    plans_commands.app,
    offers_commands.app,
    arms_commands.app,
    domains_commands.app,
    ledger_commands.app,
):
    _flowing(_commands_of)


def main() -> None:
    """The entry point of the ``doorkey`` command."""
    app()


if __name__ == "__main__":
    main()
