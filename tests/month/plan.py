"""What happens in a month: who calls when, how, and what becomes of the answer. Drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

DAYS = 30
# Dear ones and cheap ones, with fractions of a micro-dollar; by how often they are asked.
MODELS = {
    "openai/gpt-4o-mini": 40,
    "mistralai/mistral-nemo": 20,
    "google/gemini-2.5-flash": 20,
    "openai/gpt-4.1": 12,
    "anthropic/claude-sonnet-4.5": 6,
    "simulator/own-key": 2,
}

# What this model costs shows an hour after the call.
LATE_MODEL = "anthropic/claude-sonnet-4.5"
USAGE_LATE = timedelta(hours=1)
# Who is on which plan, in turns. Starters' periods are weeks here, so that some end within the month; trials are small
# enough to be used up. One markup for all: the rule that each cost is charged knows only that of the present plan.
PLANS = ("trial", "starter", "starter", "professional", "enterprise")
EDIT_PLANS = """
update public.plans set markup = 1.3;
update public.plans set period_days = 7 where id = 'starter';
update public.plans set welcome_credits_micros = 30000 where id = 'trial';
"""


class Fate(StrEnum):
    """What becomes of a call."""

    ANSWERED = "answered"
    LATE_RECEIPT = "late_receipt"
    LOST_ANSWER = "lost_answer"
    ABORTED_STREAM = "aborted_stream"
    DIRECT = "direct"
    NOT_MADE = "not_made"


FATES = {
    Fate.ANSWERED: 66,
    Fate.LATE_RECEIPT: 6,
    Fate.LOST_ANSWER: 6,
    Fate.ABORTED_STREAM: 4,
    Fate.DIRECT: 16,
    Fate.NOT_MADE: 2,
}


@dataclass(frozen=True)
class Call:
    """One call through somebody's key.

    Attributes:
        at: when it goes out.
        user: their number.
        fate: what becomes of it.
        model: which model is asked.
        words: how long the question is.
        max_tokens: how long the answer may be.
        amount_micros: what is reserved for it; may be too little.
        takes: from reserving to settling; longer than the hold lasts for some.
    """

    at: datetime
    user: int
    fate: Fate
    model: str
    words: int
    max_tokens: int
    amount_micros: int
    takes: timedelta


def make_calls(seed: int, users: int, calls: int, start: datetime) -> list[Call]:
    """All calls in the order of time."""
    chance = random.Random(seed)  # noqa: S311 - a plan, no secret
    seconds = DAYS * 86_400
    return sorted(
        (_call(chance, start + timedelta(seconds=chance.random() * seconds), users) for _ in range(calls)),
        key=lambda call: call.at,
    )


def make_moments(seed: int, count: int, users: int, start: datetime) -> list[tuple[datetime, int]]:
    """So many times something happens to somebody, in the order of time."""
    chance = random.Random(seed)  # noqa: S311 - likewise
    return sorted(
        (start + timedelta(seconds=chance.random() * DAYS * 86_400), chance.randrange(users)) for _ in range(count)
    )


def _call(chance: random.Random, at: datetime, users: int) -> Call:
    (fate,) = chance.choices(list(FATES), list(FATES.values()))
    (model,) = chance.choices(list(MODELS), list(MODELS.values()))
    late = fate is Fate.LATE_RECEIPT
    return Call(
        at=at,
        user=chance.randrange(users),
        fate=fate,
        model=model,
        words=chance.randint(1, 400),
        max_tokens=chance.randint(1, 60),
        amount_micros=chance.choice((1, 500, 5_000)),
        takes=timedelta(seconds=chance.uniform(900, 14_400) if late else chance.uniform(1, 240)),
    )
