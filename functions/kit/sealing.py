"""Seals the secrets of users' keys, so that the database holds only ciphertext.

AES-256-GCM, bound to the user and the key's hash: a ciphertext moved to another row does not open. The sealing keys
live in the functions' settings and never reach the database. The first seals; all of them open, which is what makes
rotating possible.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = "v1"
KEY_BYTES = 32
NONCE_BYTES = 12
_MADE_KEY_ID = re.compile(r"k([0-9]{14})[0-9a-f]{6}")
_KEY_ID = re.compile(r"[a-z0-9]{1,32}")


class SealBroken(Exception):
    """A sealed secret does not open: another row's, altered, or sealed by a key that is not configured."""


@dataclass(frozen=True, repr=False)
class SealingKey:
    """A key with the name that sealed secrets carry."""

    key_id: str
    key: bytes

    @classmethod
    def parse(cls, text: str) -> SealingKey:
        """Reads ``<id>:<base64 of 32 bytes>``; the id is lower-case letters and digits.

        Raises:
            ValueError: saying what is wrong without repeating the key.
        """
        key_id, colon, encoded = text.strip().partition(":")
        if not colon or not _KEY_ID.fullmatch(key_id):
            raise ValueError("a sealing key reads <id>:<base64>, the id in lower-case letters and digits")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise ValueError(f"sealing key {key_id} is not base64") from None
        if len(key) != KEY_BYTES:
            raise ValueError(f"sealing key {key_id} has {len(key)} bytes, not {KEY_BYTES}")
        return cls(key_id, key)

    @classmethod
    def generate(cls, now_seconds: float) -> SealingKey:
        """A new key. Its id says when it was made, so that of two keys one is the newer, and is nobody else's."""
        made_at = datetime.fromtimestamp(now_seconds, UTC)
        return cls(f"k{made_at:%Y%m%d%H%M%S}{secrets.token_hex(3)}", os.urandom(KEY_BYTES))

    @property
    def text(self) -> str:
        """As the settings have it; the key itself, to be shown to nobody."""
        return f"{self.key_id}:{base64.b64encode(self.key).decode()}"

    def is_newer_than(self, other: SealingKey) -> bool:
        """Whether it was made later, by the ids. A key whose id doesn't say when is older than one whose does."""
        mine, theirs = _MADE_KEY_ID.fullmatch(self.key_id), _MADE_KEY_ID.fullmatch(other.key_id)
        return mine is not None and (theirs is None or mine[1] > theirs[1])


class Sealer:
    """Seals with the first key and opens with any of them."""

    def __init__(self, keys: tuple[SealingKey, ...]) -> None:
        self._current = keys[0]
        self._ciphers = {key.key_id: AESGCM(key.key) for key in keys}

    def seal(self, secret: str, *, user_id: UUID, key_hash: str) -> str:
        """The sealed secret: ``v1.<key id>.<base64url of nonce and ciphertext>``."""
        nonce = os.urandom(NONCE_BYTES)
        key_id = self._current.key_id
        ciphertext = self._ciphers[key_id].encrypt(nonce, secret.encode(), _bound_to(key_id, user_id, key_hash))
        return f"{VERSION}.{key_id}.{_encoded(nonce + ciphertext)}"

    def open(self, sealed: str, *, user_id: UUID, key_hash: str) -> str:
        """The secret again.

        Raises:
            SealBroken: it does not belong here, or no configured key opens it.
        """
        try:
            version, key_id, body = sealed.split(".")
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except ValueError:
            raise SealBroken("not a sealed secret") from None
        # base64 can be written in many ways that mean the same; one is ours.
        if _encoded(raw) != body:
            raise SealBroken("not a sealed secret")
        cipher = self._ciphers.get(key_id)
        if version != VERSION or cipher is None:
            raise SealBroken(f"sealed by {version}.{key_id}, which is not configured")
        try:
            opened = cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], _bound_to(key_id, user_id, key_hash))
        except (InvalidTag, ValueError):
            raise SealBroken("altered, or another row's") from None
        return opened.decode()


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bound_to(key_id: str, user_id: UUID, key_hash: str) -> bytes:
    return f"{VERSION}|{key_id}|{user_id}|{key_hash}".encode()
