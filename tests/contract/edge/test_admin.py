"""Auth's admin API: what it answers, what it stores, and what triggers see of it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx import AsyncClient
from supabase_auth import AsyncGoTrueAdminAPI
from supabase_auth.errors import AuthApiError

from tests.contract.edge.conftest import PASSWORD, Person
from tests.contract.edge.stack import Edge

USERS = "/auth/v1/admin/users"


def new_email() -> str:
    return f"{uuid.uuid4().hex}@example.com"


@pytest.fixture
async def admin(edge: Edge) -> AsyncIterator[AsyncGoTrueAdminAPI]:
    headers = {"apikey": edge.secret, "Authorization": f"Bearer {edge.secret}"}
    async with AsyncGoTrueAdminAPI(url=f"{edge.url}/auth/v1", headers=headers) as api:
        yield api


async def sign_in(edge: Edge, http: AsyncClient, email: str, password: str = PASSWORD) -> Any:
    return await http.post(
        "/auth/v1/token?grant_type=password",
        headers={"apikey": edge.publishable},
        json={"email": email, "password": password},
    )


async def test_a_created_user_can_sign_in(edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI) -> None:
    email = new_email()
    made = (
        await admin.create_user(
            {
                "email": email.upper(),
                "password": PASSWORD,
                "email_confirm": True,
                "user_metadata": {"name": "Ada"},
                "app_metadata": {"role": "admin"},
            }
        )
    ).user
    assert made.email == email
    assert made.email_confirmed_at is not None
    assert made.app_metadata == {"provider": "email", "providers": ["email"], "role": "admin"}
    assert made.user_metadata["name"] == "Ada"
    assert made.identities is not None
    assert [identity.provider for identity in made.identities] == ["email"]
    answer = await sign_in(edge, http, email)
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"]["id"] == made.id


async def test_a_created_user_is_seen_unfinished_first_as_auth_writes_it(
    edge: Edge, admin: AsyncGoTrueAdminAPI
) -> None:
    made = await admin.create_user({"email": new_email(), "email_confirm": True, "app_metadata": {"plan": "pro"}})
    seen = await edge.rows(
        "select operation, session_role, role, confirmed, app_metadata ? 'plan' "
        "from public.seen where user_id = %s order by position",
        made.user.id,
    )
    assert seen[0] == ("INSERT", "supabase_auth_admin", "", False, False)
    assert {operation for operation, *_ in seen[1:]} == {"UPDATE"}
    assert seen[-1] == ("UPDATE", "supabase_auth_admin", "authenticated", True, True)


async def test_an_unconfirmed_user_cannot_sign_in_until_confirmed(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI
) -> None:
    email = new_email()
    made = (await admin.create_user({"email": email, "password": PASSWORD})).user
    refused = await sign_in(edge, http, email)
    assert (refused.status_code, refused.json()["error_code"]) == (400, "email_not_confirmed")
    await admin.update_user_by_id(made.id, {"email_confirm": True})
    assert (await sign_in(edge, http, email)).status_code == 200


async def test_a_phone_user_has_a_phone_identity(admin: AsyncGoTrueAdminAPI) -> None:
    phone = f"49{uuid.uuid4().int % 10**10:010d}"
    made = (await admin.create_user({"phone": f"+{phone}", "phone_confirm": True})).user
    assert (made.phone, made.email) == (phone, "")
    assert made.phone_confirmed_at is not None
    assert made.app_metadata["providers"] == ["phone"]
    with pytest.raises(AuthApiError, match="Phone number already registered"):
        await admin.create_user({"phone": phone})


async def test_a_taken_email_is_refused(admin: AsyncGoTrueAdminAPI, person: Person) -> None:
    with pytest.raises(AuthApiError, match="email address has already been registered") as raised:
        await admin.create_user({"email": person.email})
    assert (raised.value.status, raised.value.code) == (422, "email_exists")


@pytest.mark.parametrize(
    ("body", "status", "error_code"),
    [
        ({}, 400, "validation_failed"),
        ({"email": "no-address"}, 400, "validation_failed"),
        ({"phone": "abc"}, 400, "validation_failed"),
        ({"email": "a@example.com", "ban_duration": "a while"}, 400, "validation_failed"),
        ({"email": "a@example.com", "id": "7"}, 400, "validation_failed"),
        ({"email": 7}, 400, "bad_json"),
        ([], 400, "bad_json"),
    ],
)
async def test_nonsense_is_refused_as_auth_does(
    edge: Edge, http: AsyncClient, body: Any, status: int, error_code: str
) -> None:
    answer = await http.post(USERS, headers={"apikey": edge.secret}, json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (status, error_code)


async def test_a_trigger_that_raises_refuses_the_creation_and_nothing_stays(edge: Edge, http: AsyncClient) -> None:
    email = f"refused-{uuid.uuid4().hex}@example.com"
    answer = await http.post(USERS, headers={"apikey": edge.secret}, json={"email": email})
    assert answer.status_code == 500
    assert answer.json()["msg"] == "Database error creating new user"
    assert await edge.rows("select 1 from auth.users where email = %s", email) == []


async def test_lists_are_paged_newest_first(edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI) -> None:
    made = [(await admin.create_user({"email": new_email()})).user.id for _ in range(3)]
    first = await admin.list_users(page=1, per_page=2)
    second = await admin.list_users(page=2, per_page=2)
    assert [user.id for user in [*first, *second]][:3] == made[::-1]
    assert len(await admin.list_users()) >= 3
    answer = await http.get(f"{USERS}?page=1&per_page=2", headers={"apikey": edge.secret})
    assert int(answer.headers["x-total-count"]) >= 3
    assert 'page=2&per_page=2>; rel="next"' in answer.headers["link"]
    assert answer.json()["aud"] == "authenticated"


async def test_one_user_is_read_and_unknown_ones_are_404(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI, person: Person
) -> None:
    found = (await admin.get_user_by_id(person.id)).user
    # Signed up through Lite: its times and metadata must be readable here too.
    assert (found.email, found.user_metadata["name"]) == (person.email, "Ada")
    assert found.last_sign_in_at is not None
    unknown = await http.get(f"{USERS}/{uuid.uuid4()}", headers={"apikey": edge.secret})
    assert (unknown.status_code, unknown.json()["error_code"]) == (404, "user_not_found")
    malformed = await http.get(f"{USERS}/7", headers={"apikey": edge.secret})
    assert (malformed.status_code, malformed.json()["msg"]) == (404, "user_id must be an UUID")


async def test_an_update_merges_metadata_and_null_removes(admin: AsyncGoTrueAdminAPI, person: Person) -> None:
    await admin.update_user_by_id(person.id, {"app_metadata": {"role": "admin", "plan": "pro"}})
    changed = (
        await admin.update_user_by_id(
            person.id,
            {"app_metadata": {"plan": None}, "user_metadata": {"name": "Grace"}},
        )
    ).user
    assert changed.app_metadata == {
        "provider": "email",
        "providers": ["email"],
        "role": "admin",
    }
    assert changed.user_metadata["name"] == "Grace"
    assert changed.user_metadata["email"] == person.email


async def test_a_new_email_and_password_take_effect(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI, person: Person
) -> None:
    email = new_email()
    changed = await admin.update_user_by_id(
        person.id, {"email": email, "password": "another-horse", "email_confirm": True}
    )
    assert changed.user.email == email
    assert changed.user.identities is not None
    assert changed.user.identities[0].identity_data["email"] == email
    assert (await sign_in(edge, http, person.email)).status_code == 400
    assert (await sign_in(edge, http, email, "another-horse")).status_code == 200


async def test_an_anonymous_user_is_converted_by_a_confirmed_email(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI
) -> None:
    anonymous = await http.post("/auth/v1/signup", headers={"apikey": edge.publishable}, json={})
    user_id = anonymous.json()["user"]["id"]
    email = new_email()
    changed = await admin.update_user_by_id(user_id, {"email": email, "password": PASSWORD, "email_confirm": True})
    assert (changed.user.is_anonymous, changed.user.email) == (False, email)
    assert (await sign_in(edge, http, email)).json()["user"]["is_anonymous"] is False


async def test_a_banned_user_gets_no_session_until_the_ban_is_lifted(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI, person: Person
) -> None:
    banned = (await admin.update_user_by_id(person.id, {"ban_duration": "1h30m"})).user
    assert banned.banned_until is not None
    ends = datetime.fromisoformat(banned.banned_until) - datetime.now(UTC)
    assert timedelta(minutes=89) < ends < timedelta(minutes=91)
    refresh = {"refresh_token": person.refresh_token}
    key = {"apikey": edge.publishable}
    refused = await sign_in(edge, http, person.email)
    assert (refused.status_code, refused.json()["msg"]) == (400, "User is banned")
    refused = await http.post("/auth/v1/token?grant_type=refresh_token", headers=key, json=refresh)
    assert (refused.status_code, refused.json()["error_code"]) == (400, "user_banned")
    holder = key | {"Authorization": f"Bearer {person.access_token}"}
    refused = await http.get("/auth/v1/user", headers=holder)
    assert (refused.status_code, refused.json()["error_code"]) == (403, "user_banned")
    lifted = (await admin.update_user_by_id(person.id, {"ban_duration": "none"})).user
    assert lifted.banned_until is None
    renewed = await http.post("/auth/v1/token?grant_type=refresh_token", headers=key, json=refresh)
    assert renewed.status_code == 200
    assert (await sign_in(edge, http, person.email)).status_code == 200


async def test_a_banned_user_gets_no_session_by_an_email_link(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI, person: Person
) -> None:
    await admin.update_user_by_id(person.id, {"ban_duration": "24h"})
    await edge.rows("delete from auth.sessions where user_id = %s", person.id)
    await edge.rows(
        "update auth.users set recovery_token = %s, recovery_sent_at = now() where id = %s",
        f"link-{person.id}",
        person.id,
    )
    answer = await http.post(
        "/auth/v1/verify",
        headers={"apikey": edge.publishable},
        json={"type": "recovery", "token_hash": f"link-{person.id}"},
    )
    assert (answer.status_code, answer.json()["error_code"]) == (403, "user_banned")
    assert await edge.rows("select 1 from auth.sessions where user_id = %s", person.id) == []


async def test_a_soft_deleted_user_keeps_a_row_that_tells_nothing(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI, person: Person
) -> None:
    await admin.delete_user(person.id, should_soft_delete=True)
    ((deleted, row),) = await edge.rows(
        "select deleted_at is not null, to_jsonb(u)::text from auth.users u where id = %s",
        person.id,
    )
    identities = await edge.rows("select identity_data, provider_id from auth.identities where user_id = %s", person.id)
    assert deleted
    assert person.email not in row
    assert "Ada" not in row
    assert [data for data, _ in identities] == [{}]
    assert identities[0][1] != person.id
    assert await edge.rows("select 1 from auth.sessions where user_id = %s", person.id) == []
    assert (await sign_in(edge, http, person.email)).status_code == 400
    found = (await admin.get_user_by_id(person.id)).user
    assert found.deleted_at is not None
    first = found.email
    await admin.delete_user(person.id, should_soft_delete=True)
    assert (await admin.get_user_by_id(person.id)).user.email == first


async def test_a_deleted_user_is_gone_with_all_that_hangs_on_it(
    edge: Edge, http: AsyncClient, admin: AsyncGoTrueAdminAPI, person: Person
) -> None:
    headers = {"apikey": edge.publishable, "Authorization": f"Bearer {person.access_token}"}
    await http.post("/rest/v1/notes", headers=headers, json={"body": "mine"})
    await admin.delete_user(person.id)
    for table, column in (
        ("auth.users", "id"),
        ("auth.identities", "user_id"),
        ("auth.sessions", "user_id"),
        ("auth.refresh_tokens", "user_id"),
        ("public.notes", "owner"),
    ):
        assert await edge.rows(f"select 1 from {table} where {column} = %s", person.id) == []
    gone = await http.get("/auth/v1/user", headers=headers)
    assert (gone.status_code, gone.json()["error_code"]) == (403, "user_not_found")
    with pytest.raises(AuthApiError, match="User not found"):
        await admin.delete_user(person.id)


async def test_nobody_but_service_role_is_an_admin(edge: Edge, http: AsyncClient, person: Person) -> None:
    user = f"Bearer {person.access_token}"
    for headers, status in (
        ({"apikey": edge.legacy_anon}, 403),
        ({"apikey": edge.secret, "Authorization": user}, 403),
        ({"apikey": edge.publishable, "Authorization": user}, 401),
        ({"apikey": edge.legacy_service_role}, 200),
    ):
        assert (await http.get(USERS, headers=headers)).status_code == status
        answer = await http.delete(f"{USERS}/{uuid.uuid4()}", headers=headers)
        assert answer.status_code == (404 if status == 200 else status)
