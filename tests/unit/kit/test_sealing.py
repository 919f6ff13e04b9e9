"""Sealed secrets open for their own row only, and garbage is one refusal."""

from __future__ import annotations

import os
import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.kit.sealing import SealBroken, Sealer, SealingKey

USER = uuid.UUID(int=1)
HASH = "ab" * 32
FIRST = SealingKey("k1", os.urandom(32))
SECOND = SealingKey("k2", os.urandom(32))
SEALER = Sealer((FIRST,))
SECRET = "sk-or-v1-" + "0" * 64

hashes = st.text(alphabet="0123456789abcdef", min_size=64, max_size=64)


@given(secret=st.text(), user_id=st.uuids(), key_hash=hashes)
def test_what_is_sealed_opens_again(secret: str, user_id: uuid.UUID, key_hash: str) -> None:
    sealed = SEALER.seal(secret, user_id=user_id, key_hash=key_hash)
    assert SEALER.open(sealed, user_id=user_id, key_hash=key_hash) == secret


@given(user_id=st.uuids().filter(lambda other: other != USER))
def test_a_secret_moved_to_another_user_does_not_open(user_id: uuid.UUID) -> None:
    sealed = SEALER.seal(SECRET, user_id=USER, key_hash=HASH)
    with pytest.raises(SealBroken):
        SEALER.open(sealed, user_id=user_id, key_hash=HASH)


@given(key_hash=hashes.filter(lambda other: other != HASH))
def test_a_secret_moved_to_another_key_does_not_open(key_hash: str) -> None:
    sealed = SEALER.seal(SECRET, user_id=USER, key_hash=HASH)
    with pytest.raises(SealBroken):
        SEALER.open(sealed, user_id=USER, key_hash=key_hash)


def test_no_character_can_be_altered() -> None:
    for length in range(4):  # the last character has spare bits, depending on the length
        sealed = SEALER.seal("secret" + "s" * length, user_id=USER, key_hash=HASH)
        for place, was in enumerate(sealed):
            for other in string.ascii_letters + string.digits + "-_.=!":
                if other != was:
                    with pytest.raises(SealBroken):
                        SEALER.open(sealed[:place] + other + sealed[place + 1 :], user_id=USER, key_hash=HASH)


@given(place=st.integers(0, 200), stain=st.text(min_size=1, max_size=3))
def test_nothing_can_be_put_in(place: int, stain: str) -> None:
    sealed = SEALER.seal(SECRET, user_id=USER, key_hash=HASH)
    with pytest.raises(SealBroken):
        SEALER.open(sealed[:place] + stain + sealed[place:], user_id=USER, key_hash=HASH)


@given(end=st.integers(0, 120))
def test_nothing_can_be_cut_off(end: int) -> None:
    sealed = SEALER.seal(SECRET, user_id=USER, key_hash=HASH)
    assert end < len(sealed)
    with pytest.raises(SealBroken):
        SEALER.open(sealed[:end], user_id=USER, key_hash=HASH)


@given(
    garbage=st.one_of(
        st.text(st.characters()),
        st.text(alphabet="v1.k-_=AZaz09+/"),
        st.binary().map(lambda raw: "v1.k1." + raw.hex()),
        st.text().map(lambda text: f"v1.k1.{text}"),
    )
)
def test_garbage_only_ever_raises_seal_broken(garbage: str) -> None:
    with pytest.raises(SealBroken):
        SEALER.open(garbage, user_id=USER, key_hash=HASH)


def test_while_rotating_both_keys_open_and_the_first_seals() -> None:
    old = Sealer((FIRST,)).seal(SECRET, user_id=USER, key_hash=HASH)
    rotating = Sealer((SECOND, FIRST))
    assert rotating.open(old, user_id=USER, key_hash=HASH) == SECRET
    new = rotating.seal(SECRET, user_id=USER, key_hash=HASH)
    assert new.startswith("v1.k2.")
    assert Sealer((SECOND,)).open(new, user_id=USER, key_hash=HASH) == SECRET


def test_a_key_that_was_taken_away_opens_nothing() -> None:
    sealed = Sealer((SECOND,)).seal(SECRET, user_id=USER, key_hash=HASH)
    with pytest.raises(SealBroken, match="not configured"):
        SEALER.open(sealed, user_id=USER, key_hash=HASH)


def test_another_key_under_the_same_id_opens_nothing() -> None:
    sealed = SEALER.seal(SECRET, user_id=USER, key_hash=HASH)
    with pytest.raises(SealBroken):
        Sealer((SealingKey("k1", os.urandom(32)),)).open(sealed, user_id=USER, key_hash=HASH)


def test_sealing_twice_never_gives_the_same_words() -> None:
    assert len({SEALER.seal(SECRET, user_id=USER, key_hash=HASH) for _ in range(100)}) == 100


def test_neither_the_seal_nor_its_refusal_shows_the_secret() -> None:
    sealed = SEALER.seal(SECRET, user_id=USER, key_hash=HASH)
    assert SECRET not in sealed
    with pytest.raises(SealBroken) as caught:
        SEALER.open(sealed, user_id=uuid.UUID(int=2), key_hash=HASH)
    assert sealed[10:] not in str(caught.value)
    assert caught.value.__suppress_context__
    assert FIRST.key.hex() not in repr(FIRST)
    assert repr(FIRST.key) not in repr(FIRST)
