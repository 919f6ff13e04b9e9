"""One suite, two targets: the simulator as a real process, or OpenRouter itself.

Set OPENROUTER_CONTRACT_BASE_URL (with /api/v1) and OPENROUTER_CONTRACT_MANAGEMENT_KEY and the same
tests run there, spend a few cents at most and delete what they made. Every client that a fixture
gives out holds every JSON answer against its schema, so that no test has to remember to.
"""

import asyncio
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator
from openrouter import OpenRouter
from openrouter.utils import BackoffStrategy, RetryConfig
from referencing import Registry
from referencing.jsonschema import DRAFT202012

SCHEMAS = Path(__file__).parent / "schemas"
ROOT = Path(__file__).parents[3]
START_SECONDS = 15
PAGE_SIZE = 100
MAX_PAGES = 200
PARALLEL_REQUESTS = 8
PREFERRED_MODEL = "openai/gpt-4o-mini"
# The SDK repeats a POST on every 5xx for up to an hour unless it is told not to (facts.md 3).
NO_RETRIES = RetryConfig("none", BackoffStrategy(0, 0, 1, 0), False)

TLS = ssl.create_default_context()  # one for all clients: each reading of the certificates takes 40 ms
REAL_BASE_URL = os.environ.get("OPENROUTER_CONTRACT_BASE_URL", "").rstrip("/")

KEYS_SCHEMAS = {
    ("POST", "/keys", 201): "CreateKeysResponse",
    ("GET", "/keys", 200): "ListResponse",
    ("GET", "/keys/{hash}", 200): "GetKeyResponse",
    ("PATCH", "/keys/{hash}", 200): "UpdateKeysResponse",
    ("DELETE", "/keys/{hash}", 200): "DeleteKeysResponse",
    ("GET", "/key", 200): "GetCurrentKeyResponse",
    ("GET", "/auth/key", 200): "GetCurrentKeyResponse",
}
COMPONENTS = {
    ("POST", "/chat/completions", 200): "ChatResult",
    ("GET", "/models", 200): "ModelsListResponse",
    ("GET", "/generation", 200): "GenerationResponse",
    ("GET", "/activity", 200): "ActivityResponse",
}
ERROR_COMPONENTS = {
    400: "BadRequestResponse",
    401: "UnauthorizedResponse",
    402: "PaymentRequiredResponse",
    403: "ForbiddenResponse",
    404: "NotFoundResponse",
    429: "TooManyRequestsResponse",
    500: "InternalServerResponse",
}
CREDITS_POINTER = "/paths/~1credits/get/responses/200/content/application~1json/schema"


