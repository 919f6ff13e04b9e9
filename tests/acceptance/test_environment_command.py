"""`doorkey environment` as a shell reads it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from infra.local.stack import CHECKOUT

COMMAND = [sys.executable, "-m", "infra.cli.main", "environment"]
BASE = {"PATH": os.environ["PATH"], "COLUMNS": "200"}


def test_a_shell_gets_what_is_kept_and_nothing_of_it_becomes_a_command(tmp_path: Path) -> None:
    kept = tmp_path / "functions.env"
    kept.write_text("DOORKEY_PROJECT=shop\nSUPABASE_SECRET_KEY='sb_secret_$(touch x); \"quoted\"'\nPATH=/nowhere\n")
    kept.chmod(0o600)
    line = 'eval "$("$0" -m infra.cli.main environment --env-file "$1")" && printf "%s|%s|%s" '
    line += '"$DOORKEY_PROJECT" "$SUPABASE_SECRET_KEY" "$PATH"'
    shell = ["sh", "-c", line, sys.executable, str(kept)]
    outcome = subprocess.run(shell, cwd=CHECKOUT, env=BASE, capture_output=True, text=True, check=True)
    assert outcome.stdout == f'shop|sb_secret_$(touch x); "quoted"|{BASE["PATH"]}'


def test_secrets_are_not_printed_on_a_terminal(tmp_path: Path) -> None:
    kept = tmp_path / "functions.env"
    kept.write_text("SUPABASE_SECRET_KEY=sb_secret_tell_nobody\n")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as terminal:
        command = [*COMMAND, "--env-file", str(kept)]
        outcome = subprocess.run(
            command, cwd=CHECKOUT, env=BASE, stdout=terminal, stderr=subprocess.PIPE, text=True, check=False
        )
    os.set_blocking(ours, False)
    try:
        shown = os.read(ours, 10_000)
    except OSError:
        shown = b""
    os.close(ours)
    assert (outcome.returncode, shown) == (1, b"")
    assert "let the shell read them" in outcome.stderr


def test_nothing_kept_is_said(tmp_path: Path) -> None:
    command = [*COMMAND, "--env-file", str(tmp_path / "none.env")]
    outcome = subprocess.run(command, cwd=CHECKOUT, env=BASE, capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert "doorkey connect makes it" in " ".join(outcome.stderr.split())
