"""Models that are functions, and the app around them: the real routes and errors, no weights, no middleware."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import orjson
import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batching.job import Caller
from gateway.errors import ClientDisconnected, exception_handlers
from gateway.routes import routes
from gateway.settings import Settings
from gateway.state import State
from gateway.telemetry.metrics import Metrics
from handlers.base import Handler
from handlers.chat.types import ChatRequest, CompletionRequest, Delta, ImageInput
from handlers.embeddings.types import EmbeddingRequest, Embeddings
from handlers.errors import InvalidRequest
from handlers.registry import Registry
from handlers.rerank.types import Relevance, RerankRequest
from handlers.spec import ModelSpec, Task
from handlers.speech.types import SpeechRequest
from handlers.stats import ModelStats
from handlers.transcription.types import Segment, TokenLogprob, Transcript, TranscriptionRequest, Word
from proxy.images import ImageFetcher
from tests.batching.fakes import IDLE


def app(
    *handlers: Handler, strict_params: bool = False, ready: bool = True, images: ImageFetcher | None = None
) -> ASGIApp:
    """The gateway without its middleware, its models warm unless told otherwise."""
    registry = Registry(handlers)
    for model in registry.models:
        model.ready = ready
    state = State(
        settings=Settings(models="none", strict_params=strict_params),
        registry=registry,
        metrics=Metrics(registry, routes),
        upstreams=None,
        images=images,
    )
    starlette = Starlette(routes=routes, exception_handlers=exception_handlers)

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await starlette({**scope, "state": dict(state)}, receive, send)

    return with_state


class FakeHandler:
    """calls: what came, in order. gate: while it is cleared, answers wait, so a test decides when."""

    def __init__(self, spec: ModelSpec, *, error: Exception | None = None) -> None:
        self.spec = spec
        self.error = error
        self.calls: list[tuple[Any, Caller]] = []
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = False

    async def load(self) -> None:
        """Nothing to open."""

    async def run(self) -> None:
        """No batches."""

    async def drain(self) -> None:
        """Nothing in hand."""

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": [self.spec.task.value], "max_model_len": 512}

    def stats(self) -> ModelStats:
        return ModelStats(IDLE)

    async def _answer(self, request: Any, caller: Caller) -> None:
        self.calls.append((request, caller))
        await self.answer()

    async def answer(self) -> None:
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error


class FakeGeneration:
    """Yields `deltas`; before the `wait_at`-th it waits for the handler's gate and raises its error, if any."""

    def __init__(self, handler: "FakeChat") -> None:
        self.prompt_tokens = 9
        self.cached_tokens = handler.cached_tokens
        self.reasoning_tokens = handler.reasoning_tokens
        self._handler = handler

    async def __aenter__(self) -> "FakeGeneration":
        self._handler.open_generations += 1
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: object, trace: TracebackType | None) -> None:
        self._handler.open_generations -= 1
        self._handler.closed_generations += 1

    async def __aiter__(self) -> AsyncIterator[Delta]:
        handler = self._handler
        for i, delta in enumerate(handler.deltas):
            if i == handler.wait_at:
                handler.started.set()
                await handler.gate.wait()
                if handler.error is not None:
                    raise handler.error
            yield delta


HELLO = (Delta("Hel", 1), Delta("", 2), Delta('lo "wörld"\n', 3), Delta("", 4, "stop"))


class FakeChat(FakeHandler):
    """refusal: what `open` and `complete` raise, as a full queue would."""

    def __init__(
        self,
        deltas: Sequence[Delta] = HELLO,
        *,
        wait_at: int = 0,
        error: Exception | None = None,
        refusal: Exception | None = None,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        reads_images: bool = False,
    ) -> None:
        super().__init__(ModelSpec("org/chat", Task.CHAT, "dir:/chat", aliases=("gpt-4o-mini", "gpt-4o")), error=error)
        self.deltas = deltas
        self.wait_at = wait_at
        self.reads_images = reads_images
        self.refusal = refusal
        self.cached_tokens = cached_tokens
        self.reasoning_tokens = reasoning_tokens
        self.open_generations = 0
        self.closed_generations = 0

    def check_images(self, images: Sequence[ImageInput]) -> None:
        if images and not self.reads_images:
            raise InvalidRequest("This model reads text only.", images[0].param, "unsupported_value")

    async def open(self, request: ChatRequest, caller: Caller) -> FakeGeneration:
        return self._generation(request, caller)

    async def complete(self, request: CompletionRequest, caller: Caller) -> FakeGeneration:
        return self._generation(request, caller)

    def _generation(self, request: ChatRequest | CompletionRequest, caller: Caller) -> FakeGeneration:
        self.calls.append((request, caller))
        if self.refusal is not None:
            raise self.refusal
        return FakeGeneration(self)


