"""How numbers of things are said."""

from __future__ import annotations

import pytest

from functions.kit.counting import counted


@pytest.mark.parametrize(("count", "said"), [(0, "0 keys"), (1, "1 key"), (2, "2 keys"), (12_345, "12,345 keys")])
def test_one_is_one_and_none_is_several(count: int, said: str) -> None:
    assert counted(count, "key") == said


def test_a_verb_goes_along() -> None:
    assert [counted(count, "user is", "users are") for count in (1, 3)] == ["1 user is", "3 users are"]
