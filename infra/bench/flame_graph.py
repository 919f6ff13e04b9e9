"""A flame graph of the function's own work in a provisioning: ``docs/provisioning-flamegraph.svg``.

py-spy looks a thousand times a second at a process that provisions user after user (`hint_process`). Waiting for the
network is not counted, so the widths are shares of the processor's time.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from infra.bench.places import insert_users, quiet_stack
from infra.local.stack import CHECKOUT
from infra.local.supervisor import PartFailed

PICTURE = CHECKOUT / "docs" / "provisioning-flamegraph.svg"
USERS = 600
SAMPLES_PER_SECOND = 1_000
TITLE = "One warm provisioning through the webhook handler"


def draw(picture: Path = PICTURE, users: int = USERS) -> Path:
    """Draws it anew.

    Raises:
        PartFailed: a part of the stack or py-spy failed.
    """
    asyncio.run(_record(picture, users))
    picture.write_text(_without_this_machine(picture.read_text()))
    return picture


async def _record(picture: Path, users: int) -> None:
    async with quiet_stack() as stack:
        user_ids = await insert_users(stack, users)
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("py-spy")), "record", "--format=flamegraph",
            f"--rate={SAMPLES_PER_SECOND}", f"--output={picture}",
            "--", sys.executable, "-m", "infra.bench.hint_process",
            cwd=CHECKOUT, env={"PATH": os.environ.get("PATH", ""), **stack.functions_environment},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate("\n".join(map(str, user_ids)).encode())
    if process.returncode:
        raise PartFailed("py-spy", "failed", out.decode(errors="replace").splitlines()[-5:])


def _without_this_machine(text: str) -> str:
    """The picture under its own title, without the command line and the places of this machine."""
    text = re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{TITLE}", text)
    for place in (str(CHECKOUT), sys.prefix, sys.base_prefix):
        text = text.replace(f"{place}/", "")
    return text
