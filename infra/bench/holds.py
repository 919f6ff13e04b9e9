"""What credit processing costs the database: reserve and settle, beside pgbench's TPC-B-like script on the same server.

That script is the field's yardstick for a small transfer: three updates, a select and an insert. The surprising thing:
a pair of ours is two transactions and not one, as it is when a call goes out between them.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

from infra.bench.growth import USERS
from infra.bench.measuring import Effort, Measured
from infra.bench.pgbench import run_pgbench, transactions_per_second
from infra.bench.places import durable_server, install_doorkey, new_database, run_sql
from infra.local import postgres
from infra.local.scratch import ScratchServer

PEOPLE = 1_000
RUN_SECONDS = 10
QUICK_RUN_SECONDS = 1
PAIRS = 10
# As many rows of branches: with one, its clients would wait for each other all the time.
TPCB_SCALE = 10

PAIR = """
\\set n random(1, :people)
select hold_id from public.reserve_credits(md5('user' || :n)::uuid, 1000, 60, gen_random_uuid()::text, null, 'bench')
\\gset
select * from public.settle_credits(':hold_id', 10.5, null, 'a provider', 'a/model', gen_random_uuid()::text, 'bench');
"""


async def measure(effort: Effort) -> Measured:
    """Runs pgbench in turns against the two databases."""
    seconds = effort.size(RUN_SECONDS, QUICK_RUN_SECONDS)
    async with durable_server() as server:
        await new_database(server, "ours")
        await new_database(server, "tpcb")
        await install_doorkey(server, "ours")
        await run_sql(server.url(database="ours"), USERS.format(count=PEOPLE))
        await run_pgbench(server, "tpcb", "--initialize", "--quiet", f"--scale={TPCB_SCALE}", user=postgres.SUPERUSER)
        with NamedTemporaryFile("w", prefix="doorkey-bench-", suffix=".sql") as script:
            script.write(PAIR)
            script.flush()
            # Calls have gone before: a plan made for an empty table of holds reads it whole until the next analyze. And
            # all is left as pgbench leaves its own tables.
            await run_sql(server.url(database="ours"), "vacuum analyze")
            await _pairs_per_second(server, Path(script.name), seconds)
            await run_sql(server.url(database="ours"), "vacuum analyze")
            return await effort.pairs(
                effort.size(PAIRS, 1),
                lambda: _pairs_per_second(server, Path(script.name), seconds),
                lambda: transactions_per_second(
                    server, "tpcb", "--builtin=tpcb-like", user=postgres.SUPERUSER, seconds=seconds
                ),
            )


async def _pairs_per_second(server: ScratchServer, script: Path, seconds: int) -> float:
    return await transactions_per_second(
        server,
        "ours",
        f"--define=people={PEOPLE}",
        f"--file={script}",
        user="authenticator",
        role="service_role",
        seconds=seconds,
    )
