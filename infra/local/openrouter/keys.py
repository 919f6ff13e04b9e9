"""Keys: what the account hands out, found by the hash of a secret that isn't kept.

A key is read together with its sums of usage, because no answer shows one without the other.
"""

import hashlib
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from infra.local.openrouter.money import exact_limit, exact_usd, usd
from infra.local.openrouter.windows import Windows, iso_micros, iso_millis

PAGE_SIZE = 100
SECRET_PREFIX = "sk-or-v1-"  # noqa: S105 - the public head of a key, not a secret
SECRET_BYTES = 32
LABEL_HEAD = len(SECRET_PREFIX) + 3
LABEL_TAIL = 3

CHANGEABLE = frozenset(("name", "disabled", "limit_usd", "limit_reset", "include_byok_in_limit", "workspace_id"))

_SELECT = """
select k.*,
    coalesce(sum(u.nanos), 0) as usage,
    coalesce(sum(u.byok_nanos), 0) as byok_usage,
    coalesce(sum(u.nanos) filter (where u.day >= :day), 0) as usage_daily,
    coalesce(sum(u.byok_nanos) filter (where u.day >= :day), 0) as byok_usage_daily,
    coalesce(sum(u.nanos) filter (where u.day >= :week), 0) as usage_weekly,
    coalesce(sum(u.byok_nanos) filter (where u.day >= :week), 0) as byok_usage_weekly,
    coalesce(sum(u.nanos) filter (where u.day >= :month), 0) as usage_monthly,
    coalesce(sum(u.byok_nanos) filter (where u.day >= :month), 0) as byok_usage_monthly
from ({keys}) k left join usage_days u on u.key_hash = k.hash and u.shown_from <= :now
group by k.position order by k.position desc
"""
_BY_HASH = _SELECT.format(keys="select * from keys where hash = :hash")
_BY_SECRET = _SELECT.format(keys="select * from keys where :hash in (hash, external_hash)")
# Newest first, and counted from there: a key made between two pages shifts the second one, as at
# the real OpenRouter, whose tie-break nobody documents (openrouter/facts.md 1.5).
_PAGE = _SELECT.format(
    keys="""
    select * from keys
    where workspace_id = :workspace_id
        and (:include_disabled or not disabled)
        and (:include_expired or expires_at is null or expires_at > :now)
        and (:made_until is null or created_at <= :made_until)
    order by position desc limit :page_size offset :offset
    """
)


def hash_secret(secret: str) -> str:
    """A key's public name: SHA-256 of the secret, prefix included (openrouter/facts.md 1.4)."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class NewKey:
    """A checked request for a key."""

    name: str
    workspace_id: str
    creator_user_id: str | None
    limit_usd: float | None = None
    limit_reset: str | None = None
    include_byok_in_limit: bool = False
    expires_at: datetime | None = None
    external_user: str | None = None
    external_secret: str | None = None


@dataclass(frozen=True)
class KeyFilter:
    """Which keys a list shows; the defaults are those of GET /keys.

    `made_until` hides the keys made after it, as a copy that lags behind does.
    """

    workspace_id: str
    include_disabled: bool = False
    include_expired: bool = False
    offset: int = 0
    made_until: datetime | None = None


class Key:
    """A stored key with its usage at one moment. Amounts inside are nano-dollars."""

    def __init__(self, row: sqlite3.Row) -> None:
        self._row = row
        self.hash: str = row["hash"]
        self.workspace_id: str = row["workspace_id"]
        self.disabled = bool(row["disabled"])
        self.limit_usd: float | None = row["limit_usd"]
        self.limit_reset: str | None = row["limit_reset"]
        self.include_byok_in_limit = bool(row["include_byok_in_limit"])
        self.expires_at: str | None = row["expires_at"]
        self._created_at: str = row["created_at"]

    def is_made_until(self, moment: datetime) -> bool:
        """Whether it was there at that moment."""
        return self._created_at <= iso_micros(moment)

    def is_expired(self, now: datetime) -> bool:
        """Whether its end has come."""
        return self.expires_at is not None and self.expires_at <= iso_millis(now)

    @property
    def spent_nanos(self) -> int:
        """What counts against the limit: usage in the limit's window, with BYOK if asked for."""
        window = f"_{self.limit_reset}" if self.limit_reset else ""
        spent: int = self._row[f"usage{window}"]
        if self.include_byok_in_limit:
            spent += self._row[f"byok_usage{window}"]
        return spent

    @property
    def remaining_usd(self) -> Decimal | None:
        """What may still be spent in this window; below zero after a limit was lowered."""
        if self.limit_usd is None:
            return None
        return exact_limit(self.limit_usd) - exact_usd(self.spent_nanos)

    def shown_usage(self) -> dict[str, Any]:
        """The part that GET /key and the keys operations share."""
        remaining = self.remaining_usd
        shown: dict[str, Any] = {
            "label": self._row["label"],
            "limit": self.limit_usd,
            "limit_remaining": None if remaining is None else float(remaining),
            "limit_reset": self.limit_reset,
            "include_byok_in_limit": self.include_byok_in_limit,
            "creator_user_id": self._row["creator_user_id"],
            "workspace_id": self.workspace_id,
            "expires_at": self.expires_at,
        }
        for window in ("", "_daily", "_weekly", "_monthly"):
            for kind in ("usage", "byok_usage"):
                shown[kind + window] = usd(self._row[kind + window])
        return shown

    def shown(self) -> dict[str, Any]:
        """The key as create, get, patch and list answer it (openrouter/facts.md 1.4)."""
        plain = ("hash", "name", "created_at", "updated_at", "last_used_at", "external_user")
        return self.shown_usage() | {
            "disabled": self.disabled,
            **{field: self._row[field] for field in plain},
        }


