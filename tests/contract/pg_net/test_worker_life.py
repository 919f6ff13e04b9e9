"""What is lost, kept and repeated when the worker or its server ends (supabase.md 1.1)."""

from __future__ import annotations

import asyncio
import signal
from itertools import pairwise

import psycopg
import pytest

from tests.contract.pg_net.net import Net, StandIn
from tests.contract.pg_net.sink import Sink

# Time in which a worker that drops its batch when told to end would have dropped it.
DROPPED_SECONDS = 0.3
REPEATS = 3


async def get(net: Net, url: str, *, timeout_milliseconds: int = 5000) -> int:
    return int(await net.value("select net.http_get(%s, '{}', '{}', %s)", url, timeout_milliseconds))


async def end_by_terminating_its_backend(net: Net) -> None:
    assert await net.value("select pg_terminate_backend(%s)", await net.worker_pid())


async def end_by_restart_function(net: Net) -> None:
    assert await net.value("select net.worker_restart()")


ENDS = {
    "terminate_backend": end_by_terminating_its_backend,
    "worker_restart": end_by_restart_function,
}


@pytest.mark.parametrize("how", ENDS)
async def test_an_ended_worker_finishes_its_batch_and_comes_back(net: Net, sink: Sink, how: str) -> None:
    tag = f"running-{how}"
    before = await net.worker_pid()
    running = await get(net, sink.url(f"hold/{tag}"))
    await sink.arrival(tag)
    queued = await get(net, sink.url(f"ok/{tag}-next"))
    await ENDS[how](net)
    await asyncio.sleep(DROPPED_SECONDS)
    sink.release(tag)
    responses = await net.responses(running, queued)
    assert {row["status_code"] for row in responses.values()} == {200}
    assert (len(sink.of(tag)), len(sink.of(f"{tag}-next"))) == (1, 1)
    await net.wait_until_up(but_not=before)


async def test_a_killed_worker_loses_what_is_queued_and_every_response(net: Net, sink: Sink) -> None:
    stored = await get(net, sink.url("ok/stored"))
    await net.responses(stored)
    in_flight = await get(net, sink.url("hold/in-flight"))
    await sink.arrival("in-flight")
    lost = await get(net, sink.url("ok/lost"))
    assert stored < in_flight < lost

    await net.kill_worker_and_recover()

    sink.release("in-flight")
    assert await net.queued() == 0
    assert await net.value("select count(*) from net._http_response") == 0
    survivor = await get(net, sink.url("ok/survivor"))
    assert survivor == 1  # the sequence is unlogged too
    await net.responses(survivor)
    assert (len(sink.of("in-flight")), len(sink.of("lost"))) == (1, 0)
    assert await net.value("select count(*) from net._http_response") == 1


async def test_a_crashed_server_loses_both_tables_and_gets_its_worker_back(own_server: StandIn, sink: Sink) -> None:
    await own_server.responses(await get(own_server, sink.url("ok/before-crash")))
    # Longer than anybody waits here: the worker must drop it when the server dies.
    await get(own_server, sink.url("hold/crashed"), timeout_milliseconds=60_000)
    await sink.arrival("crashed")
    await get(own_server, sink.url("ok/crashed-queued"))
    await own_server.restart_server(signal.SIGQUIT)
    sink.release("crashed")
    assert await own_server.queued() == 0
    assert await own_server.value("select count(*) from net._http_response") == 0
    await own_server.responses(await get(own_server, sink.url("ok/after-crash")))
    assert (len(sink.of("crashed")), len(sink.of("crashed-queued"))) == (1, 0)


async def test_a_restart_in_good_order_keeps_what_is_queued(own_server: StandIn, sink: Sink) -> None:
    kept = await get(own_server, sink.url("ok/kept"))
    await own_server.responses(kept)
    running = await get(own_server, sink.url("hold/finishing"))
    await sink.arrival("finishing")
    queued = await get(own_server, sink.url("ok/kept-queued"))
    restart = asyncio.create_task(own_server.restart_in_good_order())
    await asyncio.sleep(DROPPED_SECONDS)
    sink.release("finishing")
    await restart
    await own_server.responses(kept, running, queued)
    assert (len(sink.of("finishing")), len(sink.of("kept-queued"))) == (1, 1)


@pytest.mark.parametrize("worker", ["outlives", "ends while the server is away"])
async def test_a_server_stopped_under_the_worker_keeps_what_is_queued(
    own_server: StandIn, sink: Sink, worker: str
) -> None:
    tag = worker.split()[0]
    await get(own_server, sink.url(f"hold/{tag}-cut-off"))
    await sink.arrival(f"{tag}-cut-off")
    await get(own_server, sink.url(f"ok/{tag}-waiting"))
    await own_server.stop_server(signal.SIGINT)
    if worker != "outlives":
        assert await own_server.stop_worker() == 0
    sink.release(f"{tag}-cut-off")
    await own_server.start_server()
    if worker != "outlives":
        await own_server.start_worker()
    await sink.arrival(f"{tag}-waiting")


async def test_an_error_while_storing_a_response_sends_the_whole_batch_again_and_again(net: Net, sink: Sink) -> None:
    await net.rows(
        "create function net.break_storing() returns trigger language plpgsql as"
        " $$ begin raise 'broken on purpose'; end $$;"
        "create trigger break_storing before insert on net._http_response"
        " for each row execute function net.break_storing()"
    )
    try:
        row = (
            await net.rows(
                "select net.http_get(%s) as one, net.http_get(%s) as two",
                sink.url("ok/repeated-one"),
                sink.url("ok/repeated-two"),
            )
        )[0]
        await sink.arrival("repeated-one", count=REPEATS)
        assert await net.value("select count(*) from net._http_response where id = %s", row["one"]) == 0
    finally:
        await net.rows("drop function net.break_storing cascade")
    await net.responses(row["one"], row["two"])
    seconds = [arrival.second for arrival in sink.of("repeated-one")]
    assert min(later - sooner for sooner, later in pairwise(seconds)) > 0.9
    assert len(sink.of("repeated-two")) >= REPEATS - 1


async def test_a_batch_whose_backend_is_terminated_is_sent_again_and_nothing_is_lost(
    stand_in: StandIn, sink: Sink
) -> None:
    running = await get(stand_in, sink.url("hold/robbed"))
    await sink.arrival("robbed")
    queued = await get(stand_in, sink.url("ok/behind-robbed"))
    await stand_in.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pg_net''s batch'"
    )
    sink.release("robbed")
    await stand_in.responses(running, queued)
    assert (len(sink.of("robbed")), len(sink.of("behind-robbed"))) == (2, 1)


async def test_check_worker_is_up_tells_the_truth(stand_in: StandIn, sink: Sink) -> None:
    await stand_in.stop_worker()
    with pytest.raises(psycopg.errors.RaiseException, match="not running"):
        await stand_in.rows("select net.check_worker_is_up()")
    request = await get(stand_in, sink.url("ok/while-down"))
    await stand_in.start_worker()
    async with await stand_in.connect(autocommit=False) as anybody:
        await anybody.execute("create role anybody nologin; set local role anybody")
        await anybody.execute("select net.check_worker_is_up()")
        await anybody.rollback()
    await stand_in.responses(request)  # queued while it was down, and kept
