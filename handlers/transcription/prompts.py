"""How long a prompt is, told without the model that will read it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from handlers.spec import ModelSpec
from handlers.tokenization import load_tokenizer
from handlers.transcription.loading import engine_name
from handlers.transcription.transformers import takes_prompts

CountPrompt = Callable[[str | None, Sequence[str]], int]


def load_prompt_counter(spec: ModelSpec, folder: Path) -> CountPrompt:
    """Engine.count_prompt of the engine that `load_engine` opens. Raises ModelLoadError."""
    if engine_name(spec, folder) == "transformers" and not takes_prompts(folder):
        return count_words
    tokenizer = load_tokenizer(folder)
    tokenizer.encode_special_tokens = True  # a prompt cannot hold control tokens

    def count(prompt: str | None, keywords: Sequence[str]) -> int:
        texts = [text.strip() for text in (prompt or "", ", ".join(keywords))]
        return sum(len(tokenizer.encode(f" {text}", add_special_tokens=False).ids) for text in texts if text)

    return count


def count_words(prompt: str | None, keywords: Sequence[str]) -> int:
    """Where there are no tokens for them."""
    return len(" ".join([prompt or "", *keywords]).split())
