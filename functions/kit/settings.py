"""What the functions were told. The only place that reads the environment.

All problems are reported together, by the names that people set, and no value is ever repeated: a mistyped secret
is still a secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from functions.kit.sealing import SealingKey

WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105  the scheme's name, not a secret
MIN_WEBHOOK_SECRET_BYTES = 24
WEBHOOK_SECRET_BYTES = 32
MIN_SHARED_SECRET_CHARACTERS = 16


class SettingsInvalid(Exception):
    """The settings can't be used. The message lists every problem, one a line.

    Attributes:
        problems: the same as a list of ``NAME: what is wrong``.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("The settings can't be used:\n" + "\n".join(f"- {p}" for p in problems))
        self.problems = problems


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def base_url(value: object) -> str:
    """An address without the slash at its end.

    Raises:
        ValueError: saying what is wrong without repeating it.
    """
    text = str(value).strip()
    try:
        parts = urlsplit(text)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its message repeats the address
        is_usable = False
    if not is_usable or re.search(r"[\s?#@\\]", text):
        raise ValueError("must be an http or https address without a user, a password or a query")
    return text.rstrip("/")


CommaSeparated = BeforeValidator(_split)
BaseUrl = Annotated[str, BeforeValidator(base_url)]


class Settings(BaseModel):
    """One frozen object, built once. Each field is set by the environment variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True, hide_input_in_errors=True)

    supabase_url: BaseUrl = Field(description="Address of the Supabase project.")
    supabase_publishable_key: SecretStr = Field(
        min_length=20, description="sb_publishable_... (or the legacy anon key)."
    )
    supabase_secret_key: SecretStr = Field(min_length=20, description="sb_secret_... (or the legacy service_role key).")
    supabase_jwt_secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Only for projects that still sign access tokens with HS256: the JWT secret.",
    )
    openrouter_management_key: SecretStr = Field(min_length=8, description="Management key of the OpenRouter account.")
    openrouter_base_url: BaseUrl = Field(
        default="https://openrouter.ai/api/v1",
        description="Address of OpenRouter, or of the simulator.",
    )
    openrouter_workspace_id: UUID | None = Field(
        default=None, description="Workspace in which keys are made; the default one if not set."
    )
    doorkey_project: str = Field(
        pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$",
        max_length=40,
        description="Short name of this installation; part of every key's name at OpenRouter.",
    )
    doorkey_sealing_keys: Annotated[tuple[SecretStr, ...], CommaSeparated] = Field(
        min_length=1,
        max_length=2,
        description="Keys that seal users' secrets, <id>:<base64 of 32 bytes>, the current one first, "
        "separated by a comma.",
    )
    doorkey_webhook_secrets: Annotated[tuple[SecretStr, ...], CommaSeparated] = Field(
        default=(),
        max_length=2,
        description="whsec_... secrets that sign the database's hints, the current one first, separated by a comma. "
        "None: signed hints are refused.",
    )
    doorkey_webhook_shared_secret: SecretStr | None = Field(
        default=None,
        description="For a Database Webhook made in the Supabase dashboard: the value of its X-Webhook-Secret header. "
        "None: such webhooks are refused.",
    )
    doorkey_allowed_origins: Annotated[tuple[str, ...], CommaSeparated] = Field(
        default=(), description="Origins of browser pages that may call, separated by commas."
    )
    doorkey_operator_token_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 in hex of the token that opens /health/ready. None: nobody can open it.",
    )
    doorkey_lease_seconds: int = Field(
        default=120,
        ge=1,
        le=3600,
        description="How long one attempt holds a user's row; longer than any function's time-out.",
    )
    doorkey_forwards_caller_address: bool = Field(
        default=False,
        description="Whether signups are passed on with the secret key, so that Auth's rate limits count each caller's "
        "own address. Auth asks holders of that key for no CAPTCHA: leave it off where CAPTCHA is on.",
    )
    doorkey_sweep_budget_seconds: float = Field(
        default=58.0,
        gt=0,
        le=800,
        description="How long a sweep begins new work; less than its function's time-out by more than one attempt.",
    )
    doorkey_stray_age_seconds: int = Field(
        default=900,
        ge=60,
        description="How old a key must be before it may count as a stray; longer than DOORKEY_LEASE_SECONDS.",
    )
    doorkey_strays: Literal["delete", "report"] = Field(
        default="delete",
        description="Whether the sweep deletes strays, or only counts them; `doorkey strays` shows them.",
    )
    doorkey_outside_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="How long to wait for one answer of Supabase or OpenRouter.",
    )
    doorkey_secret_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9/_+=.@:-]{1,2048}$",
        description="Name or ARN of the secret in AWS Secrets Manager that Supabase's keys are read from again when "
        "one is rejected. None: the environment's stay.",
    )
    doorkey_metrics_stage: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="Set on Lambda: log lines carry metrics for CloudWatch, of this stage. None: no metrics.",
    )

    @field_validator(
        "supabase_secret_key",
        "supabase_publishable_key",
        "supabase_jwt_secret",
        "openrouter_management_key",
        "doorkey_webhook_shared_secret",
    )
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        # What else there is can't be sent in a header.
        if value is not None and re.search(r"[^!-~]", value.get_secret_value()):
            raise ValueError("must be one word of ASCII; is there a space or a line end in it?")
        return value

    @field_validator("doorkey_sealing_keys")
    @classmethod
    def _sealing_keys_parse(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        keys = [SealingKey.parse(key.get_secret_value()) for key in value]
        if len({key.key_id for key in keys}) != len(keys):
            raise ValueError("two sealing keys have the same id")
        return value

    @field_validator("doorkey_webhook_secrets")
    @classmethod
    def _webhook_secrets_parse(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            decode_webhook_secret(secret.get_secret_value())
        return value

    @field_validator("doorkey_webhook_shared_secret")
    @classmethod
    def _shared_secret_is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None  # an empty secret would be matched by an empty header
        if len(value.get_secret_value()) < MIN_SHARED_SECRET_CHARACTERS:
            raise ValueError(f"must have at least {MIN_SHARED_SECRET_CHARACTERS} characters")
        return value

    @field_validator("doorkey_stray_age_seconds")
    @classmethod
    def _longer_than_a_lease(cls, value: int, info: ValidationInfo) -> int:
        if value <= info.data.get("doorkey_lease_seconds", 0):
            raise ValueError(
                "must be more than DOORKEY_LEASE_SECONDS, or a key about to be registered counts as a stray"
            )
        return value

    # Field by field: a check of the whole would wait until every other problem is gone.
    @field_validator("supabase_secret_key")
    @classmethod
    def _not_publishable(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().startswith("sb_publishable_") or _legacy_role(value) == "anon":
            raise ValueError("holds a publishable key")
        return value

    @field_validator("supabase_publishable_key")
    @classmethod
    def _not_secret(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().startswith("sb_secret_") or _legacy_role(value) == "service_role":
            raise ValueError("holds a secret key; browsers would see it")
        return value

    @property
    def sealing_keys(self) -> tuple[SealingKey, ...]:
        """The sealing keys, the current one first."""
        return tuple(SealingKey.parse(key.get_secret_value()) for key in self.doorkey_sealing_keys)

    @property
    def webhook_secrets(self) -> tuple[bytes, ...]:
        """The signing secrets as bytes, the current one first."""
        return tuple(decode_webhook_secret(s.get_secret_value()) for s in self.doorkey_webhook_secrets)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Reads the process's environment, or the one given.

        A variable that is set to nothing counts as not set.

        Raises:
            SettingsInvalid: with every problem.
        """
        source = os.environ if environment is None else environment
        values: dict[str, Any] = {
            name: source[name.upper()] for name in cls.model_fields if source.get(name.upper(), "").strip()
        }
        return cls._checked(values)

    def with_changes(self, changes: Mapping[str, str]) -> Settings:
        """These settings with some variables set anew, checked like all.

        Raises:
            SettingsInvalid: with every problem.
        """
        return self._checked({**dict(self), **{name.lower(): value for name, value in changes.items()}})

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> Settings:
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [
                f"{str(problem['loc'][0]).upper()}: {_sentence(problem['type'], problem['msg'])}"
                for problem in error.errors(include_url=False, include_input=False, include_context=False)
            ]
            raise SettingsInvalid(problems) from None


