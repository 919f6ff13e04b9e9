"""`doorkey doctor` where things hang, and what a person and a program get to read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from functions.health import checks as health_checks
from tests.support.patients import Patient

WRONG_SECRET_KEY: dict[str, str | None] = {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-0000"}


@pytest.mark.timeout(180)
async def test_a_check_that_hangs_is_a_line_and_the_others_go_on(patient: Patient) -> None:
    seconds = health_checks.ASK_SECONDS + 30
    await patient.edge_faults().order(stall=1.0, stall_seconds=seconds, only=("GET /auth/v1/.well-known/jwks.json",))
    found = await patient.examine()
    assert found.not_ok() == {"access_tokens": "broken"}
    assert f"no answer within {health_checks.ASK_SECONDS:.0f} seconds" in found.checks["access_tokens"]["finding"]


@pytest.mark.timeout(180)
async def test_functions_that_never_answer_are_a_line(patient: Patient) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/webhooks/supabase"
        await patient.sql("update doorkey.settings set webhook_url = %s", url)
        found = await patient.examine()
    assert found.not_ok() == {"webhook_address": "broken"}
    assert "no answer within" in found.checks["webhook_address"]["finding"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("only", "accused"),
    [
        ("POST /rest/v1/rpc/prove_webhook_secret", {"webhook_secret": "broken", "database_url": "skipped"}),
        ("POST /rest/v1/rpc/count_sealed_secrets", {"sealing_keys": "broken", "database_url": "skipped"}),
        ("POST /rest/v1/rpc/get_doorkey_health", {"database": "broken", "clock": "skipped"}),
    ],
)
async def test_a_part_of_the_database_that_hangs_is_broken_and_never_passed_over(
    patient: Patient, only: str, accused: dict[str, str]
) -> None:
    await patient.edge_faults().order(stall=1.0, stall_seconds=health_checks.ASK_SECONDS + 30, only=(only,))
    found = await patient.examine({"DATABASE_URL": None} if "database_url" in accused else {})
    assert found.not_ok() == accused


async def test_what_a_person_reads_fits_eighty_columns_and_needs_no_colours(patient: Patient) -> None:
    await patient.give_up("openrouter_refused")
    environment = {**patient.environment, "SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-0000", "COLUMNS": "80"}
    run = await patient.installation.run("doctor", environment=environment)
    patient.shows_no_secret(run, WRONG_SECRET_KEY)
    assert run.code == 2
    lines = run.out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "\x1b" not in run.out
    assert any(line.startswith("BROKEN   secret_key") for line in lines)
    assert any(line.startswith("warning  dead_rows") for line in lines)
    assert any(line.startswith("skipped  database ") for line in lines)
    assert "  -> doorkey redrive --error openrouter_refused" in lines
    assert "Broken: secret_key. Mend it, then run this again." in run.said


async def test_an_env_file_says_where_to_look_and_json_goes_out_alone(patient: Patient, tmp_path: Path) -> None:
    path = tmp_path / "functions.env"
    path.write_text("".join(f"{name}={value}\n" for name, value in patient.environment.items()))
    run = await patient.installation.run("doctor", "--json", "--env-file", str(path), environment={})
    assert run.code == 0, run.said
    assert json.loads(run.out)["status"] == "ok"
    run = await patient.installation.run("doctor", "--env-file", str(path), environment={"COLUMNS": "80"})
    assert "All is well." in run.said


async def test_a_password_on_the_command_line_is_refused(patient: Patient) -> None:
    run = await patient.installation.run("doctor", "--database-url", patient.installation.stack.database_url)
    assert run.code == 2
    assert "Everybody on this machine can read a command line" in run.said
