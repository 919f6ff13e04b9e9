"""Env files: what is set is set, what else is there stays, and nobody else reads it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from infra.connection.environments import EnvFile, Terminal, environment_at
from infra.connection.plans import CannotGoOn
from infra.connection.stages import StageSecret

BEFORE = """# Our functions
export DOORKEY_PROJECT='app'

SUPABASE_URL="https://project.example"  
not a line of ours
OTHERS=$(kept as it is)
DOORKEY_WEBHOOK_SECRETS=
"""  # noqa: W291  a space at the end is what editors leave


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder: Path) -> list[str]:
    return [found.name for found in folder.iterdir()]


async def test_lines_of_others_comments_and_order_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "functions.env"
    path.write_text(BEFORE)
    path.chmod(0o640)
    file = EnvFile(path)
    assert (await file.read())["DOORKEY_PROJECT"] == "app"
    assert (await file.read())["SUPABASE_URL"] == "https://project.example"
    changes = {"DOORKEY_PROJECT": "app", "DOORKEY_WEBHOOK_SECRETS": "whsec_a,whsec_b", "DOORKEY_SEALING_KEYS": "k1:A=="}
    assert await file.write(changes)
    assert path.read_text() == BEFORE.replace("SECRETS=", "SECRETS=whsec_a,whsec_b") + "DOORKEY_SEALING_KEYS=k1:A==\n"
    assert mode_of(path) == 0o640
    assert not await file.write(changes)
    assert names_in(tmp_path) == ["functions.env"]


async def test_a_new_file_is_for_its_owner_alone_and_a_link_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    await EnvFile(link).write({"A": "x y"})
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == 'A="x y"\n'
    assert mode_of(tmp_path / "real") == 0o600
    assert await EnvFile(link).read() == {"A": "x y"}


async def test_what_somebody_else_wrote_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "functions.env"
    file = EnvFile(path)
    await file.read()
    path.write_text("DOORKEY_SEALING_KEYS=theirs\n")
    with pytest.raises(CannotGoOn, match="Run it again"):
        await file.write({"DOORKEY_SEALING_KEYS": "ours"})
    assert path.read_text() == "DOORKEY_SEALING_KEYS=theirs\n"


async def test_what_cannot_be_read_or_written_is_a_sentence_without_the_value(tmp_path: Path) -> None:
    with pytest.raises(CannotGoOn, match="can't be read"):
        await EnvFile(tmp_path).read()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(CannotGoOn, match="no text"):
        await EnvFile(tmp_path / "binary").read()
    with pytest.raises(CannotGoOn, match="can't be written"):
        await EnvFile(tmp_path / "nowhere" / "file").write({"A": "a"})
    with pytest.raises(CannotGoOn, match=r"^A has a character") as caught:
        await EnvFile(tmp_path / "file").write({"A": "two\nlines"})
    assert "lines" not in str(caught.value)
    assert not (tmp_path / "file").exists()


async def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "functions.env"
    path.write_text(BEFORE)
    file = EnvFile(path)
    await file.read()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotGoOn, match="No space left"):
        await file.write({"DOORKEY_SEALING_KEYS": "k1:A=="})
    assert path.read_text() == BEFORE
    assert names_in(tmp_path) == ["functions.env"]


async def test_what_is_kept_goes_before_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "functions.env"
    path.write_text("DOORKEY_PROJECT=kept\nSUPABASE_URL=\nOTHERS=x\n")
    monkeypatch.setenv("DOORKEY_PROJECT", "given")
    monkeypatch.setenv("SUPABASE_URL", " https://given.example ")
    monkeypatch.setenv("DOORKEY_LEASE_SECONDS", "")
    environment, differing = await environment_at(EnvFile(path))
    assert environment["DOORKEY_PROJECT"] == "kept"
    assert environment["SUPABASE_URL"] == "https://given.example"
    assert not {"OTHERS", "DOORKEY_LEASE_SECONDS"} & environment.keys()
    assert differing == ["DOORKEY_PROJECT"]


async def test_nothing_new_is_not_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DOORKEY_PROJECT", "app")
    assert not await Terminal().write({"DOORKEY_PROJECT": "app"})
    assert await Terminal().write({"DOORKEY_PROJECT": "app", "DOORKEY_SEALING_KEYS": "k1:A=="})
    assert capsys.readouterr().out == "DOORKEY_PROJECT=app\nDOORKEY_SEALING_KEYS=k1:A==\n"


async def test_without_the_aws_sdk_a_stage_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(CannotGoOn, match="pip install boto3"):
        await StageSecret("prod").read()
