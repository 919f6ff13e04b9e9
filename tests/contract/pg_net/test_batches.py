"""When requests leave: transactions, wakes, batches, and who waits for whom (supabase.md 1.1, 1.2).

The surprising thing: few clocks here. Rows of one batch share their ``created``, so batches can be
counted, and who waited for whom is read from the order in which things happened at the sink.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import groupby
from typing import Any

from tests.contract.pg_net.net import Net
from tests.contract.pg_net.sink import Sink

# The rest after a batch, twice (the second batch finds nothing), and some room for a busy machine.
IDLE_AFTER_SECONDS = 2.2
# A worker that polls would do it at least once in this time.
UNWOKEN_SECONDS = 1.2
REST = timedelta(seconds=0.95)


async def get(net: Net, url: str, *, timeout_milliseconds: int = 5000) -> int:
    return int(await net.value("select net.http_get(%s, '{}', '{}', %s)", url, timeout_milliseconds))


async def created(net: Net, request: int) -> Any:
    return (await net.responses(request))[request]["created"]


async def test_rolled_back_transactions_and_savepoints_send_nothing(net: Net, sink: Sink) -> None:
    async with await net.connect(autocommit=False) as caller:
        await caller.execute("select net.http_get(%s)", (sink.url("ok/undone"),))
        await caller.rollback()
        await caller.execute("savepoint before")
        await caller.execute("select net.http_get(%s)", (sink.url("ok/undone"),))
        await caller.execute("rollback to savepoint before")
        await caller.execute("select net.http_get(%s)", (sink.url("ok/done"),))
        await caller.commit()
    await sink.arrival("done")
    # The undone ones had the smaller ids: they would have left in the same batch or before it.
    await net.responses(await get(net, sink.url("ok/after")))
    assert (len(sink.of("undone")), len(sink.of("done")), await net.queued()) == (0, 1, 0)


async def test_nothing_is_sent_before_its_transaction_commits(net: Net, sink: Sink) -> None:
    async with await net.connect(autocommit=False) as caller:
        await caller.execute("select net.http_get(%s)", (sink.url("ok/committed"),))
        await net.responses(await get(net, sink.url("ok/meanwhile")))
        assert not sink.of("committed")
        await caller.commit()
    await sink.arrival("committed")


async def test_an_idle_worker_is_woken_by_commits_and_by_wake_but_not_by_an_insert(net: Net, sink: Sink) -> None:
    await asyncio.sleep(IDLE_AFTER_SECONDS)  # nothing but time makes the worker idle
    by_hand = await net.value(
        "insert into net.http_request_queue (method, url, timeout_milliseconds) values ('GET', %s, 1000) returning id",
        sink.url("ok/by-hand"),
    )
    await asyncio.sleep(UNWOKEN_SECONDS)  # the time in which nothing must happen
    assert not sink.of("by-hand")
    loop = asyncio.get_running_loop()
    before = loop.time()
    await net.rows("select net.wake()")
    arrival = await sink.arrival("by-hand")
    assert arrival.second - before < 0.5  # about 10 ms, but the machine may be busy

    # The first wake cuts the rest after a batch short; the next ones wait for its end.
    second = await get(net, sink.url("ok/second"))
    await sink.arrival("second")
    third = await get(net, sink.url("ok/third"))
    assert await created(net, second) - await created(net, by_hand) < REST
    assert await created(net, third) - await created(net, second) > REST


async def test_a_batch_holds_two_hundred_requests_in_order_and_rests_a_second(net: Net, sink: Sink) -> None:
    ids = await net.value(
        "select array_agg(net.http_get(%s) order by n) from generate_series(1, 201) n",
        sink.url("ok/many"),
    )
    responses = await net.responses(*ids)
    in_order = [responses[request]["created"] for request in ids]
    batches = [(moment, len(list(rows))) for moment, rows in groupby(in_order)]
    assert [size for _, size in batches] == [200, 1]
    assert batches[1][0] - batches[0][0] > REST
    assert len(sink.of("many")) == 201


async def test_requests_of_one_batch_travel_together(net: Net, sink: Sink) -> None:
    ids = await net.rows(
        "select net.http_get(url) as id from unnest(%s::text[]) url",
        [sink.url(f"hold/together-{n}") for n in range(50)],
    )
    for n in range(50):
        await sink.arrival(f"together-{n}")  # all of them before the first has its answer
    for n in range(50):
        sink.release(f"together-{n}")
    await net.responses(*(row["id"] for row in ids))


async def test_a_slow_request_holds_up_all_that_come_after_it(net: Net, sink: Sink) -> None:
    slow = await get(net, sink.url("hold/slow"), timeout_milliseconds=400)
    await sink.arrival("slow")
    later = [await get(net, sink.url(f"ok/behind-{n}")) for n in range(3)]
    await net.responses(slow, *later)
    happened = [event for event in sink.events if "slow" in event or "arrived behind" in event]
    assert happened[:2] == ["arrived slow", "hung_up slow"]
    assert sorted(happened[2:]) == [f"arrived behind-{n}" for n in range(3)]


async def test_answers_are_seen_when_the_slowest_of_their_batch_has_come(net: Net, sink: Sink) -> None:
    row = (
        await net.rows(
            "select net.http_get(%s) as quick, net.http_get(%s) as slow",
            sink.url("ok/quick"),
            sink.url("hold/slowest"),
        )
    )[0]
    await sink.arrival("slowest")
    await sink.arrival("quick")
    assert await net.value("select count(*) from net._http_response where id = %s", row["quick"]) == 0
    released = await net.value("select clock_timestamp()")
    sink.release("slowest")
    responses = await net.responses(row["quick"], row["slow"])
    # The time is that of the batch's transaction, not of the answer.
    assert responses[row["quick"]]["created"] == responses[row["slow"]]["created"] < released


async def test_responses_are_deleted_after_six_hours(net: Net, sink: Sink) -> None:
    await net.rows(
        "insert into net._http_response (id, created)"
        " select -n, now() - interval '6 hours 1 minute' from generate_series(1, 3) n"
        " union all select -4, now() - interval '5 hours 59 minutes'"
    )
    await net.responses(await get(net, sink.url("ok/cleaning")))
    left = await net.rows("select id from net._http_response where id < 0")
    assert left == [{"id": -4}]
    await net.rows("delete from net._http_response where id < 0")
