"""Does to users what happens to users: through the real triggers, as Auth or an operator would.

Called between signups by the driver, and in the middle of a call by the workers.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from contextlib import suppress

import httpx
import psycopg

from infra.local.stack import with_login
from tests.crash.plan import PLANS, Act, Script

GRANT_MICROS = 1_250_000
BAN_SECONDS = 3
GRACE_SECONDS = 3

_AUTH = {
    Act.BAN: f"update users set banned_until = now() + interval '{BAN_SECONDS} s' where id = %s",
    Act.BAN_FOREVER: "update users set banned_until = 'infinity' where id = %s",
    Act.UNBAN: "update users set banned_until = null where id = %s",
    Act.DELETE: "delete from users where id = %s",
    Act.SOFT_DELETE: "update users set deleted_at = now() where id = %s",
    Act.EMAIL: "update users set email = 'new.' || email where id = %s",
}
# No door for operators yet; the sweep finds it.
_PLAN = "update public.credit_accounts set plan_id = %s where user_id = %s"
_GRANT = """
select doorkey.grant_credits(a.user_id, 'bonus', %s, %s, 'A present', 'crash', null, 'crash')
  from public.credit_accounts as a where a.user_id = %s
"""
_ROTATE = "select doorkey.request_key_rotation(%s, %s, 'crash')"
_KEY = "select key_hash from doorkey.provisioning where user_id = %s"

NEW_PLANS = """
insert into public.plans (id, name, welcome_credits_micros, welcome_credits_days, markup, is_uncapped)
values ('resale', 'Resale', 5000000, 30, 1.3, false), ('open', 'Open', 5000000, 30, 1, true)
"""


class Actor:
    """Connections of whoever makes things happen; opened when first needed.

    Args:
        superuser_url: of the stack's database.
        role_password: of the roles that log in.
        openrouter: the simulator's address and management key, for keys deleted by hand.
        count: told of each act that was done.
    """

    def __init__(
        self, superuser_url: str, role_password: str, openrouter: tuple[str, str], count: Callable[[Act], None]
    ) -> None:
        auth = with_login(superuser_url, "supabase_auth_admin", role_password)
        self._urls = {"sign up": auth, "sign up unseen": superuser_url, "auth": auth, "operator": superuser_url}
        self._openrouter = openrouter
        self._count = count
        self._open: dict[str, psycopg.AsyncConnection[tuple[object, ...]]] = {}
        self._opening = asyncio.Lock()
        # Several statements at once would come into one transaction.
        self._signing_up = asyncio.Lock()

    async def connection(self, name: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
        """The connection of `auth` or of an `operator`; signing up has its own, because it takes transactions."""
        async with self._opening:
            if name not in self._open:
                self._open[name] = await psycopg.AsyncConnection.connect(self._urls[name], autocommit=True)
        return self._open[name]

    async def close(self) -> None:
        """Closes what was opened."""
        for connection in self._open.values():
            await connection.close()

    async def sign_up(self, script: Script) -> None:
        """Inserts the user as Auth does; or so that no trigger sees it."""
        email = f"{script.user_id}@example.com"
        insert = (
            "insert into auth.users (id, aud, role, email, created_at, updated_at)"
            " values (%s, 'authenticated', '', %s, now(), now())"
        )
        confirm = "update auth.users set email_confirmed_at = now() where id = %s"
        connection = await self.connection("sign up unseen" if script.is_missed else "sign up")
        async with self._signing_up:
            if script.is_confirmed_later:
                await connection.execute(insert, (script.user_id, email))
                await connection.execute(confirm, (script.user_id,))
                return
            async with connection.transaction():
                if script.is_missed:
                    await connection.execute("set local session_replication_role = replica")
                await connection.execute(insert, (script.user_id, email))
                await connection.execute(confirm, (script.user_id,))

    async def perform(self, act: Act, script: Script, number: str) -> None:
        """Does it to the user; `number` tells one grant from another."""
        user_id = script.user_id
        if act in _AUTH:
            await (await self.connection("auth")).execute(_AUTH[act], (user_id,))
        elif act is Act.GRANT:
            parameters = (GRANT_MICROS, f"crash:{user_id}:{number}", user_id)
            await (await self.connection("operator")).execute(_GRANT, parameters)
        elif act is Act.ROTATE:
            with suppress(psycopg.Error):  # without a key, banned, or too often: nothing happens
                await (await self.connection("operator")).execute(_ROTATE, (user_id, GRACE_SECONDS))
        elif act is Act.PLAN:
            plan = PLANS[zlib.crc32(f"{user_id}/{number}".encode()) % len(PLANS)]
            await (await self.connection("operator")).execute(_PLAN, (plan, user_id))
        elif act is Act.REMOVE_KEY:
            await self._remove_key(script)
        self._count(act)

    async def _remove_key(self, script: Script) -> None:
        cursor = await (await self.connection("operator")).execute(_KEY, (script.user_id,))
        row = await cursor.fetchone()
        if row is None or row[0] is None:
            return
        address, management_key = self._openrouter
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.delete(f"{address}/keys/{row[0]}", headers={"Authorization": f"Bearer {management_key}"})
