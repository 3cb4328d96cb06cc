"""What every capability offers to the registry and to the edge."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from batching.job import Caller
from handlers.chat.types import ChatRequest, CompletionRequest, Delta, ImageInput
from handlers.embeddings.types import EmbeddingRequest, Embeddings
from handlers.rerank.types import Relevance, RerankRequest
from handlers.spec import ModelSpec
from handlers.speech.types import SpeechRequest
from handlers.stats import ModelStats
from handlers.transcription.types import Segment, Transcript, TranscriptionRequest


class Handler(Protocol):
    """One capability of one model. Its batcher belongs to the event loop; its model to a worker thread."""

    spec: ModelSpec

    async def load(self) -> None:
        """Open the weights and warm the model up, in a worker thread. Raises ModelLoadError or SourceError."""

    async def run(self) -> None:
        """The batch loop; runs until cancelled."""

    async def drain(self) -> None:
        """Refuse new work with ShuttingDown and return when the jobs in hand have their answers."""

    def describe(self) -> Mapping[str, Any]:
        """What `/v1/models` adds to the model's entry: capabilities, max_model_len, voices, …"""

    def stats(self) -> ModelStats:
        """What it does now and has done so far; asked of a loaded model, on the event loop."""


class Generation(Protocol):
    """Answers in the making. Leaving the context aborts what is not finished; iterating yields deltas.

    prompt_tokens: of all prompts together. cached_tokens: how many of them were already in the prefix cache; final with
    the first delta. reasoning_tokens: how many generated ones were reasoning; final at the end.
    """

    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int

    async def __aenter__(self) -> "Generation": ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[Delta]: ...


class ChatHandler(Handler, Protocol):
    def check_images(self, images: Sequence[ImageInput]) -> None:
        """Whether so many images can be read at all, before any of them is fetched. Raises InvalidRequest."""

    async def open(self, request: ChatRequest, caller: Caller) -> Generation:
        """Admit the request; raises InvalidRequest, QueueFull or ShuttingDown before anything is generated."""

    async def complete(self, request: CompletionRequest, caller: Caller) -> Generation:
        """The same for plain prompts."""


class EmbeddingsHandler(Handler, Protocol):
    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """One vector an input. Cancelling the awaiting task withdraws the jobs."""


class RerankHandler(Handler, Protocol):
    async def rerank(self, request: RerankRequest, caller: Caller) -> Relevance:
        """How relevant each document is to the query. Cancelling the awaiting task withdraws the jobs."""


class Transcription(Protocol):
    """A transcript in the making. Leaving the context stops what is not finished; iterating yields Segments in order as
    they are finished. The request's file is read until then.
    """

    async def __aenter__(self) -> "Transcription": ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[Segment]: ...

    def transcript(self) -> Transcript:
        """Of what was iterated so far, with its segments; complete after the end of the iteration.

        Its text is the texts of its segments, one after the other, without white space at either end.
        """


class TranscriptionHandler(Handler, Protocol):
    async def open(self, request: TranscriptionRequest, caller: Caller) -> Transcription:
        """Admit the file; raises InvalidRequest (UnsupportedMedia, TooLarge), QueueFull or ShuttingDown before anything
        is computed."""


class Synthesis(Protocol):
    """A text being spoken. Leaving the context ends it at the next sentence; iterating yields encoded audio.

    media_type: of the audio. voice: the local one that speaks. transliterated: alphabets that were written in Latin
    letters for it. input_tokens: characters of the text. output_tokens: of the audio so far.
    """

    media_type: str
    voice: str
    transliterated: frozenset[str]
    input_tokens: int

    @property
    def output_tokens(self) -> int: ...

    async def __aenter__(self) -> "Synthesis": ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class SpeechHandler(Handler, Protocol):
    async def open(self, request: SpeechRequest, caller: Caller) -> Synthesis:
        """Admit the request; raises InvalidRequest, QueueFull or ShuttingDown before anything is spoken."""
