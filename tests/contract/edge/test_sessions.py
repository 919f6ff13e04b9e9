"""Signing up, in, and out, as the official clients and the project's triggers see it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from httpx import AsyncClient
from supabase.lib.client_options import SyncClientOptions
from supabase_auth import AsyncGoTrueClient
from supabase_auth.errors import AuthApiError

from supabase import create_client
from tests.contract.edge.conftest import PASSWORD, Person
from tests.contract.edge.stack import Edge


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def bearer(edge: Edge, token: str) -> dict[str, str]:
    return {"apikey": edge.publishable, "Authorization": f"Bearer {token}"}


@pytest.fixture
async def auth(edge: Edge) -> AsyncIterator[AsyncGoTrueClient]:
    client = AsyncGoTrueClient(
        url=f"{edge.url}/auth/v1",
        headers={"apikey": edge.publishable, "Authorization": f"Bearer {edge.publishable}"},
        auto_refresh_token=False,
        persist_session=False,
    )
    async with client:
        yield client


def test_the_official_sync_client_signs_up_in_and_out(edge: Edge) -> None:
    options = SyncClientOptions(auto_refresh_token=False, persist_session=False)
    client = create_client(edge.url, edge.publishable, options)
    email = f"{uuid.uuid4().hex}@example.com"
    made = client.auth.sign_up({"email": email, "password": PASSWORD})
    assert made.user is not None
    assert made.session is not None
    age = datetime.now(UTC) - made.user.created_at
    assert abs(age.total_seconds()) < 60
    signed_in = client.auth.sign_in_with_password({"email": email, "password": PASSWORD})
    assert signed_in.user is not None
    assert signed_in.user.last_sign_in_at is not None
    assert signed_in.user.identities is not None
    assert signed_in.user.identities[0].created_at.tzinfo is not None
    answer: Any = client.rpc("who_am_i", {}).execute().data
    assert answer["uid"] == made.user.id
    client.auth.sign_out()


async def test_the_official_async_client_refreshes_and_reads_its_user(
    edge: Edge, auth: AsyncGoTrueClient, person: Person
) -> None:
    first = await auth.sign_in_with_password({"email": person.email, "password": PASSWORD})
    assert first.session is not None
    second = await auth.refresh_session(first.session.refresh_token)
    assert second.session is not None
    before, after = claims_of(first.session.access_token), claims_of(second.session.access_token)
    assert after["session_id"] == before["session_id"]
    assert after["iss"] == edge.issuer
    assert after["amr"] == before["amr"]
    found = await auth.get_user(second.session.access_token)
    assert found is not None
    assert (found.user.id, found.user.email) == (person.id, person.email)
    verified = await auth.get_claims(second.session.access_token)
    assert verified is not None
    assert verified["claims"]["sub"] == person.id


async def test_changing_metadata_shows_in_the_next_token(edge: Edge, http: AsyncClient, person: Person) -> None:
    headers = bearer(edge, person.access_token)
    changed = await http.put("/auth/v1/user", headers=headers, json={"data": {"name": "Grace"}})
    assert changed.json()["user_metadata"]["name"] == "Grace"
    refreshed = await http.post(
        "/auth/v1/token?grant_type=refresh_token",
        headers={"apikey": edge.publishable},
        json={"refresh_token": person.refresh_token},
    )
    assert claims_of(refreshed.json()["access_token"])["user_metadata"]["name"] == "Grace"


async def test_after_signing_out_the_session_is_gone_but_the_token_verifies(
    edge: Edge, http: AsyncClient, person: Person
) -> None:
    headers = bearer(edge, person.access_token)
    assert (await http.post("/auth/v1/logout", headers=headers)).status_code == 204
    gone = await http.get("/auth/v1/user", headers=headers)
    assert (gone.status_code, gone.json()["error_code"]) == (403, "session_not_found")
    # PostgREST asks nobody: a token lives until it expires.
    me = (await http.get("/rest/v1/rpc/who_am_i", headers=headers)).json()
    assert me["uid"] == person.id


async def test_wrong_passwords_and_double_sign_ups_keep_auths_words(auth: AsyncGoTrueClient, person: Person) -> None:
    with pytest.raises(AuthApiError, match="Invalid login credentials"):
        await auth.sign_in_with_password({"email": person.email, "password": "wrong-one"})
    with pytest.raises(AuthApiError, match="User already registered"):
        await auth.sign_up({"email": person.email, "password": PASSWORD})


async def test_a_trigger_that_raises_refuses_the_signup_in_hosted_words(edge: Edge, http: AsyncClient) -> None:
    email = f"refused-{uuid.uuid4().hex}@example.com"
    answer = await http.post(
        "/auth/v1/signup",
        headers={"apikey": edge.publishable},
        json={"email": email, "password": PASSWORD},
    )
    assert answer.status_code == 500
    assert answer.json() == {
        "code": 500,
        "error_code": "unexpected_failure",
        "msg": "Database error saving new user",
    }
    assert await edge.rows("select 1 from auth.users where email = %s", email) == []


async def test_a_signup_fires_triggers_in_the_order_of_auth(edge: Edge, person: Person) -> None:
    seen = await edge.rows(
        "select operation, session_role, role, confirmed, metadata_type from public.seen "
        "where user_id = %s order by position limit 3",
        person.id,
    )
    assert seen == [
        ("INSERT", "supabase_auth_admin", "", False, "object"),
        ("UPDATE", "supabase_auth_admin", "authenticated", False, "object"),
        ("UPDATE", "supabase_auth_admin", "authenticated", True, "object"),
    ]
    stored = await edge.rows("select raw_user_meta_data ->> 'name' from auth.users where id = %s", person.id)
    assert stored == [("Ada",)]


async def test_an_anonymous_person_has_a_session_that_refreshes(
    edge: Edge, http: AsyncClient, auth: AsyncGoTrueClient
) -> None:
    made = await auth.sign_in_anonymously({"options": {"data": {"theme": "dark"}}})
    assert made.user is not None
    assert made.session is not None
    assert (made.user.is_anonymous, made.user.email) == (True, "")
    assert made.user.user_metadata == {"theme": "dark"}
    claims = claims_of(made.session.access_token)
    assert (claims["is_anonymous"], claims["amr"][0]["method"]) == (True, "anonymous")
    me = await http.get("/rest/v1/rpc/who_am_i", headers=bearer(edge, made.session.access_token))
    assert (me.json()["role"], me.json()["uid"]) == ("authenticated", made.user.id)
    refreshed = await auth.refresh_session(made.session.refresh_token)
    assert refreshed.session is not None
    assert refreshed.user is not None
    assert refreshed.user.is_anonymous
    again = claims_of(refreshed.session.access_token)
    assert (again["is_anonymous"], again["session_id"]) == (True, claims["session_id"])
    found = await auth.get_user(refreshed.session.access_token)
    assert found is not None
    assert found.user.is_anonymous
    operations = await edge.rows(
        "select operation, session_role, role from public.seen where user_id = %s order by position limit 2",
        made.user.id,
    )
    assert operations == [
        ("INSERT", "supabase_auth_admin", ""),
        ("UPDATE", "supabase_auth_admin", "authenticated"),
    ]


async def test_settings_say_that_anonymous_sign_in_is_on(edge: Edge, http: AsyncClient) -> None:
    answer = await http.get("/auth/v1/settings", headers={"apikey": edge.publishable})
    assert answer.json()["external"]["anonymous_users"] is True


async def test_the_link_in_an_email_ends_in_a_project_token(edge: Edge, http: AsyncClient, person: Person) -> None:
    await edge.rows(
        "update auth.users set recovery_token = 'link-token', recovery_sent_at = now() where id = %s",
        person.id,
    )
    answer = await http.get("/auth/v1/verify?type=recovery&token=link-token")
    assert answer.status_code == 303
    fragment = dict(pair.split("=", 1) for pair in answer.headers["location"].split("#")[1].split("&"))
    claims = claims_of(fragment["access_token"])
    assert (claims["iss"], claims["sub"]) == (edge.issuer, person.id)
    assert claims["amr"][0]["method"] == "otp"


async def test_no_email_password_or_key_reaches_the_log(edge: Edge, http: AsyncClient, person: Person) -> None:
    await http.get(
        f"/rest/v1/notes?apikey={edge.secret}&body=eq.{person.email}",
        headers={"apikey": edge.secret},
    )
    log = edge.log.read_text()
    assert "path=/auth/v1/signup status=200" in log
    for secret in ("@example.com", PASSWORD, "sb_secret_", "sb_publishable_", "eyJ", "postgresql:"):
        assert secret not in log
