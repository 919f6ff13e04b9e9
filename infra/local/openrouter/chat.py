"""POST /chat/completions: checks the money, charges the key, answers at once or in a stream.

The charge is committed before the first byte of an answer leaves. A client that hangs up in the
middle of a stream has therefore paid for all of it, as with the real providers that cannot be
stopped (openrouter/facts.md 2.2), and nothing that was answered can be lost by a crash.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from infra.local.openrouter.access import Gate
from infra.local.openrouter.answers import Refusal, read_object
from infra.local.openrouter.catalogue import Cost
from infra.local.openrouter.conversation import Answer, Conversation, read_conversation
from infra.local.openrouter.keys import Key
from infra.local.openrouter.money import exact_usd, usd
from infra.local.openrouter.usage import Generation, UsageStore
from infra.local.openrouter.windows import resets_at

GENERATION_ID_BYTES = 10
KEEP_ALIVE = ": OPENROUTER PROCESSING\n\n"
END_OF_STREAM = "data: [DONE]\n\n"
SETTINGS_PAGE = "https://openrouter.ai/settings/keys"


@dataclass(frozen=True)
class Completion:
    """A generation that was charged, with all that its answer says."""

    id: str
    created: int
    conversation: Conversation
    answer: Answer
    cost: Cost

    def usage(self) -> dict[str, Any]:
        """Tokens and money; `cost` is what was charged to the key, in dollars."""
        prompt_tokens = self.conversation.prompt_tokens
        completion_tokens = len(self.answer.words)
        byok = self.conversation.model.byok
        total_usd = usd(self.cost.total_nanos)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "cost": 0.0 if byok else total_usd,
            "is_byok": byok,
            "cost_details": {
                "upstream_inference_cost": total_usd if byok else None,
                "upstream_inference_prompt_cost": usd(self.cost.prompt_nanos),
                "upstream_inference_completions_cost": usd(self.cost.completion_nanos),
            },
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def body(self) -> dict[str, Any]:
        """The whole answer in one piece."""
        choice = {
            "index": 0,
            "finish_reason": self.answer.finish_reason,
            "native_finish_reason": self.answer.finish_reason,
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": self.answer.text,
                "refusal": None,
                "reasoning": None,
            },
        }
        return self._head("chat.completion") | {
            "choices": [choice],
            "system_fingerprint": None,
            "usage": self.usage(),
        }

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events: a comment, the tokens, the usage, the end."""
        yield KEEP_ALIVE
        pieces = self.answer.pieces()
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            choice = {
                "index": 0,
                "delta": {"role": "assistant", "content": piece},
                "finish_reason": self.answer.finish_reason if last else None,
            }
            yield self._event({"choices": [choice]})
            await asyncio.sleep(0)  # lets the server notice a client that hung up
        yield self._event({"choices": [], "usage": self.usage()})
        yield END_OF_STREAM

    def _event(self, content: dict[str, Any]) -> str:
        chunk = self._head("chat.completion.chunk") | content
        return f"data: {json.dumps(chunk)}\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        model = self.conversation.model
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": model.id,
            "provider": model.provider,
        }


def broken_stream(last_event: bytes) -> bytes:
    """The event by which a stream ends when its provider breaks; the status has long been 200.

    Nothing follows: whether usage and `[DONE]` would is not documented (openrouter/facts.md 2.2).
    """
    chunk = json.loads(last_event.removeprefix(b"data: "))
    chunk["error"] = {
        "code": 502,
        "message": "Provider disconnected",
        "metadata": {"error_type": "provider_unavailable"},
    }
    chunk["choices"] = [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]
    return f"data: {json.dumps(chunk)}\n\n".encode()


class ChatApi:
    """The inference route."""

    def __init__(
        self,
        gate: Gate,
        usage: UsageStore,
        clock: Callable[[], datetime],
        credits_usd: Decimal,
    ) -> None:
        self._gate = gate
        self._usage = usage
        self._clock = clock
        self._credits_usd = credits_usd

    def routes(self) -> list[Route]:
        """The one route."""
        return [Route("/chat/completions", self.complete, methods=["POST"])]

    async def complete(self, request: Request) -> Response:
        """Answers one chat request."""
        conversation = read_conversation(read_object(await request.body()))
        # From here to the charge nothing waits, so two requests cannot both spend the last cent.
        key = self._gate.require_key(request)
        self._check_account()
        self._check_limit(key)
        _check_affordable(key, conversation)
        completion = self._charge(key, conversation, request)
        headers = {"X-Generation-Id": completion.id}
        if conversation.stream:
            return StreamingResponse(completion.stream(), headers=headers, media_type="text/event-stream")
        return JSONResponse(completion.body(), headers=headers)

    def _check_account(self) -> None:
        if exact_usd(self._usage.total_nanos()) >= self._credits_usd:
            raise Refusal(
                402,
                "Insufficient credits. Add more using https://openrouter.ai/credits",
                {"limit_source": "openrouter_credits", "remedy_hint": "Add credits."},
            )

    def _check_limit(self, key: Key) -> None:
        remaining = key.remaining_usd
        if remaining is None or remaining > 0:
            return
        window = key.limit_reset or "total"
        raise Refusal(
            403,
            f"Key limit exceeded ({window} limit). Manage it using {SETTINGS_PAGE}",
            {
                "limit_source": "openrouter_key_limit",
                "scope": window,
                "limit_usd": key.limit_usd,
                "spend_usd": usd(key.spent_nanos),
                "resets_at": resets_at(key.limit_reset, self._clock()),
            },
        )

    def _charge(self, key: Key, conversation: Conversation, request: Request) -> Completion:
        now = self._clock()
        model, answer = conversation.model, conversation.answer()
        completion = Completion(
            id=f"gen-{int(now.timestamp())}-{secrets.token_hex(GENERATION_ID_BYTES)}",
            created=int(now.timestamp()),
            conversation=conversation,
            answer=answer,
            cost=model.cost(conversation.prompt_tokens, len(answer.words)),
        )
        nanos = completion.cost.total_nanos
        self._usage.record(
            Generation(
                id=completion.id,
                key_hash=key.hash,
                workspace_id=key.workspace_id,
                model=model.id,
                streamed=conversation.stream,
                prompt_tokens=conversation.prompt_tokens,
                completion_tokens=len(answer.words),
                nanos=0 if model.byok else nanos,
                byok_nanos=nanos if model.byok else 0,
                finish_reason=answer.finish_reason,
                external_user=conversation.user,
                http_referer=request.headers.get("http-referer") or request.headers.get("referer"),
                user_agent=request.headers.get("user-agent"),
            )
        )
        return completion


def _check_affordable(key: Key, conversation: Conversation) -> None:
    """Refuses what might cost more than the key has left, even where it probably would not.

    The message is the one reported from the field (openrouter/facts.md 2.3, second row).
    """
    remaining, model = key.remaining_usd, conversation.model
    counts = not model.byok or key.include_byok_in_limit
    most_tokens = conversation.most_completion_tokens
    worst = model.cost(conversation.prompt_tokens, most_tokens)
    if remaining is None or not counts or exact_usd(worst.total_nanos) <= remaining:
        return
    fixed = exact_usd(worst.total_nanos - worst.completion_nanos)
    price = exact_usd(model.completion_nanos)
    affordable = int((remaining - fixed) / price) if price and remaining > fixed else 0
    raise Refusal(
        402,
        "This request requires more credits, or fewer max_tokens. You requested up to"
        f" {most_tokens} tokens, but can only afford {affordable}. To increase, visit"
        f" {SETTINGS_PAGE} and create a key with a higher monthly limit",
    )
