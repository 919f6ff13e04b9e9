"""The edge as a process: it starts, or says in one sentence why not; and it outlives others."""

from __future__ import annotations

import asyncio
import os
import sys

from httpx import AsyncClient

from infra.local.supervisor import free_port
from tests.contract.edge.stack import CHECKOUT, Edge

START_SECONDS = 20


async def start(environment: dict[str, str], port: int) -> tuple[int | None, str]:
    nowhere = f"http://127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "infra.local.edge", f"--port={port}"),
        *(f"--rest-url={nowhere}", f"--auth-url={nowhere}"),
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"]} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), START_SECONDS)
    return process.returncode, output.decode()


async def test_a_missing_secret_or_a_bad_key_ends_it_with_one_sentence(edge: Edge) -> None:
    environment = edge.environment()
    without = {name: value for name, value in environment.items() if name != "EDGE_SIGNING_KEY"}
    unfit = environment | {"EDGE_SIGNING_KEY": "-----BEGIN nothing-----"}
    taken = int(edge.url.rsplit(":", 1)[1])
    (code, said), (unfit_code, unfit_said), (taken_code, taken_said) = await asyncio.gather(
        start(without, 0), start(unfit, 0), start(environment, taken)
    )
    assert (code, unfit_code, taken_code) == (1, 1, 1)
    assert "The edge cannot start: EDGE_SIGNING_KEY is missing." in said
    assert "EDGE_SIGNING_KEY is no ES256 private key" in unfit_said
    assert f"The edge cannot start: 127.0.0.1:{taken} can't be had (address already in use)" in taken_said
    for output in (said, unfit_said, taken_said):
        assert len(output.splitlines()) == 1


async def test_health_needs_no_key_and_other_paths_are_invalid(http: AsyncClient) -> None:
    assert (await http.get("/edge/health")).json() == {"status": "ok"}
    answer = await http.get("/elsewhere")
    assert (answer.status_code, answer.json()) == (404, {"error": "requested path is invalid"})
