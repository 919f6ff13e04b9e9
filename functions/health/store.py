"""The whole SQL vocabulary of health."""

from __future__ import annotations

from typing import Any

from functions.clients.supabase import Rpc, Supabase

GET_HEALTH = Rpc("get_doorkey_health", (), "service_role")


async def get_health(database: Supabase) -> dict[str, Any]:
    """What the database knows of its own state."""
    health: dict[str, Any] = await database.call(GET_HEALTH, {})
    return health
