"""What holds for every route: unknown addresses, request ids, CORS, and a description that is true."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from infra.local.stack import Stack
from tests.support.apps import api_with
from tests.support.people import insert_person, until_state

ALLOWED = "http://localhost:3000"
FOREIGN = "https://elsewhere.example"
HEX_ID = re.compile(r"[0-9a-f]{32}")
# What OpenAPI 3.1 asks of a document, as far as ours goes.
OPENAPI = {
    "type": "object",
    "required": ["openapi", "info", "paths"],
    "properties": {
        "openapi": {"type": "string", "pattern": r"^3\.1\.\d+$"},
        "info": {
            "type": "object",
            "required": ["title", "version"],
            "properties": {"title": {"type": "string", "minLength": 1}, "version": {"type": "string", "minLength": 1}},
        },
        "paths": {
            "type": "object",
            "propertyNames": {"pattern": "^/"},
            "additionalProperties": {
                "type": "object",
                "propertyNames": {"enum": ["get", "put", "post", "delete", "options", "head", "patch", "parameters"]},
                "additionalProperties": {
                    "type": "object",
                    "required": ["responses", "operationId", "summary"],
                    "properties": {
                        "responses": {
                            "type": "object",
                            "minProperties": 1,
                            "propertyNames": {"pattern": "^([1-5][0-9X]{2}|default)$"},
                            "additionalProperties": {"type": "object", "required": ["description"]},
                        }
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/v1"), ("GET", "/v1/me/"), ("GET", "/v2/me"), ("POST", "/v1/auth/signin"),
        ("GET", "/docs"), ("GET", "/redoc"), ("GET", "/.env"), ("GET", "/v1/../.env"), ("GET", "/v1/me%00"),
        ("GET", "/%F0%9F%94%91"), ("GET", "//v1/me"), ("DELETE", "/v1/users"), ("GET", "/webhooks/supabase/more"),
    ],
)  # fmt: skip
async def test_an_address_with_nothing_at_it_says_so(
    stack: Stack, http: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await http.request(method, stack.functions_url + path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "route_not_found"
    assert set(answer.json()) == {"type", "title", "status", "code", "request_id"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/v1/me", "GET"), ("GET", "/v1/auth/signup", "POST"), ("DELETE", "/health", "GET"),
     ("GET", "/core/v1/auth/signup", "POST"), ("PUT", "/webhooks/supabase", "POST")],
)  # fmt: skip
async def test_a_method_that_an_address_does_not_take_is_named(
    stack: Stack, http: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await http.request(method, stack.functions_url + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/health", "/v1/me", "/nowhere", "/webhooks/supabase", "/api/health"])
async def test_the_callers_request_id_comes_back(stack: Stack, http: httpx.AsyncClient, path: str) -> None:
    mine = f"caller.{uuid.uuid4()}"
    answer = await http.get(stack.functions_url + path, headers={"X-Request-Id": mine})
    assert answer.headers.get_list("x-request-id") == [mine]
    if answer.status_code >= 400:
        assert answer.json()["request_id"] == mine
    await until_logged(stack, f'"request_id": "{mine}"')


@pytest.mark.parametrize("path", ["/health", "/v1/me", "/webhooks/supabase"])
@pytest.mark.parametrize(
    "hostile", [None, "", "a b", "x" * 65, 'a"b', "<script>", "a\tb", "../../etc", b"\xff\xfe", b"\xc3\xbc", "{{7*7}}"]
)
async def test_a_hostile_request_id_is_replaced(
    stack: Stack, http: httpx.AsyncClient, path: str, hostile: str | bytes | None
) -> None:
    headers: list[tuple[str, Any]] = [] if hostile is None else [("X-Request-Id", hostile)]
    answer = await http.get(stack.functions_url + path, headers=headers)
    chosen = answer.headers["x-request-id"]
    assert HEX_ID.fullmatch(chosen)
    if answer.status_code >= 400:
        assert answer.json()["request_id"] == chosen


async def test_two_requests_have_two_ids(stack: Stack, http: httpx.AsyncClient) -> None:
    ids = {(await http.get(f"{stack.functions_url}/health")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


async def until_logged(stack: Stack, text: str) -> None:
    """The line is written once the answer has left."""
    for _ in range(100):
        if text in (stack.log_folder / "functions.log").read_text():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not in the log: {text}")


def preflight(origin: str, method: str = "GET", headers: str = "authorization,x-request-id") -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}


@pytest.mark.parametrize("path", ["/v1/me", "/v1/auth/signup", "/core/v1/auth/signup", "/api/v1/credits/balance"])
async def test_a_page_of_an_allowed_origin_may_call(stack: Stack, http: httpx.AsyncClient, path: str) -> None:
    asked = preflight(ALLOWED, "POST" if "signup" in path else "GET", "authorization,content-type,x-client-info,apikey")
    answer = await http.options(stack.functions_url + path, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ALLOWED
    assert "access-control-allow-credentials" not in answer.headers
    granted = answer.headers["access-control-allow-headers"].lower()
    assert all(name in granted for name in ("authorization", "content-type", "x-client-info", "apikey"))
    # Also what goes wrong must be readable for the page.
    refused = await http.get(f"{stack.functions_url}/v1/me", headers={"Origin": ALLOWED})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ALLOWED
    assert "x-request-id" in refused.headers["access-control-expose-headers"].lower()
    assert "origin" in refused.headers["vary"].lower()


@pytest.mark.parametrize("origin", [FOREIGN, "null", f"{ALLOWED}.elsewhere.example", "https://localhost:3000", "*"])
async def test_a_page_of_a_foreign_origin_may_not(stack: Stack, http: httpx.AsyncClient, origin: str) -> None:
    answer = await http.options(f"{stack.functions_url}/v1/me", headers=preflight(origin))
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    plain = await http.get(f"{stack.functions_url}/health", headers={"Origin": origin})
    assert plain.status_code == 200
    assert "access-control-allow-origin" not in plain.headers


async def test_without_allowed_origins_no_page_may_call(stack: Stack) -> None:
    async with api_with(stack, {"DOORKEY_ALLOWED_ORIGINS": ""}) as client:
        for origin in (ALLOWED, FOREIGN):
            answer = await client.options("/v1/me", headers=preflight(origin))
            assert "access-control-allow-origin" not in answer.headers


async def test_what_nobody_caught_is_a_problem_without_a_message(
    stack: Stack, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The database answers something that no version of ours ever did."""
    person = await insert_person(stack)

    class Strange(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("jwks.json"):
                return await http.send(http.build_request("GET", request.url))
            return httpx.Response(200, json={"key": {"status": "tell-nobody"}, "provisioning": "tell-nobody"})

    async with api_with(stack, listening=Strange()) as client:
        answer = await client.get("/v1/me", headers=person.headers)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert "tell-nobody" not in answer.text
    assert "request.failed" in caplog.text


@pytest.fixture(scope="module")
async def description(stack: Stack, http: httpx.AsyncClient) -> dict[str, Any]:
    """The OpenAPI document that is served."""
    found: dict[str, Any] = (await http.get(f"{stack.functions_url}/openapi.json")).json()
    return found


async def test_the_description_is_openapi(description: dict[str, Any]) -> None:
    Draft202012Validator(OPENAPI).validate(description)
    for schema in description["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(description))
    assert references
    for reference in references:
        place: Any = description
        for step in reference.split("/"):
            place = place[step]
    operations = [op["operationId"] for methods in description["paths"].values() for op in methods.values()]
    assert len(operations) == len(set(operations))


async def test_the_description_lists_the_routes_that_there_are(description: dict[str, Any]) -> None:
    assert {(path, method) for path, methods in description["paths"].items() for method in methods} == {
        ("/v1/me", "get"), ("/v1/me/key", "get"), ("/v1/credits/balance", "get"), ("/api/v1/credits/balance", "get"),
        ("/v1/credits/transactions", "get"), ("/v1/usage", "get"),
        ("/v1/me/key/rotate", "post"), ("/v1/auth/signup", "post"), ("/health", "get"), ("/health/ready", "get"),
    }  # fmt: skip


async def test_every_answer_is_as_described(stack: Stack, http: httpx.AsyncClient, description: dict[str, Any]) -> None:
    person = await insert_person(stack)
    waiting = await insert_person(stack, confirmed=False)
    await until_state(stack, person.user_id)
    registry: Registry[Any] = Registry().with_resource("urn:api", DRAFT202012.create_resource(description))
    operator = {"Authorization": f"Bearer {stack.secrets.operator_token}"}
    checked = set()
    for path, headers in (
        *((path, person.headers) for path in description["paths"] if path.startswith(("/v1/", "/api/"))),
        ("/v1/me", waiting.headers), ("/v1/me/key", waiting.headers), ("/health", {}), ("/health/ready", operator),
    ):  # fmt: skip
        if "get" not in description["paths"][path]:
            continue
        answer = await http.get(stack.functions_url + path, headers=headers)
        described = description["paths"][path]["get"]["responses"][str(answer.status_code)]
        schema = {"$ref": "urn:api" + described["content"]["application/json"]["schema"]["$ref"]}
        validator = Draft202012Validator(schema, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER)
        validator.validate(answer.json())
        checked.add((path, answer.status_code))
    assert ("/v1/me/key", 202) in checked
    assert len(checked) == 9
