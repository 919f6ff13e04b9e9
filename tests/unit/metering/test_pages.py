"""A round of the usage sync reads every key that is there all the time, however the list shifts, and it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.metering.pages import PAGE_KEYS, Cursor, is_near_midnight, next_cursor

MAX_PAGES = 200


def read_round(
    keys: list[str], shifts: list[tuple[int, int]], parts: tuple[int, ...] = (PAGE_KEYS,)
) -> tuple[set[str], int]:
    """The keys that a round has read, and in how many pages; before each page keys are made and deleted.

    Of two pages in a row only one is met by deletions: a round that is bounded can't outrun a list that always shrinks.
    """
    cursor: Cursor | None = Cursor()
    seen: set[str] = set()
    live = list(keys)
    for number in range(MAX_PAGES):
        made, deleted = shifts[number // 2] if number % 2 and number // 2 < len(shifts) else (0, 0)
        live = [f"new-{number}-{n}" for n in range(made)] + live
        # Among those in front, whose place the others take.
        doomed = [key for key in live if key.startswith("doomed")][:deleted]
        live = [key for key in live if key not in doomed]
        assert cursor is not None
        page = live[cursor.offset : cursor.offset + PAGE_KEYS]
        recorded = min(len(page), parts[number % len(parts)])
        seen |= set(page[:recorded])
        cursor = next_cursor(cursor, page, recorded)
        if cursor is None:
            return seen, number + 1
    pytest.fail("the round does not end")


@given(st.integers(0, 450), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8))
def test_a_round_reads_every_key_that_is_there_all_the_time(count: int, shifts: list[tuple[int, int]]) -> None:
    keys = [f"{'doomed' if number % 3 == 0 else 'key'}-{number}" for number in range(count)]
    seen, _ = read_round(keys, shifts)
    assert seen >= {key for key in keys if key.startswith("key")}


@pytest.mark.parametrize("parts", [(50,), (100, 12), (2, 100)])
def test_pages_that_are_recorded_in_part_leave_no_key_out(parts: tuple[int, ...]) -> None:
    keys = [f"key-{number}" for number in range(450)]
    seen, _ = read_round(keys, [(7, 0)], parts)
    assert seen >= set(keys)


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (99, 1), (100, 2), (198, 2), (199, 3), (1_000, 11)])
def test_a_list_that_keeps_still_is_read_once(count: int, pages: int) -> None:
    assert read_round([f"key-{number}" for number in range(count)], [])[1] == pages


def test_nothing_is_read_around_midnight() -> None:
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    assert [is_near_midnight(midnight + timedelta(seconds=s)) for s in (-121, -119, 0, 119, 121)] == [
        False, True, True, True, False,
    ]  # fmt: skip
