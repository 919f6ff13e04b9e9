"""Access tokens: who is somebody's session, and all those who are not. Keys are made here; nobody is called."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import uuid
from datetime import datetime, tzinfo
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from functions.clients.supabase import SupabaseUnreachable
from functions.kit.errors import UserTokenRejected
from functions.web.sessions import Session, Sessions

NOW = 1_800_000_000.0
ISSUER = "https://project.example/auth/v1"
USER = uuid.UUID("7d1c0b3e-3f0e-4f3c-9f6f-3a7a0f4e8a55")
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
SECRET = secrets.token_urlsafe(48)


def jwk(key: Any, kid: str) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


JWKS = {"keys": [jwk(EC_KEY, "ec"), jwk(RSA_KEY, "rsa")]}


class Auth:
    """Stands where Auth stands; counts how often it is asked."""

    def __init__(self, document: Any = JWKS) -> None:
        self.document = document
        self.asked = 0
        self.now = NOW

    async def __call__(self) -> Any:
        self.asked += 1
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


@pytest.fixture(autouse=True)
def frozen_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyJWT looks at the wall clock itself."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Frozen:
            return cls.fromtimestamp(NOW, tz)

    monkeypatch.setattr(jwt.api_jwt, "datetime", Frozen)


def sessions(auth: Auth | None = None, secret: str | None = None) -> Sessions:
    auth = auth or Auth()
    return Sessions(ISSUER, auth, secret, clock=lambda: auth.now)


def token(key: Any = EC_KEY, algorithm: str = "ES256", kid: str | None = "ec", **changes: Any) -> str:
    claims: dict[str, Any] = {
        "iss": ISSUER, "sub": str(USER), "aud": "authenticated", "role": "authenticated", "exp": NOW + 3600,
        "iat": NOW, **changes,
    }  # fmt: skip
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


async def verify(text: str, of: Sessions | None = None) -> Session:
    return await (of or sessions()).verify(f"Bearer {text}")


async def refuses(text: str, of: Sessions | None = None) -> bool:
    try:
        await verify(text, of)
    except UserTokenRejected:
        return True
    return False


async def test_a_token_of_each_accepted_kind_is_its_users_session() -> None:
    for text in (token(), token(RSA_KEY, "RS256", "rsa"), token(SECRET, "HS256", None)):
        session = await verify(text, sessions(secret=SECRET))
        assert session == Session(user_id=USER, token=text, is_anonymous=False)
        assert text not in repr(session)


async def test_an_audience_may_be_a_list() -> None:
    assert (await verify(token(aud=["other", "authenticated"]))).user_id == USER
    assert await refuses(token(aud=["other"]))
    assert await refuses(token(aud=[]))


async def test_an_anonymous_user_is_told_apart() -> None:
    assert (await verify(token(is_anonymous=True))).is_anonymous
    assert not (await verify(token(is_anonymous=False))).is_anonymous


async def test_hs256_is_refused_unless_it_is_configured() -> None:
    text = token(SECRET, "HS256", None)
    assert await refuses(text, sessions(secret=None))
    assert await refuses(text, sessions(secret=""))
    assert await refuses(token(SECRET + "x", "HS256", None), sessions(secret=SECRET))


async def test_an_unsigned_token_is_refused() -> None:
    head, body, _ = token().split(".")
    for algorithm in ("none", "None", "NONE"):
        forged_head = jwt.utils.base64url_encode(json.dumps({"alg": algorithm, "kid": "ec"}).encode()).decode()
        assert await refuses(f"{forged_head}.{body}.", sessions(secret=SECRET))
    assert await refuses(f"{head}.{body}.")
    assert await refuses(f"{head}.{body}")


@pytest.mark.parametrize("key", [EC_KEY, RSA_KEY])
@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
async def test_the_public_key_does_not_serve_as_an_hs256_secret(key: Any, encoding: serialization.Encoding) -> None:
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    part = jwt.utils.base64url_encode
    for kid in ("ec", "rsa"):
        head = part(json.dumps({"alg": "HS256", "kid": kid}).encode()).decode()
        body = token().split(".")[1]
        # By hand: PyJWT does not sign with what looks like a public key.
        forged = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
            f"{head}.{body}".encode(), public
        )
        for of in (sessions(), sessions(secret=SECRET)):
            assert await refuses(f"{head}.{body}.{part(forged).decode()}", of)


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA_KEY, "RS512"), (RSA_KEY, "PS256"), (SECRET, "HS512")], ids=["RS512", "PS256", "HS512"]
)
async def test_an_algorithm_that_is_not_on_the_list_is_refused(key: Any, algorithm: str) -> None:
    assert await refuses(token(key, algorithm, "rsa"), sessions(secret=SECRET))


async def test_a_token_signed_by_somebody_else_is_refused() -> None:
    assert await refuses(token(OTHER_EC_KEY))


async def test_a_key_id_of_another_kind_of_key_is_refused() -> None:
    assert await refuses(token(EC_KEY, "ES256", "rsa"))
    assert await refuses(token(RSA_KEY, "RS256", "ec"))
    assert await refuses(token(EC_KEY, "ES256", "unknown"))
    assert await refuses(token(EC_KEY, "ES256", None))


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
async def test_a_key_that_a_token_brings_along_is_not_looked_at(name: str) -> None:
    """Nor is anybody asked where it says that there is one."""
    brought: dict[str, Any] = {
        "jwk": jwk(OTHER_EC_KEY, "ec"), "jku": "https://elsewhere.example/jwks.json",
        "x5u": "https://elsewhere.example/cert.pem", "x5c": ["MIIB"],
    }  # fmt: skip
    claims = {"iss": ISSUER, "sub": str(USER), "aud": "authenticated", "role": "authenticated", "exp": NOW + 60}
    for kid in ("ec", "unknown"):
        text = jwt.encode(claims, OTHER_EC_KEY, "ES256", headers={"kid": kid, name: brought[name]})
        auth = Auth()
        assert await refuses(text, sessions(auth))
        assert auth.asked == 1


@pytest.mark.parametrize("kid", ["../ec", "ec\x00", "' or '1'='1", "EC", " ec", "", "e" * 5000])
async def test_a_key_id_is_a_name_and_nothing_else(kid: str) -> None:
    auth = Auth()
    of = sessions(auth)
    for key in (EC_KEY, OTHER_EC_KEY):
        assert await refuses(token(key, kid=kid), of)
    assert auth.asked <= 1


async def test_a_token_of_nothing_but_brackets_is_refused() -> None:
    """Decoding it would go deeper than the interpreter allows."""
    for deep in (b"[", b'{"a":'):
        part = jwt.utils.base64url_encode(b'{"alg":"ES256","kid":"ec","x":' + deep * 2000).decode()
        body = jwt.utils.base64url_encode(deep * 2000).decode()
        assert await refuses(f"{part}.{body}.AAAA")
        assert await refuses(f"{token().split('.')[0]}.{body}.AAAA")


async def test_a_private_or_symmetric_key_in_the_set_is_no_way_in() -> None:
    octets = {"kty": "oct", "k": jwt.utils.base64url_encode(SECRET.encode()).decode(), "kid": "oct", "alg": "HS256"}
    assert await refuses(token(SECRET, "HS256", "oct"), sessions(Auth({"keys": [octets]})))


async def test_expiry_has_thirty_seconds_of_leeway_and_no_more() -> None:
    assert not await refuses(token(exp=NOW - 29))
    assert await refuses(token(exp=NOW - 31))
    assert await refuses(token(exp=None))


async def test_a_token_for_later_is_refused_beyond_the_leeway() -> None:
    assert not await refuses(token(nbf=NOW + 29))
    assert await refuses(token(nbf=NOW + 31))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://elsewhere.example/auth/v1"}, {"iss": ISSUER + "/"}, {"iss": "supabase"}, {"iss": None},
        {"aud": "anon"}, {"aud": None}, {"aud": "Authenticated"},
        {"role": "anon"}, {"role": "service_role"}, {"role": None}, {"role": ["authenticated"]}, {"role": ""},
        {"sub": None}, {"sub": ""}, {"sub": "me"}, {"sub": str(USER) + "0"}, {"sub": [str(USER)]}, {"sub": 7},
        {"sub": f"{USER}' or true--"}, {"sub": f"{USER} "}, {"iss": ISSUER.upper()},
        {"aud": {"authenticated": True}}, {"aud": "authenticated anon"}, {"role": "authenticated,service_role"},
    ],
)  # fmt: skip
async def test_a_claim_that_is_not_a_users_is_refused(changes: dict[str, Any]) -> None:
    assert await refuses(token(**changes))


@pytest.mark.parametrize("role", ["anon", "service_role"])
async def test_the_legacy_keys_are_nobodys_session(role: str) -> None:
    legacy = jwt.encode({"iss": "supabase", "ref": "project", "role": role, "exp": NOW + 9e8}, SECRET, "HS256")
    assert await refuses(legacy, sessions(secret=SECRET))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "bearer", "Token x", "Bearer\tx"])
async def test_a_header_without_a_token_is_refused(header: str | None) -> None:
    auth = Auth()
    with pytest.raises(UserTokenRejected):
        await sessions(auth).verify(header)
    assert auth.asked == 0


async def test_a_huge_token_is_refused_unread() -> None:
    auth = Auth()
    assert await refuses(token(note="x" * 20_000), sessions(auth))
    assert auth.asked == 0


async def test_public_keys_are_asked_for_again_after_ten_minutes() -> None:
    auth = Auth()
    of = sessions(auth)
    for age, asked in ((0, 1), (599, 1), (600, 1), (601, 2), (602, 2), (1200, 2), (1202, 3)):
        auth.now = NOW + age
        await verify(token(), of)
        assert auth.asked == asked, age


async def test_a_revoked_key_is_not_believed_after_ten_minutes() -> None:
    auth = Auth()
    of = sessions(auth)
    await verify(token(), of)
    auth.document = {"keys": [jwk(OTHER_EC_KEY, "next")]}
    auth.now = NOW + 601
    assert await refuses(token(), of)
    assert (await verify(token(OTHER_EC_KEY, kid="next"), of)).user_id == USER


async def test_a_new_key_is_found_but_unknown_ones_cannot_make_us_call_all_the_time() -> None:
    auth = Auth()
    of = sessions(auth)
    await verify(token(), of)
    auth.document = {"keys": [*JWKS["keys"], jwk(OTHER_EC_KEY, "next")]}
    assert await refuses(token(OTHER_EC_KEY, kid="next"), of)
    auth.now = NOW + 11
    assert (await verify(token(OTHER_EC_KEY, kid="next"), of)).user_id == USER
    assert auth.asked == 2
    for number in range(50):
        assert await refuses(token(kid=f"made-up-{number}"), of)
    assert auth.asked == 2


async def test_public_keys_that_cannot_be_had_are_no_verdict_on_the_user() -> None:
    auth = Auth(SupabaseUnreachable("JWKS: ConnectError"))
    of = sessions(auth)
    with pytest.raises(SupabaseUnreachable):
        await verify(token(), of)
    auth.document = JWKS
    auth.now = NOW + 1.1
    assert (await verify(token(), of)).user_id == USER


async def test_a_crowd_asks_once_while_auth_is_away() -> None:
    auth = Auth(SupabaseUnreachable("JWKS: ConnectError"))
    of = sessions(auth)
    outcomes = await asyncio.gather(*(verify(token(), of) for _ in range(50)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {SupabaseUnreachable}
    assert auth.asked == 1


async def test_a_crowd_at_the_start_asks_once_and_is_let_in() -> None:
    auth = Auth()
    of = sessions(auth)
    found = await asyncio.gather(*(verify(token(), of) for _ in range(50)))
    assert {session.user_id for session in found} == {USER}
    assert auth.asked == 1


async def test_while_auth_is_away_known_keys_serve_for_ten_minutes() -> None:
    auth = Auth()
    of = sessions(auth)
    await verify(token(), of)
    auth.document = SupabaseUnreachable("JWKS: ConnectError")
    auth.now = NOW + 600
    assert (await verify(token(), of)).user_id == USER
    auth.now = NOW + 601
    with pytest.raises(SupabaseUnreachable):
        await verify(token(), of)


@pytest.mark.parametrize(
    "document", [None, [], "text", {}, {"keys": None}, {"keys": 5}, {"keys": []}, {"keys": [5, None]}]
)
async def test_a_set_without_keys_verifies_nobody(document: Any) -> None:
    assert await refuses(token(), sessions(Auth(document)))


@pytest.mark.parametrize(
    "broken",
    [
        None, {}, {"kid": "x"}, {"kty": "EC", "kid": "x"}, {"kty": "EC", "crv": "P-256", "x": 5, "y": 5, "kid": "x"},
        {"kty": "RSA", "n": "!", "e": "!", "kid": "x"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "none", "kid": "x"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": ["RS256"], "kid": "x"},
        {"kty": "OKP", "crv": "Ed25519", "kid": "x"},
        {**jwk(EC_KEY, "x"), "kid": 5}, {**jwk(EC_KEY, "x"), "crv": "P-999"},
    ],
)  # fmt: skip
async def test_one_broken_key_in_the_set_spoils_no_other(broken: Any) -> None:
    assert (await verify(token(), sessions(Auth({"keys": [broken, *JWKS["keys"]]})))).user_id == USER


PARTS = token().split(".")
pieces = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=60).map(lambda raw: jwt.utils.base64url_encode(raw).decode()),
    st.sampled_from(PARTS),
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "exp", "sub", "aud", "iss", "role"]),
        st.one_of(
            st.none(), st.integers(), st.text(max_size=8), st.sampled_from(["ES256", "HS256", "none", "ec", "rsa"])
        ),
    ).map(lambda found: jwt.utils.base64url_encode(json.dumps(found).encode()).decode()),
)


@given(parts=st.lists(pieces, max_size=5).filter(lambda parts: parts != PARTS))
async def test_garbage_only_ever_raises_user_token_rejected(parts: list[str]) -> None:
    of = sessions(secret=SECRET)
    with pytest.raises(UserTokenRejected) as caught:
        await of.verify("Bearer " + ".".join(parts))
    assert all(len(part) < 8 or part not in str(caught.value) for part in parts)


values = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.text(max_size=3), max_size=2)
)


@given(
    claims=st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "sub", "aud", "iss", "role", "jti"]), values, min_size=1
    )
)
async def test_signed_claims_of_any_kind_are_a_session_or_rejected(claims: dict[str, Any]) -> None:
    payload = {
        "iss": ISSUER,
        "sub": str(USER),
        "aud": "authenticated",
        "role": "authenticated",
        "exp": NOW + 60,
    } | claims
    text = jwt.PyJWS().encode(json.dumps(payload).encode(), SECRET, "HS256")
    with contextlib.suppress(UserTokenRejected):
        assert (await verify(text, sessions(secret=SECRET))).user_id == USER