class FakeEmbeddings(FakeHandler):
    """Every input becomes [its length, 0.5, -1/3, 0], unless `value` fills the vectors. Prompts mean nothing to it."""

    def __init__(self, *, value: float | None = None, error: Exception | None = None) -> None:
        super().__init__(ModelSpec("mini-embed", Task.EMBEDDINGS, "dir:/embed"), error=error)
        self.value = value

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        await self._answer(request, caller)
        rows = [[self.value] * 4 if self.value is not None else [len(i), 0.5, -1 / 3, 0] for i in request.inputs]
        ignored = (request.prompt.param,) if request.prompt else ()
        return Embeddings(np.array(rows, dtype=np.float32), sum(len(i) for i in request.inputs), ignored)


class FakeReranker(FakeHandler):
    """A document's raw number is its length less 4, its score a tenth of its length."""

    def __init__(self, *, error: Exception | None = None) -> None:
        super().__init__(ModelSpec("mini-rerank", Task.RERANK, "dir:/rerank", aliases=("rerank-v3.5",)), error=error)

    async def rerank(self, request: RerankRequest, caller: Caller) -> Relevance:
        await self._answer(request, caller)
        lengths = np.array([len(document) for document in request.documents], np.float64)
        return Relevance(lengths - 4, lengths / 10, tokens=int(lengths.sum()))


def said(text: str, start: float = 0.0, end: float = 1.0, *, id: int = 0) -> Segment:
    """Its words share its time; a token is a word with the space before it."""
    tokens = re.findall(r"\s*\S+", text)
    length = (end - start) / max(1, len(tokens))
    return Segment(
        id,
        seek=int(start * 100),
        start=start,
        end=end,
        text=text,
        tokens=[50364 + i for i in range(len(tokens))],
        temperature=0.0,
        avg_logprob=-0.25,
        compression_ratio=1.5,
        no_speech_prob=0.0625,
        words=[Word(word, start + i * length, start + (i + 1) * length, 0.5) for i, word in enumerate(tokens)],
        logprobs=[TokenLogprob(token, token.encode(), 0.0 - 0.5 * i) for i, token in enumerate(tokens)],
    )


KENNEDY = (
    said(" And so, my fellow Americans,", 0.0, 3.3),
    said(" ask not what your country can do for you.", 3.3, 11.00004, id=1),
)


class FakeTranscript:
    """Yields `segments`; before the `wait_at`-th it waits for the handler's gate and raises its error, if any."""

    def __init__(self, handler: "FakeTranscription", request: TranscriptionRequest) -> None:
        self._handler = handler
        self._request = request
        self._finished: list[Segment] = []

    async def __aenter__(self) -> "FakeTranscript":
        self._handler.open_transcripts += 1
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: object, trace: TracebackType | None) -> None:
        assert not self._request.file.closed, "it may be read until here"
        self._handler.open_transcripts -= 1
        self._handler.closed_transcripts += 1

    async def __aiter__(self) -> AsyncIterator[Segment]:
        handler = self._handler
        for i in range(len(handler.segments) + 1):
            if i == handler.wait_at:
                await handler.answer()
            for segment in handler.segments[i : i + 1]:
                self._finished.append(segment)
                yield segment

    def transcript(self) -> Transcript:
        text = "".join(segment.text for segment in self._finished).strip()
        language = (self._request.language or "en") if text else None
        return Transcript(text, language, 11.00004, tuple(self._finished), 550, 3, 19)


