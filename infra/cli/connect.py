"""``doorkey connect``: the database and the functions get the same signing secret, and the functions a sealing key.

Run again it rotates the signing secret. The order keeps every hint acceptable: the functions get the new secret beside
the one that signs, and the database is switched only when they have answered a ping signed with the new one.
"""

from __future__ import annotations

import time
import uuid

import httpx
from rich.console import Console

from functions.clients.outside import Clients, build_clients
from functions.clients.supabase import DatabaseRefused
from functions.connection import store
from functions.kit.counting import counted
from functions.kit.sealing import SealingKey
from functions.kit.settings import Settings, generate_webhook_secret
from infra.connection.environments import Home, environment_at
from infra.connection.ping import NotAnswered, ping
from infra.connection.plans import CannotGoOn, ConnectionPlan, ConnectionStep, plan_connection
from infra.local.functions import WEBHOOK_PATH

SEALING_KEYS = "DOORKEY_SEALING_KEYS"
WEBHOOK_SECRETS = "DOORKEY_WEBHOOK_SECRETS"

# The steps that only write the environment down, and what comes next.
DEPLOY = {
    ConnectionStep.PREPARE: (
        "The functions' environment is in {home}. Deploy them, then run doorkey connect again with --url and the "
        "address that they got: it tells the database where to ring."
    ),
    ConnectionStep.ROTATE: (
        "A new signing secret is in {home}, beside the one that signs. Deploy the functions with both, then run "
        "doorkey connect again: it asks the functions, and switches the database."
    ),
}


async def run(
    console: Console,
    home: Home,
    functions_url: str | None,
    *,
    gives_up_sealed: bool = False,
    transport: httpx.AsyncBaseTransport | None = None,
) -> None:
    """Does the next step of connecting, and says what comes after it.

    Args:
        console: for the sentences.
        home: where the functions' environment is kept.
        functions_url: their address; None: the one that the database has.
        gives_up_sealed: go on though nobody will be able to open the secrets that are stored.
        transport: tests may listen in between.

    Raises:
        CannotGoOn: the step can't be done; nothing is worse than before.
        SettingsInvalid: something else that the functions need is missing.
        DoorkeyError: the database refused or can't be reached.
    """
    environment, differing = await environment_at(home)
    has_sealing_key = SEALING_KEYS in environment
    environment.setdefault(SEALING_KEYS, SealingKey.generate(time.time()).text)
    settings = Settings.from_environment(environment)
    if differing:
        console.print(f"{home} has other values than were given here, and its own count: {', '.join(differing)}.")
    clients = build_clients(settings, transport)
    async with clients.http:
        if not gives_up_sealed:
            await _check_sealing_keys(clients, settings, has_sealing_key)
        secrets = tuple(secret.get_secret_value() for secret in settings.doorkey_webhook_secrets)
        url = functions_url and webhook_url(functions_url)
        plan = plan_connection(secrets, await store.get_connection(clients.supabase), url, generate_webhook_secret)
        if plan.step is ConnectionStep.ROTATE:
            # Whoever doesn't have the present one would never get the next.
            await _deployed(clients, plan)
        environment[WEBHOOK_SECRETS] = ",".join(plan.secrets)
        is_changed = await home.write(environment)
        if is_changed and not has_sealing_key:
            console.print(f"The sealing key is made. Keep {home}: without it nobody can open the users' stored keys.")
        if plan.step in DEPLOY:
            console.print(DEPLOY[plan.step].format(home=home))
            return
        if plan.step is ConnectionStep.SWITCH:
            await _deployed(clients, plan)
        await _store(clients, plan)
        await _say_where_it_stands(console, home, clients, plan)


def webhook_url(functions_url: str) -> str:
    """The webhook's address, from the functions' or its own."""
    return functions_url if functions_url.endswith(WEBHOOK_PATH) else functions_url + WEBHOOK_PATH


async def _check_sealing_keys(clients: Clients, settings: Settings, has_sealing_key: bool) -> None:
    configured = {key.key_id for key in settings.sealing_keys} if has_sealing_key else set()
    counts = await store.count_sealed_secrets(clients.supabase)
    lost = {key_id: count for key_id, count in counts.items() if key_id not in configured}
    if lost:
        stored = sum(lost.values())
        raise CannotGoOn(
            f"{counted(stored, 'stored key of a user is', 'stored keys of users are')} sealed with"
            f" {', '.join(sorted(lost))}, which is not in {SEALING_KEYS} here: with another key nobody could open"
            f" {'it' if stored == 1 else 'them'} again. Give the environment that the "
            "functions run with. Only if that key is lost for good: --give-up-sealed-secrets."
        )


async def _deployed(clients: Clients, plan: ConnectionPlan) -> None:
    """The functions accept what signs after the step.

    Raises:
        NotAnswered: saying that they must be deployed.
    """
    try:
        await ping(clients.http, plan.webhook_url, [plan.signing_secret])
    except NotAnswered as error:
        raise NotAnswered(
            f"{error} Deploy them with this environment, then run doorkey connect again. The database is as it was."
        ) from None


async def _store(clients: Clients, plan: ConnectionPlan) -> None:
    try:
        await store.store_connection(
            clients.supabase,
            webhook_url=plan.webhook_url,
            webhook_secret=plan.signing_secret,
            proof=plan.proof,
            request_id=uuid.uuid4().hex,
        )
    except DatabaseRefused as error:
        if error.word != store.SECRET_NOT_KNOWN:
            raise
        raise CannotGoOn("Somebody else connected the database at this moment. Run it again.") from None


async def _say_where_it_stands(console: Console, home: Home, clients: Clients, plan: ConnectionPlan) -> None:
    if plan.step is ConnectionStep.SWITCH:
        console.print(
            f"The functions accepted it: the database rings at {plan.webhook_url} and signs with the first secret."
        )
        if len(plan.secrets) > 1:
            console.print("The secret before it may stay; the next rotation drops it.")
        return
    console.print(f"The database rings at {plan.webhook_url}; the functions' environment is in {home}.")
    try:
        await ping(clients.http, plan.webhook_url, [plan.signing_secret])
    except NotAnswered as error:
        console.print(f"{error} Deploy the functions with this environment; until then the sweep waits with the rows.")
    else:
        console.print("The functions accept its hints: connected.")
