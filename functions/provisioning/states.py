"""The words for where a user's key stands. The database has the same ones; a test compares them."""

from __future__ import annotations

from enum import StrEnum


class ProvisioningState(StrEnum):
    """State of a user's desired key: `doorkey.provisioning_state`."""

    WAITING = "waiting"
    DUE = "due"
    WORKING = "working"
    READY = "ready"
    DEAD = "dead"
    GONE = "gone"


class Chance(StrEnum):
    """By whose call a user is provisioned: one of three, as `provisioned_by` keeps it."""

    EAGER = "eager"  # the hint of the database
    LAZY = "lazy"  # the user's own request
    SWEEP = "sweep"


class KeyAction(StrEnum):
    """What a claim asks to be done at OpenRouter: `doorkey.key_action`."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class KeyKind(StrEnum):
    """What a key that goes by our name at OpenRouter is, as `doorkey.classify_keys` says."""

    KNOWN = "known"  # the database holds it to be alive
    STRAY = "stray"  # made by an attempt of ours that is over, and nobody's
    FOREIGN = "foreign"  # of an attempt that this database never made
