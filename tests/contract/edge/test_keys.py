"""API keys: hosted's words for each way to be refused, and who is let in as whom."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
from httpx import AsyncClient
from supabase.lib.client_options import SyncClientOptions

from supabase import create_client
from tests.contract.edge.conftest import Person
from tests.contract.edge.stack import Edge

WHO = "/rest/v1/rpc/who_am_i"
HINT = "Double check your API key."
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"


def sync_options() -> SyncClientOptions:
    return SyncClientOptions(auto_refresh_token=False, persist_session=False)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (
            {},
            {
                "message": "No API key found in request",
                "hint": "No `apikey` request header or url param was found.",
            },
        ),
        ({"apikey": "garbled"}, {"message": "Invalid API key", "hint": HINT}),
        ({"apikey": "a.b.c"}, {"message": "Invalid API key", "hint": HINT}),
        ({"apikey": "sb_secret_deleted"}, {"message": "Unregistered API key", "hint": HINT}),
        ({"apikey": "sb_publishable_other"}, {"message": "Unregistered API key", "hint": HINT}),
    ],
    ids=["absent", "garbled", "jwt-like", "foreign-secret", "foreign-publishable"],
)
@pytest.mark.parametrize("path", [WHO, "/auth/v1/settings", "/auth/v1/admin/users"])
async def test_a_bad_key_is_refused_in_the_gateways_words(
    http: AsyncClient, headers: dict[str, str], body: dict[str, str], path: str
) -> None:
    answer = await http.get(path, headers=headers)
    assert (answer.status_code, answer.json()) == (401, body)


async def test_a_legacy_key_of_another_project_is_invalid(http: AsyncClient) -> None:
    claims = {"iss": "supabase", "ref": "local", "role": "service_role", "exp": 4_000_000_000}
    foreign = jwt.encode(claims, "somebody-elses-" + "2" * 32, algorithm="HS256")
    answer = await http.get(WHO, headers={"apikey": foreign})
    assert (answer.status_code, answer.json()["message"]) == (401, "Invalid API key")


async def test_a_secret_key_is_refused_to_browsers_and_a_legacy_one_is_not(edge: Edge, http: AsyncClient) -> None:
    answer = await http.get(WHO, headers={"apikey": edge.secret, "User-Agent": BROWSER})
    assert answer.status_code == 401
    assert answer.json() == {"message": "Forbidden use of secret API key in browser"}
    for key, role in ((edge.publishable, "anon"), (edge.legacy_service_role, "service_role")):
        answer = await http.get(WHO, headers={"apikey": key, "User-Agent": BROWSER})
        assert answer.json().get("role") == role, answer.text


@pytest.mark.parametrize("path", ["/auth/v1/admin/users", "/auth/v1/admin/generate_link"])
async def test_a_publishable_key_opens_no_admin_door(edge: Edge, http: AsyncClient, path: str) -> None:
    answer = await http.post(path, headers={"apikey": edge.publishable}, json={})
    assert answer.status_code == 401
    assert answer.json()["message"] == "Secret API key required"
    assert "code" not in answer.json()


async def test_the_data_apis_root_is_for_secret_keys(edge: Edge, http: AsyncClient) -> None:
    refused = await http.get("/rest/v1/", headers={"apikey": edge.publishable})
    assert (refused.status_code, refused.json()["message"]) == (401, "Secret API key required")
    described = await http.get("/rest/v1/", headers={"apikey": edge.secret})
    assert (described.status_code, described.json()["swagger"]) == (200, "2.0")


async def test_each_key_runs_as_its_role(edge: Edge, http: AsyncClient) -> None:
    expected = {
        edge.publishable: "anon",
        edge.secret: "service_role",
        edge.other_secret: "service_role",
        edge.legacy_anon: "anon",
        edge.legacy_service_role: "service_role",
    }
    for key, role in expected.items():
        for headers in ({"apikey": key}, {"apikey": key, "Authorization": f"Bearer {key}"}):
            me = (await http.get(WHO, headers=headers)).json()
            assert (me["session"], me["role"], me["uid"]) == ("authenticator", role, None)
            assert me["claims"]["role"] == role


async def test_a_callers_address_is_taken_from_holders_of_a_secret_key_only(edge: Edge, http: AsyncClient) -> None:
    for key, expected in ((edge.publishable, None), (edge.secret, "203.0.113.7")):
        headers = {"apikey": key, "Sb-Forwarded-For": "203.0.113.7", "X-Forwarded-For": "203.0.113.7"}
        seen = (await http.get(WHO, headers=headers)).json()["headers"]
        assert seen.get("sb-forwarded-for") == expected
        assert seen["x-forwarded-for"] == "127.0.0.1"
        assert key not in str(seen)


async def test_a_key_in_the_query_opens_the_gate_and_filters_nothing(edge: Edge, http: AsyncClient) -> None:
    answer = await http.get(f"/rest/v1/notes?apikey={edge.secret}&select=id&limit=1")
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (
        200,
        "application/json",
    )


async def test_a_user_token_decides_the_role_even_beside_a_secret_key(
    edge: Edge, http: AsyncClient, person: Person
) -> None:
    for key in (edge.publishable, edge.secret, edge.legacy_anon):
        headers = {"apikey": key, "Authorization": f"Bearer {person.access_token}"}
        me = (await http.get(WHO, headers=headers)).json()
        assert (me["role"], me["uid"]) == ("authenticated", person.id)


async def test_another_key_as_bearer_is_no_token(edge: Edge, http: AsyncClient) -> None:
    headers = {"apikey": edge.publishable, "Authorization": f"Bearer {edge.secret}"}
    answer = await http.get(WHO, headers=headers)
    assert (answer.status_code, answer.json()["message"]) == (
        401,
        "Expected 3 parts in JWT; got 1",
    )


async def test_secret_keys_are_rotated_without_a_gap(edge: Edge, http: AsyncClient) -> None:
    new = {"key": "sb_secret_rotated_in"}
    headers = {"apikey": new["key"]}
    assert (await http.get(WHO, headers=headers)).json()["message"] == "Unregistered API key"
    await edge.control("POST", "/secret-keys", new)
    assert (await http.get(WHO, headers=headers)).json()["role"] == "service_role"
    assert (await http.get(WHO, headers={"apikey": edge.secret})).status_code == 200
    await edge.control("DELETE", "/secret-keys", new)
    refused = await http.get(WHO, headers=headers)
    assert (refused.status_code, refused.json()["message"]) == (401, "Unregistered API key")


async def test_legacy_keys_go_off_and_on_as_a_pair(edge: Edge, http: AsyncClient) -> None:
    await edge.control("PUT", "/legacy-keys", {"enabled": False})
    try:
        for key in (edge.legacy_anon, edge.legacy_service_role):
            answer = await http.get(WHO, headers={"apikey": key})
            assert answer.status_code == 401
            assert answer.json()["message"] == "Legacy API keys are disabled"
            assert answer.json()["hint"].startswith("Your legacy API keys (anon, service_role) were disabled on 20")
        # Disabled as a key, the JWT is still one of the project's tokens.
        headers = {
            "apikey": edge.publishable,
            "Authorization": f"Bearer {edge.legacy_service_role}",
        }
        assert (await http.get(WHO, headers=headers)).json()["role"] == "service_role"
    finally:
        await edge.control("PUT", "/legacy-keys", {"enabled": True})
    for key in (edge.legacy_anon, edge.legacy_service_role):
        assert (await http.get(WHO, headers={"apikey": key})).status_code == 200


async def test_a_service_role_jwt_that_a_client_sends_works_as_on_hosted(edge: Edge, http: AsyncClient) -> None:
    headers = {"apikey": edge.publishable, "Authorization": f"Bearer {edge.legacy_service_role}"}
    answer = await http.post("/rest/v1/rpc/for_service_only", headers=headers, json={})
    assert (answer.status_code, answer.json()) == (200, "served")


@pytest.mark.parametrize("path", ["/auth/v1/%2e%2e/%2e%2e/rest/v1/seen", "/rest/v1/.%2e/.%2e/auth/v1/settings"])
async def test_no_path_leads_from_one_service_into_the_other(edge: Edge, http: AsyncClient, path: str) -> None:
    answer = await http.get(path, headers={"apikey": edge.secret})
    assert (answer.status_code, answer.json()) == (404, {"error": "requested path is invalid"})


async def test_the_switches_are_shut_to_browser_pages(http: AsyncClient) -> None:
    simple = await http.post(
        "/edge/secret-keys",
        content='{"key": "sb_secret_smuggled"}',
        headers={"Content-Type": "text/plain", "Origin": "https://evil.example"},
    )
    assert simple.status_code == 403
    preflight = await http.options(
        "/edge/secret-keys",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in preflight.headers
    rebound = await http.post(
        "/edge/secret-keys",
        json={"key": "sb_secret_smuggled"},
        headers={"X-Edge-Control": "1", "Host": "evil.example"},
    )
    assert rebound.status_code == 403


def test_the_official_client_speaks_as_each_key(edge: Edge) -> None:
    for key, role in ((edge.publishable, "anon"), (edge.secret, "service_role")):
        client = create_client(edge.url, key, sync_options())
        answer: Any = client.rpc("who_am_i", {}).execute().data
        assert answer["role"] == role
