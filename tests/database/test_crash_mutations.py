"""The crash test's mutations of SQL fit the functions that there are.

They run apart from the suite, and would be found not to fit long after somebody changed a function.
"""

from __future__ import annotations

import pytest

from tests.crash.mutations import MUTATIONS, apply_in_sql
from tests.support.databases import Database

IN_SQL = [mutation.name for mutation in MUTATIONS if mutation.in_sql]


@pytest.mark.parametrize("name", IN_SQL)
async def test_a_mutation_of_the_crash_test_fits(database: Database, name: str) -> None:
    async with database.connect("postgres") as owner:
        await apply_in_sql(name, owner)
