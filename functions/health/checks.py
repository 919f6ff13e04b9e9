"""What a check is, and how checks are made: first all that is asked of others, side by side; then it is judged.

The surprising thing: a check that hangs or crashes is a line like any other, and one that could not be made because
something else is wrong is `skipped`. So whoever reads the lines finds the cause and not its consequences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from functions.kit.errors import DoorkeyError
from functions.kit.settings import Settings

State = Literal["ok", "warning", "broken", "skipped"]
# How long each question may take. Less than the functions' own time-outs: a check that hangs shall be named.
ASK_SECONDS = 8.0


class Check(BaseModel):
    """One thing that was looked at."""

    name: str
    state: State
    finding: str = Field(description="What was found, in a sentence.")
    mend: str | None = Field(default=None, description="What to do about it: a command, or a page of the docs.")


class Finding(NamedTuple):
    """What a judge says."""

    state: State
    finding: str
    mend: str | None = None


def ok(finding: str) -> Finding:
    """All is well."""
    return Finding("ok", finding)


def warning(finding: str, mend: str) -> Finding:
    """It works, and should be looked after."""
    return Finding("warning", finding, mend)


def broken(finding: str, mend: str) -> Finding:
    """It does not work."""
    return Finding("broken", finding, mend)


def skipped(finding: str) -> Finding:
    """It could not be looked at, or there is nothing to look at; the finding says why."""
    return Finding("skipped", finding)


class NotSeen(Exception):
    """What a judge asks for could not be seen; the message says why. It is another check's business."""


@dataclass
class Facts:
    """What was seen.

    Attributes:
        settings: of the functions.
        seen: by the name of the question, its answer or the error in its place.
        asked: by the name of the question, who was asked.
        unusable: settings that can't be used; what needs them was not asked.
    """

    settings: Settings
    seen: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    unusable: frozenset[str] = frozenset()

    def answer(self, name: str) -> Any:
        """What was answered.

        Raises:
            NotSeen: there was no answer.
        """
        found = self.seen[name]
        if isinstance(found, NotSeen):
            raise found
        if isinstance(found, Exception):
            raise NotSeen(f"Not seen: {self.asked[name]} could not be asked.")
        return found

    def failure(self, name: str) -> Exception | None:
        """Why there is no answer; None: there is one.

        Raises:
            NotSeen: it was not asked.
        """
        found = self.seen[name]
        if isinstance(found, NotSeen):
            raise found
        return found if isinstance(found, Exception) else None


class Question(NamedTuple):
    """Something to be asked.

    Attributes:
        of: who is asked, for sentences.
        needs: the settings without which nobody can.
        ask: does it.
    """

    of: str
    needs: tuple[str, ...]
    ask: Callable[[], Awaitable[Any]]


async def ask_all(facts: Facts, questions: Mapping[str, Question]) -> None:
    """Asks everything at once, each for at most ASK_SECONDS, and notes the answers and the errors."""

    async def ask(question: Question) -> Any:
        lacking = [name for name in question.needs if name in facts.unusable]
        if lacking:
            return NotSeen(f"Not asked: {' and '.join(lacking)} can't be used.")
        try:
            return await asyncio.wait_for(question.ask(), ASK_SECONDS)
        except Exception as error:  # noqa: BLE001  whatever it is, it is one line and the others go on
            return error

    facts.asked.update({name: question.of for name, question in questions.items()})
    answers = await asyncio.gather(*(ask(question) for question in questions.values()))
    facts.seen.update(zip(questions, answers, strict=True))


Judge = Callable[[Facts], Finding]


def judge_all(facts: Facts, judges: Mapping[str, Judge]) -> list[Check]:
    """One line for each judge, in their order."""
    return [_line(name, _judged(judge, facts)) for name, judge in judges.items()]


def _judged(judge: Judge, facts: Facts) -> Finding:
    try:
        return judge(facts)
    except NotSeen as reason:
        return skipped(str(reason))
    except Exception as error:  # noqa: BLE001  as above
        return broken(
            f"The check itself failed ({type(error).__name__}).",
            "Is the database as old or as new as the functions? If it is, report this as a fault of doorkey's.",
        )


def _line(name: str, finding: Finding) -> Check:
    return Check(name=name, state=finding.state, finding=finding.finding, mend=finding.mend)


def sentence_of(error: Exception) -> str:
    """Why there is no answer; never what a library says, which may quote what was sent."""
    if isinstance(error, TimeoutError):
        return f"There is no answer within {ASK_SECONDS:.0f} seconds."
    if isinstance(error, DoorkeyError):
        return error.sentence
    return f"It failed in a way that nobody foresaw ({type(error).__name__})."


def worst_of(checks: Sequence[Check]) -> Literal["ok", "warning", "broken"]:
    """The state of all together; what was skipped doesn't count."""
    states = {check.state for check in checks}
    return "broken" if "broken" in states else "warning" if "warning" in states else "ok"
