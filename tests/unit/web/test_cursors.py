"""Cursors: what was given out is understood, and all garbage is one refusal."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.kit.errors import CursorInvalid
from functions.web.cursors import MAX_CHARACTERS, decode_cursor, encode_cursor


# Whatever the database can have as text.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80), st.integers(-(2**63), 2**63 - 1))
def test_what_was_given_out_is_understood(text: str, number: int) -> None:
    cursor = encode_cursor("list", text, number, None)
    assert cursor.isascii()
    assert cursor.replace("-", "").replace("_", "").isalnum()
    if len(cursor) <= MAX_CHARACTERS:
        assert decode_cursor(cursor, "list", str, int, (str, type(None))) == (text, number, None)


@given(st.one_of(st.text(max_size=600), st.binary(max_size=300).map(lambda b: base64.urlsafe_b64encode(b).decode())))
def test_all_garbage_is_one_refusal(garbage: str) -> None:
    with pytest.raises(CursorInvalid):
        decode_cursor(garbage, "list", str, int)


@pytest.mark.parametrize(
    "content",
    [
        [], {}, "list", None, ["list"], ["list", "a"], ["list", "a", 1, 2], ["another", "a", 1], ["list", 1, "a"],
        ["list", "a", True], ["list", "a", 1.5], ["list", "a", None], ["list", ["a"], 1], [["list"], "a", 1],
        ["list", "\ud800", 1], ["list", "a\0", 1],
    ],
)  # fmt: skip
def test_another_content_is_none_of_ours(content: object) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    with pytest.raises(CursorInvalid):
        decode_cursor(cursor, "list", str, int)


def test_the_longest_name_of_anything_has_room() -> None:
    name = "\N{SNAKE}" * 300
    assert decode_cursor(encode_cursor("list", "2026-11-20", name), "list", str, str) == ("2026-11-20", name)


def test_a_cursor_of_any_length_is_looked_at_no_further() -> None:
    with pytest.raises(CursorInvalid):
        decode_cursor("[" * 1_000_000, "list", str)
    deep = base64.urlsafe_b64encode(b"[" * 300).decode()
    with pytest.raises(CursorInvalid):
        decode_cursor(deep, "list", str)