def variable_names() -> tuple[str, ...]:
    """The environment variables that the functions read."""
    return tuple(name.upper() for name in Settings.model_fields)


def secret_variable_names() -> tuple[str, ...]:
    """Those of them that are nobody else's business: what belongs into a vault."""
    return tuple(name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation))


def generate_webhook_secret() -> str:
    """A new secret that signs the database's hints."""
    return WEBHOOK_SECRET_PREFIX + base64.b64encode(secrets.token_bytes(WEBHOOK_SECRET_BYTES)).decode()


def decode_webhook_secret(text: str) -> bytes:
    """The key of a Standard Webhooks secret, ``whsec_`` and base64.

    Raises:
        ValueError: saying what is wrong without repeating it.
    """
    if not text.startswith(WEBHOOK_SECRET_PREFIX):
        raise ValueError("a webhook secret starts with whsec_")
    try:
        key = base64.b64decode(text.removeprefix(WEBHOOK_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret is whsec_ and base64") from None
    if len(key) < MIN_WEBHOOK_SECRET_BYTES:
        raise ValueError(f"a webhook secret has at least {MIN_WEBHOOK_SECRET_BYTES} bytes")
    return key


def _legacy_role(key: SecretStr) -> object:
    """The role of a legacy key, which is a JWT. Not verified: it only serves to notice a mix-up."""
    try:
        payload = key.get_secret_value().split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return None
    return claims.get("role") if isinstance(claims, dict) else None


def _sentence(kind: str, message: str) -> str:
    return "is not set" if kind == "missing" else message.removeprefix("Value error, ")
