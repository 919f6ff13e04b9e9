"""The simulator as a process: what survives a SIGKILL, how it starts, how it's made slow."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.faults import OPENROUTER
from infra.local.serving import listen

Launch = Callable[..., tuple["subprocess.Popen[bytes]", str]]

ROOT = Path(__file__).parents[3]
MANAGEMENT_KEY = "sk-or-mgmt-process"
LATENCY_MS = 150
CHAT = {"model": "simulator/one-cent", "messages": [{"role": "user", "content": "Hello"}]}

pytestmark = pytest.mark.simulator_only(reason="about the simulator's own process")


def client(base_url: str, secret: str = MANAGEMENT_KEY) -> httpx.Client:
    return httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {secret}"})


def run_to_the_end(*arguments: str, key: str | None = MANAGEMENT_KEY) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "SIMULATOR_MANAGEMENT_KEY"}
    return subprocess.run(
        [sys.executable, "-m", "infra.local.openrouter", *arguments],
        cwd=ROOT,
        env=environment if key is None else {**environment, "SIMULATOR_MANAGEMENT_KEY": key},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_answered_keys_and_usage_survive_a_kill_and_secrets_are_not_on_disk(
    launch_simulator: Launch, tmp_path: Path
) -> None:
    state_file = tmp_path / "state.sqlite"
    process, base_url = launch_simulator(MANAGEMENT_KEY, f"--state-file={state_file}")
    bodies: list[dict[str, Any]] = []
    with client(base_url) as management:
        for number in range(3):
            response = management.post("/keys", json={"name": f"kept-{number}", "limit": 0.02})
            bodies.append(response.raise_for_status().json())
        management.delete(f"/keys/{bodies[0]['data']['hash']}")
        management.patch(f"/keys/{bodies[1]['data']['hash']}", json={"limit": 7})
    with client(base_url, bodies[2]["key"]) as person:
        generation_id = person.post("/chat/completions", json=CHAT).raise_for_status().json()["id"]
    process.send_signal(signal.SIGKILL)
    process.wait()

    process, base_url = launch_simulator(MANAGEMENT_KEY, f"--state-file={state_file}")
    with client(base_url) as management:
        listed = management.get("/keys").json()["data"]
        assert [key["hash"] for key in listed] == [bodies[2]["data"]["hash"], bodies[1]["data"]["hash"]]
        assert [key["usage"] for key in listed] == [0.01, 0]
        assert [key["limit"] for key in listed] == [0.02, 7]
        assert management.get("/credits").json()["data"]["total_usage"] == 0.01
        newest = management.post("/keys", json={"name": "after"}).json()["data"]["hash"]
        assert management.get("/keys").json()["data"][0]["hash"] == newest
    with client(base_url, bodies[2]["key"]) as person:
        assert person.get("/generation", params={"id": generation_id}).json()["data"]["usage"] == 0.01
        assert person.post("/chat/completions", json=CHAT).status_code == httpx.codes.OK
        assert person.post("/chat/completions", json=CHAT).status_code == httpx.codes.FORBIDDEN
    process.terminate()
    process.wait()
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert bodies[1]["data"]["hash"].encode() in on_disk
    assert not [body for body in bodies if body["key"].encode() in on_disk]


def test_every_key_answered_before_a_kill_is_known_after_it(launch_simulator: Launch, tmp_path: Path) -> None:
    state_file = tmp_path / "state.sqlite"
    process, base_url = launch_simulator(MANAGEMENT_KEY, f"--state-file={state_file}")
    with client(base_url) as management:
        last = management.post("/keys", json={"name": "last"}).json()["data"]
        process.kill()  # with nothing in between
        process.wait()
    _, base_url = launch_simulator(MANAGEMENT_KEY, f"--state-file={state_file}")
    with client(base_url) as management:
        assert management.get(f"/keys/{last['hash']}").json()["data"] == last


def test_start_without_management_key_is_refused_in_one_sentence() -> None:
    ended = run_to_the_end("--port=0", key=None)
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert ended.stderr == "The OpenRouter simulator needs SIMULATOR_MANAGEMENT_KEY in its environment.\n"


def test_port_in_use_is_refused_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run_to_the_end(f"--port={taken.getsockname()[1]}")
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr
    assert ended.stderr.startswith("The simulator cannot start: 127.0.0.1:")
    assert ended.stderr.count("\n") == 1


def test_accepted_connections_will_not_wait_to_fill_a_packet() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY on nothing else"


def test_second_process_cannot_write_to_the_same_state(launch_simulator: Launch, tmp_path: Path) -> None:
    state_file = tmp_path / "state.sqlite"
    launch_simulator(MANAGEMENT_KEY, f"--state-file={state_file}")
    ended = run_to_the_end("--port=0", f"--state-file={state_file}")
    assert ended.returncode != 0
    assert "cannot be opened" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_file_of_another_kind_or_version_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("These are notes, and no database at all. " * 50)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    for path, sentence in ((foreign, "is not a state file"), (newer, "was written by another version")):
        before = path.read_bytes()
        ended = run_to_the_end("--port=0", f"--state-file={path}")
        assert ended.returncode != 0
        assert sentence in ended.stderr
        assert path.read_bytes() == before


def test_account_without_credits_answers_402_even_for_free_models(launch_simulator: Launch) -> None:
    _, base_url = launch_simulator(MANAGEMENT_KEY, "--credits-usd=0.01")
    free = CHAT | {"model": "meta-llama/llama-3.3-70b-instruct:free"}
    with client(base_url) as management:
        secret = management.post("/keys", json={"name": "poor"}).json()["key"]
    with client(base_url, secret) as person:
        assert person.post("/chat/completions", json=CHAT).status_code == httpx.codes.OK
        refused = person.post("/chat/completions", json=free)
    assert refused.status_code == httpx.codes.PAYMENT_REQUIRED
    assert refused.json()["error"]["metadata"]["limit_source"] == "openrouter_credits"


def test_latency_slows_the_api_but_not_the_control_paths(launch_simulator: Launch) -> None:
    _, base_url = launch_simulator(MANAGEMENT_KEY, f"--latency-ms={LATENCY_MS}")
    control = httpx.Client(base_url=base_url.removesuffix("/api/v1"), headers={OPENROUTER.header: "1"})

    def measure(path: str) -> float:
        started = time.monotonic()
        control.get(path).raise_for_status()
        return (time.monotonic() - started) * 1_000

    assert control.get("/simulator/latency").json() == {"milliseconds": LATENCY_MS}
    assert measure("/api/v1/models") >= LATENCY_MS
    control.put("/simulator/latency", json={"milliseconds": 60_000}).raise_for_status()
    assert measure("/simulator/health") < 60_000
    assert control.put("/simulator/latency", json={"milliseconds": 0}).json() == {"milliseconds": 0}
    assert min(measure("/api/v1/models") for _ in range(5)) < LATENCY_MS
    for wrong in ({"milliseconds": -1}, {"milliseconds": "1"}, {"milliseconds": True}, {}):
        assert control.put("/simulator/latency", json=wrong).status_code == httpx.codes.BAD_REQUEST
    assert control.put("/api/v1/simulator/latency", json={}).status_code == httpx.codes.NOT_FOUND
    control.close()
