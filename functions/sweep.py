"""Lambda: the clock ticked. Enrols, redrives what is due, renews periods, syncs usage, collects strays."""

from __future__ import annotations

import uuid
from typing import Any

from functions.clients.outside import Clients, build_clients
from functions.credits.holds import expire_holds
from functions.kit.clock import Clock, system_clock
from functions.kit.errors import DoorkeyError
from functions.kit.observability import start_logging
from functions.kit.settings import Settings
from functions.metering.drift_watch import DriftWatch
from functions.metering.last_words import hear_last_words
from functions.metering.metrics import DRIFT_MICROS, USAGE_ROUNDS_FINISHED
from functions.metering.sync import sync_usage
from functions.offers.promises import grant_promised_credits
from functions.plans.periods import expire_lots, renew_periods
from functions.provisioning.steps import Provisioner
from functions.provisioning.sweeping import Chore, SweepSettings, sweep
from functions.web.entry import Handle, LambdaEntry
from functions.web.events import Event


def build(settings: Settings, clients: Clients, clock: Clock = system_clock) -> Handle:
    """The handler for these settings; the event says nothing that matters."""
    provisioner = Provisioner.build(settings, clients)
    limits = SweepSettings(
        budget_seconds=settings.doorkey_sweep_budget_seconds,
        stray_age_seconds=settings.doorkey_stray_age_seconds,
        deletes_strays=settings.doorkey_strays == "delete",
    )

    drift = DriftWatch(provisioner.database, clock)
    chores: dict[str, Chore] = {
        "expired_holds": lambda request_id, is_time_left: expire_holds(
            provisioner.database, request_id=request_id, is_time_left=is_time_left
        ),
        "promised_credits": lambda request_id, is_time_left: grant_promised_credits(
            provisioner.database, request_id=request_id, is_time_left=is_time_left
        ),
        # Before what else expires, so that an allowance is renewed and not only taken.
        "renewed": lambda request_id, is_time_left: renew_periods(
            provisioner.database, request_id=request_id, is_time_left=is_time_left
        ),
        "expired_lots": lambda request_id, is_time_left: expire_lots(
            provisioner.database, request_id=request_id, is_time_left=is_time_left
        ),
        "usage": lambda request_id, is_time_left: sync_usage(
            clients.openrouter,
            provisioner.database,
            request_id=request_id,
            is_time_left=is_time_left,
            clock=clock,
        ),
        "last_words": lambda request_id, is_time_left: hear_last_words(
            clients.openrouter,
            provisioner.database,
            request_id=request_id,
            is_time_left=is_time_left,
            clock=clock,
        ),
        "drift": lambda _, is_time_left: drift.go_on(is_time_left),
    }
    gauges = {"drift_micros": DRIFT_MICROS, "usage_rounds": USAGE_ROUNDS_FINISHED}

    async def handle(_: Event) -> dict[str, Any]:
        try:
            line = await sweep(provisioner, limits, chores, gauges, request_id=uuid.uuid4().hex, clock=clock)
        except DoorkeyError as error:
            # Its line is written. Raising would have Lambda run it again at once, and the next minute does that anyway.
            return {"outcome": "failed", "error": error.code}
        return {"outcome": "finished", **line.facts}

    return handle


def _build_from_environment() -> Handle:
    settings = Settings.from_environment()
    start_logging(metrics_stage=settings.doorkey_metrics_stage)
    return build(settings, build_clients(settings))


handler = LambdaEntry(_build_from_environment)
