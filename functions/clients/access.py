"""The access ladder: whose credentials carry a call.

1. The service key. 2. It is rejected: the secret is read again from Secrets Manager, in case the key was rotated, and
the call is made once more. 3. Still rejected, the operation has an own door and the caller sent a token: the
publishable key and that token, under row level security, with the handler's proof. 4. Else `service_key_rejected`.
What a person may see of their own goes the other way round: their token first, the service key where the publishable
one is rejected.

The surprising thing: what is rejected stays so for a minute. A key that is known to be bad costs no round trip, only
the next rung; then it is tried again, so that it heals without a deploy whatever was mended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar
from uuid import UUID

from functions.clients.data_api import Json, PublishableKeyRejected, Role, Rpc, ServiceKeyRejected
from functions.clients.proofs import Proofs
from functions.clients.secrets_manager import SecretUnreadable
from functions.kit.clock import Clock
from functions.kit.observability import KEYS_REJECTED, WorkLine
from functions.kit.settings import Settings, SettingsInvalid

REMEMBERED_SECONDS = 60.0
REREAD_SECONDS = 60.0
TOLD_SECONDS = 60
KEY_VARIABLES = ("SUPABASE_SECRET_KEY", "SUPABASE_PUBLISHABLE_KEY")

Headers = Mapping[str, str]
Ask = Callable[[str, Mapping[str, Json], Headers, Role], Awaitable[Json]]
ReadSecret = Callable[[str], Mapping[str, str]]
T = TypeVar("T")


class Caller(Protocol):
    """The person who asks. Passed on explicitly with each call, and kept nowhere."""

    @property
    def user_id(self) -> UUID:
        """Who they are, by their verified token."""

    @property
    def token(self) -> str:
        """Their own JWT."""


class ProjectKey:
    """One of the project's keys, as this sandbox knows it.

    Args:
        variable: what operators call it.
        value: the key itself.
        rejection: the error that says that it was rejected.
        reread: has the keys read again, if that may be.
        clock: the time.
    """

    def __init__(
        self,
        variable: str,
        value: str,
        rejection: type[ServiceKeyRejected | PublishableKeyRejected],
        reread: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._variable = variable
        self._value = value
        self._rejection = rejection
        self._reread = reread
        self._clock = clock
        self._rejected_at = float("-inf")
        self._detail = ""
        self._told_in: int | None = None
        self._calls = 0

    async def use(self, send: Callable[[str], Awaitable[T]]) -> T:
        """Does something with the key; if it is rejected, once more with the one that there is by now.

        Raises:
            ServiceKeyRejected, PublishableKeyRejected: it is rejected, now or less than a minute ago.
        """
        if self._clock() - self._rejected_at < REMEMBERED_SECONDS:
            self._tell()
            raise self._rejection(f"{self._detail} (remembered)")
        tried = self._value
        try:
            return await send(tried)
        except self._rejection as rejected:
            last = rejected
        if self._value == tried:
            await self._reread()
        # Whoever else was rejected may have brought the new one already.
        if self._value != tried:
            tried = self._value
            try:
                return await send(tried)
            except self._rejection as rejected:
                last = rejected
        if self._value == tried:
            self._rejected_at, self._detail = self._clock(), last.private
        self._tell(last.private)
        raise last

    def replace(self, value: str) -> None:
        """Uses this one from now on. The same one again changes nothing: what is rejected stays so."""
        if value == self._value:
            return
        self._value, self._rejected_at, self._detail = value, float("-inf"), ""
        WorkLine("key.replaced", key=self._variable).write()

    def _tell(self, detail: str | None = None) -> None:
        """One line a minute, with the metric that raises the alarm."""
        self._calls += 1
        minute = int(self._clock() // TOLD_SECONDS)
        if minute == self._told_in:
            return
        line = WorkLine(
            "key.rejected",
            key=self._variable,
            code=self._rejection.code,
            detail=self._detail if detail is None else detail,
            calls=self._calls,
        )
        line.measure(KEYS_REJECTED, 1)
        line.write(logging.ERROR)
        self._told_in, self._calls = minute, 0


class ProjectKeys:
    """Both keys, and the secret that they are read from again, at most once a minute for both.

    Args:
        settings: the keys that the environment gave, and the secret's id.
        clock: the time.
        read_secret: reads the secret; blocks.
    """

    def __init__(self, settings: Settings, clock: Clock, read_secret: ReadSecret) -> None:
        self._settings = settings
        self._clock = clock
        self._read_secret = read_secret
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self.service = ProjectKey(
            "SUPABASE_SECRET_KEY",
            settings.supabase_secret_key.get_secret_value(),
            ServiceKeyRejected,
            self._reread,
            clock,
        )
        self.publishable = ProjectKey(
            "SUPABASE_PUBLISHABLE_KEY",
            settings.supabase_publishable_key.get_secret_value(),
            PublishableKeyRejected,
            self._reread,
            clock,
        )

    async def read_secret(self) -> tuple[Settings, frozenset[str]] | None:
        """The settings with the keys that the stage's secret holds, and which those are; None: no secret is named.

        Uses none of them.

        Raises:
            SecretUnreadable: it can't be had, or is none.
            SettingsInvalid: what it holds can't be used.
        """
        secret_id = self._settings.doorkey_secret_id
        if secret_id is None:
            return None
        content = await asyncio.to_thread(self._read_secret, secret_id)
        found = {name: content[name] for name in KEY_VARIABLES if content.get(name, "").strip()}
        # Checked like all settings: a publishable key in the wrong place would be no rejection, but a mess.
        return self._settings.with_changes(found), frozenset(found)

    async def _reread(self) -> None:
        """Those who ask at the same time wait for the one who reads."""
        async with self._reading:
            if self._clock() - self._read_at < REREAD_SECONDS:
                return
            self._read_at = self._clock()
            try:
                read = await self.read_secret()
            except SecretUnreadable as error:
                self._complain("unreadable", str(error))
                return
            except SettingsInvalid as error:
                self._complain("unusable", "; ".join(error.problems))
                return
            if read is not None:
                settings, _ = read
                self.service.replace(settings.supabase_secret_key.get_secret_value())
                self.publishable.replace(settings.supabase_publishable_key.get_secret_value())

    def _complain(self, what: str, detail: str) -> None:
        WorkLine("secret.not_taken", reason=what, detail=detail).write(logging.ERROR)


class AccessLadder:
    """Walks the rungs for one call.

    Args:
        keys: the project's.
        proofs: makes them; None: there is no secret to make them with, and the doors that ask for one stay shut.
    """

    def __init__(self, keys: ProjectKeys, proofs: Proofs | None) -> None:
        self._keys = keys
        self._proofs = proofs

    async def call(self, rpc: Rpc, arguments: Mapping[str, Json], caller: Caller | None, ask: Ask) -> Json:
        """Has the call made by whoever may.

        Args:
            rpc: what is called.
            arguments: those of the door it names.
            caller: the person who asked for it, with their token; None: nobody did.
            ask: makes one call with these credentials.

        Raises:
            ServiceKeyRejected: and nobody else may make it.
            PublishableKeyRejected: both keys are rejected, or it is a person's own door.
            whatever `ask` raises, as it is.
        """
        if rpc.role == "authenticated":
            if caller is None:
                raise TypeError(f"{rpc.name} is a person's own door and needs their token")
            return await self._about_person(rpc, arguments, caller, ask)
        if caller is not None and "user_id" in rpc.arguments and arguments["user_id"] != str(caller.user_id):
            raise TypeError(f"{rpc.name} is not asked for by the user it is about")
        try:
            return await self._keys.service.use(
                lambda key: ask(rpc.name, arguments, key_headers(key), "service_role"),
            )
        except ServiceKeyRejected:
            if caller is None or rpc.own_door is None or self._proofs is None:
                raise
            door, proofs = rpc.own_door, self._proofs
        own = {name: arguments[name] for name in rpc.arguments if name != "user_id"}
        # A proof for each try: it holds once.
        return await self._as_person(door, lambda: {**own, **proofs.sign(door, caller.user_id, own)}, caller, ask)

    async def _about_person(self, rpc: Rpc, arguments: Mapping[str, Json], caller: Caller, ask: Ask) -> Json:
        """What they may see of their own: under their token, or else for the subject of their verified token."""
        try:
            return await self._as_person(rpc.name, lambda: arguments, caller, ask)
        except PublishableKeyRejected as rejected:
            if rpc.service_door is None:
                raise
            door, first = rpc.service_door, rejected
        about = {"user_id": str(caller.user_id), **arguments}
        try:
            return await self._keys.service.use(lambda key: ask(door, about, key_headers(key), "service_role"))
        except ServiceKeyRejected:
            raise first from None

    async def _as_person(
        self, door: str, arguments: Callable[[], Mapping[str, Json]], caller: Caller, ask: Ask
    ) -> Json:
        authorization = f"Bearer {caller.token}"
        return await self._keys.publishable.use(
            lambda key: ask(door, arguments(), {"apikey": key, "Authorization": authorization}, "authenticated")
        )


def key_headers(key: str) -> dict[str, str]:
    """How a key is sent when nobody's token comes with it."""
    # A legacy key is a JWT that the Data API itself must see; an sb_ key is not one and belongs in `apikey` alone.
    headers = {"apikey": key}
    if key.startswith("eyJ"):
        headers["Authorization"] = f"Bearer {key}"
    return headers
