"""``doorkey environment``: the functions' environment of a stage, for the shell of an operator.

What it prints are secrets, to be read by a shell and by nobody: on a terminal it refuses.
"""

from __future__ import annotations

import shlex
import sys

from functions.kit.settings import variable_names
from infra.connection.environments import Home
from infra.connection.plans import CannotGoOn


async def run(home: Home) -> None:
    """Writes one `export` for each variable of ours that is set.

    Raises:
        CannotGoOn: the home can't be read, has nothing, or somebody would see it.
    """
    if sys.stdout.isatty():
        raise CannotGoOn('These are secrets: let the shell read them, eval "$(doorkey environment --stage prod)".')
    kept = await home.read()
    ours = [name for name in variable_names() if kept.get(name)]
    if not ours:
        raise CannotGoOn(f"There is nothing in {home}; doorkey connect makes it.")
    # Only names that we know: whatever else is there must not become a command of the shell.
    sys.stdout.writelines(f"export {name}={shlex.quote(kept[name])}\n" for name in ours)
