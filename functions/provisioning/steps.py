"""Makes a user's key as it should be: claim, act at OpenRouter, finish.

Whoever wants a user provisioned calls `provision`: the webhook, and later the sweep and the first request. It may be
called at any time, any number of times, at once: the claim decides who works.

Around the irreversible act, making a key: before it, anything that fails is tried again. At it, when the answer is
lost, nobody knows; the next attempt has the next number, and the stray is found by its name. After it, nothing is
repeated: the key is registered, or deleted by its own hash where the database says that nobody will ever use it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from functions.clients.openrouter import (
    CreatedKey,
    KeyNotFound,
    LimitNotTaken,
    OpenRouter,
    OpenRouterError,
    OpenRouterLimited,
)
from functions.clients.outside import Clients
from functions.clients.supabase import (
    Caller,
    DatabaseBusy,
    DatabaseRefused,
    Supabase,
    SupabaseAnswerLost,
    SupabaseError,
    SupabaseUnreachable,
)
from functions.kit.errors import DoorkeyError, UserTokenRejected
from functions.kit.observability import WorkLine
from functions.kit.sealing import Sealer
from functions.kit.settings import Settings
from functions.provisioning import metrics, store
from functions.provisioning.names import KeyName
from functions.provisioning.retry import next_try
from functions.provisioning.states import Chance, KeyAction, ProvisioningState
from functions.provisioning.store import Claim

# The wish may change while it is being fulfilled; somebody who changes it faster than this waits for the sweep.
# Replacing a key, and again within its grace period, takes five.
MAX_ROUNDS = 6
# Recording what was done is asked for again when the answer is lost: it is idempotent, and a key hangs on it.
FINISH_TRIES = 3
# A key that can't be found is looked for again before it is believed to be gone: it may only be out of sight.
LOST_KEY_FAILURES = 2


class Outcome(StrEnum):
    """How a call of `provision` ended, as the log and the webhook's answer say it."""

    READY = "ready"  # the key is as wanted
    GONE = "gone"  # the user is gone, and so is their key
    NOTHING_TO_DO = "nothing_to_do"  # nothing was due, or somebody else is at it
    DEFERRED = "deferred"  # an attempt failed; the row is due again later
    LIMITED = "limited"  # OpenRouter asked to slow down: nothing was tried, and the row is due again soon
    HELD = "held"  # OpenRouter refuses everybody; one probe a minute until it doesn't
    DEAD = "dead"  # an attempt failed, and it was the last
    LEASE_LOST = "lease_lost"  # somebody else finished first; the key made here is deleted
    USER_GONE = "user_gone"  # the user was deleted meanwhile; the key made here is deleted
    UNFINISHED = "unfinished"  # the database did not answer; the lease will run out


@dataclass(frozen=True, repr=False)
class Asked:
    """By which request an attempt was asked for, and by whom; `session` is None where nobody did in person."""

    request_id: str
    session: Caller | None


