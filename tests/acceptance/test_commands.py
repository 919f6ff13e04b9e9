"""`doorkey demo` and `doorkey dev` as a person runs them: real processes, read from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.local.stack import CHECKOUT, FOLDER_PREFIX

pytestmark = pytest.mark.timeout(180)

UP_SECONDS = 60
GONE_SECONDS = 20
POLL_SECONDS = 0.1


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary folder of the test's own, for the stack to be in: so that what it leaves can be seen."""
    with tempfile.TemporaryDirectory(prefix="doorkey-test-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    """Runs a doorkey command whose temporary folder is `place`."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = {**kept, "TMPDIR": str(place), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli.main", *words],
        cwd=CHECKOUT,
        env=environment,
        stdout=(place / "out").open("w"),
        stderr=(place / "err").open("w"),
        text=True,
    )


def out(place: Path) -> str:
    """What it printed so far, both ways."""
    return (place / "out").read_text() + (place / "err").read_text()


def wait_until_up(place: Path, process: subprocess.Popen[str]) -> str:
    """Waits for `dev` to say that it runs; returns the address of the functions."""
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, out(place)
        if "Ctrl-C stops everything" in out(place):
            found = re.search(r"Functions\s+│\s+(http://\S+)", out(place))
            assert found is not None
            return found[1]
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"not up after {UP_SECONDS} seconds:\n{out(place)}")


def until_shown(place: Path, line: str) -> None:
    """Waits for a line in what it prints."""
    deadline = time.monotonic() + UP_SECONDS
    while not re.search(line, out(place)) and time.monotonic() < deadline:
        # Another process writes it, and nothing tells when.
        time.sleep(POLL_SECONDS)
    assert re.search(line, out(place)), out(place)


def left_behind(place: Path) -> list[str]:
    """Folders and processes that belong to a stack in `place`."""
    return [str(path) for path in place.glob(f"{FOLDER_PREFIX}*")] + processes_of(place)


def processes_of(place: Path) -> list[str]:
    """Every process whose command line or environment names `place`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue  # ended meanwhile, or another user's
        if str(place).encode() in words:
            found.append(f"{entry.name} {words[:200]!r}")
    return found


def wait_until_nothing_is_left(place: Path, but_for: set[str] | None = None) -> None:
    """Processes need a moment to be gone."""
    deadline = time.monotonic() + GONE_SECONDS
    while (left := [x for x in left_behind(place) if x not in (but_for or set())]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    assert not left


def pid_of_part(place: Path, words: bytes) -> int:
    """The process id of one part."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if words in (entry / "cmdline").read_bytes() and str(place).encode() in (entry / "environ").read_bytes():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process {words!r}")


def test_demo_shows_three_people_with_a_key_beside_a_running_dev(place: Path) -> None:
    dev_place, demo_place = place / "dev", place / "demo"
    for folder in (dev_place, demo_place):
        folder.mkdir()
        folder.chmod(0o711)
    dev = start(dev_place, "dev")
    try:
        wait_until_up(dev_place, dev)
        demo = start(demo_place, "demo")
        assert demo.wait(UP_SECONDS * 2) == 0, out(demo_place)
        shown = out(demo_place)
        for name in ("Ada Lovelace", "Grace Hopper", "Katherine Johnson"):
            assert name in shown
        assert len(set(re.findall(r"doorkey-local-[0-9a-f-]{36}-1\b", shown))) == 3
        assert shown.count("5 credits (trial)") == 3
        assert shown.count("$5.00 on sk-or-v1-") == 3
        assert re.search(r"\$0\.000000\s+│\s+\$0\.0000(?!00)\d\d", shown), "the chat call must move the key's usage"
        wait_until_nothing_is_left(demo_place)
    finally:
        dev.send_signal(signal.SIGINT)
        assert dev.wait(GONE_SECONDS) == 0, out(dev_place)
    wait_until_nothing_is_left(dev_place)


def test_dev_shows_a_signup_as_a_readable_line_and_leaves_nothing_behind(place: Path) -> None:
    process = start(place, "dev")
    functions_url = wait_until_up(place, process)
    until_shown(place, r"rest +\| .*anon is refused")
    of_the_start = re.findall(r"^rest +\| (.*)$", out(place), re.MULTILINE)
    assert [bool(re.search(r"\(all is well: .+\)$", line)) for line in of_the_start] == [True] * 3, of_the_start
    key = re.search(r"Publishable key\s+│\s+(\S+)", out(place))
    assert key is not None
    answer = httpx.post(
        f"{functions_url}/v1/auth/signup",
        json={"email": "somebody@example.com", "password": "long-enough-password"},
        timeout=30,
        trust_env=False,
    )
    assert answer.status_code == 200
    until_shown(
        place,
        r"functions +\| \d\d:\d\d:\d\d\.\d+ provisioning\.finished ready in [\d.]+ ms \(claim [\d.]+, create_key",
    )
    assert "somebody@example.com" not in out(place)
    process.send_signal(signal.SIGINT)
    # Whoever is impatient must not leave half of it running.
    process.send_signal(signal.SIGINT)
    assert process.wait(GONE_SECONDS) == 0
    wait_until_nothing_is_left(place)


