"""What may be set of a plan: how each column is typed, how it is shown, and from when on it counts.

The surprising thing: an option is refused here in its own words, before anything is asked. What only the whole plan
shows, such as a cap without a period, the database refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from functions.kit.amounts import in_exact_dollars, plain
from infra.cli.dollars import micros_of, refuse

NOT_SET = "none"
MAX_NAME_CHARACTERS = 200
MAX_PERIOD_DAYS = 366
MAX_WELCOME_DAYS = 36_500
MAX_REQUESTS = 1_000_000_000
MARKUP = re.compile(r"[1-9][0-9]{0,2}(\.[0-9]{1,6})?")
NUMBER = re.compile(r"[0-9]{1,10}")

# What was typed and where, to what is stored, as text; None: not set.
Read = Callable[[str, str], str | None]


@dataclass(frozen=True)
class Column:
    """A column of public.plans.

    Attributes:
        name: in the database.
        option: where it is typed.
        read: what is to be stored; ends the command if it can't be.
        show: its value, for people.
        counts: from when on a change counts; empty: it is for the app to read.
        moves_limits: whether the limits of keys change with it.
    """

    name: str
    option: str
    read: Read
    show: Callable[[Any], str]
    counts: str = ""
    moves_limits: bool = False

    @property
    def label(self) -> str:
        """For people."""
        return self.option.removeprefix("--").replace("-", " ")


def _dollars(given: str, option: str, *, may_be_unset: bool = False, is_none_possible: bool = True) -> str | None:
    if may_be_unset and given == NOT_SET:
        return None
    return str(micros_of(given, option, is_none_possible=is_none_possible))


def _number(given: str, option: str, *, most: int) -> str | None:
    if given == NOT_SET:
        return None
    if not NUMBER.fullmatch(given) or not 1 <= int(given) <= most:
        refuse(option, f"a number from 1 to {most:,}, or {NOT_SET}.")
    return given


def _name(given: str, option: str) -> str:
    if not given.strip() or len(given) > MAX_NAME_CHARACTERS or not given.isprintable():
        refuse(option, f"1 to {MAX_NAME_CHARACTERS} characters that can be printed.")
    return given


def _markup(given: str, option: str) -> str:
    # Below 1 a key could outspend its ledger.
    if not MARKUP.fullmatch(given):
        refuse(option, "a number such as 1.25, at least 1, below 1000, and with up to six places.")
    return given


def _word(given: str, option: str, *, words: tuple[str, ...]) -> str:
    if given not in words:
        refuse(option, f"{' or '.join(words)}.")
    return given


def _models(given: str, option: str) -> str | None:
    if given == "all":
        return None
    models = given.split(",")
    if not all(model.strip() and model.isprintable() for model in models):
        refuse(option, "models with commas between them, such as openai/gpt-4o,mistralai/mistral-small, or all.")
    return json.dumps([model.strip() for model in models])


def _object(given: str, option: str) -> str:
    try:
        features = json.loads(given, parse_constant=lambda _: refuse(option, "JSON, without NaN and Infinity."))
    except (ValueError, RecursionError):
        features = None
    if not isinstance(features, dict):
        refuse(option, 'a JSON object, such as \'{"support": "mail"}\'.')
    return given


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def _shown_dollars(micros: int | None) -> str:
    return "-" if micros is None else in_exact_dollars(micros)


def _shown_number(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


_unset_dollars = partial(_dollars, may_be_unset=True, is_none_possible=False)
_requests = partial(_number, most=MAX_REQUESTS)
_boolean = partial(_word, words=("true", "false"))
_NEXT_PERIOD = "from each user's next period on"
_NEWCOMERS = "for users who are yet to be welcomed"
_CALLS = "for calls that are charged from now on"

COLUMNS = (
    Column("name", "--name", _name, _shown),
    Column("price_micros", "--price", _dollars, _shown_dollars),
    Column("period_days", "--period-days", partial(_number, most=MAX_PERIOD_DAYS), _shown_number, _NEXT_PERIOD),
    Column("credits_per_period_micros", "--credits-per-period", _dollars, _shown_dollars, _NEXT_PERIOD),
    Column("monthly_cap_micros", "--monthly-cap", _unset_dollars, _shown_dollars, "for calls from now on", True),
    Column("welcome_credits_micros", "--welcome", _dollars, _shown_dollars, _NEWCOMERS),
    Column(
        "welcome_credits_days", "--welcome-days", partial(_number, most=MAX_WELCOME_DAYS), _shown_number, _NEWCOMERS
    ),
    Column("charges_by", "--charge-by", partial(_word, words=("cost", "tokens")), _shown, _CALLS),
    Column("markup", "--markup", _markup, lambda markup: plain(Decimal(markup)), _CALLS, True),
    Column("token_price_micros_per_1k", "--token-price", _unset_dollars, _shown_dollars, _CALLS),
    Column("is_uncapped", "--uncapped", _boolean, lambda it: "yes" if it else "no", "for calls from now on", True),
    Column("requests_per_minute", "--requests-per-minute", _requests, _shown_number),
    Column("requests_per_day", "--requests-per-day", _requests, _shown_number),
    Column("allowed_models", "--models", _models, lambda models: ", ".join(models) if models else "all"),
    Column("features", "--features", _object, lambda features: json.dumps(features, default=float)),
    Column("is_active", "--open", _boolean, lambda it: "yes" if it else "no", "for who comes from now on"),
)


def read_columns(given: Mapping[str, str | None]) -> dict[str, str | None]:
    """What is to be stored, by column; ends the command at the first that can't be.

    Args:
        given: what was typed, by option; None: nothing was.
    """
    typed = {column: given[column.option] for column in COLUMNS}
    return {column.name: column.read(value, column.option) for column, value in typed.items() if value is not None}
