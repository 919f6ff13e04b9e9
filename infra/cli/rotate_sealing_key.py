"""``doorkey rotate-sealing-key``: a new key seals the users' stored keys, and everything is sealed anew with it.

Three steps, with a deployment after the first and the second, and each time the functions are asked what they run with:
all of them can open with the new key before any seals with it. Else somebody's only look at their key could fall into a
deployment, and fail.
"""

from __future__ import annotations

import time

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from functions.clients.outside import Clients, build_clients
from functions.clients.supabase import DatabaseRefused
from functions.connection import store
from functions.kit.counting import counted
from functions.kit.sealing import SealingKey
from functions.kit.settings import Settings
from infra.cli.connect import SEALING_KEYS
from infra.connection.environments import Home, environment_at
from infra.connection.ping import NotAnswered, ping
from infra.connection.plans import CannotGoOn, SealingStep, current_secret, plan_sealing
from infra.connection.resealing import Resealed, count_others, reseal

SHOWN_HASHES = 20

NEXT = {
    SealingStep.ADD: (
        "A new sealing key is in {home}, behind the one that seals. Deploy the functions, so that all of them can open "
        "what it will seal; then run doorkey rotate-sealing-key again."
    ),
    SealingStep.PROMOTE: (
        "The new sealing key is the first in {home}. Deploy the functions, so that all of them seal with it; then run "
        "doorkey rotate-sealing-key again: it seals anew what is stored."
    ),
}


async def run(
    console: Console, home: Home, *, removes_old: bool = False, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """Does the next step of rotating, and says what comes after it.

    Args:
        console: for the sentences and the progress.
        home: where the functions' environment is kept.
        removes_old: takes the old key out of it, once it seals nothing any more.
        transport: tests may listen in between.

    Raises:
        CannotGoOn: the step can't be done, or something stored can't be opened.
        SettingsInvalid: the functions' environment is needed here too.
        DoorkeyError: the database refused or can't be reached.
    """
    environment, _ = await environment_at(home)
    settings = Settings.from_environment(environment)
    clients = build_clients(settings, transport)
    async with clients.http:
        secret = await _check_deployed(clients, settings)
        step, keys = plan_sealing(settings.sealing_keys, lambda: SealingKey.generate(time.time()))
        if removes_old:
            await _check_removable(clients, step, keys)
            keys = keys[:1]
        elif step is SealingStep.RESEAL:
            _conclude(console, keys[1], await _reseal(console, clients, keys, store.proof_of(secret)))
            return
        environment[SEALING_KEYS] = ",".join(key.text for key in keys)
        await home.write(environment)
        if removes_old:
            console.print(f"Only {keys[0].key_id} is left in {home}. Deploy the functions, and the rotation is over.")
        else:
            console.print(NEXT[step].format(home=home))


async def _check_deployed(clients: Clients, settings: Settings) -> str:
    """The functions run with just these sealing keys; the secret that signs at present."""
    connection = await store.get_connection(clients.supabase)
    if connection.webhook_url is None or connection.fingerprint is None:
        raise CannotGoOn("The database is not connected yet, so the functions can't be asked: run doorkey connect.")
    secret = current_secret(tuple(secret.get_secret_value() for secret in settings.doorkey_webhook_secrets), connection)
    try:
        running = await ping(clients.http, connection.webhook_url, [secret])
    except NotAnswered as error:
        raise NotAnswered(f"{error} They must run before the next step; nothing was changed.") from None
    wanted = tuple(key.key_id for key in settings.sealing_keys)
    if running != wanted:
        raise CannotGoOn(
            f"The functions run with the sealing keys {', '.join(running)}, and the environment here has "
            f"{', '.join(wanted)}. Deploy them with it, then run this again; nothing was changed."
        )
    return secret


async def _check_removable(clients: Clients, step: SealingStep, keys: tuple[SealingKey, ...]) -> None:
    if step is not SealingStep.RESEAL:
        raise CannotGoOn("There is no old sealing key that could go yet: run it without --remove-old.")
    count = await count_others(clients.supabase, keys[0].key_id)
    if count:
        raise CannotGoOn(
            f"{counted(count, 'stored key is', 'stored keys are')} not sealed with {keys[0].key_id} yet: run it without"
            " --remove-old first."
        )


async def _reseal(console: Console, clients: Clients, keys: tuple[SealingKey, ...], proof: str) -> Resealed:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    total = await count_others(clients.supabase, keys[0].key_id)
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task(f"Sealing anew with {keys[0].key_id}", total=total)
        try:
            return await reseal(
                clients.supabase, keys, proof=proof, progress=lambda rows: progress.update(task, advance=rows)
            )
        except DatabaseRefused as error:
            if error.word != store.SECRET_NOT_KNOWN:
                raise
            raise CannotGoOn("The signing secret was changed at this moment. Run it again.") from None


def _conclude(console: Console, old: SealingKey, outcome: Resealed) -> None:
    console.print(f"{counted(outcome.resealed, 'stored key was', 'stored keys were')} sealed anew.")
    if outcome.broken:
        shown = "\n".join(f"  {key_hash}" for key_hash in outcome.broken[:SHOWN_HASHES])
        more = len(outcome.broken) - SHOWN_HASHES
        raise CannotGoOn(
            f"{counted(len(outcome.broken), 'stored key')} can't be opened by any key here and"
            f" {'stays as it is' if len(outcome.broken) == 1 else 'stay as they are'}:\n{shown}"
            + (f"\n  and {more} more" if more > 0 else "")
        )
    if outcome.left:
        raise CannotGoOn(
            f"{counted(outcome.left, 'more was', 'more were')} sealed with another key meanwhile: run it again."
        )
    console.print(
        f"Nothing is sealed with {old.key_id} any more: doorkey rotate-sealing-key --remove-old takes it out. Keep it "
        "with the older backups of the database: they are sealed with it."
    )
