"""The plan: from a seed, everything that will happen to every user. Pure, so the same seed gives the same plan.

Some users have a part to play: each kill point has some in whose script everything is laid out so that it is reached,
and there their worker dies. The others' scripts are drawn at random.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from tests.crash.calls import AFTER, ANY, BEFORE, CLAIM, DURING, OWN, USERS_CALLS, Call
from tests.crash.outages import Outage, draw_outages

MAX_HITS = 3  # how often a call of one user may be hit by chance, so that everybody comes to an end
PLANS = ("trial", "resale", "open")
# So many users play each part for each thousand signups, and never fewer than two.
PLAYERS_PER_THOUSAND = 4
MIN_PLAYERS = 2
UNDERSTUDIES = 12


class Crew(StrEnum):
    """Workers that take hints. Whoever is in the same process dies together: late calls need one that lives on."""

    ROUGH = "rough"  # processes die here all the time
    CALM = "calm"  # now and then: those who are killed after a late call
    QUIET = "quiet"  # never


KillPoint = tuple[Call, str]


class Kind(StrEnum):
    """What hits a call."""

    KILL = "kill"  # the process dies, with everything that it was doing
    LOSE_REQUEST = "lose_request"  # never sent
    LOSE_ANSWER = "lose_answer"  # done, and nobody hears of it
    REFUSE = "refuse"  # somebody else's error in place of an answer; not sent
    GARBLE = "garble"  # done, and a broken proxy answers
    BE_LATE = "be_late"  # stands still until somebody took over
    BE_SLOW = "be_slow"  # stands still for a moment
    ACT = "act"  # something happens to the user just now


class Act(StrEnum):
    """What happens to a user."""

    BAN = "ban"  # for a few seconds
    BAN_FOREVER = "ban_forever"
    UNBAN = "unban"
    DELETE = "delete"
    SOFT_DELETE = "soft_delete"
    GRANT = "grant"
    ROTATE = "rotate"  # another key, please
    PLAN = "plan"  # another one, by an operator's SQL: no trigger sees it
    EMAIL = "email"
    REMOVE_KEY = "remove_key"  # at OpenRouter, by hand


@dataclass(frozen=True)
class Hit:
    """One thing that hits a call. `moment` says when; `status` is for refusals and broken proxies."""

    kind: Kind
    moment: str = BEFORE
    act: Act | None = None
    status: int = 0


@dataclass(frozen=True)
class Step:
    """One thing that happens to a user outside of any call: once they are `ready`, or after some seconds."""

    act: Act
    after_seconds: float | None  # None: once the key is there


@dataclass(frozen=True)
class HintFate:
    """What becomes of a hint: delivered so many times (0: dropped), each after so many seconds."""

    delays_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Script:
    """All that will happen to one user.

    Attributes:
        index: of the user, from 0.
        user_id: drawn from the seed too.
        part: what is laid out for them, or `chance`.
        crew: which workers take up hints about this user.
        is_missed: no trigger fires at the signup.
        is_confirmed_later: the address is confirmed in a second transaction.
        is_hopeless: OpenRouter refuses the key every time; the row shall die.
        has_token: asks for themselves, too.
        outage: signs up, unseen, while the service key is dead for the so many-th time; None: whenever it is.
        hits: what hits which call, by call and how often that call was made for this user before.
        steps: what happens outside of calls, in order.
        hints: the fate of each hint; later ones are delivered once, at once.
    """

    index: int
    user_id: uuid.UUID
    part: str
    crew: Crew = Crew.ROUGH
    is_missed: bool = False
    is_confirmed_later: bool = False
    is_hopeless: bool = False
    has_token: bool = False
    outage: int | None = None
    hits: Mapping[tuple[Call, int], tuple[Hit, ...]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    hints: tuple[HintFate, ...] = ()


@dataclass(frozen=True)
class Part:
    """What must be laid out so that a call is made."""

    name: str
    calls: tuple[Call, ...]
    hits: Mapping[tuple[Call, int], tuple[Hit, ...]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    is_calm: bool = False
    is_rare: bool = False  # it stops everybody for a moment
    is_own: bool = False  # with the service key dead, by their own token


def _call(purpose: str, name: str) -> Call:
    call = Call(purpose, name)
    if call not in USERS_CALLS:
        raise ValueError(f"no such call: {call}")
    return call


def _first(call: Call, *hits: Hit, times: int = 1) -> dict[tuple[Call, int], tuple[Hit, ...]]:
    return {(call, number): hits for number in range(times)}


_POST, _FINISH = _call("create", "POST /keys"), _call("create", "finish_provisioning")
_PATCH = _call("update", "PATCH /keys")
_LATE_AFTER, _LATE_BEFORE = Hit(Kind.BE_LATE, AFTER), Hit(Kind.BE_LATE, BEFORE)
_SLOW = Hit(Kind.BE_SLOW, AFTER)
_LOST_KEY_STEPS = (Step(Act.REMOVE_KEY, None), Step(Act.GRANT, 0.0))
_CHANGED = (Step(Act.GRANT, None),)
# Stands still with what was wanted, while more is wanted and somebody else sees to it.
_OVERTAKEN = (Hit(Kind.ACT, BEFORE, Act.GRANT), _LATE_BEFORE)
_GONE = (Step(Act.DELETE, None),)

PARTS = (
    Part("create", (_call(ANY, CLAIM), _call("create", CLAIM), _POST, _FINISH)),
    Part("update", (_call("update", CLAIM), _PATCH, _call("update", "finish_key_update")), steps=_CHANGED),
    Part(
        "delete",
        (_call("delete", CLAIM), _call("delete", "DELETE /keys"), _call("delete", "finish_key_deletion")),
        steps=_GONE,
    ),
    # Its worker comes back after somebody took over, and must undo the key that it made.
    Part("late key", (_call("create", "DELETE /keys"),), _first(_POST, _LATE_AFTER), is_calm=True),
    # The user leaves between the key and its registration.
    Part(
        "gone meanwhile",
        (_call("create", "DELETE /keys"),),
        _first(_POST, Hit(Kind.ACT, AFTER, Act.DELETE)),
        is_calm=True,
    ),
    # Overwrites what was done since, and must say so.
    Part("late update", (_call("update", "recheck_key"),), _first(_PATCH, *_OVERTAKEN), _CHANGED, is_calm=True),
    Part("failed create", (_call("create", "defer_provisioning"),), _first(_POST, Hit(Kind.REFUSE, status=503))),
    Part(
        "failed update",
        (_call("update", "defer_provisioning"),),
        _first(_PATCH, Hit(Kind.REFUSE, status=429)),
        _CHANGED,
    ),
    Part(
        "failed deletion",
        (_call("delete", "defer_provisioning"),),
        _first(_call("delete", "DELETE /keys"), Hit(Kind.REFUSE, status=500)),
        _GONE,
    ),
    # The key was deleted by hand; it takes some tries to believe it.
    Part(
        "lost key",
        (_call("update", "DELETE /keys"), _call("update", "finish_key_deletion")),
        steps=_LOST_KEY_STEPS,
    ),
    Part(
        "held create",
        (_call("create", "hold_provisioning"),),
        _first(_POST, Hit(Kind.REFUSE, status=402)),
        is_rare=True,
    ),
    Part(
        "held update",
        (_call("update", "hold_provisioning"),),
        _first(_PATCH, Hit(Kind.REFUSE, status=402)),
        _CHANGED,
        is_rare=True,
    ),
    Part(
        "held deletion",
        (_call("delete", "hold_provisioning"),),
        _first(_call("delete", "DELETE /keys"), Hit(Kind.REFUSE, status=401)),
        _GONE,
        is_rare=True,
    ),
    Part("own key", (_call(OWN, "claim_my_provisioning"), _call(OWN, "finish_my_provisioning")), is_own=True),
    Part(
        "own rotation",
        (_call(OWN, "request_my_key_rotation"), _call(OWN, "finish_my_key_update")),
        is_own=True,
    ),
    Part(
        "own call",
        (_call(OWN, "reserve_my_credits"), _call(OWN, "settle_my_hold"), _call(OWN, "release_my_hold")),
        is_own=True,
    ),
)
# Parts that end in no kill, but in what is hard to meet by chance.
UNHURT = (
    # Their worker comes back while somebody else is at it, who is slow; all by their own doors.
    *[Part("late own key", (), {**_first(_POST, _LATE_AFTER), (_POST, 1): (_SLOW,)}, is_calm=True, is_own=True)] * 3,
    Part("own calls", (), is_own=True),
    # All three answers to "register this key" are lost: nobody knows, so the key must stay.
    Part("unfinished", (), _first(_FINISH, Hit(Kind.LOSE_ANSWER, AFTER), times=3), is_calm=True),
    Part("unheard", (), _first(_FINISH, Hit(Kind.LOSE_REQUEST), times=3), is_calm=True),
    *[Part("late key", (), _first(_POST, _LATE_AFTER), is_calm=True)] * 2,
    Part("late update", (), _first(_PATCH, *_OVERTAKEN), _CHANGED, is_calm=True),
    # Registered in time, but not at once: who takes young keys for strays deletes it meanwhile.
    *[Part("slow key", (), _first(_POST, Hit(Kind.BE_SLOW, AFTER)), is_calm=True)] * 3,
    Part("rotation", (), steps=(Step(Act.ROTATE, None), Step(Act.ROTATE, None))),
    Part("rotation meanwhile", (), _first(_PATCH, Hit(Kind.ACT, AFTER, Act.ROTATE)), _CHANGED, is_calm=True),
    Part("asked twice", (), _first(_FINISH, Hit(Kind.LOSE_ANSWER, AFTER))),
    Part("banned meanwhile", (), _first(_POST, Hit(Kind.ACT, AFTER, Act.BAN_FOREVER)), is_calm=True),
    *[Part("given to meanwhile", (), _first(_FINISH, Hit(Kind.ACT, BEFORE, Act.GRANT)), is_calm=True)] * 2,
)


Role = tuple[Part, KillPoint | None]


@dataclass(frozen=True)
class Plan:
    """Everything that will happen, from a seed.

    Attributes:
        seed: of it all.
        scripts: of everybody who signs up.
        understudies: who signs up at the end where nobody was killed at a point, by chance or through others' deaths.
        outages: of the service key, in their order.
    """

    seed: int
    scripts: tuple[Script, ...]
    understudies: Mapping[KillPoint, tuple[Script, ...]]
    outages: tuple[Outage, ...] = ()

    @cached_property
    def by_user(self) -> dict[uuid.UUID, Script]:
        """The scripts by user, those of understudies too."""
        waiting = (script for scripts in self.understudies.values() for script in scripts)
        return {script.user_id: script for script in (*self.scripts, *waiting)}


def make_plan(seed: int, signups: int) -> Plan:
    """The plan for so many signups."""
    players = max(MIN_PLAYERS, PLAYERS_PER_THOUSAND * signups // 1000)
    roles: list[Role | None] = [(part, None) for part in UNHURT for _ in range(players + 1)]
    roles += [(part, point) for part, point in _kill_parts() for _ in range(MIN_PLAYERS if part.is_rare else players)]
    roles = roles[:signups] + [None] * (signups - len(roles))
    random.Random(f"{seed}/roles").shuffle(roles)  # noqa: S311  to be repeated, not to be secret
    outages = draw_outages(seed, signups)
    scripts = tuple(_script(seed, index, role, len(outages)) for index, role in enumerate(roles))
    numbers = itertools.count(signups)
    understudies: dict[KillPoint, tuple[Script, ...]] = {}
    for part, point in _kill_parts():
        more = tuple(_script(seed, next(numbers), (part, point), len(outages)) for _ in range(UNDERSTUDIES))
        understudies[point] = understudies.get(point, ()) + more
    return Plan(seed, scripts, understudies, outages)


def _kill_parts() -> Iterator[tuple[Part, KillPoint]]:
    for part in PARTS:
        for call in part.calls:
            # A claim is known to be for something when it was answered, and not before.
            for moment in (BEFORE, AFTER) if call.name != CLAIM or call.purpose == ANY else (AFTER,):
                yield part, (call, moment)


def _script(seed: int, index: int, role: Role | None, outages: int) -> Script:
    chance = random.Random(f"{seed}/{index}")  # noqa: S311  likewise
    user_id = uuid.UUID(int=chance.getrandbits(128), version=4)
    if role is None:
        return _by_chance(index, user_id, chance)
    part, point = role
    hits = dict(part.hits)
    if point is not None:
        call, moment = point
        hits[(call, 0)] = (*hits.get((call, 0), ()), Hit(Kind.KILL, moment))
    crew = Crew.ROUGH if not part.is_calm else Crew.QUIET if point is None else Crew.CALM
    outage = index % outages if part.is_own else None
    return Script(
        index, user_id, part.name, crew=crew, hits=hits, steps=part.steps, is_missed=part.is_own,
        has_token=part.is_own, outage=outage,
    )  # fmt: skip


def _by_chance(index: int, user_id: uuid.UUID, chance: random.Random) -> Script:
    is_calm = chance.random() < 0.15
    is_hopeless = not is_calm and chance.random() < 0.01
    hits = {
        (call, number): (hit,)
        for call in USERS_CALLS
        for number in range(MAX_HITS)
        if (hit := _draw_hit(chance, number, is_calm=is_calm)) is not None
    }
    return Script(
        index,
        user_id,
        "chance",
        crew=Crew.QUIET if is_calm else Crew.ROUGH,
        is_missed=chance.random() < 0.02,
        is_confirmed_later=chance.random() < 0.1,
        is_hopeless=is_hopeless,
        has_token=chance.random() < 0.03,
        hits=hits,
        steps=_draw_steps(chance),
        hints=tuple(_draw_fate(chance) for _ in range(4)),
    )


def _draw_hit(chance: random.Random, number: int, *, is_calm: bool) -> Hit | None:
    """Rarer each time. Late and slow calls only where their process lives on, and there nobody is killed by chance."""
    if chance.random() > 0.2 / (number + 1):
        return None
    moment = chance.choice((BEFORE, AFTER))
    kinds = {
        Kind.KILL: 0 if is_calm else 12,
        Kind.LOSE_REQUEST: 2,
        Kind.LOSE_ANSWER: 5,
        Kind.REFUSE: 3,
        Kind.GARBLE: 2,
        Kind.BE_LATE: 4 if is_calm else 0,
        Kind.BE_SLOW: 4 if is_calm else 0,
        Kind.ACT: 5,
    }
    (kind,) = chance.choices(list(kinds), list(kinds.values()))
    if kind is Kind.KILL:
        return Hit(kind, chance.choice((BEFORE, DURING, AFTER)))
    if kind in (Kind.REFUSE, Kind.GARBLE):
        return Hit(kind, status=chance.choice((429, 500, 502, 503, 504)) if kind is Kind.REFUSE else 502)
    if kind is Kind.ACT:
        return Hit(kind, moment, _draw_act(chance))
    return Hit(kind, moment)


def _draw_act(chance: random.Random) -> Act:
    weights = {
        Act.BAN: 4, Act.BAN_FOREVER: 2, Act.UNBAN: 4, Act.DELETE: 3, Act.SOFT_DELETE: 2, Act.GRANT: 5, Act.PLAN: 2,
        Act.EMAIL: 1, Act.ROTATE: 3,
    }  # fmt: skip
    return chance.choices(list(weights), list(weights.values()))[0]


def _draw_steps(chance: random.Random) -> tuple[Step, ...]:
    (how_many,) = chance.choices((0, 1, 2, 3), (50, 30, 14, 6))
    return tuple(Step(_draw_act(chance), round(chance.uniform(0, 3), 2)) for _ in range(how_many))


def _draw_fate(chance: random.Random) -> HintFate:
    def late() -> float:
        return round(chance.uniform(0.1, 2.0), 2)

    fates = [((), 8), ((0.0, 0.0), 6), ((0.0, late(), late()), 6), ((late(),), 12), ((0.0,), 68)]
    (delays,) = chance.choices([fate for fate, _ in fates], [weight for _, weight in fates])
    return HintFate(delays)
