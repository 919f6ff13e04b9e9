"""What the edge is told when it starts.

Secrets come through environment variables and never through flags, because flags are visible in
`ps`; their fields are left out of `repr` so that a logged configuration shows none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.local.edge.keys import PUBLISHABLE_KEY, SECRET_KEY

JWT_EXPIRY_SECONDS = 3600
MIN_HS256_SECRET_BYTES = 32


class BadConfiguration(Exception):
    """The edge cannot start; the message is one plain sentence that names what is wrong."""


@dataclass(frozen=True)
class EdgeConfig:
    """Addresses and secrets of one edge.

    `rest_url` and `auth_url` are the two Lites, `public_url` is what clients call and what the
    issuer claim of user tokens starts with. `database_url` should be a superuser's: password
    hashing needs pgcrypto in `extensions`, which hosted does not open to supabase_auth_admin.
    """

    rest_url: str
    auth_url: str
    public_url: str
    publishable_key: str = field(repr=False)
    secret_keys: tuple[str, ...] = field(repr=False)
    upstream_publishable_key: str = field(repr=False)
    upstream_secret_key: str = field(repr=False)
    upstream_jwt_secret: str = field(repr=False)
    signing_key_pem: str = field(repr=False)
    legacy_jwt_secret: str = field(repr=False)
    database_url: str = field(repr=False)
    project_ref: str = "local"
    jwt_expiry_seconds: int = JWT_EXPIRY_SECONDS
    anonymous_sign_ins: bool = True


def read_config(environment: Mapping[str, str], *, rest_url: str, auth_url: str, public_url: str) -> EdgeConfig:
    """Builds the configuration, reporting every missing or unfit variable together.

    Raises BadConfiguration; its message names variables and never repeats a value.
    """
    problems: list[str] = []

    def required(name: str) -> str:
        value = environment.get(name, "").strip()
        if not value:
            problems.append(f"{name} is missing")
        return value

    publishable_key = required("EDGE_PUBLISHABLE_KEY")
    secret_keys = tuple(k.strip() for k in required("EDGE_SECRET_KEYS").split(",") if k.strip())
    config = EdgeConfig(
        rest_url=rest_url.rstrip("/"),
        auth_url=auth_url.rstrip("/"),
        public_url=public_url.rstrip("/"),
        publishable_key=publishable_key,
        secret_keys=secret_keys,
        upstream_publishable_key=required("EDGE_UPSTREAM_PUBLISHABLE_KEY"),
        upstream_secret_key=required("EDGE_UPSTREAM_SECRET_KEY"),
        upstream_jwt_secret=required("EDGE_UPSTREAM_JWT_SECRET"),
        signing_key_pem=required("EDGE_SIGNING_KEY"),
        legacy_jwt_secret=required("EDGE_LEGACY_JWT_SECRET"),
        database_url=required("EDGE_DATABASE_URL"),
    )
    if publishable_key and not PUBLISHABLE_KEY.fullmatch(publishable_key):
        problems.append("EDGE_PUBLISHABLE_KEY must look like sb_publishable_...")
    if any(not SECRET_KEY.fullmatch(key) for key in secret_keys):
        problems.append("every key in EDGE_SECRET_KEYS must look like sb_secret_...")
    problems.extend(
        f"{name} must have at least {MIN_HS256_SECRET_BYTES} characters"
        for name in ("EDGE_UPSTREAM_JWT_SECRET", "EDGE_LEGACY_JWT_SECRET")
        if 0 < len(environment.get(name, "").strip()) < MIN_HS256_SECRET_BYTES
    )
    if problems:
        raise BadConfiguration("The edge cannot start: " + "; ".join(problems) + ".")
    return config
