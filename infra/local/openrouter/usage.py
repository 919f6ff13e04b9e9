"""Generations and what they cost: the account's side of the money.

Recording one is a single transaction that writes the generation, the key's sum for the day and the
moment of its last use, so that no answer can ever show one without the others.
"""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta

from infra.local.openrouter.config import at_once
from infra.local.openrouter.windows import Windows, iso_millis

ACTIVITY_DAYS = 30

_INSERT_GENERATION = """
insert into generations (
    id, key_hash, workspace_id, created_at, day, model, streamed, prompt_tokens,
    completion_tokens, nanos, byok_nanos, finish_reason, external_user, http_referer, user_agent
) values (
    :id, :key_hash, :workspace_id, :created_at, :day, :model, :streamed, :prompt_tokens,
    :completion_tokens, :nanos, :byok_nanos, :finish_reason, :external_user, :http_referer,
    :user_agent
)
"""
_ADD_TO_DAY = """
insert into usage_days (key_hash, day, shown_from, nanos, byok_nanos)
values (:key_hash, :day, :shown_from, :nanos, :byok_nanos)
on conflict (key_hash, day, shown_from) do update
set nanos = nanos + excluded.nanos, byok_nanos = byok_nanos + excluded.byok_nanos
"""
# Rows are per day and model, as the documents say of endpoints, and never per key: whoever wants
# one key's activity asks for that key (openrouter/facts.md 2.4).
_ACTIVITY = """
select day, model, {workspace} as workspace_id, count(*) as requests, sum(nanos) as nanos,
    sum(byok_nanos) as byok_nanos, sum(prompt_tokens) as prompt_tokens,
    sum(completion_tokens) as completion_tokens
from generations
where day >= :first_day and day < :today
    and (:date is null or day = :date)
    and (:api_key_hash is null or key_hash = :api_key_hash)
    and (:workspace_id is null or workspace_id = :workspace_id)
group by 1, 2, 3 order by 1 desc, 2, 3
"""


@dataclass(frozen=True)
class Generation:
    """One answered inference request. `nanos` are credits, `byok_nanos` somebody else's bill."""

    id: str
    key_hash: str
    workspace_id: str
    model: str
    streamed: bool
    prompt_tokens: int
    completion_tokens: int
    nanos: int
    byok_nanos: int
    finish_reason: str
    external_user: str | None
    http_referer: str | None
    user_agent: str | None


class UsageStore:
    """What was spent, by whom, when and on what."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        clock: Callable[[], datetime],
        delay: Callable[[str], timedelta] = at_once,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._delay = delay
        # Asked before every chat, and only this process writes: so it's summed up once.
        self._total_nanos: int = connection.execute("select coalesce(sum(nanos), 0) from usage_days").fetchone()[0]

    def record(self, generation: Generation) -> None:
        """Charges a generation to its key: it's of today, also if it shows later."""
        now, delay = self._clock(), self._delay(generation.model)
        shown_from = iso_millis(now + delay) if delay else ""
        values = asdict(generation) | {
            "created_at": iso_millis(now),
            "day": Windows.at(now).day,
            "shown_from": shown_from,
        }
        with self._connection:
            self._connection.execute(_INSERT_GENERATION, values)
            self._connection.execute(_ADD_TO_DAY, values)
            self._connection.execute("update keys set last_used_at = :created_at where hash = :key_hash", values)
        self._total_nanos += generation.nanos

    def find(self, generation_id: str, key_hash: str) -> sqlite3.Row | None:
        """The generation, if this key made it: no other may see it (openrouter/facts.md 2.4)."""
        row: sqlite3.Row | None = self._connection.execute(
            "select * from generations where id = ? and key_hash = ?", (generation_id, key_hash)
        ).fetchone()
        return row

    def total_nanos(self) -> int:
        """All credits the account ever spent, through deleted keys too."""
        return self._total_nanos

    def count_requests_today(self, models: frozenset[str]) -> int:
        """How often any of these models was asked on the current UTC day."""
        marks = ", ".join("?" for _ in models)
        count: int = self._connection.execute(
            f"select count(*) from generations where day = ? and model in ({marks})",  # noqa: S608 - question marks
            (Windows.at(self._clock()).day, *models),
        ).fetchone()[0]
        return count

    def activity(self, filters: Mapping[str, str | None], *, by_workspace: bool) -> list[sqlite3.Row]:
        """The sums of the last ACTIVITY_DAYS completed UTC days, newest first; today isn't in it.

        `filters` has `date`, `api_key_hash` and `workspace_id`, None where not asked for.
        """
        today = date.fromisoformat(Windows.at(self._clock()).day)
        parameters = {
            **filters,
            "today": today.isoformat(),
            "first_day": (today - timedelta(days=ACTIVITY_DAYS)).isoformat(),
        }
        sql = _ACTIVITY.format(workspace="workspace_id" if by_workspace else "null")
        return self._connection.execute(sql, parameters).fetchall()
