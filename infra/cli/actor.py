"""Who is at the command line, as the audit log calls them."""

from __future__ import annotations

import getpass
import os


def operator_name() -> str:
    """`operator:` and the name at this machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # In a container that runs with a number which nobody there has.
        name = str(os.getuid())
    return f"operator:{name}"[:200]