@dataclass(frozen=True)
class Provisioner:
    """Everything that provisioning needs, built once.

    Attributes:
        database: the Data API, with the service key.
        openrouter: the management side.
        sealer: seals the secrets.
        project: part of the keys' names.
        lease_seconds: how long an attempt holds the row.
    """

    database: Supabase
    openrouter: OpenRouter
    sealer: Sealer
    project: str
    lease_seconds: int

    @classmethod
    def build(cls, settings: Settings, clients: Clients) -> Provisioner:
        """For these settings and clients."""
        return cls(
            database=clients.supabase,
            openrouter=clients.openrouter,
            sealer=Sealer(settings.sealing_keys),
            project=settings.doorkey_project,
            lease_seconds=settings.doorkey_lease_seconds,
        )

    async def provision(
        self, user_id: UUID, *, request_id: str, chance: Chance = Chance.EAGER, session: Caller | None = None
    ) -> Outcome:
        """Does what is due for one user. Writes one line for each attempt.

        Args:
            user_id: whose key.
            request_id: for the log and the audit.
            chance: by whose call.
            session: the user's own, where they asked themselves: it carries on when the service key is rejected.

        Raises:
            DoorkeyError: the database could not be asked, or refused in a way that nobody foresaw.
        """
        outcome = Outcome.NOTHING_TO_DO
        for _ in range(MAX_ROUNDS):
            line = WorkLine("provisioning.finished", request_id=request_id, user_id=str(user_id))
            try:
                with line.step("claim"):
                    claim = await store.claim(
                        self.database,
                        user_id,
                        lease_seconds=self.lease_seconds,
                        request_id=request_id,
                        chance=chance,
                        session=session,
                    )
                if claim is None:
                    if outcome is Outcome.NOTHING_TO_DO:
                        line.add(outcome=outcome)
                        line.write()
                    return outcome
                line.add(attempt=claim.attempt)
                outcome, is_due_again = await self._attempt(claim, Asked(request_id, session), line)
            except Exception as error:
                # Whatever it was, the row is safe: it is due still, or its lease will run out.
                line.add(outcome="failed", error=type(error).__name__)
                if isinstance(error, DoorkeyError):
                    line.add_error(error)
                line.measure(metrics.attempts("failed"), 1)
                line.write(logging.ERROR)
                raise
            line.add(outcome=outcome)
            line.measure(metrics.attempts(outcome), 1)
            line.write(logging.INFO if outcome is Outcome.READY else logging.WARNING)
            if not is_due_again:
                return outcome
        return outcome

    async def _attempt(self, claim: Claim, asked: Asked, line: WorkLine) -> tuple[Outcome, bool]:
        """One attempt; also says whether the wish changed meanwhile."""
        works = {
            KeyAction.CREATE: self._make_key,
            KeyAction.UPDATE: self._update_key,
            KeyAction.DELETE: self._delete_key,
        }
        try:
            state = await works[claim.action](claim, asked, line)
        except OpenRouterError as error:
            line.add_error(error)
            line.add(is_outcome_unknown=error.is_outcome_unknown)
            return await self._defer(claim, error, asked, line), False
        except DatabaseRefused as error:
            if error.word not in (store.LEASE_LOST, store.USER_GONE):
                raise
            return Outcome(error.word), False
        except (SupabaseError, UserTokenRejected) as error:
            # Or the token that carries it ran out on the way.
            line.add_error(error)
            return Outcome.UNFINISHED, False
        outcome = Outcome.GONE if state is ProvisioningState.GONE else Outcome.READY
        return outcome, state is ProvisioningState.DUE

    async def _make_key(self, claim: Claim, asked: Asked, line: WorkLine) -> ProvisioningState:
        name = str(KeyName(self.project, claim.user_id, claim.attempt))
        with line.step("create_key"):
            key = await self.openrouter.create_key(name, claim.limit_micros)
        line.add(key_name=name, limit_micros=claim.limit_micros)
        if key.limit_micros != claim.limit_micros:
            # It could spend what nobody granted.
            await self._undo(key, line)
            raise LimitNotTaken("POST keys: 201, but another limit than asked for")
        with line.step("seal"):
            sealed = self.sealer.seal(key.secret, user_id=claim.user_id, key_hash=key.key_hash)

        def register() -> Awaitable[ProvisioningState]:
            return store.finish(
                self.database,
                claim,
                key_hash=key.key_hash,
                key_name=key.name,
                key_label=key.label,
                sealed_secret=sealed,
                request_id=asked.request_id,
                session=asked.session,
            )

        try:
            return await self._finish(register, line)
        except DatabaseRefused as error:
            # Only on these two words does the database promise that this key will never be used.
            if error.word in (store.LEASE_LOST, store.USER_GONE):
                await self._undo(key, line)
            raise

    async def _update_key(self, claim: Claim, asked: Asked, line: WorkLine) -> ProvisioningState:
        line.add(limit_micros=claim.limit_micros, is_enabled=claim.is_enabled)
        try:
            with line.step("update_key"):
                usage_micros = await self.openrouter.update_key(
                    str(claim.key_hash), limit_micros=claim.limit_micros, is_enabled=claim.is_enabled
                )
        except KeyNotFound:
            if claim.failures < LOST_KEY_FAILURES:
                raise
            # Somebody deleted it by hand. The user shall have one all the same: the next round makes it. Should the
            # old one be there nevertheless, it must not stay beside the new one.
            line.add(is_key_lost=True)
            return await self._delete_key(claim, asked, line)
        try:
            return await self._finish(
                lambda: store.finish_key_update(
                    self.database,
                    claim,
                    usage_micros=usage_micros,
                    request_id=asked.request_id,
                    session=asked.session,
                ),
                line,
            )
        except DatabaseRefused as error:
            if error.word == store.LEASE_LOST:
                # Too late: it may have overwritten what somebody else did since, and nobody would look again.
                with line.step("recheck"):
                    await store.recheck_key(self.database, claim, request_id=asked.request_id, session=asked.session)
            raise

    async def _delete_key(self, claim: Claim, asked: Asked, line: WorkLine) -> ProvisioningState:
        with line.step("delete_key"):
            await self.openrouter.delete_key(str(claim.key_hash))
        return await self._finish(
            lambda: store.finish_key_deletion(self.database, claim, request_id=asked.request_id, session=asked.session),
            line,
        )

    async def _finish(self, ask: Callable[[], Awaitable[ProvisioningState]], line: WorkLine) -> ProvisioningState:
        """Asks the database to record what was done, again if there is no answer: every one of these is repeatable."""
        with line.step("finish"):
            for tries_left in reversed(range(FINISH_TRIES)):
                try:
                    return await ask()
                except (SupabaseAnswerLost, SupabaseUnreachable, DatabaseBusy):
                    if not tries_left:
                        raise
        raise AssertionError("unreachable")

    async def _undo(self, key: CreatedKey, line: WorkLine) -> None:
        try:
            with line.step("delete_key"):
                await self.openrouter.delete_key(key.key_hash)
            line.add(is_key_deleted=True)
        except OpenRouterError as error:
            # Left over, by a name that says whose it was.
            line.add_error(error)
            line.add(is_key_deleted=False)

    async def _defer(self, claim: Claim, error: OpenRouterError, asked: Asked, line: WorkLine) -> Outcome:
        is_limited = isinstance(error, OpenRouterLimited)
        # To be asked to slow down is no failure of this user's: it makes nobody wait longer and longer.
        plan = next_try(0 if is_limited else claim.failures, retry_after_seconds=error.retry_after_seconds)
        try:
            if error.is_everybodys:
                with line.step("hold"):
                    await store.hold(
                        self.database, claim, error=error.code, request_id=asked.request_id, session=asked.session
                    )
                return Outcome.HELD
            with line.step("defer"):
                state = await store.defer(
                    self.database,
                    claim,
                    error=error.code,
                    delay_seconds=plan.delay_seconds,
                    gives_up=plan.gives_up,
                    is_outage=error.is_outage,
                    request_id=asked.request_id,
                    session=asked.session,
                )
        except DatabaseRefused:
            return Outcome.LEASE_LOST
        except (SupabaseError, UserTokenRejected):
            return Outcome.UNFINISHED
        line.add(retry_in_seconds=plan.delay_seconds)
        if state is ProvisioningState.DEAD:
            return Outcome.DEAD
        return Outcome.LIMITED if is_limited else Outcome.DEFERRED
