"""What the usage sync found odd is so until it is seen to be right; whose clock goes ahead makes nothing odd."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.database.test_usage import Play, Sync
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, key_hash

STRANGER = key_hash("somebody else's")


@pytest.fixture
async def play(database: Database) -> Play:
    """A user whose key is ready, and was before the first round."""
    doors = Doors(database)
    user_id = await database.insert_user()
    claim = await doors.make_ready(user_id)
    await database.run("update public.openrouter_user_keys set created_at = now() - interval '1 day'")
    return Play(Credits(database), doors, Sync(database), user_id, key_hash(f"{user_id}-{claim['attempt']}"))


async def a_day_passes(play: Play) -> None:
    """For what was read, and found."""
    for change in (
        "doorkey.key_usage set read_at = read_at - interval '25 hours', looked_at = looked_at - interval '25 hours'",
        "doorkey.usage_findings set first_seen_at = first_seen_at - interval '25 hours',"
        " last_seen_at = last_seen_at - interval '25 hours'",
    ):
        await play.database.run(f"update {change}")


async def leave(play: Play) -> None:
    """The user goes, and their key with them, yesterday."""
    await play.database.run("delete from auth.users where id = %s", (play.user_id,))
    assert await play.doors.finish_key_deletion(await play.doors.claimed(play.user_id)) == "gone"
    await play.database.run("update public.openrouter_user_keys set deleted_at = deleted_at - interval '1 day'")
    await play.database.run("update doorkey.key_usage set last_word_due_at = last_word_due_at - interval '2 days'")


async def change(play: Play, usage: int) -> None:
    """A change of the key is answered with this figure."""
    await play.doors.wish(play.user_id)
    await play.doors.finish_key_update(await play.doors.claimed(play.user_id), usage_micros=usage)


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(seconds=1), timedelta(minutes=5)])
async def test_a_clock_that_is_ahead_makes_nothing_go_back(play: Play, ahead: timedelta) -> None:
    await play.sync.read({play.key: 100})
    read_at = datetime.now(UTC)
    # After the page was read and before it is recorded.
    await change(play, 140)
    await play.sync.read({play.key: 100}, at=read_at + ahead - timedelta(milliseconds=1))
    assert await play.sync.findings(play.key) == {}
    assert (await play.sync.figures(play.key))["reported_micros"] == 140
    # What is so is said by the next round.
    await play.sync.an_hour_passes()
    await play.sync.read({play.key: 100})
    assert await play.sync.findings(play.key) == {"went_back": 40}


async def test_usage_that_went_back_is_odd_until_it_is_back_where_it_was(play: Play) -> None:
    for usage, odd in ((300, {}), (250, {"went_back": 50}), (280, {"went_back": 20}), (300, {}), (310, {})):
        await play.sync.read({play.key: usage})
        assert await play.sync.findings(play.key) == odd
        await play.sync.an_hour_passes()
    await play.sync.read({play.key: 250})
    await play.sync.an_hour_passes()
    # This one was read before, and came late.
    await play.sync.read({play.key: 310}, at=datetime.now(UTC) - timedelta(hours=2))
    assert await play.sync.findings(play.key) == {"went_back": 60}


async def test_byok_usage_is_odd_until_a_day_passed_without_any(play: Play) -> None:
    await play.sync.read({play.key: 0}, byok={play.key: 9})
    await play.sync.an_hour_passes()
    await play.sync.read({play.key: 0}, byok={play.key: 9})
    assert await play.sync.findings(play.key) == {"byok": 9}
    await a_day_passes(play)
    await play.sync.read({play.key: 0}, byok={play.key: 10})
    assert await play.sync.findings(play.key) == {"byok": 10}
    await a_day_passes(play)
    await play.sync.read({play.key: 0}, byok={play.key: 10})
    assert await play.sync.findings(play.key) == {}


@pytest.mark.parametrize(("figure", "kind"), [(70, "foreign"), (-1, "absurd")])
async def test_a_stranger_is_odd_until_a_whole_round_did_not_meet_them(play: Play, figure: int, kind: str) -> None:
    await play.sync.read({play.key: 0, STRANGER: figure})
    await play.sync.read({play.key: 0, STRANGER: figure})
    assert await play.sync.findings(STRANGER) == {kind: figure}
    await play.database.run("update doorkey.usage_sync set started_at = null")
    (begun,) = await play.sync._rows("select * from public.begin_usage_sync(3600)")
    await play.sync.page(begun["round"], {play.key: 0}, after=99)
    assert await play.sync.findings(STRANGER) == {kind: figure}
    await play.sync.page(begun["round"], {}, read_offset=99)
    assert await play.sync.findings(STRANGER) == {}
    # They may come again.
    await play.sync.read({play.key: 0, STRANGER: figure})
    assert await play.sync.findings(STRANGER) == {kind: figure}


async def test_a_key_that_a_whole_round_did_not_meet_is_named_until_it_is_seen(play: Play) -> None:
    await play.sync.read({STRANGER: 0})
    assert await play.sync.findings(play.key) == {"missing": 0}
    # And OpenRouter is asked for it by name.
    assert await play.doors.state(play.user_id) == "due"
    await play.sync.read({play.key: 0})
    assert await play.sync.findings(play.key) == {}


async def test_a_key_that_was_seen_before_it_was_known_is_no_stranger_any_more(play: Play) -> None:
    user_id = await play.database.insert_user()
    claim = await play.doors.claimed(user_id)
    key = key_hash(f"{user_id}-{claim['attempt']}")
    await play.sync.read({key: 5})
    assert await play.sync.findings(key) == {"foreign": 5}
    await play.doors.finish(claim)
    await play.sync.read({key: 5})
    assert await play.sync.findings(key) == {}


async def test_a_key_that_should_be_gone_is_odd_until_it_is(play: Play) -> None:
    await play.sync.read({play.key: 5})
    await leave(play)
    for _ in range(2):
        await play.sync.an_hour_passes()
        await play.sync.read({play.key: 5})
        assert await play.sync.findings(play.key) == {"not_deleted": 5}
    await play.sync.read({STRANGER: 0})
    assert await play.sync.findings(play.key) == {}


async def test_what_was_odd_about_a_key_ends_with_its_last_word(play: Play) -> None:
    await play.sync.read({play.key: 300}, byok={play.key: 9})
    await play.sync.an_hour_passes()
    await play.sync.read({play.key: 250}, byok={play.key: 9})
    await play.sync.read({STRANGER: 0})
    odd = {"byok": 9, "went_back": 50, "missing": 0}
    assert await play.sync.findings(play.key) == odd
    await leave(play)
    await play.sync.read({STRANGER: 0})
    assert await play.sync.findings(play.key) == odd
    await play.sync._rows("select public.record_last_word(%s, '2020-01-01', 0, 'r')", play.key)
    await play.sync.read({STRANGER: 0})
    assert await play.sync.findings(play.key) == {}
