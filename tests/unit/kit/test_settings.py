"""Settings: every problem at once, by the names that people set, and never a value."""

from __future__ import annotations

import json
import re
import secrets

import pytest
from pydantic import ValidationError

from functions.kit.settings import Settings, SettingsInvalid
from tests.support.environment import (
    COMPLETE,
    OTHER_SEALING_KEY,
    OTHER_WEBHOOK_SECRET,
    SEALING_KEY,
    WEBHOOK_SECRET,
    environment,
    settings,
)

# Values of every setting, none of which may ever be seen again. All are wrong.
WRONG = {
    "SUPABASE_URL": "ftp://user:tell-nobody-1@project",
    "SUPABASE_PUBLISHABLE_KEY": "sb_secret_tell-nobody-2",
    "SUPABASE_SECRET_KEY": "sb_publishable_tell-nobody-3",
    "SUPABASE_JWT_SECRET": "tell-nobody-4",
    "OPENROUTER_BASE_URL": "//tell-nobody-5",
    "OPENROUTER_MANAGEMENT_KEY": "tell-nobody-6 with a space",
    "OPENROUTER_WORKSPACE_ID": "tell-nobody-7",
    "DOORKEY_PROJECT": "Tell-Nobody-8",
    "DOORKEY_SEALING_KEYS": "k1:tell-nobody-9",
    "DOORKEY_WEBHOOK_SECRETS": "tell-nobody-10",
    "DOORKEY_WEBHOOK_SHARED_SECRET": "tell-nobody-11",
    "DOORKEY_OPERATOR_TOKEN_SHA256": "tell-nobody-12",
    "DOORKEY_LEASE_SECONDS": "tell-nobody-13",
    "DOORKEY_OUTSIDE_TIMEOUT_SECONDS": "tell-nobody-14",
}


def problems_of(found: dict[str, str]) -> dict[str, str]:
    """The problems of an environment, by name."""
    with pytest.raises(SettingsInvalid) as caught:
        Settings.from_environment(found)
    return dict(problem.split(": ", 1) for problem in caught.value.problems)


def test_nothing_set_names_everything_that_must_be() -> None:
    required = set(COMPLETE) - {"OPENROUTER_BASE_URL"}
    assert problems_of({}) == dict.fromkeys(required, "is not set")


def test_every_problem_is_listed_at_once() -> None:
    assert set(problems_of(WRONG)) == set(WRONG)


def test_one_wrong_and_one_missing_are_listed_together() -> None:
    problems = problems_of(
        environment(SUPABASE_SECRET_KEY="sb_publishable_put-in-the-wrong-place", DOORKEY_PROJECT=None)
    )
    assert problems == {"SUPABASE_SECRET_KEY": "holds a publishable key", "DOORKEY_PROJECT": "is not set"}


def test_a_mistyped_secret_is_never_repeated() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        Settings.from_environment(WRONG)
    shown = f"{caught.value} {caught.value!r} {caught.value.args} {caught.value.problems}"
    assert "nobody" not in shown.lower()
    # What Python would print below "During handling of …".
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_not_even_the_model_itself_repeats_what_it_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name.lower(): value for name, value in WRONG.items()})
    assert "nobody" not in f"{caught.value} {caught.value!r}".lower()


def test_an_address_that_cannot_be_taken_apart_is_not_repeated() -> None:
    for address in ("http://[tell-nobody", "https://tell-nobody℀.example", "http://host:tell-nobody"):
        with pytest.raises(SettingsInvalid) as caught:
            Settings.from_environment(environment(SUPABASE_URL=address))
        assert "nobody" not in str(caught.value)
        assert [p.split(":")[0] for p in caught.value.problems] == ["SUPABASE_URL"]


def test_settings_can_be_printed_without_a_secret() -> None:
    secret = secrets.token_hex(20)
    found = settings(
        SUPABASE_PUBLISHABLE_KEY=f"sb_publishable_{secret}",
        SUPABASE_SECRET_KEY=f"sb_secret_{secret}",
        SUPABASE_JWT_SECRET=secret,
        OPENROUTER_MANAGEMENT_KEY=f"sk-or-v1-{secret}",
        DOORKEY_SEALING_KEYS=f"{SEALING_KEY},{OTHER_SEALING_KEY}",
        DOORKEY_WEBHOOK_SECRETS=f"{WEBHOOK_SECRET},{OTHER_WEBHOOK_SECRET}",
        DOORKEY_WEBHOOK_SHARED_SECRET=secret,
    )
    shown = " ".join(
        (
            repr(found),
            str(found),
            repr(found.model_dump()),
            found.model_dump_json(),
            json.dumps(found.model_dump(mode="json")),
        )
    )
    shown += repr(found.sealing_keys)
    for value in (secret, SEALING_KEY, OTHER_SEALING_KEY, WEBHOOK_SECRET, OTHER_WEBHOOK_SECRET):
        assert value not in shown
        assert value.partition("_")[2] == "" or value.partition("_")[2] not in shown
    for key in found.sealing_keys:
        assert repr(key.key) not in shown


def test_settings_cannot_be_changed() -> None:
    found = settings()
    with pytest.raises(ValidationError):
        found.doorkey_project = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_set_to_nothing_is_not_set(name: str) -> None:
    if name == "OPENROUTER_BASE_URL":
        assert settings(OPENROUTER_BASE_URL=" ").openrouter_base_url == "https://openrouter.ai/api/v1"
        return
    for nothing in ("", "   "):
        assert problems_of(environment(**{name: nothing})) == {name: "is not set"}