class FakeTranscription(FakeHandler):
    """files: what was in each upload. refusal: what `open` raises, as a full queue would."""

    def __init__(
        self,
        *segments: Segment,
        silent: bool = False,
        wait_at: int = 0,
        error: Exception | None = None,
        refusal: Exception | None = None,
        translates: bool = True,
    ) -> None:
        spec = ModelSpec(
            "tiny-whisper", Task.TRANSCRIPTION, "dir:/asr", aliases=("whisper-1", "gpt-4o-transcribe", "gpt-transcribe")
        )
        super().__init__(spec, error=error)
        self.segments = () if silent else segments or KENNEDY
        self.wait_at = wait_at
        self.refusal = refusal
        self.translates = translates
        self.files: list[bytes] = []
        self.open_transcripts = 0
        self.closed_transcripts = 0

    async def open(self, request: TranscriptionRequest, caller: Caller) -> FakeTranscript:
        self.calls.append((request, caller))
        if self.refusal is not None:
            raise self.refusal
        if request.task == "translate" and not self.translates:
            raise InvalidRequest("This model cannot translate.", "model", "unsupported_value")
        self.files.append(request.file.read())
        return FakeTranscript(self, request)


class FakeSynthesis:
    """Yields the handler's chunks; before the `fail_at`-th it raises `failure`, before the `wait_at`-th it waits."""

    media_type = "audio/mpeg"
    voice = "am_adam, über"
    input_tokens = 5

    def __init__(self, handler: "FakeSpeech") -> None:
        self.transliterated = handler.transliterated
        self.output_tokens = 0
        self._handler = handler

    async def __aenter__(self) -> "FakeSynthesis":
        self._handler.open_syntheses += 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._handler.open_syntheses -= 1
        self._handler.closed_syntheses += 1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        handler = self._handler
        for i, chunk in enumerate([*handler.chunks, b""]):
            if i == handler.wait_at:
                handler.waiting.set()
                await handler.latch.wait()
            if i == handler.fail_at:
                raise handler.failure
            if chunk:
                self.output_tokens += 15
                yield chunk


class FakeSpeech(FakeHandler):
    def __init__(
        self,
        chunks: Sequence[bytes] = (b"ID3", b"audio"),
        *,
        error: Exception | None = None,
        failure: Exception | None = None,
        fail_at: int | None = None,
        wait_at: int | None = None,
        transliterated: Sequence[str] = (),
    ) -> None:
        super().__init__(ModelSpec("tiny-tts", Task.SPEECH, "dir:/tts", aliases=("tts-1",)), error=error)
        self.chunks = chunks
        self.failure = failure or RuntimeError("the voice broke")
        self.fail_at = fail_at
        self.wait_at = wait_at
        self.transliterated = frozenset(transliterated)
        self.waiting = asyncio.Event()
        self.latch = asyncio.Event()
        self.open_syntheses = 0
        self.closed_syntheses = 0

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "voices": {"alloy": "af_heart", "onyx": "am_adam"}}

    async def open(self, request: SpeechRequest, caller: Caller) -> FakeSynthesis:
        await self._answer(request, caller)
        return FakeSynthesis(self)


class Connection:
    """One request by hand: the client may leave, and what was sent is seen as it is sent."""

    def __init__(self, path: str, body: object) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self._body: bytes | None = orjson.dumps(body)
        self._left = asyncio.Event()
        self.sent: list[Message] = []

    @property
    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.sent if m["type"] == "http.response.start"), None)

    def send_as(self, content_type: bytes, body: bytes) -> None:
        """Something other than JSON."""
        self.scope["headers"] = [(b"content-type", content_type)]
        self._body = body

    def leave(self) -> None:
        self._left.set()

    async def leave_when(self, event: asyncio.Event, app: ASGIApp) -> None:
        """Run the request on `app` until its client leaves, which it does at `event`."""

        async def leave() -> None:
            await event.wait()
            self.leave()

        # The time is for a request that would go on without its client: the test fails then, and does not hang.
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(leave())
            with pytest.raises(ClientDisconnected):
                await app(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
