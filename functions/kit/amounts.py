"""Amounts as text. The surprising thing: Python and Postgres keep the zeros of a sum, and write 0 as 0E-20."""

from __future__ import annotations

from decimal import Decimal

MICROS_PER_DOLLAR = 1_000_000


def plain(amount: Decimal, *, is_grouped: bool = False) -> str:
    """All digits that count, and no others: no exponent, no zeros at the end, and a nought without a sign.

    Args:
        amount: any finite one.
        is_grouped: with commas, for people.
    """
    if not amount:
        return "0"
    text = f"{amount:,f}" if is_grouped else f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def in_dollars(micros: int) -> str:
    """Micro-dollars for people, to the cent."""
    return f"${micros / MICROS_PER_DOLLAR:,.2f}"


def in_exact_dollars(micros: int) -> str:
    """Micro-dollars for people, to the last one: with two places at least."""
    dollars, rest = divmod(micros, MICROS_PER_DOLLAR)
    return f"${dollars:,}.{f'{rest:06}'.rstrip('0'):0<2}"
