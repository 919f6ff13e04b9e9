"""The models that can be asked, and what they cost.

Costs are a pure function of the request, so a test can say beforehand what it will pay. The models
named `simulator/...` exist for round sums: a cent per request, or paid through a key of one's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.local.openrouter.money import NANOS_PER_CENT, price_text

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True)
class Cost:
    """What one generation costs, by part, in nano-dollars."""

    prompt_nanos: int
    completion_nanos: int
    request_nanos: int

    @property
    def total_nanos(self) -> int:
        """All parts together."""
        return self.prompt_nanos + self.completion_nanos + self.request_nanos


@dataclass(frozen=True)
class Model:
    """One model. Prices are nano-dollars per token, and per request.

    `byok`: it is served through a provider key that the account brought (BYOK), so a generation
    costs no credits and counts as BYOK usage instead.
    """

    id: str
    name: str
    provider: str
    prompt_nanos: int
    completion_nanos: int
    request_nanos: int = 0
    byok: bool = False
    context_length: int = 128_000
    max_completion_tokens: int = 16_384
    created: int = 1_767_225_600

    @property
    def is_free(self) -> bool:
        """Whether it is one of the free variants, which have a daily quota instead of a price."""
        return self.id.endswith(":free")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Cost:
        """The price of a generation of this size."""
        return Cost(
            prompt_nanos=prompt_tokens * self.prompt_nanos,
            completion_nanos=completion_tokens * self.completion_nanos,
            request_nanos=self.request_nanos,
        )

    def shown(self, base_path: str) -> dict[str, Any]:
        """The model as /models lists it."""
        return {
            "id": self.id,
            "canonical_slug": self.id,
            "name": self.name,
            "created": self.created,
            "description": "A simulated model: it answers at once and thinks nothing.",
            "context_length": self.context_length,
            "architecture": {
                "modality": "text->text",
                "input_modalities": ["text"],
                "output_modalities": ["text"],
                "tokenizer": "Other",
                "instruct_type": None,
            },
            "pricing": {
                "prompt": price_text(self.prompt_nanos),
                "completion": price_text(self.completion_nanos),
                "request": price_text(self.request_nanos),
            },
            "top_provider": {
                "context_length": self.context_length,
                "max_completion_tokens": self.max_completion_tokens,
                "is_moderated": False,
            },
            "per_request_limits": None,
            "supported_parameters": ["max_tokens", "temperature"],
            "supported_voices": None,
            "default_parameters": None,
            "expiration_date": None,
            "knowledge_cutoff": None,
            "hugging_face_id": None,
            "links": {"details": f"{base_path}/models/{self.id}/endpoints"},
        }


MODELS = (
    Model("openai/gpt-4o-mini", "OpenAI: GPT-4o-mini", "OpenAI", 150, 600),
    Model("openai/gpt-4.1", "OpenAI: GPT-4.1", "OpenAI", 2_000, 8_000),
    Model("anthropic/claude-sonnet-4.5", "Anthropic: Claude Sonnet 4.5", "Anthropic", 3_000, 15_000),
    Model("google/gemini-2.5-flash", "Google: Gemini 2.5 Flash", "Google", 300, 2_500),
    Model("mistralai/mistral-nemo", "Mistral: Mistral Nemo", "Mistral", 20, 40),
    Model("meta-llama/llama-3.3-70b-instruct:free", "Meta: Llama 3.3 (free)", "Together", 0, 0),
    Model("simulator/one-cent", "One cent a request", "OpenAI", 0, 0, NANOS_PER_CENT),
    Model("simulator/own-key", "Paid by one's own key", "OpenAI", 0, 0, NANOS_PER_CENT, byok=True),
)
MODELS_BY_ID = {model.id: model for model in MODELS}


def count_prompt_tokens(texts: Sequence[str]) -> int:
    """The tokens of a conversation: a simple measure, but the same one every time."""
    return sum(TOKENS_PER_MESSAGE - (-len(text) // CHARACTERS_PER_TOKEN) for text in texts)
