"""The keys operations over plain HTTP: shape, defaults, changes, refusals, the end of a key.

Facts: openrouter/facts.md 1.2 to 1.8.
"""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

MakeKey = Callable[..., Awaitable[dict[str, Any]]]
ListAll = Callable[[], Awaitable[list[dict[str, Any]]]]
Chat = Callable[..., Awaitable[httpx.Response]]
ClientFor = Callable[[str], httpx.AsyncClient]

AMOUNTS = {kind + window for kind in ("usage", "byok_usage") for window in ("", "_daily", "_weekly", "_monthly")}
LIMIT_FIELDS = {"limit", "limit_remaining", "limit_reset", "include_byok_in_limit"}
MOMENTS = {"created_at", "updated_at", "expires_at", "last_used_at"}
OWNERS = {"creator_user_id", "workspace_id", "external_user"}
KEY_FIELDS = {"hash", "name", "label", "disabled"} | LIMIT_FIELDS | AMOUNTS | MOMENTS | OWNERS
PARALLEL_CREATES = 20

REFUSED_NEW_KEYS = {
    "no name": "{}",
    "empty name": '{"name": ""}',
    "null name": '{"name": null}',
    "name is a number": '{"name": 7}',
    "negative limit": '{"name": "doorkey-contract-refused", "limit": -0.01}',
    "limit is text": '{"name": "doorkey-contract-refused", "limit": "5"}',
    "limit is true": '{"name": "doorkey-contract-refused", "limit": true}',
    "limit is NaN": '{"name": "doorkey-contract-refused", "limit": NaN}',
    "limit is infinite": '{"name": "doorkey-contract-refused", "limit": 1e999}',
    "unknown reset": '{"name": "doorkey-contract-refused", "limit_reset": "yearly"}',
    "reset is a list": '{"name": "doorkey-contract-refused", "limit_reset": []}',
    "flag is text": '{"name": "doorkey-contract-refused", "include_byok_in_limit": "yes"}',
    "expiry to the minute": '{"name": "doorkey-contract-refused", "expires_at": "2035-01-31T12:00Z"}',
    "expiry without a zone": '{"name": "doorkey-contract-refused", "expires_at": "2035-01-31T12:00:00"}',
    "expiry in another zone": '{"name": "doorkey-contract-refused", "expires_at": "2035-01-31T12:00:00+02:00"}',
    "expiry on no day": '{"name": "doorkey-contract-refused", "expires_at": "2035-02-31T12:00:00Z"}',
    "workspace is no uuid": '{"name": "doorkey-contract-refused", "workspace_id": "home"}',
    "external without user": '{"name": "doorkey-contract-refused", "external": {}}',
    "external user is blank": '{"name": "doorkey-contract-refused", "external": {"user": "  "}}',
    "external user with NUL": '{"name": "doorkey-contract-refused", "external": {"user": "a\\u0000b"}}',
    "external user too long": json.dumps({"name": "doorkey-contract-refused", "external": {"user": "a" * 513}}),
    "external key too short": '{"name": "doorkey-contract-refused", "external": {"user": "a", "api_key": "short"}}',
    "external key is dull": json.dumps(
        {"name": "doorkey-contract-refused", "external": {"user": "a", "api_key": "a" * 40}}
    ),
    "broken JSON": '{"name": "doorkey-contract-refused"',
    "no JSON": "name=x",
    "a list": "[]",
    "nothing": "",
}
REFUSED_CHANGES = {
    "null name": '{"name": null}',
    "null disabled": '{"disabled": null}',
    "disabled is text": '{"disabled": "true"}',
    "negative limit": '{"limit": -1}',
    "limit is NaN": '{"limit": NaN}',
    "unknown reset": '{"limit_reset": "hourly"}',
    "null workspace": '{"workspace_id": null}',
    "broken JSON": '{"limit": ',
}


async def test_create_answers_the_secret_beside_a_complete_key(make_key: MakeKey) -> None:
    body = await make_key("complete", limit=2.5)
    secret, key = body["key"], body["data"]
    assert set(body) == {"data", "key"}
    assert set(key) >= KEY_FIELDS
    assert key["hash"] == hashlib.sha256(secret.encode()).hexdigest()
    assert secret.startswith("sk-or-v1-")
    assert "..." in key["label"]
    assert secret.startswith(key["label"].split("...")[0])
    assert secret.endswith(key["label"].split("...")[1])
    assert secret not in json.dumps(key)
    assert (key["limit"], key["limit_remaining"]) == (2.5, 2.5)
    assert (key["disabled"], key["include_byok_in_limit"]) == (False, False)
    assert key["limit_reset"] is key["updated_at"] is key["last_used_at"] is None
    assert {key[field] for field in AMOUNTS} == {0}