def test_of_lites_errors_only_those_of_its_start_are_explained_and_each_once() -> None:
    grant = 'GRANT USAGE ON SCHEMA "doorkey" TO anon, authenticated, service_role'
    refused = "permission denied for function get_doorkey_health"
    errors = [
        {"code": "42501", "message": "permission denied for schema doorkey", "query": grant},
        {"code": "42501", "message": "permission denied for schema doorkey", "query": grant},
        {"code": "42501", "message": "permission denied for schema doorkey", "query": "select 1"},
        {"code": "42P01", "message": refused, "query": grant},
        {"code": "42501", "message": refused},
        {"code": "42501", "message": refused},
        {"code": "42501", "message": "permission denied for table plans", "query": f"{grant}, somebody"},
        {"message": "Could not find the table 'public.no_such_table' in the schema cache"},
        {"message": "Could not find the table 'public.secret' in the schema cache"},
    ]
    script = f"for (const e of {json.dumps(errors)}) console.error(Object.assign(new Error(), e));"
    quiet = CHECKOUT / "infra" / "local" / "lite_quiet.cjs"
    run = subprocess.run(["node", "--require", quiet, "--eval", script], capture_output=True, text=True, check=True)
    lines = run.stderr.splitlines()
    assert [line for line in lines if line.partition(" (all is well: ")[1] == ""] == [
        *("Error 42501", "Error 42501", "Error 42P01", "Error 42501", "Error 42501", "Error"),
    ]
    assert [at for at, line in enumerate(lines) if "(all is well: " in line] == [0, 4, 7]


def test_faults_find_a_running_dev_by_any_of_its_addresses(place: Path) -> None:
    process = start(place, "dev")
    functions_url = wait_until_up(place, process)

    def faults(*words: str) -> str:
        outcome = subprocess.run(
            [sys.executable, "-m", "infra.cli.main", "faults", *words, "--url", functions_url],
            cwd=CHECKOUT,
            env={"PATH": os.environ["PATH"], "TMPDIR": str(place), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
            check=True,
        )
        return outcome.stdout

    assert "refuse_status" in faults("openrouter", "--refuse-status", "403")
    openrouter = re.search(r"OpenRouter\s+│\s+(http://\S+)", out(place))
    assert openrouter is not None
    assert httpx.get(f"{openrouter[1]}/models", trust_env=False).status_code == 403
    assert re.search(r"refuse_status\s+│\s+403\s+│\s+1\b", faults("show"))
    assert "No faults are on any more." in faults("clear")
    addresses = next(place.glob(f"{FOLDER_PREFIX}*/addresses.json")).read_text()
    assert re.search(r"Publishable key\s+│\s+(\S+)", out(place))[1] not in addresses  # type: ignore[index]
    # What is secret is beside it, for the same user's doctor and nobody else.
    environment = next(place.glob(f"{FOLDER_PREFIX}*/functions.env"))
    assert environment.stat().st_mode & 0o777 == 0o600
    healthy = subprocess.run(
        [sys.executable, "-m", "infra.cli.main", "doctor", "--env-file", str(environment)],
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        check=False,
    )
    assert (healthy.returncode, "All is well." in healthy.stdout) == (0, True), healthy.stdout
    process.send_signal(signal.SIGINT)
    assert process.wait(GONE_SECONDS) == 0
    wait_until_nothing_is_left(place)


def test_when_a_part_dies_the_others_stop_and_the_reason_is_printed(place: Path) -> None:
    process = start(place, "dev")
    wait_until_up(place, process)
    os.kill(pid_of_part(place, b"infra.local.openrouter"), signal.SIGKILL)
    assert process.wait(GONE_SECONDS) == 1
    assert "openrouter ended with SIGKILL." in out(place)
    wait_until_nothing_is_left(place)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children that their parent is gone")
def test_no_part_outlives_a_killed_supervisor_and_the_next_start_cleans_up(place: Path) -> None:
    process = start(place, "dev")
    wait_until_up(place, process)
    process.kill()
    process.wait(GONE_SECONDS)
    deadline = time.monotonic() + GONE_SECONDS
    while processes_of(place) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    assert processes_of(place) == []
    assert list(place.glob(f"{FOLDER_PREFIX}*")) != []
    second = start(place, "dev")
    wait_until_up(place, second)
    assert len(list(place.glob(f"{FOLDER_PREFIX}*"))) == 1
    second.send_signal(signal.SIGTERM)
    assert second.wait(GONE_SECONDS) == 0
    wait_until_nothing_is_left(place)


def test_a_part_that_cannot_start_is_named_with_its_reason(place: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(place),
        "DATABASE_URL": "postgresql://nobody:x@127.0.0.1:9/x",
    }
    outcome = subprocess.run(
        [sys.executable, "-m", "infra.cli.main", "dev"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        check=False,
    )
    assert outcome.returncode == 1
    assert "DATABASE_URL" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    wait_until_nothing_is_left(place)


def test_a_taken_port_is_named_and_nothing_is_started(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(place, "dev", "--functions-port", str(port))
        assert process.wait(UP_SECONDS) == 1
    assert f"functions can't have port {port}: another program listens there" in out(place)
    wait_until_nothing_is_left(place)
