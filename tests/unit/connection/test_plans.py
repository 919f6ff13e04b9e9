"""The next step, for every state that the two sides can be in."""

from __future__ import annotations

import itertools

import pytest

from functions.connection.store import Connection, fingerprint_of, proof_of
from functions.kit.sealing import SealingKey
from infra.connection.plans import CannotGoOn, ConnectionStep, SealingStep, plan_connection, plan_sealing
from tests.support.environment import OTHER_SEALING_KEY, SEALING_KEY

URL, OTHER_URL = "https://api.example.com/webhooks/supabase", "https://other.example.com/webhooks/supabase"
NAMES = itertools.count()
NOON_SECONDS = 1_800_000_000


def generate() -> str:
    return f"whsec_generated-{next(NAMES)}"


def signing(secret: str | None) -> Connection:
    return Connection(URL if secret else None, fingerprint_of(secret) if secret else None)


@pytest.mark.parametrize(
    ("secrets", "signs", "url", "step", "after"),
    [
        ((), None, URL, ConnectionStep.STORE, ("*",)),
        (("a",), None, URL, ConnectionStep.STORE, ("a",)),
        (("b", "a"), None, URL, ConnectionStep.STORE, ("b", "a")),
        (("a",), "a", None, ConnectionStep.ROTATE, ("*", "a")),
        (("b", "a"), "a", None, ConnectionStep.SWITCH, ("b", "a")),
        (("b", "a"), "b", None, ConnectionStep.ROTATE, ("*", "b")),
        (("a",), "a", OTHER_URL, ConnectionStep.SWITCH, ("a",)),
        (("b", "a"), "a", OTHER_URL, ConnectionStep.SWITCH, ("b", "a")),
    ],
)
def test_what_comes_next(
    secrets: tuple[str, ...], signs: str | None, url: str | None, step: ConnectionStep, after: tuple[str, ...]
) -> None:
    plan = plan_connection(secrets, signing(signs), url, generate)
    assert plan.step is step
    assert plan.webhook_url == (url or URL)
    assert tuple("*" if "generated" in secret else secret for secret in plan.secrets) == after
    # Whatever signs before the step and after it, the functions are to know.
    assert plan.signing_secret in plan.secrets
    assert signs is None or signs in plan.secrets
    assert plan.signing_secret == (signs if step is ConnectionStep.ROTATE else plan.secrets[0])
    assert plan.proof == (proof_of(signs) if signs else None)
    assert len(plan.secrets) <= 2


@pytest.mark.parametrize("secrets", [(), ("b",), ("b", "c")])
def test_a_secret_that_nobody_here_knows_stops_it(secrets: tuple[str, ...]) -> None:
    with pytest.raises(CannotGoOn, match="DOORKEY_WEBHOOK_SECRETS"):
        plan_connection(secrets, signing("a"), URL, generate)


def test_without_an_address_the_secret_is_only_made_and_later_it_is_the_one_that_is_stored() -> None:
    plan = plan_connection((), signing(None), None, generate)
    assert (plan.step, plan.webhook_url, len(plan.secrets)) == (ConnectionStep.PREPARE, "", 1)
    again = plan_connection(plan.secrets, signing(None), None, generate)
    assert (again.step, again.secrets) == (ConnectionStep.PREPARE, plan.secrets)
    stored = plan_connection(plan.secrets, signing(None), URL, generate)
    assert (stored.step, stored.secrets, stored.signing_secret) == (
        ConnectionStep.STORE,
        plan.secrets,
        plan.secrets[0],
    )


def test_every_function_can_open_what_another_seals_one_deployment_away() -> None:
    """At each deployment some functions run with the keys before it and some with those after it."""
    old = SealingKey.parse(SEALING_KEY)
    made = itertools.count(NOON_SECONDS)
    states: list[tuple[SealingKey, ...]] = [(old,)]
    for expected in (SealingStep.ADD, SealingStep.PROMOTE, SealingStep.RESEAL):
        step, after = plan_sealing(states[-1], lambda: SealingKey.generate(next(made)))
        assert step is expected
        states.append(after)
    assert states[-1] == states[-2], "sealing anew changes no keys"
    assert states[-1][1] == old
    # And without the old one, once nothing is sealed with it.
    states.append(states[-1][:1])
    for before, after in itertools.pairwise(states):
        for writer, reader in ((before, after), (after, before)):
            assert writer[0] in reader
    # A second rotation goes the same way.
    assert plan_sealing(states[-1], lambda: SealingKey.generate(next(made)))[0] is SealingStep.ADD


def test_keys_made_by_hand_stay_in_the_order_that_somebody_gave_them() -> None:
    first, second = SealingKey.parse(SEALING_KEY), SealingKey.parse(OTHER_SEALING_KEY)
    for keys in ((first, second), (second, first)):
        assert plan_sealing(keys, lambda: first) == (SealingStep.RESEAL, keys)


def test_a_generated_key_is_read_again_and_says_when_it_was_made() -> None:
    key, later = SealingKey.generate(NOON_SECONDS), SealingKey.generate(NOON_SECONDS + 1)
    assert SealingKey.parse(key.text) == key
    assert key.key_id.startswith("k20270115080000")
    assert (later.is_newer_than(key), key.is_newer_than(later)) == (True, False)
    assert key.is_newer_than(SealingKey.parse(SEALING_KEY))
    assert not SealingKey.parse(SEALING_KEY).is_newer_than(key)
    assert SealingKey.generate(NOON_SECONDS).key_id != key.key_id
    assert key.text not in repr(key)
