"""The Data API: roles, row level security, statuses and codes as PostgREST gives them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from httpx import AsyncClient
from postgrest.exceptions import APIError
from supabase.lib.client_options import AsyncClientOptions

from supabase import acreate_client
from tests.contract.edge.conftest import PASSWORD, Person
from tests.contract.edge.stack import Edge


def bearer(edge: Edge, person: Person) -> dict[str, str]:
    return {"apikey": edge.publishable, "Authorization": f"Bearer {person.access_token}"}


async def test_people_see_and_write_their_own_rows_only(
    edge: Edge, http: AsyncClient, sign_up: Callable[..., Awaitable[Person]]
) -> None:
    ada, bob = await sign_up(), await sign_up()
    for somebody in (ada, bob):
        made = await http.post(
            "/rest/v1/notes",
            headers=bearer(edge, somebody) | {"Prefer": "return=representation"},
            json={"body": f"of {somebody.id}"},
        )
        assert (made.status_code, made.json()[0]["owner"]) == (201, somebody.id)
    mine = await http.get("/rest/v1/notes?select=body", headers=bearer(edge, ada))
    assert mine.json() == [{"body": f"of {ada.id}"}]
    forged = await http.post("/rest/v1/notes", headers=bearer(edge, ada), json={"body": "x", "owner": bob.id})
    assert (forged.status_code, forged.json()["code"]) == (403, "42501")
    everything = await http.get(
        f"/rest/v1/notes?select=owner&owner=in.({ada.id},{bob.id})",
        headers={"apikey": edge.secret},
    )
    assert {row["owner"] for row in everything.json()} == {ada.id, bob.id}


async def test_a_missing_grant_is_401_for_anon_and_403_for_a_person(
    edge: Edge, http: AsyncClient, person: Person
) -> None:
    anon = {"apikey": edge.publishable}
    for headers, status in ((anon, 401), (bearer(edge, person), 403)):
        answer = await http.post("/rest/v1/rpc/for_service_only", headers=headers, json={})
        assert (answer.status_code, answer.json()["code"]) == (status, "42501")
        assert answer.headers["proxy-status"] == "PostgREST; error=42501"
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    answer = await http.get("/rest/v1/notes", headers=anon)
    assert (answer.status_code, answer.json()["code"]) == (401, "42501")
    served = await http.post("/rest/v1/rpc/for_service_only", headers={"apikey": edge.secret}, json={})
    assert served.json() == "served"


@pytest.mark.parametrize(
    ("function", "status", "code", "message"),
    [
        ("fail_plainly", 400, "P0001", "the impossible happened"),
        ("refuse_politely", 402, "PT402", "insufficient_credits"),
        ("divide_by_zero", 400, "22012", "division by zero"),
        ("no_such_function", 404, "PGRST202", None),
    ],
)
async def test_database_errors_have_postgrests_status_and_code(
    edge: Edge, http: AsyncClient, function: str, status: int, code: str, message: str | None
) -> None:
    headers = {"apikey": edge.publishable}
    answer = await http.post(f"/rest/v1/rpc/{function}", headers=headers, json={})
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert message is None or body["message"] == message
    if function == "refuse_politely":
        assert body["hint"] == "buy some"


async def test_a_violated_check_is_400_23514(edge: Edge, http: AsyncClient, person: Person) -> None:
    assert person.id
    answer = await http.post("/rest/v1/rpc/insert_long_note", headers={"apikey": edge.secret}, json={})
    assert (answer.status_code, answer.json()["code"]) == (400, "23514")
    assert '"short_body"' in answer.json()["message"]


async def test_an_unknown_role_claim_gets_nothing(edge: Edge, http: AsyncClient) -> None:
    for role in ("no_such_role", "postgres", "authenticator", "supabase_admin"):
        headers = {
            "apikey": edge.publishable,
            "Authorization": f"Bearer {edge.token(role=role)}",
        }
        answer = await http.get("/rest/v1/rpc/who_am_i", headers=headers)
        assert answer.status_code in (401, 403), (role, answer.text)


async def test_ranges_counts_and_preferences_pass_through(edge: Edge, http: AsyncClient, person: Person) -> None:
    rows = [{"body": str(number)} for number in range(5)]
    await http.post("/rest/v1/notes", headers=bearer(edge, person), json=rows)
    headers = bearer(edge, person) | {"Prefer": "count=exact", "Range": "1-2"}
    answer = await http.get("/rest/v1/notes?select=body&order=id", headers=headers)
    assert (answer.status_code, answer.headers["content-range"]) == (206, "1-2/5")
    assert answer.json() == [{"body": "1"}, {"body": "2"}]
    encoded = await http.get("/rest/v1/notes?select=body&body=in.(%223%22,4)&order=id.desc", headers=headers)
    assert (encoded.headers["content-range"], encoded.json()) == ("1-1/2", [{"body": "3"}])
    head = await http.head("/rest/v1/notes?select=body", headers=bearer(edge, person))
    assert (head.status_code, head.content) == (200, b"")
    profile = await http.get("/rest/v1/notes", headers=bearer(edge, person) | {"Accept-Profile": "auth"})
    assert (profile.status_code, profile.json()["code"]) == (406, "PGRST106")


async def test_browsers_may_ask_first(http: AsyncClient) -> None:
    preflight = await http.options(
        "/rest/v1/notes",
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "apikey,authorization",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    refused = await http.get("/rest/v1/notes", headers={"Origin": "https://app.example"})
    assert refused.headers["access-control-allow-origin"] == "*"


async def test_the_official_async_client_works_as_a_person(edge: Edge, person: Person) -> None:
    async with httpx.AsyncClient(trust_env=False) as session:
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=session)
        client = await acreate_client(edge.url, edge.publishable, options)
        await client.auth.sign_in_with_password({"email": person.email, "password": PASSWORD})
        await client.table("notes").insert({"body": "written by the client"}).execute()
        notes: Any = (await client.table("notes").select("*").execute()).data
        assert [note["owner"] for note in notes] == [person.id]
        with pytest.raises(APIError) as raised:
            await client.rpc("refuse_politely", {}).execute()
        assert (raised.value.code, raised.value.message) == ("PT402", "insufficient_credits")


async def test_a_key_rejected_by_the_gateway_has_no_code_in_the_official_client(
    edge: Edge,
) -> None:
    async with httpx.AsyncClient(trust_env=False) as session:
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=session)
        client = await acreate_client(edge.url, "sb_secret_deleted", options)
        with pytest.raises(APIError) as raised:
            await client.rpc("who_am_i", {}).execute()
    assert (raised.value.code, raised.value.message) == (None, "Unregistered API key")
