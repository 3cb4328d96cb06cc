"""Every parameter that a request may carry, and what becomes of it: the one list behind validation, `x-ignored-params`,
the 400s that name a parameter, and the tables in docs/api.md.

The rule: what would silently change the meaning of the answer is refused; hints, billing and telemetry are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    SUPPORTED = "supported"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Parameter:
    """note: a short sentence; of a refused parameter, why it is refused or what to use instead.

    allowed: values of a refused parameter that ask for nothing special, and so are taken.
    """

    verdict: Verdict
    note: str
    allowed: tuple[Any, ...] = ()

    def allows(self, value: object) -> bool:
        """Whether a refused parameter may have this value. True is not 1 here, although Python says so."""
        return any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in self.allowed
        )


Parameters = Mapping[str, Parameter]


def _supported(note: str) -> Parameter:
    return Parameter(Verdict.SUPPORTED, note)


def _ignored(note: str) -> Parameter:
    return Parameter(Verdict.IGNORED, note)


def _refused(note: str, *allowed: object) -> Parameter:
    return Parameter(Verdict.REFUSED, note, allowed)


_MODEL = _supported("A model id or alias from `GET /v1/models`.")
_NO_TOOLS = "Tool calls are not available yet."
_ONE_SAMPLER = "Sampling is shaped by `temperature`, `top_p` and `seed` only."
_NO_GRAMMAR = "Constrained output is not available yet."

CHAT: Parameters = {
    "messages": _supported("1 to 2048 messages; see below."),
    "model": _MODEL,
    "max_completion_tokens": _supported("At least 1. Without it, as many as the context has room for."),
    "max_tokens": _supported("The older name; `max_completion_tokens` wins when both are sent."),
    "temperature": _supported("0 to 2, default 1; 0 is greedy."),
    "top_p": _supported("0 to 1, default 1; 0 takes the likeliest token."),
    "seed": _supported("A 64-bit integer. Every request draws from its own generator, also within a batch."),
    "stop": _supported("One text or up to 64, of 1 to 1024 characters each; the answer ends before it."),
    "stream": _supported("Server-sent events."),
    "stream_options": _supported("Only with `stream`; see below."),
    "service_tier": _supported("`flex` lets interactive requests go first; any other tier is served as `default`."),
    "n": _refused("One answer a request; send several requests, they are batched.", 1),
    "tools": _refused(_NO_TOOLS, []),
    "tool_choice": _refused(_NO_TOOLS, "none", "auto"),
    "functions": _refused(_NO_TOOLS, []),
    "function_call": _refused(_NO_TOOLS, "none", "auto"),
    "response_format": _refused(_NO_GRAMMAR, {"type": "text"}),
    "logprobs": _refused("Log probabilities are not available yet.", False),
    "top_logprobs": _refused("Log probabilities are not available yet.", 0),
    "frequency_penalty": _refused("Penalties are not available yet.", 0),
    "presence_penalty": _refused("Penalties are not available yet.", 0),
    "logit_bias": _refused("Token biases are not available yet.", {}),
    "modalities": _refused("Answers are text; use `/v1/audio/speech` to have them spoken.", ["text"]),
    "audio": _refused("Answers are text; use `/v1/audio/speech` to have them spoken."),
    "moderation": _refused("There is no moderation model, and a safety check must not be faked."),
    "web_search_options": _refused("There is no web search."),
    "parallel_tool_calls": _ignored("Has a meaning only with `tools`."),
    "reasoning_effort": _ignored("The models have no such switch."),
    "verbosity": _ignored("A hint."),
    "prediction": _ignored("A hint that would only save time."),
    "store": _ignored("Nothing is stored."),
    "metadata": _ignored("Belongs to stored completions."),
    "prompt_cache_key": _ignored("A caching hint."),
    "prompt_cache_options": _ignored("A caching hint."),
    "prompt_cache_retention": _ignored("A caching hint."),
    "safety_identifier": _ignored("For the provider's abuse checks."),
    "user": _ignored("For the provider's abuse checks."),
    "cache_salt": _ignored("Extension; a caching hint."),
    "priority": _ignored("Extension; use `service_tier`."),
    "top_k": _refused(f"Extension. {_ONE_SAMPLER}", 0, -1),
    "min_p": _refused(f"Extension. {_ONE_SAMPLER}", 0),
    "typical_p": _refused(f"Extension. {_ONE_SAMPLER}", 1),
    "repetition_penalty": _refused(f"Extension. {_ONE_SAMPLER}", 1),
    "length_penalty": _refused(f"Extension. {_ONE_SAMPLER}", 1),
    "use_beam_search": _refused(f"Extension. {_ONE_SAMPLER}", False),
    "best_of": _refused("Extension. One answer a request.", 1),
    "min_tokens": _refused("Extension. An answer ends where the model ends it.", 0),
    "ignore_eos": _refused("Extension. An answer ends where the model ends it.", False),
    "stop_token_ids": _refused("Extension. Send the texts in `stop`.", []),
    "chat_template_kwargs": _refused("Extension. The model's chat template is used as it is.", {}),
    "add_generation_prompt": _refused("Extension. An assistant turn is always opened.", True),
    "continue_final_message": _refused("Extension. A new assistant turn is always opened.", False),
    "echo": _refused("Extension. The prompt is not repeated.", False),
    "truncate_prompt_tokens": _refused("Extension. A prompt that does not fit is refused, never cut."),
    "structured_outputs": _refused(f"Extension. {_NO_GRAMMAR}"),
    "guided_json": _refused(f"Extension. {_NO_GRAMMAR}"),
    "guided_regex": _refused(f"Extension. {_NO_GRAMMAR}"),
    "guided_choice": _refused(f"Extension. {_NO_GRAMMAR}"),
    "guided_grammar": _refused(f"Extension. {_NO_GRAMMAR}"),
}

MESSAGE: Parameters = {
    "role": _supported("`developer`, `system`, `user` or `assistant`."),
    "content": _supported("A text, or `text` parts, which are joined by a newline. May be null for an assistant."),
    "refusal": _supported("Of an assistant without content: taken as what it said."),
    "name": _ignored("The chat templates know roles, not names."),
    "annotations": _ignored("Part of an earlier answer, of no use as input."),
    "tool_calls": _refused(_NO_TOOLS, []),
    "tool_call_id": _refused(_NO_TOOLS),
    "function_call": _refused(_NO_TOOLS),
    "audio": _refused("Messages are text; send what was said as `content`."),
}

CONTENT_PART: Parameters = {
    "type": _supported("`text`, or `refusal` in an assistant's message."),
    "text": _supported("The text of a `text` part."),
    "refusal": _supported("The text of a `refusal` part."),
    "prompt_cache_breakpoint": _ignored("A caching hint."),
}

STREAM_OPTIONS: Parameters = {
    "include_usage": _supported("A last chunk with `usage`; the other chunks then have `usage: null`."),
    "include_obfuscation": _ignored("Chunks are never padded."),
}

EMBEDDINGS: Parameters = {
    "input": _supported(
        "A text, a list of texts, a list of token ids, or a list of those; 1 to 2048 items, none empty."
    ),
    "model": _MODEL,
    "encoding_format": _supported("`float` (default) or `base64`: little-endian float32."),
    "dimensions": _supported("For models trained to be shortened; refused for the others."),
    "user": _ignored("For the provider's abuse checks."),
    "truncate_prompt_tokens": _refused("Extension. An input that does not fit is refused, never cut."),
    "truncate": _refused("Extension. An input that does not fit is refused, never cut.", False),
    "input_type": _refused("Extension. Put the model's own prefix into the text."),
    "task": _refused("Extension. Put the model's own prefix into the text."),
    "prompt_name": _refused("Extension. Put the model's own prefix into the text."),
    "normalize": _refused("Extension. Vectors come as the model's own configuration says."),
}

TRANSCRIPTION: Parameters = {
    "file": _supported("The audio, as a file part: wav, mp3, flac, ogg, m4a, mp4 or webm."),
    "model": _MODEL,
    "language": _supported("An ISO-639-1 code such as `en`; without it the language is detected."),
    "prompt": _supported("Earlier text, or names and words that occur."),
    "response_format": _supported("`json` (default) or `text`."),
    "temperature": _supported("0 to 1, default 0: greedy, and warmer only where that fails."),
    "stream": _refused("Transcripts come in one piece.", "false", "False", "0"),
    "include": _refused("Log probabilities are not available yet."),
    "timestamp_granularities": _refused("Timestamps are not available yet."),
    "chunking_strategy": _refused("The audio is cut automatically.", "auto"),
    "keywords": _refused("Put the words into `prompt`."),
    "languages": _refused("Send one `language`, or none to have it detected."),
    "known_speaker_names": _refused("Speakers are not told apart."),
    "known_speaker_references": _refused("Speakers are not told apart."),
}

SPEECH: Parameters = {
    "input": _supported("The text to speak, 1 to 4096 characters."),
    "model": _MODEL,
    "voice": _supported("A name from `GET /v1/audio/voices`, or `{id}` with one."),
    "response_format": _supported("`mp3` (default), `opus`, `aac`, `flac`, `wav` or `pcm`."),
    "speed": _supported("0.25 to 4, default 1."),
    "instructions": _ignored("The models have one style."),
    "stream_format": _refused("The audio comes in one piece.", "audio"),
}
