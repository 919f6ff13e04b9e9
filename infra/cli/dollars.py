"""Amounts that are typed in.

The surprising thing: only plain decimals are. A number that is rounded on its way, or isn't one, must not become money.
"""

from __future__ import annotations

import re
from decimal import Decimal

import typer

from functions.kit.amounts import MICROS_PER_DOLLAR
from infra.cli.running import errors

MAX_DOLLARS = 1_000_000
# No exponent and no sign; a micro-dollar is the smallest there is.
AMOUNT = re.compile(r"[0-9]{1,7}(\.[0-9]{1,6})?")


def micros_of(given: str, option: str, *, is_none_possible: bool = True) -> int:
    """Dollars as they were typed, in micro-dollars. Ends the command, with a sentence, if they are no amount.

    Args:
        given: such as 20 or 7.50.
        option: where it was typed.
        is_none_possible: whether nothing is an amount, too.
    """
    micros = int(Decimal(given) * MICROS_PER_DOLLAR) if AMOUNT.fullmatch(given) else -1
    if not (0 if is_none_possible else 1) <= micros <= MAX_DOLLARS * MICROS_PER_DOLLAR:
        least = "" if is_none_possible else "more than 0, "
        refuse(option, f"an amount such as 20 or 7.50, {least}up to a million.")
    return micros


def refuse(option: str, what: str) -> None:
    """Ends the command with what the option takes."""
    errors.print(f"{option} takes {what}", style="bold red", markup=False, highlight=False)
    raise typer.Exit(2)
