"""Outages of the service key: stretches of the run in which the gateway rejects it. Pure, as the plan that they are of.

When one begins is said by how many have signed up, so that a seed replays it however fast the machine is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Long enough that somebody's lease runs out in one, and that they are served again.
OUTAGE_SECONDS = 6.0
SIGNUPS_PER_OUTAGE = 500
OUTAGES = range(2, 13)


@dataclass(frozen=True)
class Outage:
    """One of them.

    Attributes:
        after_signups: how many have signed up when it begins.
        is_rotated: whether it ends with another key.
    """

    after_signups: int
    is_rotated: bool


def draw_outages(seed: int, signups: int) -> tuple[Outage, ...]:
    """When they begin, in this order: each somewhere in its share of the signups."""
    chance = random.Random(f"{seed}/outages")  # noqa: S311  to be repeated, not to be secret
    how_many = min(max(OUTAGES.start, signups // SIGNUPS_PER_OUTAGE), OUTAGES.stop - 1)
    share = signups / how_many
    return tuple(
        Outage(int(share * (number + chance.uniform(0, 0.6))), is_rotated=number % 2 == 0) for number in range(how_many)
    )
