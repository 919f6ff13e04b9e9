"""Finds and deletes keys at OpenRouter that nobody holds.

Such a stray is made when the answer to a POST is lost: its secret was never seen. It is known by its name, which says
whose attempt made it. Never touched: another project's key, a key made by hand, one that the database knows, one of an
attempt that this database never made (a copy of the database uses the same name), and one too young to tell, because an
attempt may still be about to register it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from functions.clients.openrouter import PAGE_KEYS, ListedKey, OpenRouter
from functions.clients.supabase import Supabase
from functions.provisioning import store
from functions.provisioning.names import KeyName
from functions.provisioning.states import KeyKind

MAX_PAGES = 50
MAX_DELETED = 100
# How far back a collection looks. Strays are made by attempts, so they are among the newest keys.
HORIZON = timedelta(days=2)


@dataclass(frozen=True)
class StrayReport:
    """What a collection found and did.

    Attributes:
        strays: keys by our name, old enough, of an attempt of ours, that the database doesn't know; newest first.
        foreign_keys: keys by our name, old enough, that are neither known nor ours: does another installation use it?
        deleted: how many of them were deleted.
        oldest_stray_seconds: age of the oldest; 0 without any.
        is_complete: whether everything within the horizon was looked at.
    """

    strays: tuple[ListedKey, ...]
    foreign_keys: int
    deleted: int
    oldest_stray_seconds: int
    is_complete: bool


async def collect_strays(
    openrouter: OpenRouter,
    database: Supabase,
    *,
    project: str,
    now: datetime,
    min_age: timedelta,
    is_dry_run: bool = False,
) -> StrayReport:
    """Looks through the newest keys and deletes the strays among them, a bounded number a run.

    Args:
        openrouter: the management side.
        database: says which keys it knows.
        project: whose keys are looked at; the name must match whole.
        now: the time, UTC.
        min_age: how old a key must be; longer than any lease.
        is_dry_run: only looks.

    Raises:
        OpenRouterError, SupabaseError: it ends there; the next run begins again.
    """
    strays: dict[str, ListedKey] = {}
    foreign: set[str] = set()
    is_complete = False
    for page_number in range(MAX_PAGES):
        page = await openrouter.list_keys(page_number * PAGE_KEYS)
        by_our_name = {
            key.key_hash: name
            for key in page
            if now - key.created_at >= min_age
            and (name := KeyName.parse(key.name)) is not None
            and name.project == project
        }
        if by_our_name:
            kinds = await store.classify_keys(database, by_our_name)
            strays |= {key.key_hash: key for key in page if kinds.get(key.key_hash) is KeyKind.STRAY}
            foreign |= {key_hash for key_hash, kind in kinds.items() if kind is KeyKind.FOREIGN}
        if len(page) < PAGE_KEYS or now - page[-1].created_at > HORIZON:
            is_complete = True
            break
    oldest = max((now - key.created_at for key in strays.values()), default=timedelta())
    deleted = 0
    if not is_dry_run:
        for key_hash in list(strays)[:MAX_DELETED]:
            await openrouter.delete_key(key_hash)
            deleted += 1
    return StrayReport(tuple(strays.values()), len(foreign), deleted, int(oldest.total_seconds()), is_complete)
