"""What is to go wrong: one plan for a part, replaced as a whole.

Every field can be left out, and then it does nothing. The command line makes its options from these fields, so the
descriptions are what people read.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_WAIT_SECONDS = 600
MAX_HIDDEN_SECONDS = 3_600
# A page of keys has 100: with as many new ones before each page, a listing would never end.
MAX_KEYS_BETWEEN_PAGES = 99

Share = Annotated[float, Field(ge=0, le=1)]
Route = Annotated[str, Field(pattern=r"^(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) /\S*$", max_length=500)]


class PlanInvalid(Exception):
    """The plan can't be used.

    Attributes:
        problems: each as ``field: what is wrong``.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("The plan can't be used: " + "; ".join(problems) + ".")
        self.problems = problems


class FaultPlan(BaseModel):
    """The faults that every part can have. Shares go from 0 (never) to 1 (always)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    seed: int | None = Field(
        default=None, description="The same seed and the same requests in the same order meet the same faults."
    )
    only: tuple[Route, ...] = Field(
        default=(),
        max_length=100,
        description="Only requests that begin so, such as 'POST /keys' or 'POST /rest/v1/rpc/finish_provisioning'.",
    )
    at_most: int | None = Field(
        default=None, ge=0, description="So many faults in all, then none; latency doesn't count."
    )
    lose_answers: Share = Field(
        default=0.0, description="Share: the work is done, then the connection is closed without an answer."
    )
    lose_requests: Share = Field(default=0.0, description="Share: the connection is closed, and no work is done.")
    errors: Share = Field(default=0.0, description="Share: an error instead of the work.")
    error_status: int = Field(default=502, ge=500, le=599, description="Status of those errors.")
    html_errors: Share = Field(default=0.0, description="Share: a page of HTML with 502 instead of the work.")
    errors_after_work: bool = Field(
        default=False, description="Errors and pages of HTML come after the work was done, as behind a broken proxy."
    )
    empty_answers: Share = Field(
        default=0.0, description="Share: the work is done, and the answer is 200 without what is expected."
    )
    rate_limited: Share = Field(default=0.0, description="Share: 429 instead of the work.")
    requests_per_second: float | None = Field(
        default=None, gt=0, le=100_000, description="Beyond so many requests a second the answer is 429."
    )
    retry_after_seconds: int | None = Field(
        default=None, ge=0, le=86_400, description="Retry-After of every 429 and error; without it there is none."
    )
    stall: Share = Field(default=0.0, description="Share: the work is done, and the answer comes late.")
    stall_seconds: float = Field(default=30.0, ge=0, le=MAX_WAIT_SECONDS, description="How late.")
    latency_ms: int = Field(
        default=0, ge=0, le=MAX_WAIT_SECONDS * 1_000, description="How long every request waits before the work."
    )
    latency_jitter_ms: int = Field(
        default=0, ge=0, le=MAX_WAIT_SECONDS * 1_000, description="Up to so much longer, by chance."
    )
    refuse_status: int | None = Field(
        default=None, ge=400, le=499, description="Everybody is refused with this status, such as 401, 402 or 403."
    )
    is_away: bool = Field(default=False, description="Every connection is closed, as if the part were away.")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields that are faults; the others say when, how often and in which form."""
        told = ("seed", "only", "at_most", "error_status", "errors_after_work", "retry_after_seconds")
        details = (*told, "stall_seconds", "latency_jitter_ms")
        return tuple(name for name in cls.model_fields if name not in details)

    def has(self, name: str) -> bool:
        """Whether this fault is ordered."""
        if name == "latency_ms":
            return bool(self.latency_ms or self.latency_jitter_ms)
        return getattr(self, name, None) not in (None, 0, False)

    @classmethod
    def read(cls, text: bytes) -> FaultPlan:
        """A plan from JSON.

        Raises:
            PlanInvalid: with every problem.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            raise PlanInvalid([_sentence(problem["loc"], problem["msg"]) for problem in problems]) from None


class SimulatorFaultPlan(FaultPlan):
    """What OpenRouter can do on top."""

    hide_new_keys_seconds: float = Field(
        default=0.0,
        ge=0,
        le=MAX_HIDDEN_SECONDS,
        description="A new key is in no list, and can't be read or changed, for so long; chat takes it.",
    )
    keys_between_pages: int = Field(
        default=0,
        ge=0,
        le=MAX_KEYS_BETWEEN_PAGES,
        description="So many keys are made by somebody else after each full page of a list.",
    )
    cut_streams: Share = Field(
        default=0.0, description="Share: a streamed answer ends in its middle with an error event."
    )


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(str(step) for step in place) or 'the plan'}: {message[:1].lower()}{message[1:]}"