class KeyStore:
    """All keys of the account."""

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], datetime]) -> None:
        self._connection = connection
        self._clock = clock

    def create(self, new: NewKey) -> tuple[str, Key]:
        """Makes a key and returns its secret, for the only time, and the key.

        Raises sqlite3.IntegrityError when another key has the same external secret.
        """
        secret = SECRET_PREFIX + secrets.token_hex(SECRET_BYTES)
        key_hash = hash_secret(secret)
        values = {
            "hash": key_hash,
            "external_hash": hash_secret(new.external_secret) if new.external_secret else None,
            "name": new.name,
            "label": f"{secret[:LABEL_HEAD]}...{secret[-LABEL_TAIL:]}",
            "limit_usd": new.limit_usd,
            "limit_reset": new.limit_reset,
            "include_byok_in_limit": new.include_byok_in_limit,
            "created_at": iso_micros(self._clock()),
            "expires_at": iso_millis(new.expires_at) if new.expires_at else None,
            "creator_user_id": new.creator_user_id,
            "workspace_id": new.workspace_id,
            "external_user": new.external_user,
        }
        columns, marks = ", ".join(values), ", ".join(f":{column}" for column in values)
        with self._connection:
            self._connection.execute(f"insert into keys ({columns}) values ({marks})", values)  # noqa: S608 - our own column names
        key = self.find(key_hash)
        if key is None:
            raise RuntimeError("A key that was just stored cannot be found.")
        return secret, key

    def find(self, key_hash: str) -> Key | None:
        """The key with this hash, or None."""
        return self._one(_BY_HASH, key_hash)

    def find_by_secret(self, secret: str) -> Key | None:
        """The key that this secret opens, or None."""
        return self._one(_BY_SECRET, hash_secret(secret))

    def page(self, chosen: KeyFilter) -> list[Key]:
        """At most PAGE_SIZE keys, newest first."""
        parameters = self._windows() | {
            "workspace_id": chosen.workspace_id,
            "include_disabled": chosen.include_disabled,
            "include_expired": chosen.include_expired,
            "made_until": iso_micros(chosen.made_until) if chosen.made_until else None,
            "page_size": PAGE_SIZE,
            "offset": chosen.offset,
        }
        return [Key(row) for row in self._connection.execute(_PAGE, parameters)]

    def change(self, key_hash: str, changes: Mapping[str, Any]) -> Key | None:
        """Sets the given columns, all of them among CHANGEABLE; None when there's no such key."""
        if not changes.keys() <= CHANGEABLE:
            raise ValueError("A key has columns that cannot be changed.")
        if changes:
            assignments = ", ".join(f"{column} = :{column}" for column in changes)
            sql = f"update keys set {assignments}, updated_at = :now where hash = :hash"  # noqa: S608 - columns are checked above
            values = {**changes, "now": iso_micros(self._clock()), "hash": key_hash}
            with self._connection:
                self._connection.execute(sql, values)
        return self.find(key_hash)

    def delete(self, key_hash: str) -> bool:
        """Forgets a key; what it has spent stays on the account. False when there was none."""
        with self._connection:
            cursor = self._connection.execute("delete from keys where hash = ?", (key_hash,))
        return cursor.rowcount == 1

    def has_made_since(self, moment: datetime) -> bool:
        """Whether any key that exists was made after that moment."""
        newest = self._connection.execute("select max(created_at) from keys").fetchone()[0]
        return newest is not None and newest > iso_micros(moment)

    def count(self) -> int:
        """How many keys there are, hidden ones included."""
        total: int = self._connection.execute("select count(*) from keys").fetchone()[0]
        return total

    def _one(self, sql: str, key_hash: str) -> Key | None:
        row = self._connection.execute(sql, self._windows() | {"hash": key_hash}).fetchone()
        return Key(row) if row is not None else None

    def _windows(self) -> dict[str, Any]:
        now = self._clock()
        windows = Windows.at(now)
        return {"day": windows.day, "week": windows.week, "month": windows.month, "now": iso_millis(now)}
