"""What must be true of the calls that people asked for, whoever carried them: none is lost, none is paid for twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from uuid import UUID

from tests.crash.asking import WISHES, Wish, cost_micros, hold_key
from tests.crash.calls import OWN_CALLS
from tests.crash.plan import Script
from tests.crash.shared import Shared
from tests.crash.verdict import Found, Row, World

_ENDS = {Wish.SETTLE: ("settled",), Wish.EXCEED: ("settled",), Wish.RELEASE: ("released", "expired")}


def judge(scripts: Iterable[Script], world: World, shared: Shared) -> Found:
    """Every violated invariant, with whom it is about and what is wrong."""
    holds: dict[UUID, dict[str, Row]] = defaultdict(dict)
    for hold in world.holds:
        holds[hold["user_id"]][hold["idempotency_key"]] = hold
    for script in scripts:
        if script.has_token:
            yield from _judge_answers(script, holds[script.user_id], shared)
        yield from _judge_charges(script.user_id, list(holds[script.user_id].values()), world)
    totals = shared.totals()
    for call in OWN_CALLS:
        if not totals[("carried", str(call))]:
            yield "people are served meanwhile", "-", f"nobody came through {call}"


def _judge_answers(script: Script, holds: dict[str, Row], shared: Shared) -> Found:
    """What somebody was told is so."""
    for number, wish in enumerate(WISHES):
        hold = holds.get(hold_key(number))
        if hold is not None and hold["state"] == "open":
            yield "every call has its end", script.user_id, f"{hold_key(number)} is held still"
        if wish is Wish.ROTATE or not shared.is_done(script.index, number):
            continue
        if hold is None:
            yield "what was answered is stored", script.user_id, f"nothing of {hold_key(number)}"
        elif hold["state"] not in _ENDS.get(wish, (hold["state"],)):
            yield "what was answered is stored", script.user_id, f"{hold_key(number)} is {hold['state']}"
        elif hold["state"] == "settled" and hold["cost_micros"] != cost_micros(script.user_id, number):
            yield "a call is charged what it cost", script.user_id, f"{hold_key(number)} for {hold['cost_micros']}"


def _judge_charges(user_id: UUID, holds: list[Row], world: World) -> Found:
    """Once for each call: on the user's account, and on the key that it went through."""
    settled = [hold for hold in holds if hold["state"] == "settled"]
    charged, charges = sum(hold["charged_micros"] for hold in settled), world.charges.get(user_id)
    posted = 0 if charges is None else charges["micros"]
    if posted != charged:
        yield "a call is charged once", user_id, f"{posted} are posted for calls of {charged}"
    for key in world.keys_of.get(user_id, ()):
        cost = sum(hold["cost_micros"] for hold in settled if hold["key_hash"] == key["key_hash"])
        if key["cost_micros"] != cost:
            detail = f"{key['cost_micros']} are charged to a key whose calls cost {cost}"
            yield "a call is charged once", user_id, detail
