"""What keys are called at OpenRouter: ``doorkey-<project>-<user id>-<attempt>``.

Parsed from the right, and the project must match whole: ``app`` never touches a key of ``app-eu``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

PREFIX = "doorkey"
_NAME = re.compile(
    rf"{PREFIX}-(?P<project>.+)-(?P<user_id>[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-(?P<attempt>[1-9][0-9]{{0,9}})"
)


@dataclass(frozen=True)
class KeyName:
    """The parts of a key's name."""

    project: str
    user_id: UUID
    attempt: int

    def __str__(self) -> str:
        return f"{PREFIX}-{self.project}-{self.user_id}-{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> KeyName | None:
        """The parts of a name; None when it is none of doorkey's."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        return cls(found["project"], UUID(found["user_id"]), int(found["attempt"]))