def test_optional_settings_set_to_nothing_stay_closed() -> None:
    found = settings(
        DOORKEY_WEBHOOK_SECRETS="", DOORKEY_WEBHOOK_SHARED_SECRET=" ", DOORKEY_OPERATOR_TOKEN_SHA256="",
        SUPABASE_JWT_SECRET="", DOORKEY_ALLOWED_ORIGINS=" , ,",
    )  # fmt: skip
    assert found.webhook_secrets == ()
    assert found.doorkey_webhook_shared_secret is None
    assert found.doorkey_operator_token_sha256 is None
    assert found.supabase_jwt_secret is None
    assert found.doorkey_allowed_origins == ()


def test_keys_put_in_each_others_place_are_noticed() -> None:
    problems = problems_of(
        environment(
            SUPABASE_SECRET_KEY=COMPLETE["SUPABASE_PUBLISHABLE_KEY"],
            SUPABASE_PUBLISHABLE_KEY=COMPLETE["SUPABASE_SECRET_KEY"],
        )
    )
    assert problems == {
        "SUPABASE_SECRET_KEY": "holds a publishable key",
        "SUPABASE_PUBLISHABLE_KEY": "holds a secret key; browsers would see it",
    }


@pytest.mark.parametrize(
    "address",
    [
        "project.example", "ftp://project.example", "https://", "https:///path", "file:///etc/hosts", "https://[::1",
        "https://project.example?", "https://project.example?a=b", "https://project.example#", "javascript:alert(1)",
        "https://user:password@project.example", "https://project.example:port", "https://project.example:99999",
        "https://project.example:0", "https://pro ject.example", "https://project.example\\@elsewhere",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(address: str) -> None:
    for name in ("SUPABASE_URL", "OPENROUTER_BASE_URL"):
        assert set(problems_of(environment(**{name: address}))) == {name}


@pytest.mark.parametrize(
    "address", ["https://project.example", "https://project.example/", " https://project.example/ \n"]
)
def test_an_address_is_kept_without_its_slash_so_that_the_issuer_matches(address: str) -> None:
    assert settings(SUPABASE_URL=address).supabase_url == "https://project.example"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("k1", "<id>:<base64>"),
        (":" + SEALING_KEY.partition(":")[2], "<id>:<base64>"),
        ("K1:" + SEALING_KEY.partition(":")[2], "<id>:<base64>"),
        ("k.1:" + SEALING_KEY.partition(":")[2], "<id>:<base64>"),
        ("k1:???", "not base64"),
        ("k1:ü", "ASCII"),
        ("k1:AAAA", "3 bytes"),
        (SEALING_KEY + "," + SEALING_KEY, "same id"),
        (",".join(f"k{n}:" + SEALING_KEY.partition(":")[2] for n in range(3)), "at most 2"),
        (",", "at least 1"),
    ],
)
def test_a_sealing_key_that_is_malformed_is_refused(keys: str, says: str) -> None:
    problems = problems_of(environment(DOORKEY_SEALING_KEYS=keys))
    assert set(problems) == {"DOORKEY_SEALING_KEYS"}
    assert says in problems["DOORKEY_SEALING_KEYS"]


def test_two_sealing_keys_keep_their_order() -> None:
    found = settings(DOORKEY_SEALING_KEYS=f" {OTHER_SEALING_KEY} , {SEALING_KEY} ")
    assert [key.key_id for key in found.sealing_keys] == ["k2", "k1"]


@pytest.mark.parametrize(
    "text", ["secret", "whsec_", "whsec_AAAA", "whsec_???", "whsec_ü", "v1,whsec_" + WEBHOOK_SECRET[6:]]
)
def test_a_webhook_secret_that_is_malformed_or_short_is_refused(text: str) -> None:
    assert set(problems_of(environment(DOORKEY_WEBHOOK_SECRETS=text))) == {"DOORKEY_WEBHOOK_SECRETS"}


def test_a_short_shared_secret_is_refused() -> None:
    assert set(problems_of(environment(DOORKEY_WEBHOOK_SHARED_SECRET="short"))) == {"DOORKEY_WEBHOOK_SHARED_SECRET"}


@pytest.mark.parametrize(
    "name",
    ["SUPABASE_SECRET_KEY", "SUPABASE_PUBLISHABLE_KEY", "OPENROUTER_MANAGEMENT_KEY", "DOORKEY_WEBHOOK_SHARED_SECRET"],
)
@pytest.mark.parametrize("stain", [" ", "\n", "\t", "é", "\x00"])
def test_a_key_that_no_header_can_carry_is_refused(name: str, stain: str) -> None:
    assert set(problems_of(environment(**{name: f"sb_something{stain}with-a-stain"}))) == {name}


@pytest.mark.parametrize("project", ["App", "a_b", "-a", "a-", "a--b", "1a", "a" * 41, "a b", "ä"])
def test_a_project_that_could_be_taken_for_another_is_refused(project: str) -> None:
    assert set(problems_of(environment(DOORKEY_PROJECT=project))) == {"DOORKEY_PROJECT"}


@pytest.mark.parametrize("seconds", ["0", "3601", "1.5", "ninety", "-1"])
def test_a_lease_out_of_range_is_refused(seconds: str) -> None:
    assert set(problems_of(environment(DOORKEY_LEASE_SECONDS=seconds))) == {"DOORKEY_LEASE_SECONDS"}


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == settings()


def test_every_setting_explains_itself() -> None:
    for name, field in Settings.model_fields.items():
        assert re.search(r"\w.*\.$", field.description or ""), name
