"""Seals again, with the key that seals now, what other keys have sealed.

Page by page, and each page is one transaction that replaces exactly what was opened: so it may be killed, run twice at
once, and run while the functions make, show and delete keys. The database never sees a secret or a key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from functions.clients.supabase import Supabase
from functions.connection import store
from functions.kit.sealing import SealBroken, Sealer, SealingKey

PAGE_ROWS = 200
MAX_PAGES = 100_000
# Whoever still sealed with the old key while a round went on is found by the next.
MAX_ROUNDS = 3


@dataclass
class Resealed:
    """How it ended.

    Attributes:
        resealed: rows sealed anew.
        broken: hashes of the keys whose secret nobody can open.
        left: rows that other keys have sealed still, the broken ones among them.
    """

    resealed: int = 0
    broken: list[str] = field(default_factory=list)
    left: int = 0


async def count_others(database: Supabase, sealing_key_id: str) -> int:
    """How many rows other keys than this one have sealed."""
    counts = await store.count_sealed_secrets(database)
    return sum(count for key_id, count in counts.items() if key_id != sealing_key_id)


async def reseal(
    database: Supabase, keys: tuple[SealingKey, ...], *, proof: str, progress: Callable[[int], None]
) -> Resealed:
    """Has everything sealed with the first key that any of them opens.

    Args:
        database: where the rows are.
        keys: the one that seals first.
        proof: of the secret that signs at present.
        progress: told how many rows of other keys were looked at since the last time.
    """
    outcome = Resealed()
    for _ in range(MAX_ROUNDS):
        outcome.broken.clear()
        await _walk(database, keys, outcome, proof, progress)
        outcome.left = await count_others(database, keys[0].key_id)
        if outcome.left <= len(outcome.broken):
            break
    return outcome


async def _walk(
    database: Supabase, keys: tuple[SealingKey, ...], outcome: Resealed, proof: str, progress: Callable[[int], None]
) -> None:
    """Looks at every sealed secret once, and seals anew what another key has sealed."""
    sealer = Sealer(keys)
    after: str | None = None
    for _ in range(MAX_PAGES):
        page = await store.list_sealed_secrets(database, after_key_hash=after, rows=PAGE_ROWS)
        if not page:
            return
        of_others = [row for row in page if row.sealing_key_id != keys[0].key_id]
        opened, sealed = [], []
        for row in of_others:
            try:
                secret = sealer.open(row.sealed, user_id=row.user_id, key_hash=row.key_hash)
            except SealBroken:
                outcome.broken.append(row.key_hash)
                continue
            opened.append(row)
            sealed.append(sealer.seal(secret, user_id=row.user_id, key_hash=row.key_hash))
        if opened:
            outcome.resealed += await store.reseal_secrets(database, opened, sealed, proof=proof)
        progress(len(of_others))
        after = page[-1].key_hash
