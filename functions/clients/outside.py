"""The systems that are not ours, built together over one connection pool."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from functions.clients.access import ReadSecret
from functions.clients.openrouter import OpenRouter
from functions.clients.secrets_manager import read_secret
from functions.clients.supabase import Supabase
from functions.kit.clock import Clock, system_clock
from functions.kit.settings import Settings

# A warm sandbox may rest for minutes between calls; a connection that died meanwhile costs one failed call.
KEEPALIVE_SECONDS = 30.0


@dataclass(frozen=True)
class Clients:
    """What a handler may call."""

    http: httpx.AsyncClient
    supabase: Supabase
    openrouter: OpenRouter


def build_clients(
    settings: Settings,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Clock = system_clock,
    reading: ReadSecret = read_secret,
) -> Clients:
    """The clients for these settings. Belongs to one event loop.

    Args:
        settings: addresses, keys, time-outs.
        transport: tests may listen in between.
        clock: the time, for what is remembered of rejected keys.
        reading: reads a secret of Secrets Manager.
    """
    http = httpx.AsyncClient(
        timeout=settings.doorkey_outside_timeout_seconds,
        limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS),
        # A redirect would carry the keys to another address.
        follow_redirects=False,
        transport=transport,
    )
    return Clients(http=http, supabase=Supabase(http, settings, clock, reading), openrouter=OpenRouter(http, settings))
