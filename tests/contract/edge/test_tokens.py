"""User tokens: verifiable by anybody through JWKS, and hosted's answers to bad ones."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import pytest
from httpx import AsyncClient
from jwt import PyJWKClient

from tests.contract.edge.conftest import Person
from tests.contract.edge.stack import Edge, new_signing_key

WHO = "/rest/v1/rpc/who_am_i"
NO_KEY = {
    "code": "PGRST301",
    "details": "None of the keys was able to decode the JWT",
    "hint": None,
    "message": "No suitable key or wrong key type",
}


def claims_error(message: str) -> dict[str, Any]:
    return {"code": "PGRST303", "details": None, "hint": None, "message": message}


async def test_a_session_token_verifies_through_jwks_with_hosted_claims(edge: Edge, person: Person) -> None:
    client = PyJWKClient(f"{edge.issuer}/.well-known/jwks.json")
    key = await asyncio.to_thread(client.get_signing_key_from_jwt, person.access_token)
    claims = jwt.decode(
        person.access_token,
        key,
        algorithms=["ES256"],
        audience="authenticated",
        issuer=edge.issuer,
        options={"require": ["exp", "iat", "sub", "iss", "aud"]},
    )
    now = time.time()
    assert claims["sub"] == person.id
    assert claims["email"] == person.email
    assert claims["phone"] == ""
    assert (claims["role"], claims["aal"], claims["is_anonymous"]) == (
        "authenticated",
        "aal1",
        False,
    )
    assert claims["amr"][0]["method"] == "password"
    assert abs(claims["amr"][0]["timestamp"] - now) < 60
    assert claims["app_metadata"] == {"provider": "email", "providers": ["email"]}
    assert claims["user_metadata"]["name"] == "Ada"
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["session_id"]
    header = jwt.get_unverified_header(person.access_token)
    assert (header["alg"], header["typ"], header["kid"]) == ("ES256", "JWT", key.key_id)


async def test_jwks_shows_the_public_half_only_and_may_be_cached(http: AsyncClient) -> None:
    answer = await http.get("/auth/v1/.well-known/jwks.json")
    assert answer.headers["cache-control"] == "public, max-age=600"
    (key,) = answer.json()["keys"]
    assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("EC", "P-256", "ES256", "sig")
    assert "d" not in key


async def bad_token(edge: Edge, http: AsyncClient, token: str) -> tuple[Any, dict[str, Any]]:
    headers = {"apikey": edge.publishable, "Authorization": f"Bearer {token}"}
    answer = await http.get(WHO, headers=headers)
    assert answer.status_code == 401
    body: dict[str, Any] = answer.json()
    assert answer.headers["proxy-status"] == f"PostgREST; error={body['code']}"
    challenge = f'Bearer error="invalid_token", error_description="{body["message"]}"'
    assert answer.headers["www-authenticate"] == challenge
    return answer, body


async def test_an_expired_token_is_pgrst303_after_thirty_seconds_of_grace(edge: Edge, http: AsyncClient) -> None:
    now = int(time.time())
    _, body = await bad_token(edge, http, edge.token(exp=now - 60))
    assert body == claims_error("JWT expired")
    headers = {
        "apikey": edge.publishable,
        "Authorization": f"Bearer {edge.token(exp=now - 10)}",
    }
    graceful = await http.get(WHO, headers=headers)
    assert (graceful.status_code, graceful.json()["role"]) == (200, "authenticated")


async def test_a_token_of_tomorrow_is_pgrst303(edge: Edge, http: AsyncClient) -> None:
    later = int(time.time()) + 600
    _, body = await bad_token(edge, http, edge.token(iat=later, exp=later + 60))
    assert body == claims_error("JWT issued at future")
    _, body = await bad_token(edge, http, edge.token(nbf=later))
    assert body == claims_error("JWT not yet valid")


async def test_foreign_unsigned_and_tampered_tokens_are_pgrst301(edge: Edge, http: AsyncClient, person: Person) -> None:
    claims = edge.claims(role="service_role")
    kid = jwt.get_unverified_header(person.access_token)["kid"]
    head, payload, signature = person.access_token.split(".")
    other_payload = jwt.encode(claims, "", algorithm="none").split(".")[1]
    forged = {
        "none": jwt.encode(claims, "", algorithm="none"),
        "foreign hs256": jwt.encode(claims, "foreign-secret-" + "3" * 32, algorithm="HS256"),
        "foreign es256": jwt.encode(claims, new_signing_key(), algorithm="ES256"),
        "foreign es256 with our kid": jwt.encode(claims, new_signing_key(), algorithm="ES256", headers={"kid": kid}),
        "unknown kid": _with_kid(edge, "other"),
        "other claims, our signature": f"{head}.{other_payload}.{signature}",
        "garbage": f"!!!.{payload}.{signature}",
        "inner": jwt.encode(claims, "inner-jwt-secret-" + "0" * 32, algorithm="HS256"),
    }
    for name, token in forged.items():
        _, body = await bad_token(edge, http, token)
        assert body == NO_KEY, name


def _with_kid(edge: Edge, kid: str) -> str:
    return jwt.encode(edge.claims(), edge.signing_key, algorithm="ES256", headers={"kid": kid})


@pytest.mark.parametrize(("token", "parts"), [("a", 1), ("a.b", 2), ("a.b.c.d", 4)])
async def test_what_is_no_jwt_is_counted(edge: Edge, http: AsyncClient, token: str, parts: int) -> None:
    _, body = await bad_token(edge, http, token)
    assert body["message"] == f"Expected 3 parts in JWT; got {parts}"


async def test_old_projects_hs256_tokens_are_accepted(edge: Edge, http: AsyncClient) -> None:
    claims = edge.claims(app_metadata={"role": "admin"})
    token = jwt.encode(claims, edge.legacy_secret, algorithm="HS256")
    headers = {"apikey": edge.publishable, "Authorization": f"Bearer {token}"}
    me = (await http.get(WHO, headers=headers)).json()
    assert (me["role"], me["uid"]) == ("authenticated", claims["sub"])
    assert me["claims"]["app_metadata"] == {"role": "admin"}


async def test_the_database_sees_the_clients_claims(edge: Edge, http: AsyncClient, person: Person) -> None:
    headers = {"apikey": edge.publishable, "Authorization": f"Bearer {person.access_token}"}
    seen = (await http.get(WHO, headers=headers)).json()["claims"]
    assert seen == jwt.decode(person.access_token, options={"verify_signature": False})


async def test_auth_words_bad_tokens_its_own_way(edge: Edge, http: AsyncClient) -> None:
    prefix = "invalid JWT: unable to parse or verify signature, "
    malformed = "token is malformed: token contains an invalid number of segments"
    expired = edge.token(exp=int(time.time()) - 1)
    foreign = jwt.encode(edge.claims(), new_signing_key(), algorithm="ES256")
    for token, message in {
        expired: prefix + "token has invalid claims: token is expired",
        foreign: prefix + "token signature is invalid: signature is invalid",
        "nonsense": prefix + malformed,
    }.items():
        headers = {"apikey": edge.publishable, "Authorization": f"Bearer {token}"}
        answer = await http.get("/auth/v1/user", headers=headers)
        assert answer.status_code == 403
        assert answer.json() == {"code": 403, "error_code": "bad_jwt", "msg": message}
    keyed = await http.get("/auth/v1/user", headers={"apikey": edge.publishable})
    assert (keyed.status_code, keyed.json()["msg"]) == (403, "invalid claim: missing sub claim")


async def test_an_old_token_in_the_header_does_not_keep_anybody_from_signing_in(
    edge: Edge, http: AsyncClient, person: Person
) -> None:
    headers = {"apikey": edge.publishable, "Authorization": f"Bearer {edge.token(exp=1)}"}
    body = {"refresh_token": person.refresh_token}
    answer = await http.post("/auth/v1/token?grant_type=refresh_token", headers=headers, json=body)
    assert answer.status_code == 200, answer.text
