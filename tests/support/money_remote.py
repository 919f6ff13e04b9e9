"""OpenRouter, as far as money goes: what it lets each key spend, and what it says each key has spent.

The surprising thing: it knows nothing of holds. A call may be billed here long before anybody settles it, or never.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass
class RemoteKey:
    """A key, in micro-dollars.

    Attributes:
        user_id: whose it is.
        limit: what it may spend in its life; None: anything.
        usage: what it has spent.
        is_enabled: whether it may be used.
        is_deleted: whether it is gone, and in no list.
    """

    user_id: uuid.UUID
    limit: int | None
    usage: Decimal = Decimal(0)
    is_enabled: bool = True
    is_deleted: bool = False

    @property
    def room(self) -> Decimal:
        """What it would let in now."""
        if self.is_deleted or not self.is_enabled:
            return Decimal(0)
        return Decimal("Infinity") if self.limit is None else max(self.limit - self.usage, Decimal(0))


@dataclass
class Remote:
    """All keys by their hashes, and what calls under holds were billed before they were settled."""

    keys: dict[str, RemoteKey] = field(default_factory=dict)
    billed: dict[uuid.UUID, Decimal] = field(default_factory=dict)

    def listed(self, users: Iterable[uuid.UUID]) -> list[tuple[str, RemoteKey]]:
        """Those of these users that a list would show."""
        wanted = set(users)
        return [(name, key) for name, key in self.keys.items() if key.user_id in wanted and not key.is_deleted]

    def bill(self, hold_id: uuid.UUID, key_hash: str, cost: Decimal) -> None:
        """A call under a hold has been billed."""
        if hold_id not in self.billed:
            self.billed[hold_id] = cost
            self.keys[key_hash].usage += cost
