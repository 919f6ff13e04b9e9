"""Names of keys at OpenRouter: no installation ever takes another's key for its own."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.provisioning.names import KeyName
from tests.support.environment import settings

USER = uuid.UUID("7d1c0b3e-3f0e-4f3c-9f6f-3a7a0f4e8a55")
projects = st.from_regex(r"[a-z][a-z0-9]{0,9}(-[a-z0-9]{1,9}){0,2}", fullmatch=True)


@given(project=projects, user_id=st.uuids(), attempt=st.integers(1, 2**31 - 1))
def test_a_name_gives_its_parts_back(project: str, user_id: uuid.UUID, attempt: int) -> None:
    assert settings(DOORKEY_PROJECT=project).doorkey_project == project
    name = KeyName(project, user_id, attempt)
    assert KeyName.parse(str(name)) == name
    assert len(str(name)) <= 200  # what the database and OpenRouter take


@given(one=projects, other=projects, user_id=st.uuids(), attempt=st.integers(1, 99))
def test_a_project_never_matches_another(one: str, other: str, user_id: uuid.UUID, attempt: int) -> None:
    parsed = KeyName.parse(str(KeyName(other, user_id, attempt)))
    assert parsed is not None
    assert (parsed.project == one) == (one == other)


def test_app_never_touches_app_eu() -> None:
    for project in ("app-eu", "app-eu-1", "app-doorkey-app", f"app-{USER}", f"app-{USER}-1"):
        parsed = KeyName.parse(f"doorkey-{project}-{USER}-3")
        assert parsed == KeyName(project, USER, 3)
        assert parsed.project != "app"


def test_a_name_is_read_from_the_right() -> None:
    other = uuid.UUID(int=5)
    assert KeyName.parse(f"doorkey-app-{other}-1-{USER}-2") == KeyName(f"app-{other}-1", USER, 2)


@pytest.mark.parametrize(
    "text",
    [
        "", "doorkey", "doorkey-app", f"doorkey-{USER}-1", f"doorkey--{USER}", f"app-{USER}-1", f"doorkey-app-{USER}",
        f"doorkey-app-{USER}-0", f"doorkey-app-{USER}-01", f"doorkey-app-{USER}--1", f"doorkey-app-{USER}-1 ",
        f"doorkey-app-{USER}-1\n", f" doorkey-app-{USER}-1", f"xdoorkey-app-{USER}-1",
        f"doorkey-app-{USER}-\N{ARABIC-INDIC DIGIT ONE}",
        f"doorkey-app-{str(USER).upper()}-1", f"doorkey-app-{USER.hex}-1", f"doorkey-app-{USER}-{10**10}",
        f"Doorkey-app-{USER}-1", "somebody else's key",
    ],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_none(text: str) -> None:
    assert KeyName.parse(text) is None


@given(text=st.text())
def test_any_text_is_a_name_or_none(text: str) -> None:
    parsed = KeyName.parse(text)
    assert parsed is None or str(parsed) == text
