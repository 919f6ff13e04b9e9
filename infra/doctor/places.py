"""Where the doctor finds an installation: what it is told, else the shell's environment, else a `doorkey dev`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from functions.kit.settings import variable_names
from infra.connection.environments import EnvFile, Home, environment_at, given_environment
from infra.connection.plans import CannotGoOn
from infra.local.running import environments_of_running

DATABASE_URL = "DATABASE_URL"


@dataclass(frozen=True, repr=False)
class Place:
    """An installation to look at.

    Attributes:
        name: for sentences.
        environment: of its functions.
        database_url: of role `postgres`; None: nobody gave one.
    """

    name: str
    environment: Mapping[str, str]
    database_url: str | None


async def find_place(home: Home | None, database_url: str | None) -> Place:
    """The installation that is meant.

    Args:
        home: where the functions' environment is kept, if that was said.
        database_url: if that was said.

    Raises:
        CannotGoOn: it can't be read, or several could be meant.
    """
    if home is not None:
        environment, _ = await environment_at(home)
        # What is kept goes before what stands in the shell, as everywhere.
        own_url = (await home.read()).get(DATABASE_URL)
        return Place(str(home), environment, database_url or own_url or os.environ.get(DATABASE_URL))
    given = given_environment()
    if given:
        return Place("the environment of this shell", given, database_url or os.environ.get(DATABASE_URL))
    running = environments_of_running()
    if not running:
        return Place("what is there", {}, database_url or os.environ.get(DATABASE_URL))
    if len(running) > 1:
        known = "\n".join(f"  --env-file {path}" for path in running)
        raise CannotGoOn(f"Several doorkey dev run on this machine. Say which:\n{known}")
    kept = await EnvFile(running[0]).read()
    environment = {name: kept[name] for name in variable_names() if kept.get(name)}
    return Place("the doorkey dev on this machine", environment, database_url or kept.get(DATABASE_URL))