async def test_key_without_limit_has_no_remainder(make_key: MakeKey) -> None:
    for fields in ({}, {"limit": None}):
        key = (await make_key("endless", **fields))["data"]
        assert key["limit"] is key["limit_remaining"] is None


async def test_moments_are_aware_and_in_utc(make_key: MakeKey) -> None:
    key = (await make_key("moments", expires_at="2035-01-31T12:00:00.5Z"))["data"]
    created_at = datetime.fromisoformat(key["created_at"])
    assert created_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created_at) < timedelta(minutes=5)
    expires_at = datetime.fromisoformat(key["expires_at"])
    assert expires_at == datetime(2035, 1, 31, 12, 0, 0, 500_000, UTC)


async def test_secret_is_never_shown_again(make_key: MakeKey, management: httpx.AsyncClient) -> None:
    body = await make_key("once")
    path = f"/keys/{body['data']['hash']}"
    for response in (
        await management.get(path),
        await management.patch(path, json={"name": body["data"]["name"] + "-b"}),
        await management.get("/keys"),
    ):
        assert response.status_code == httpx.codes.OK
        assert body["key"] not in response.text


async def test_trailing_slash_makes_no_difference(management: httpx.AsyncClient, run_name: str) -> None:
    created = await management.post("/keys/", json={"name": f"{run_name}-slash"})
    assert created.status_code == httpx.codes.CREATED
    listed = await management.get("/keys/")
    assert listed.status_code == httpx.codes.OK
    assert created.json()["data"]["hash"] in {key["hash"] for key in listed.json()["data"]}


async def test_unknown_fields_are_ignored(make_key: MakeKey) -> None:
    key = (await make_key("extra", label="mine", colour="green", disabled=True))["data"]
    assert key["label"] != "mine"
    assert key["disabled"] is False


async def test_same_name_twice_makes_two_keys(make_key: MakeKey) -> None:
    first, second = await make_key("twin"), await make_key("twin")
    assert first["data"]["name"] == second["data"]["name"]
    assert first["data"]["hash"] != second["data"]["hash"]


async def test_keys_made_at_the_same_time_are_all_there(make_key: MakeKey, list_all: ListAll) -> None:
    made = await asyncio.gather(*(make_key("crowd") for _ in range(PARALLEL_CREATES)))
    assert len({body["key"] for body in made}) == PARALLEL_CREATES
    assert {body["data"]["hash"] for body in made} <= {key["hash"] for key in await list_all()}


async def test_external_user_is_kept_without_spaces(make_key: MakeKey) -> None:
    key = (await make_key("external", external={"user": "  customer-7 "}))["data"]
    assert key["external_user"] == "customer-7"


@pytest.mark.simulator_only(reason="what the real one answers for a repeated secret is unknown")
async def test_secret_brought_along_opens_the_key_but_is_not_returned(
    make_key: MakeKey, client_for: ClientFor, management: httpx.AsyncClient
) -> None:
    secret = f"brought-{uuid.uuid4().hex}"
    external = {"user": "customer", "api_key": secret}
    body = await make_key("brought", external=external)
    assert secret not in json.dumps(body)
    current = await client_for(secret).get("/key")
    assert current.json()["data"]["label"] == body["data"]["label"]
    again = await management.post("/keys", json={"name": "doorkey-contract-again", "external": external})
    assert again.status_code == httpx.codes.BAD_REQUEST


