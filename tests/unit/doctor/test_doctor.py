"""Where the doctor looks, what it makes of settings that can't be used, and what it says at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from functions.health.checks import Check, Facts
from functions.health.database import Report
from functions.kit.settings import Settings, variable_names
from infra.cli.doctor import conclusion
from infra.connection.environments import EnvFile
from infra.connection.plans import CannotGoOn
from infra.doctor import places
from infra.doctor.lines import Direct, judge_database_url
from infra.doctor.places import find_place
from infra.doctor.settings import NOWHERE, examine_settings, judge_settings, misspelt
from tests.support.environment import environment, settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in which nothing of ours is set, on a machine where no stack runs."""
    for name in (*variable_names(), places.DATABASE_URL):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(places, "environments_of_running", list)


def running(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    for path in paths:
        path.write_text(
            "SUPABASE_URL=http://127.0.0.1:1\nDATABASE_URL=postgresql://dev@127.0.0.1:2/postgres\nOTHER=1\n"
        )
    monkeypatch.setattr(places, "environments_of_running", lambda: list(paths))


async def test_without_anything_it_looks_at_the_stack_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running(monkeypatch, tmp_path / "one")
    place = await find_place(None, None)
    assert "doorkey dev" in place.name
    assert place.environment == {"SUPABASE_URL": "http://127.0.0.1:1"}
    assert place.database_url == "postgresql://dev@127.0.0.1:2/postgres"
    assert (await find_place(None, "postgresql://mine")).database_url == "postgresql://mine"


async def test_what_the_shell_says_goes_before_the_stack_and_what_is_said_before_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running(monkeypatch, tmp_path / "one")
    monkeypatch.setenv("SUPABASE_URL", "https://shell.example")
    place = await find_place(None, None)
    assert (place.environment, place.database_url) == ({"SUPABASE_URL": "https://shell.example"}, None)
    path = tmp_path / "functions.env"
    path.write_text("SUPABASE_URL=https://file.example\n")
    monkeypatch.setenv(places.DATABASE_URL, "postgresql://shell")
    place = await find_place(EnvFile(path), None)
    assert place.environment == {"SUPABASE_URL": "https://file.example"}
    assert place.database_url == "postgresql://shell"


async def test_of_several_stacks_none_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    running(monkeypatch, tmp_path / "one", tmp_path / "two")
    with pytest.raises(CannotGoOn, match="Say which") as caught:
        await find_place(None, None)
    assert str(tmp_path / "two") in str(caught.value)


async def test_with_nothing_at_all_it_says_where_settings_come_from() -> None:
    place = await find_place(None, None)
    finding = judge_settings(place.environment, examine_settings(place.environment), {})
    assert finding.state == "broken"
    assert "doorkey doctor --stage STAGE" in str(finding.mend)


@pytest.mark.parametrize("name", [name.upper() for name, field in Settings.model_fields.items() if field.is_required()])
def test_every_setting_that_is_required_has_a_stand_in_that_leads_nowhere(name: str) -> None:
    examined = examine_settings(environment(**{name: None}))
    assert examined.unusable == {name}
    assert NOWHERE[name]


def test_a_setting_that_depends_on_another_is_judged_too() -> None:
    examined = examine_settings(environment(DOORKEY_LEASE_SECONDS="no number", DOORKEY_STRAY_AGE_SECONDS="100"))
    assert examined.unusable >= {"DOORKEY_LEASE_SECONDS"}
    changed = environment(DOORKEY_LEASE_SECONDS="900", DOORKEY_STRAY_AGE_SECONDS="900")
    assert examine_settings(changed).unusable == {"DOORKEY_STRAY_AGE_SECONDS"}


def test_a_setting_by_nearly_its_name_is_a_slip_and_other_names_are_not() -> None:
    given = {"DOORKEY_URL": "x", "DOORKEY_SEALING_KEY": "x", "DOORKEY_WEBHOOK_SECRET": "x", "PATH": "x"}
    assert misspelt(given, {}) == {
        "DOORKEY_SEALING_KEY": "DOORKEY_SEALING_KEYS", "DOORKEY_WEBHOOK_SECRET": "DOORKEY_WEBHOOK_SECRETS",
    }  # fmt: skip
    assert "DOORKEY_SEALING_KEY" not in misspelt(given, {"DOORKEY_SEALING_KEYS": "k"})


@pytest.mark.parametrize(("installed_at", "state"), [("then", "ok"), ("another time", "broken")])
def test_two_databases_are_told_apart_by_when_doorkey_was_installed(installed_at: str, state: str) -> None:
    direct = Direct({"installed_at": installed_at}, [], None, {})
    facts = Facts(settings(), {"direct": direct, "report": Report({"installed_at": "then"}, 0, 0)})
    assert judge_database_url(facts).state == state


def test_the_last_sentence_says_what_to_do_first() -> None:
    def said(**states: str) -> str:
        return conclusion([Check(name=name, state=state, finding=".") for name, state in states.items()])

    assert said(a="ok", b="skipped").strip() == "All is well."
    assert "looked after: b, c." in said(a="ok", b="warning", c="warning")
    assert "Broken: b. Mend it" in said(a="warning", b="broken")
    assert "Broken: b and 1 more. Mend b first" in said(a="ok", b="broken", c="broken")
