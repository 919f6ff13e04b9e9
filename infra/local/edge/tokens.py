"""User tokens: ES256 outside as on hosted, HS256 inside as Lite needs.

The surprising thing: the same bad token gets different answers from the two services behind the
gateway. PostgREST says 401 PGRST301 or PGRST303 and forgives 30 seconds of clock skew, Auth says
403 bad_jwt and forgives none; so a refusal carries both wordings and the caller picks one.
Verification and minting do no I/O. Claims: supabase.md 4; PostgREST's messages: supabase.md 3.
"""

import base64
import hashlib
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm

Claims = dict[str, Any]

POSTGREST_SKEW_SECONDS = 30
INNER_LIFE_SECONDS = 60
JWT_PARTS = 3
UNVERIFIED = "invalid JWT: unable to parse or verify signature, "
NO_KEY = "None of the keys was able to decode the JWT"


class TokenRefused(Exception):
    """A bearer token that is not good: PostgREST's code and words, and Auth's words."""

    def __init__(self, code: str, message: str, auth_message: str, details: str | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.auth_message = UNVERIFIED + auth_message


def _thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638: the key id follows from the key, so it survives restarts without being stored."""
    members = json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, sort_keys=True)
    digest = hashlib.sha256(members.replace(" ", "").encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class TokenTranslator:
    """Verifies what clients send, mints what Lite gets, signs what clients receive."""

    def __init__(
        self,
        *,
        signing_key_pem: str,
        legacy_jwt_secret: str,
        inner_jwt_secret: str,
        issuer: str,
        project_ref: str,
    ) -> None:
        key = load_pem_private_key(signing_key_pem.encode(), password=None)
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise TypeError("the signing key must be an ES256 (P-256) private key")
        self._key = key
        public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        members = {name: str(value) for name, value in public.items()}
        self.kid = _thumbprint(members)
        self._jwk = members | {"kid": self.kid, "alg": "ES256", "use": "sig"}
        self._legacy_jwt_secret = legacy_jwt_secret
        self._inner_jwt_secret = inner_jwt_secret
        self._project_ref = project_ref
        self.issuer = issuer

    def jwks(self) -> dict[str, list[dict[str, object]]]:
        """The public key set; HS256 secrets are never listed (supabase.md 4)."""
        return {"keys": [dict(self._jwk) | {"ext": True, "key_ops": ["verify"]}]}

    def sign(self, claims: Claims) -> str:
        """An access token as hosted issues it; the issuer is set here."""
        headers = {"kid": self.kid}
        return jwt.encode(claims | {"iss": self.issuer}, self._key, algorithm="ES256", headers=headers)

    def verify(self, token: str, *, skew_seconds: int = 0) -> Claims:
        """The claims of a client's token. Raises TokenRefused.

        Accepts ES256 by this project's key and HS256 by the legacy secret (old projects, and the
        legacy keys themselves, which stay valid as tokens when they are disabled as API keys).
        """
        header = self._header(token)
        algorithm = header.get("alg")
        key: Any
        if algorithm == "ES256":
            if header.get("kid") not in (None, self.kid):
                reason = f"unrecognized JWT kid {header.get('kid')} for algorithm ES256"
                keyfunc = "token is unverifiable: error while executing keyfunc: "
                raise TokenRefused("PGRST301", "No suitable key or wrong key type", keyfunc + reason, NO_KEY)
            key = self._key.public_key()
        elif algorithm == "HS256":
            key = self._legacy_jwt_secret
        else:
            raise TokenRefused(
                "PGRST301",
                "No suitable key or wrong key type",
                f"token signature is invalid: signing method {algorithm} is invalid",
                NO_KEY,
            )
        claims = self._decode(token, key, algorithm)
        self._check_times(claims, skew_seconds)
        return claims

    @staticmethod
    def _header(token: str) -> dict[str, Any]:
        parts = token.split(".")
        malformed = "token is malformed: token contains an invalid number of segments"
        if not token:
            raise TokenRefused("PGRST301", "Empty JWT is sent in Authorization header", malformed)
        if len(parts) != JWT_PARTS:
            raise TokenRefused("PGRST301", f"Expected 3 parts in JWT; got {len(parts)}", malformed)
        try:
            return jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise TokenRefused(
                "PGRST301",
                "No suitable key or wrong key type",
                "token is malformed: could not JSON decode header",
                NO_KEY,
            ) from None

    @staticmethod
    def _decode(token: str, key: Any, algorithm: str) -> Claims:
        # Only the signature: times are checked apart, because each service words them its own way.
        unchecked = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss")}
        unchecked |= {"verify_sub": False, "verify_jti": False}
        try:
            claims: Claims = jwt.decode(token, key, algorithms=[algorithm], options=unchecked)  # type: ignore[arg-type]
        except jwt.InvalidTokenError:
            raise TokenRefused(
                "PGRST301",
                "No suitable key or wrong key type",
                "token signature is invalid: signature is invalid",
                NO_KEY,
            ) from None
        return claims

    @staticmethod
    def _check_times(claims: Claims, skew_seconds: int) -> None:
        now = int(time.time())
        wordings = {
            "exp": ("JWT expired", "token is expired"),
            "nbf": ("JWT not yet valid", "token is not valid yet"),
            "iat": ("JWT issued at future", "token used before issued"),
        }
        for claim, (message, auth_message) in wordings.items():
            value = claims.get(claim)
            if value is None:
                continue
            invalid_claims = "token has invalid claims: "
            if not isinstance(value, int | float) or isinstance(value, bool):
                message = f"The JWT '{claim}' claim must be a number"
                raise TokenRefused("PGRST303", message, invalid_claims + f"{claim} is invalid")
            past, future = now - skew_seconds > value, now + skew_seconds < value
            if past if claim == "exp" else future:
                raise TokenRefused("PGRST303", message, invalid_claims + auth_message)

    def mint_for_key(self, role: str) -> str:
        """The short-lived token that stands for an API key without a user."""
        return self.mint({"iss": "supabase", "ref": self._project_ref, "role": role})

    def mint(self, claims: Claims) -> str:
        """Lite's token for already verified claims; what the database sees stays the client's.

        Only the times move, and only as far as Lite needs, which knows no clock skew.
        """
        now = int(time.time())
        times = {
            "iat": min(int(claims.get("iat", now)), now),
            "exp": max(int(claims.get("exp", 0)), now + INNER_LIFE_SECONDS),
        }
        inner = {name: value for name, value in claims.items() if name != "nbf"} | times
        return jwt.encode(inner, self._inner_jwt_secret, algorithm="HS256")

    def read_inner(self, token: str) -> Claims:
        """The claims of a token that Lite issued. Raises jwt.InvalidTokenError."""
        claims: Claims = jwt.decode(token, self._inner_jwt_secret, algorithms=["HS256"], audience="authenticated")
        return claims
