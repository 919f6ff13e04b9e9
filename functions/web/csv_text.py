"""Rows as CSV (RFC 4180) that a spreadsheet opens and doesn't run.

The surprising thing: a cell that begins with =, +, - or @ is a formula to a spreadsheet, and what stands in ours may
come from whoever calls a model by its name. Such texts get an apostrophe in front, which a spreadsheet takes for
"this is text". Numbers are ours and stay numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

MEDIA_TYPE = "text/csv"
# Tabs and line ends are cut off before the cell is looked at; the wide signs are read as the narrow.
FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

Cell = str | int | Decimal | datetime | None


def write_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> str:
    """A line of names, then a line for each row; what is None is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in columns])
    return text.getvalue()


def _cell(value: Cell) -> str:
    match value:
        case None:
            return ""
        case str():
            # A blank in front hides the sign from us, not from every spreadsheet.
            return f"'{value}" if value.lstrip(" \u00a0\ufeff").startswith(FORMULA_BEGINNINGS) else value
        case datetime():
            return value.isoformat()
        case _:
            return str(value)
