"""`doorkey faults` against running parts: it finds the stack, orders, shows, clears, and says what it can't do."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli.main import app
from infra.local import stack
from infra.local.faults import PARTS
from infra.local.running import ADDRESSES_FILE
from infra.local.stack import FOLDER_PREFIX, OWNER_FILE
from tests.contract.faults.parts import FaultyProcess

Invoke = Callable[..., Any]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Runs `doorkey faults ...` on a machine where only the stacks in `tmp_path` run."""
    monkeypatch.setattr(stack, "PUBLIC_PLACES", ())
    monkeypatch.setattr(stack, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["faults", *words], env={"COLUMNS": "200"})


def leave_addresses(place: Path, name: str, both: dict[str, FaultyProcess], pid: int | None = None) -> Path:
    """As a running `doorkey dev` does."""
    folder = place / f"{FOLDER_PREFIX}{name}"
    folder.mkdir()
    (folder / OWNER_FILE).write_text(str(pid or os.getpid()))
    addresses = {
        "edge": both["edge"].origin,
        "openrouter": both["openrouter"].base_url,
        "functions": f"{NOWHERE}/{name}",
    }
    (folder / ADDRESSES_FILE).write_text(json.dumps(addresses))
    return folder


def a_pid_that_ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def rows(printed: str) -> list[list[str]]:
    """The cells of the table's lines."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]


def test_it_finds_the_running_stack_orders_shows_and_clears(
    invoke: Invoke, tmp_path: Path, both: dict[str, FaultyProcess]
) -> None:
    leave_addresses(tmp_path, "one", both)
    ordered = invoke(
        "openrouter", "--lose-answers", "0.1", "--only", "POST /keys", "--only", "GET /keys", "--seed", "3"
    )
    assert ordered.exit_code == 0, ordered.output
    assert ["openrouter", "lose_answers", "0.1", "0"] in rows(ordered.output)
    assert ["openrouter", "only", "POST /keys, GET /keys", ""] in rows(ordered.output)
    assert invoke("edge", "--is-away", "--retry-after-seconds", "0").exit_code == 0
    shown = invoke("show")
    assert ["openrouter", "lose_answers", "0.1", "0"] in rows(shown.output)
    assert ["edge", "is_away", "True", "0"] in rows(shown.output)
    cleared = invoke("clear")
    assert "No faults are on any more." in cleared.output
    assert "No faults are on." in invoke("show").output
    assert "No faults were on." in invoke("clear").output


def test_every_field_of_the_plan_has_an_option(invoke: Invoke) -> None:
    for part in PARTS:
        help_text = invoke(part.name, "--help").output
        for field in part.plan_type.model_fields:
            assert f"--{field.replace('_', '-')} " in help_text


def test_without_a_running_stack_it_says_so(invoke: Invoke, tmp_path: Path, both: dict[str, FaultyProcess]) -> None:
    for words in (["show"], ["clear"], ["edge", "--errors", "1"]):
        outcome = invoke(*words)
        assert outcome.exit_code == 1
        assert "No doorkey dev runs on this machine." in outcome.output
    leave_addresses(tmp_path, "killed", both, pid=a_pid_that_ended())
    (leave_addresses(tmp_path, "half", both) / ADDRESSES_FILE).write_text('{"edge"')
    assert "No doorkey dev runs on this machine." in invoke("show").output


def test_of_several_stacks_one_must_be_named_by_any_address(
    invoke: Invoke, tmp_path: Path, both: dict[str, FaultyProcess]
) -> None:
    for name in ("one", "two"):
        leave_addresses(tmp_path, name, both)
    outcome = invoke("show")
    assert outcome.exit_code == 1
    assert "Several doorkey dev run on this machine. Say which:" in outcome.output
    assert f"--url {both['edge'].origin}" in outcome.output
    for url in (both["openrouter"].base_url, both["edge"].origin.replace("127.0.0.1", "localhost"), f"{NOWHERE}/v1"):
        assert invoke("show", "--url", url).exit_code == 0


def test_a_part_that_runs_alone_is_named_by_its_address(invoke: Invoke, both: dict[str, FaultyProcess]) -> None:
    url = both["openrouter"].base_url
    assert invoke("openrouter", "--url", url, "--stall", "0.5").exit_code == 0
    assert ["openrouter", "stall", "0.5", "0"] in rows(invoke("show", "--url", url).output)
    wrong = invoke("edge", "--url", url, "--stall", "0.5")
    assert wrong.exit_code == 1
    assert "takes no faults for edge" in wrong.output
    assert invoke("clear", "--url", url).exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--errors", "2"], "errors: input should be less than or equal to 1"),
        (["--only", "keys"], "only.0: string should match pattern"),
        (["--error-status", "404"], "error_status: input should be greater than or equal to 500"),
        (["--errors", "often"], "should be a valid number"),
        (["--no-such-fault"], "No such option"),
    ],
)
def test_a_bad_order_is_a_sentence_and_changes_nothing(
    invoke: Invoke, both: dict[str, FaultyProcess], words: list[str], says: str
) -> None:
    outcome = invoke("openrouter", "--url", both["openrouter"].origin, *words)
    assert outcome.exit_code != 0
    assert says in " ".join(outcome.output.split())
    assert "Traceback" not in outcome.output
    assert "No faults are on." in invoke("show", "--url", both["openrouter"].origin).output


@pytest.mark.parametrize(("url", "code"), [(NOWHERE, 1), ("127.0.0.1:8787", 2), ("http://[", 2)])
def test_an_address_that_is_none_or_nobodys_is_said(invoke: Invoke, url: str, code: int) -> None:
    outcome = invoke("show", "--url", url)
    assert outcome.exit_code == code
    assert "http://127.0.0.1:" in outcome.output
    assert "Traceback" not in outcome.output