def pytest_configure(config: pytest.Config) -> None:
    """Declares the suite's one marker."""
    config.addinivalue_line("markers", "simulator_only(reason): cannot hold for the real OpenRouter, and why")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips, with its reason, what cannot hold for the real OpenRouter."""
    marker = item.get_closest_marker("simulator_only")
    if marker is not None and REAL_BASE_URL:
        pytest.skip(marker.kwargs["reason"])


class Schemas:
    """The published schemas, by what an answer is an answer to."""

    def __init__(self) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C where it is built
        document = yaml.load((SCHEMAS / "openapi.yaml").read_text(), Loader=loader)  # noqa: S506
        published = json.loads((SCHEMAS / "keys.schema.json").read_text())["schemas"]
        self._keys = {name: Draft202012Validator(schema) for name, schema in published.items()}
        self._validators: dict[str, Draft202012Validator] = {}
        resource = DRAFT202012.create_resource(document)
        self._registry: Registry[Any] = Registry().with_resource("urn:openapi", resource)
        self.checked = 0

    def check_component(self, name: str, instance: object) -> None:
        """Holds a value against a component of the OpenAPI document."""
        self._check_reference(f"/components/schemas/{name}", instance)

    def check_response(self, response: httpx.Response) -> None:
        """Holds a JSON answer against the schema of its operation and status."""
        if response.headers.get("content-type", "").split(";")[0] != "application/json":
            return
        body = response.json()
        path = "/" + response.request.url.path.split("/api/v1/", 1)[-1].rstrip("/")
        if path.startswith("/keys/"):
            path = "/keys/{hash}"
        operation = (response.request.method, path, response.status_code)
        if response.is_error:
            assert body["error"]["code"] == response.status_code
            self.check_component(ERROR_COMPONENTS.get(response.status_code, ERROR_COMPONENTS[500]), body)
        elif operation in KEYS_SCHEMAS:
            self._keys[KEYS_SCHEMAS[operation]].validate(body)
        elif operation == ("GET", "/credits", 200):
            self._check_reference(CREDITS_POINTER, body)
        else:
            assert operation in COMPONENTS, f"no schema is declared for {operation}"
            self.check_component(COMPONENTS[operation], body)
        self.checked += 1

    def _check_reference(self, pointer: str, instance: object) -> None:
        if pointer not in self._validators:
            schema = {"$ref": f"urn:openapi#{pointer}"}
            self._validators[pointer] = Draft202012Validator(schema, registry=self._registry)
        self._validators[pointer].validate(instance)


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    """The published schemas, read once."""
    return Schemas()


@pytest.fixture(scope="session")
def check_component(schemas: Schemas) -> Callable[[str, object], None]:
    """Holds a value against a named component of the OpenAPI document."""
    return schemas.check_component


@pytest.fixture(scope="session")
def launch_simulator() -> Iterator[Callable[..., tuple["subprocess.Popen[bytes]", str]]]:
    """Starts simulators: `(process, base URL) = launch(management_key, *arguments)`."""
    processes: list[subprocess.Popen[bytes]] = []

    def launch(management_key: str, *arguments: str) -> tuple["subprocess.Popen[bytes]", str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.local.openrouter", f"--port={port}", *arguments],
            cwd=ROOT,
            env={**os.environ, "SIMULATOR_MANAGEMENT_KEY": management_key},
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        _wait_until_healthy(process, f"http://127.0.0.1:{port}")
        return process, f"http://127.0.0.1:{port}/api/v1"

    yield launch
    for process in processes:
        process.kill()
        process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", origin: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the simulator exited at its start"
        try:
            if httpx.get(f"{origin}/simulator/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail("the simulator did not start in time")


@pytest.fixture(scope="session")
def management_key() -> str:
    """The key that manages keys at the target."""
    if REAL_BASE_URL:
        return os.environ["OPENROUTER_CONTRACT_MANAGEMENT_KEY"]
    return f"sk-or-mgmt-{secrets.token_hex(16)}"


@pytest.fixture(scope="session")
def base_url(
    management_key: str,
    launch_simulator: Callable[..., tuple["subprocess.Popen[bytes]", str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Where the target answers, with /api/v1."""
    if REAL_BASE_URL:
        return REAL_BASE_URL
    state_file = tmp_path_factory.mktemp("openrouter") / "state.sqlite"
    return launch_simulator(management_key, f"--state-file={state_file}")[1]


@pytest.fixture(scope="session")
def patience_seconds() -> float:
    """How long an effect may take to show. The simulator has none: what it answered is so."""
    return 60.0 if REAL_BASE_URL else 0.0


@pytest.fixture(scope="session")
def run_name() -> str:
    """The head of the name of everything this run creates."""
    return f"doorkey-contract-{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def made_hashes() -> set[str]:
    """The keys this run has made, noted as their answers pass by."""
    return set()


@pytest.fixture(scope="session")
async def client_for(
    base_url: str, schemas: Schemas, made_hashes: set[str]
) -> AsyncIterator[Callable[[str], httpx.AsyncClient]]:
    """HTTP clients that speak with a given key and check every answer."""
    clients: list[httpx.AsyncClient] = []

    async def check(response: httpx.Response) -> None:
        if response.headers.get("content-type", "").startswith("application/json"):
            await response.aread()
            schemas.check_response(response)
            _note_made_key(response, made_hashes)

    def client_for(secret: str) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            event_hooks={"response": [check]},
            timeout=30,
            verify=TLS,
        )
        clients.append(client)
        return client

    yield client_for
    for client in clients:
        await client.aclose()


