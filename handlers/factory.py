"""From a model's description to the handler that serves it. What a handler needs is imported only if one is made."""

from collections.abc import Callable, Sequence
from pathlib import Path

from handlers.base import Handler
from handlers.chat.types import IMAGE_LIMITS, ImageLimits
from handlers.spec import ModelSpec, Task
from handlers.speech.types import MAX_CHARACTERS as MAX_SPEECH_CHARACTERS

OpenSource = Callable[[str], Path]


def create_handlers(
    specs: Sequence[ModelSpec],
    open_source: OpenSource,
    *,
    max_audio_seconds: float,
    max_speech_characters: int = MAX_SPEECH_CHARACTERS,
    image_limits: ImageLimits = IMAGE_LIMITS,
) -> Sequence[Handler]:
    """One handler a model, not loaded yet.

    open_source: from a source string to the folder with its files; called in a worker thread.
    max_audio_seconds: the longest audio that is transcribed. max_speech_characters: the longest text that is spoken.
    image_limits: of the images that chats may have.
    """
    has_reranker = any(spec.task is Task.RERANK for spec in specs)
    return [
        _create(spec, open_source, max_audio_seconds, max_speech_characters, image_limits, has_reranker)
        for spec in specs
    ]


def _create(
    spec: ModelSpec,
    open_source: OpenSource,
    max_audio_seconds: float,
    max_speech_characters: int,
    image_limits: ImageLimits,
    has_reranker: bool,
) -> Handler:
    match spec.task:
        case Task.CHAT:
            from handlers.chat.handler import TransformersChatHandler

            return TransformersChatHandler(spec, open_source, image_limits=image_limits)
        case Task.EMBEDDINGS:
            from handlers.embeddings.handler import SentenceEncoderHandler

            return SentenceEncoderHandler(spec, open_source, reranks=not has_reranker)
        case Task.TRANSCRIPTION:
            from handlers.transcription.handler import WhisperHandler

            return WhisperHandler(spec, open_source, max_audio_seconds=max_audio_seconds)
        case Task.SPEECH:
            from handlers.speech.handler import SynthesisHandler

            return SynthesisHandler(spec, open_source, max_characters=max_speech_characters)
        case Task.RERANK:
            from handlers.rerank.handler import RerankerHandler

            return RerankerHandler(spec, open_source)
