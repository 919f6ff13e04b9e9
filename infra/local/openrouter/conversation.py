"""What was asked in a chat request, and the answer that the simulated models give to it.

The answer repeats the last message, word by word; a word is one token. So its length, and with it
the cost, follows from the request alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.local.openrouter.answers import Refusal, invalid
from infra.local.openrouter.bodies import read_text
from infra.local.openrouter.catalogue import MODELS_BY_ID, Model, count_prompt_tokens

ANSWER_OPENING = ("This", "is", "a", "simulated", "answer", "to:")
MAX_ANSWER_TOKENS = 64
ROLES = frozenset(("system", "user", "assistant", "developer", "tool"))


@dataclass(frozen=True)
class Conversation:
    """A checked chat request."""

    model: Model
    texts: tuple[str, ...]
    max_tokens: int | None
    stream: bool
    user: str | None

    @property
    def prompt_tokens(self) -> int:
        """The size of what was sent."""
        return count_prompt_tokens(self.texts)

    @property
    def most_completion_tokens(self) -> int:
        """The longest answer it allows, by which the money check goes (openrouter/facts.md 2.3)."""
        longest = self.model.max_completion_tokens
        return longest if self.max_tokens is None else min(self.max_tokens, longest)

    def answer(self) -> "Answer":
        """The words that come back."""
        words = (*ANSWER_OPENING, *self.texts[-1].split())[:MAX_ANSWER_TOKENS]
        allowed = words[: self.most_completion_tokens]
        return Answer(allowed, "length" if len(allowed) < len(words) else "stop")


@dataclass(frozen=True)
class Answer:
    """An answer, token by token."""

    words: tuple[str, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """The whole answer; what a stream's pieces add up to."""
        return "".join(self.pieces())

    def pieces(self) -> list[str]:
        """One piece per token."""
        return [word if place == 0 else f" {word}" for place, word in enumerate(self.words)]


def read_conversation(body: Mapping[str, Any]) -> Conversation:
    """The body of POST /chat/completions. Raises Refusal 400."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a list with at least one message")
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise invalid("stream must be true or false")
    user = body.get("user")
    return Conversation(
        model=_read_model(body),
        texts=tuple(_read_message(message) for message in messages),
        max_tokens=_read_max_tokens(body),
        stream=stream,
        user=None if user is None else read_text(user, "user"),
    )


def _read_model(body: Mapping[str, Any]) -> Model:
    fallbacks = body.get("models", [])
    if not isinstance(fallbacks, list):
        raise invalid("models must be a list")
    asked = [name for name in (body.get("model"), *fallbacks) if name is not None]
    if not asked:
        raise Refusal(400, "No models provided")
    for name in asked:
        model = MODELS_BY_ID.get(read_text(name, "model"))
        if model is not None:
            return model
    raise Refusal(400, f"{asked[0]} is not a valid model ID")


def _read_max_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 or value < 1:
            raise invalid(f"{name} must be a whole number of at least 1")
        return int(value)
    return None


def _read_message(message: object) -> str:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise invalid("every message needs a role")
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return ""
    if isinstance(content, str):
        return read_text(content, "content")
    if not isinstance(content, list):
        raise invalid("every message needs content")
    parts = (part.get("text", "") for part in content if isinstance(part, dict))
    return " ".join(read_text(part, "text") for part in parts)