@pytest.mark.parametrize("body", REFUSED_NEW_KEYS.values(), ids=REFUSED_NEW_KEYS.keys())
async def test_wrong_new_key_is_refused(management: httpx.AsyncClient, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = await management.post("/keys", content=body, headers=headers)
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("body", REFUSED_CHANGES.values(), ids=REFUSED_CHANGES.keys())
async def test_refused_change_changes_nothing(make_key: MakeKey, management: httpx.AsyncClient, body: str) -> None:
    before = (await make_key("unchanged", limit=3))["data"]
    path = f"/keys/{before['hash']}"
    response = await management.patch(path, content=body)
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert (await management.get(path)).json()["data"] == before


async def test_omitted_field_stays_and_null_clears(make_key: MakeKey, management: httpx.AsyncClient) -> None:
    key = (await make_key("nulls", limit=3, limit_reset="monthly"))["data"]
    path = f"/keys/{key['hash']}"

    async def change(**fields: object) -> dict[str, Any]:
        response = await management.patch(path, json=fields)
        assert response.status_code == httpx.codes.OK, response.text
        data: dict[str, Any] = response.json()["data"]
        assert (await management.get(path)).json()["data"] == data
        return data

    renamed = await change(name=key["name"] + "-b")
    assert renamed["name"] == key["name"] + "-b"
    assert (renamed["limit"], renamed["limit_reset"]) == (3, "monthly")
    assert renamed["updated_at"] is not None
    cleared = await change(limit_reset=None)
    assert (cleared["limit"], cleared["limit_reset"]) == (3, None)
    endless = await change(limit=None)
    assert endless["limit"] is endless["limit_remaining"] is None
    unchanged = await change()
    assert unchanged["name"] == renamed["name"]
    assert (await change(limit=0, include_byok_in_limit=True))["limit_remaining"] == 0


async def test_end_of_a_key_cannot_be_moved(make_key: MakeKey, management: httpx.AsyncClient) -> None:
    key = (await make_key("fixed-end", expires_at="2035-01-31T12:00:00Z"))["data"]
    response = await management.patch(f"/keys/{key['hash']}", json={"expires_at": "2036-01-31T12:00:00Z"})
    assert response.status_code in (httpx.codes.OK, httpx.codes.BAD_REQUEST)
    stored = (await management.get(f"/keys/{key['hash']}")).json()["data"]
    assert stored["expires_at"] == key["expires_at"]


async def test_deleted_key_is_gone_everywhere(
    make_key: MakeKey, management: httpx.AsyncClient, list_all: ListAll, chat: Chat
) -> None:
    body = await make_key("gone")
    path = f"/keys/{body['data']['hash']}"
    deleted = await management.delete(path)
    assert deleted.status_code == httpx.codes.OK
    assert deleted.json() == {"deleted": True}
    for response in (
        await management.get(path),
        await management.patch(path, json={"name": "back"}),
        await management.delete(path),
    ):
        assert response.status_code == httpx.codes.NOT_FOUND
    assert body["data"]["hash"] not in {key["hash"] for key in await list_all()}
    assert (await chat(body["key"])).status_code == httpx.codes.UNAUTHORIZED


@pytest.mark.parametrize("secret", ["", "sk-or-v1-" + "0" * 64], ids=["none", "unknown"])
async def test_stranger_is_told_nothing(client_for: ClientFor, secret: str) -> None:
    stranger = client_for(secret)
    for method, path in _ALL_OPERATIONS:
        response = await stranger.request(method, path, json={"name": "doorkey-contract-refused"})
        assert response.status_code == httpx.codes.UNAUTHORIZED, (method, path)


async def test_ordinary_key_manages_nothing(
    make_key: MakeKey, client_for: ClientFor, management: httpx.AsyncClient
) -> None:
    body = await make_key("ordinary")
    path = f"/keys/{body['data']['hash']}"
    client = client_for(body["key"])
    for method, wanted in (*_ALL_OPERATIONS[:2], ("PATCH", path), ("DELETE", path)):
        response = await client.request(method, wanted, json={"name": "mine", "limit": None})
        assert response.status_code == httpx.codes.FORBIDDEN, (method, wanted)
        message = response.json()["error"]["message"]
        assert message == "Only management keys can perform this operation"
    assert (await management.get(path)).json()["data"] == body["data"]


_ALL_OPERATIONS = (
    ("POST", "/keys"),
    ("GET", "/keys"),
    ("GET", f"/keys/{'0' * 64}"),
    ("PATCH", f"/keys/{'0' * 64}"),
    ("DELETE", f"/keys/{'0' * 64}"),
    ("GET", "/key"),
    ("GET", "/credits"),
)


async def test_key_sees_itself_with_its_budget(make_key: MakeKey, client_for: ClientFor) -> None:
    body = await make_key("self", limit=4, limit_reset="weekly")
    for path in ("/key", "/auth/key"):
        current = (await client_for(body["key"]).get(path)).json()["data"]
        assert current["is_management_key"] is False
        assert current["label"] == body["data"]["label"]
        assert (current["limit"], current["limit_remaining"]) == (4, 4)
        budget = next(b for b in current["budgets"] if b["scope"] == "key_limit")
        assert (budget["limit_usd"], budget["spend_usd"], budget["remaining_usd"]) == (4, 0, 4)
        assert budget["reset_interval"] == "weekly"
        resets_at = datetime.fromisoformat(budget["resets_at"])
        assert (resets_at.weekday(), resets_at.hour) == (0, 0)
        assert timedelta(0) < resets_at - datetime.now(UTC) <= timedelta(days=7)


async def test_management_key_sees_that_it_is_one(management: httpx.AsyncClient) -> None:
    current = (await management.get("/key")).json()["data"]
    assert current["is_management_key"] is current["is_provisioning_key"] is True