@pytest.fixture(scope="session")
def sdk_for(base_url: str, schemas: Schemas, made_hashes: set[str]) -> Callable[[str], OpenRouter]:
    """The official SDK with a given key, without its retries, its answers checked too."""

    def check(response: httpx.Response) -> None:
        if response.headers.get("content-type", "").startswith("application/json"):
            response.read()
            schemas.check_response(response)
            _note_made_key(response, made_hashes)

    async def check_async(response: httpx.Response) -> None:
        if response.headers.get("content-type", "").startswith("application/json"):
            await response.aread()
            check(response)

    def sdk_for(secret: str) -> OpenRouter:
        return OpenRouter(
            api_key=secret,
            server_url=base_url,
            retry_config=NO_RETRIES,
            timeout_ms=30_000,
            client=httpx.Client(event_hooks={"response": [check]}, verify=TLS),
            async_client=httpx.AsyncClient(event_hooks={"response": [check_async]}, verify=TLS),
        )

    return sdk_for


def _note_made_key(response: httpx.Response, made_hashes: set[str]) -> None:
    if response.request.method == "POST" and response.status_code == httpx.codes.CREATED:
        made_hashes.add(response.json()["data"]["hash"])


@pytest.fixture(scope="session")
async def management(
    client_for: Callable[[str], httpx.AsyncClient],
    management_key: str,
    run_name: str,
    made_hashes: set[str],
) -> AsyncIterator[httpx.AsyncClient]:
    """The client with the management key; at the end it deletes everything this run created."""
    client = client_for(management_key)
    yield client
    listed = await _list_all(client)
    made_hashes |= {key["hash"] for key in listed if key["name"].startswith(run_name)}
    await _delete_all(client, made_hashes)
    left = [key for key in await _list_all(client) if key["name"].startswith(run_name)]
    assert not left, f"{len(left)} keys of this run could not be deleted"


async def _list_all(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for page_number in range(MAX_PAGES):
        query: dict[str, str | int] = {
            "offset": PAGE_SIZE * page_number,
            "include_disabled": "true",
            "include_expired": "true",
        }
        response = await client.get("/keys", params=query)
        page = response.raise_for_status().json()["data"]
        found |= {key["hash"]: key for key in page}
        if len(page) < PAGE_SIZE:
            break
    return list(found.values())


async def _delete_all(client: httpx.AsyncClient, hashes: set[str]) -> None:
    turns = asyncio.Semaphore(PARALLEL_REQUESTS)

    async def delete(key_hash: str) -> None:
        async with turns:
            await client.delete(f"/keys/{key_hash}")

    await asyncio.gather(*(delete(key_hash) for key_hash in hashes))


@pytest.fixture(scope="session")
def list_all(management: httpx.AsyncClient) -> Callable[[], Awaitable[list[dict[str, Any]]]]:
    """Reads every page of the default workspace, without duplicates."""
    return lambda: _list_all(management)


@pytest.fixture(scope="session")
def make_key(management: httpx.AsyncClient, run_name: str) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Creates a key: `await make_key("suffix", limit=1)` returns the 201 answer's body."""

    async def make_key(suffix: str, /, **fields: object) -> dict[str, Any]:
        response = await management.post("/keys", json={"name": f"{run_name}-{suffix}", **fields})
        assert response.status_code == httpx.codes.CREATED, response.text
        body: dict[str, Any] = response.json()
        return body

    return make_key


@pytest.fixture(scope="session")
async def model(client_for: Callable[[str], httpx.AsyncClient]) -> str:
    """A model that costs something, but little."""
    models = (await client_for("").get("/models")).raise_for_status().json()["data"]
    prices: dict[str, float] = {
        model["id"]: float(model["pricing"]["prompt"]) + float(model["pricing"]["completion"])
        for model in models
        if not model["id"].startswith("simulator/")
    }
    if PREFERRED_MODEL in prices:
        return PREFERRED_MODEL
    return min((name for name, price in prices.items() if price > 0), key=prices.__getitem__)


@pytest.fixture(scope="session")
def chat(client_for: Callable[[str], httpx.AsyncClient], model: str) -> Callable[..., Awaitable[httpx.Response]]:
    """Asks a model: `await chat(secret, text, max_tokens=16)`; every further field is sent too."""
    clients: dict[str, httpx.AsyncClient] = {}

    async def chat(secret: str, text: str = "Say hello.", **fields: object) -> httpx.Response:
        client = clients.setdefault(secret, client_for(secret))
        messages = [{"role": "user", "content": text}]
        body = {"model": model, "max_tokens": 16, "messages": messages, **fields}
        return await client.post("/chat/completions", json=body)

    return chat
