"""Dollars inside and outside.

Inside everything that was spent is a whole number of nano-dollars (1e-9 USD), because token prices
are fractions of a micro-dollar; only an answer turns it into a float, and into the nearest one.
A limit is kept as the float that the client sent, and compared by its exact decimal reading.
"""

from decimal import Decimal

NANO_EXPONENT = -9
NANOS_PER_CENT = 10_000_000


def exact_usd(nanos: int) -> Decimal:
    """Nano-dollars as dollars, without rounding."""
    return Decimal(nanos).scaleb(NANO_EXPONENT)


def usd(nanos: int) -> float:
    """Nano-dollars as the float that JSON answers carry."""
    return float(exact_usd(nanos))


def exact_limit(limit_usd: float) -> Decimal:
    """The decimal that a person reads in a float: 0.1 is a tenth, not its binary neighbour."""
    return Decimal(repr(limit_usd))


def price_text(nanos: int) -> str:
    """A price per unit as /models writes it: dollars in a plain string, never with an exponent."""
    return format(exact_usd(nanos).normalize(), "f")
