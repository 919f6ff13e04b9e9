"""A Lambda sandbox on this machine: AWS's own runtime client, fed by a Runtime API server of ours over real HTTP.

The surprising thing: the process sees no package of the test environment, only the built tree and the runtime client,
as on Lambda. So what is missing in the tree is missing here too.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import awslambdaric

ANSWER_SECONDS = 60
POLL_SECONDS = 0.01
MAX_POLLS = 1_000
RUNTIME_PACKAGES = ("awslambdaric", "simplejson")
RUNTIME_MODULES = ("runtime_client*.so", "snapshot_restore_py.py")


class FunctionFailed(Exception):
    """The function raised, or its process ended. The message is what the runtime reported."""


class RuntimeApi(ThreadingHTTPServer):
    """The Runtime API: hands out one event at a time and takes the answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self.events: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self.answers: queue.Queue[tuple[str, str, bytes]] = queue.Queue()

    @property
    def address(self) -> str:
        """Host and port, as the runtime client wants them."""
        return f"127.0.0.1:{self.server_address[1]}"


class _Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RuntimeApi

    def do_GET(self) -> None:
        waiting = self.server.events.get()
        if waiting is None:
            self.close_connection = True
            return
        request_id, event = waiting
        self.send_response(200)
        self.send_header("Lambda-Runtime-Aws-Request-Id", request_id)
        self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + ANSWER_SECONDS) * 1000)))
        self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:tried")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(event)))
        self.end_headers()
        self.wfile.write(event)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        *_, request_id, kind = urlsplit(self.path).path.split("/")
        self.server.answers.put((request_id, kind, body))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Sandbox:
    """One process that serves events one after the other, as a warm sandbox does."""

    def __init__(self, api: RuntimeApi, process: subprocess.Popen[bytes], log: Path) -> None:
        self._api = api
        self._process = process
        self._log = log

    def invoke(self, event: Any) -> Any:
        """Hands over one event and returns the answer.

        Raises:
            FunctionFailed: it raised, or did not answer.
        """
        request_id = str(uuid.uuid4())
        self._api.events.put((request_id, json.dumps(event).encode()))
        try:
            answered, kind, body = self._api.answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise FunctionFailed(f"no answer; the log:\n{self.log()[-2000:]}") from None
        if kind != "response":
            raise FunctionFailed(body.decode())
        assert answered == request_id
        return json.loads(body)

    def freeze(self) -> None:
        """Stops the process between two calls, as Lambda does; returns when it stands still."""
        os.kill(self._process.pid, signal.SIGSTOP)
        for _ in range(MAX_POLLS):
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            if state == "T":
                return
            time.sleep(POLL_SECONDS)
        raise AssertionError("the process goes on")

    def thaw(self) -> None:
        """Lets it go on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def log(self) -> str:
        """What the function wrote."""
        return self._log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The structured lines of it."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]


def copy_runtime(folder: Path) -> Path:
    """Copies the runtime client out of the test environment, and nothing else."""
    site_packages = Path(awslambdaric.__file__).parents[1]
    for name in RUNTIME_PACKAGES:
        shutil.copytree(site_packages / name, folder / name)
    for pattern in RUNTIME_MODULES:
        for module in site_packages.glob(pattern):
            shutil.copy2(module, folder)
    return folder


@contextmanager
def sandbox(
    tree: Path, runtime: Path, handler: str, environment: Mapping[str, str], log_folder: Path
) -> Iterator[Sandbox]:
    """A sandbox of this function; ends its process at the end.

    Args:
        tree: what is in the zip, unpacked.
        runtime: from `copy_runtime`.
        handler: as in serverless.yml.
        environment: the function's own, and nothing of ours.
        log_folder: where its log goes.
    """
    api = RuntimeApi()
    threading.Thread(target=api.serve_forever, daemon=True).start()
    log = log_folder / f"{handler}-{uuid.uuid4().hex}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [bare_python(), "-S", "-m", "awslambdaric", handler],
            cwd=tree,
            env={
                **environment,
                "PYTHONPATH": f"{tree}{os.pathsep}{runtime}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "AWS_LAMBDA_RUNTIME_API": api.address,
                "AWS_LAMBDA_FUNCTION_NAME": handler,
            },
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Sandbox(api, process, log)
        finally:
            process.kill()
            process.wait()
            api.events.put(None)
            api.shutdown()
            api.server_close()


def bare_python() -> str:
    """The Python under the test environment: with ``-S`` it knows no packages at all."""
    return str(getattr(sys, "_base_executable", sys.executable))
