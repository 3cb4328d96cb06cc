"""Every parameter that a request may carry, and what becomes of it: the one list behind validation, `x-ignored-params`,
the 400s that name a parameter, and the tables in docs/api.md.

The rule: what would silently change the meaning of the answer is refused; hints, billing and telemetry are ignored.
"""

from gateway.schemas.verdicts import Parameters, extensions, ignored, refused, supported

_MODEL = supported("A model id or alias from `GET /v1/models`.")
_ONE_SAMPLER = "Answers are sampled with `temperature`, `top_p`, `top_k` and `min_p`."
_ONE_FORMAT = "Not with another format."

_TIER = supported("`flex` lets interactive requests go first; any other tier is served as `default`.")

_SAMPLING: Parameters = {
    "temperature": supported("0 to 2, default 1; 0 is greedy."),
    "top_p": supported("0 to 1, default 1; 0 takes the likeliest token."),
    "seed": supported("A 64-bit integer. Every request draws from its own generator, also within a batch."),
    "frequency_penalty": supported("-2 to 2, default 0; counts the tokens of the answer, not of the prompt."),
    "presence_penalty": supported("-2 to 2, default 0; counts the tokens of the answer, not of the prompt."),
    "logit_bias": supported("Up to 1024 token ids of the served model, each with -100 to 100."),
    "stop": supported("One text or up to 64, of 1 to 1024 characters each; the answer ends before it."),
    "stream": supported("Server-sent events."),
    "stream_options": supported("Only with `stream`; see below."),
}

_HINTS: Parameters = {
    "store": ignored("Nothing is stored."),
    "metadata": ignored("Belongs to stored completions."),
    "prompt_cache_key": ignored("A caching hint."),
    "prompt_cache_options": ignored("A caching hint."),
    "prompt_cache_retention": ignored("A caching hint."),
    "safety_identifier": ignored("For the provider's abuse checks."),
    "user": ignored("For the provider's abuse checks."),
}

_EXTENSIONS: Parameters = {
    "top_k": supported("Only the so many likeliest tokens; 0 and -1 are off."),
    "min_p": supported("0 to 1, default 0: the least share of the likeliest token's probability."),
    "repetition_penalty": supported("0.01 to 10, default 1; counts the tokens of the prompt too."),
    "min_tokens": supported("So many tokens at least; default 0."),
    "ignore_eos": supported("`true`: only `max_tokens` and the stops end an answer."),
    "stop_token_ids": supported("Up to 64 token ids of the served model that end an answer."),
    "cache_salt": supported("1 to 256 characters: cached prefixes are shared only under the same salt."),
    "priority": supported("An integer; above 0 it means what `service_tier` `flex` means."),
    "guided_json": supported(f"A JSON schema, as an object or a text. {_ONE_FORMAT}"),
    "guided_regex": supported(f"A regular expression of up to 8192 characters. {_ONE_FORMAT}"),
    "guided_choice": supported(f"Up to 1024 texts. {_ONE_FORMAT}"),
    "guided_grammar": supported(f"A grammar in Lark's form, up to 65536 characters. {_ONE_FORMAT}"),
    "structured_outputs": supported(f"The newer form of `guided_…`; see below. {_ONE_FORMAT}"),
    "typical_p": refused(_ONE_SAMPLER, 1),
    "length_penalty": refused(_ONE_SAMPLER, 1),
    "use_beam_search": refused(_ONE_SAMPLER, False),
    "truncate_prompt_tokens": refused("A prompt that does not fit is refused, never cut."),
}

CHAT: Parameters = {
    "messages": supported("1 to 2048 messages; see below."),
    "model": _MODEL,
    "max_completion_tokens": supported("At least 1. Without it, as many as the context has room for."),
    "max_tokens": supported("The older name; `max_completion_tokens` wins when both are sent."),
    **_SAMPLING,
    "service_tier": _TIER,
    "n": supported("1 to 128 answers, default 1; they share the reading of the messages."),
    "logprobs": supported(
        "Log probabilities of the answer's tokens: the model's own, before temperature and penalties."
    ),
    "top_logprobs": supported("0 to 20; above 0 only with `logprobs`."),
    "tools": supported("Up to 128 functions, with names of 1 to 64 of `a-z A-Z 0-9 _ -`. `custom` tools are refused."),
    "tool_choice": supported("`none`, `auto` (default), `required`, a function, or `allowed_tools`."),
    "parallel_tool_calls": supported("Default `true`; `false` ends an answer with its first call."),
    "functions": supported("The older form of `tools`; calls then come as `function_call`."),
    "function_call": supported("The older form of `tool_choice`: `none`, `auto` or `{name}`."),
    "response_format": supported(
        "`text`, `json_object` or `json_schema`, which always holds to the letter; see below."
    ),
    "reasoning_effort": supported("For templates with a switch: `none` turns thinking off, any other effort on."),
    "modalities": refused("Answers are text; use `/v1/audio/speech` to have them spoken.", ["text"]),
    "audio": refused("Answers are text; use `/v1/audio/speech` to have them spoken."),
    "moderation": refused("There is no moderation model, and a safety check must not be faked."),
    "web_search_options": refused("There is no web search."),
    "verbosity": ignored("A hint."),
    "prediction": ignored("A hint that would only save time."),
    **_HINTS,
    **extensions(
        {
            **_EXTENSIONS,
            "chat_template_kwargs": supported("Up to 64 variables for the model's chat template."),
            "add_generation_prompt": supported("Default `true`, which opens an assistant turn."),
            "continue_final_message": supported("`true`: the answer goes on where the last message ends."),
            "chat_template": refused("A template is code; the model's own is used, with `chat_template_kwargs`."),
            "best_of": refused("Every answer is returned; ask for several with `n`.", 1),
            "echo": refused("The prompt is not repeated; `/v1/completions` can do that.", False),
        }
    ),
}

COMPLETIONS: Parameters = {
    "prompt": supported("A text, a list of texts, a list of token ids, or a list of those; at most 128 prompts."),
    "model": _MODEL,
    "max_tokens": supported("At least 1, default 16; with `echo` it may be 0."),
    **_SAMPLING,
    "n": supported("1 to 128 answers a prompt, default 1; 128 a request at most."),
    "best_of": supported("At least `n`: so many are made, the `n` likeliest returned. Not with `stream`."),
    "echo": supported("`true`: the prompt comes first, also with its log probabilities."),
    "suffix": supported("What follows the gap, for models trained to fill one."),
    "logprobs": supported("0 to 5: the likeliest tokens at each place; 0 gives the chosen ones only."),
    **_HINTS,
    **extensions(
        {
            "service_tier": _TIER,
            "response_format": supported("As in a [chat](#chat)."),
            **_EXTENSIONS,
        }
    ),
}

MESSAGE: Parameters = {
    "role": supported("`developer`, `system`, `user`, `assistant`, `tool`, or the older `function`."),
    "content": supported("A text, or parts; texts alone are joined by a newline. May be null for an assistant."),
    "refusal": supported("Of an assistant without content: taken as what it said."),
    "name": supported("Handed to the model's chat template."),
    "tool_calls": supported("Of an assistant: up to 128 function calls, with their ids."),
    "tool_call_id": supported("Of a `tool` message: which call it answers."),
    "function_call": supported("The older form of `tool_calls`."),
    "annotations": ignored("Part of an earlier answer, of no use as input."),
    "audio": refused("Messages are text; send what was said as `content`."),
    **extensions(
        {
            "reasoning_content": supported("Of an assistant: what it thought, for templates that show it again."),
            "reasoning": supported("Another server's name for `reasoning_content`."),
        }
    ),
}

STRUCTURED_OUTPUTS: Parameters = {
    "json": supported("As `guided_json`."),
    "regex": supported("As `guided_regex`."),
    "choice": supported("As `guided_choice`."),
    "grammar": supported("As `guided_grammar`."),
    "json_object": supported("`true`: any JSON object."),
    "structural_tag": refused("Only one format for the whole answer is taken."),
    "whitespace_pattern": refused("White space in JSON is left to the model."),
}

CONTENT_PART: Parameters = {
    "type": supported("`text`, `image_url` in a user's message, or `refusal` in an assistant's."),
    "text": supported("The text of a `text` part."),
    "image_url": supported("The image of an `image_url` part: `{url}`, or the URL alone. See [images](#images)."),
    "refusal": supported("The text of a `refusal` part."),
    "prompt_cache_breakpoint": ignored("A caching hint."),
}

IMAGE_URL: Parameters = {
    "url": supported("A data URL in base64 or, where the server fetches images, an `https` URL."),
    "detail": ignored("A hint; models read images as they were trained to."),
}

STREAM_OPTIONS: Parameters = {
    "include_usage": supported("A last chunk with `usage`; the other chunks then have `usage: null`."),
    "include_obfuscation": ignored("Chunks are never padded."),
}

_CUT_AT_THE_END = "Inputs are cut at their end."

EMBEDDINGS: Parameters = {
    "input": supported(
        "A text, a list of texts, a list of token ids, or a list of those; 1 to 2048 items, none empty."
    ),
    "model": _MODEL,
    "encoding_format": supported("`float` (default) or `base64`: little-endian float32."),
    "dimensions": supported("Shorter vectors, of models that are trained for it; refused for the others."),
    "user": ignored("For the provider's abuse checks."),
    **extensions(
        {
            "truncate_prompt_tokens": supported("Longer inputs are cut to so many tokens; -1: to the model's maximum."),
            "truncate": supported("`true`: as `truncate_prompt_tokens` -1. Default `false`: refused if too long."),
            "prompt_name": supported("Which of the model's prompts goes before each text."),
            "input_type": supported("`query` or `document`, and other servers' words for these; see below."),
            "task": supported("Another name for `input_type`; only one of the three."),
            "normalize": supported("Vectors of length 1, or as computed. Default: as the model's files say."),
            "cache_salt": supported("1 to 256 characters: cached vectors are shared only under the same salt."),
            "truncation": refused("Send `truncate`.", False),
            "truncation_direction": refused(_CUT_AT_THE_END, "right", "Right"),
            "truncate_direction": refused(_CUT_AT_THE_END, "right", "Right"),
            "truncation_side": refused(_CUT_AT_THE_END, "right"),
            "add_special_tokens": refused("The model's own special tokens are always added.", True),
            "output_dimension": refused("Send `dimensions`."),
            "output_dtype": refused("Numbers are float32; `encoding_format` says how they are written.", "float"),
            "embedding_type": refused("Send `encoding_format`.", "float"),
            "embedding_types": refused("Send `encoding_format`.", ["float"]),
            "embed_dtype": refused("Numbers are float32.", "float32"),
            "endianness": refused("`base64` is little-endian.", "little"),
            "late_chunking": refused("Every input is read for itself.", False),
        }
    ),
}

_NEVER_CUT = "Documents are cut only where `max_tokens_per_doc` says so."

RERANK: Parameters = {
    "model": _MODEL,
    "query": supported("A text of at least one character."),
    "documents": supported("1 to 2048 texts, or objects with a `text`; none empty."),
    "top_n": supported("At least 1: only so many results, the best ones. Without it, all."),
    "return_documents": supported("`true`: every result has its `document`. Default `false`."),
    "max_tokens_per_doc": supported("At least 1: longer documents are cut to so many tokens. Without it, none is cut."),
    "priority": supported("An integer; above 0, interactive requests go first."),
    "user": ignored("For the provider's abuse checks."),
    "max_chunks_per_doc": refused("Documents are not read in chunks."),
    "rank_fields": refused("The `text` of a document is what counts.", ["text"]),
    "relevant_spans": refused("Documents are scored as a whole."),
    **extensions(
        {
            "texts": supported("Another server's name for `documents`; only one of the two."),
            "raw_scores": supported("`true`: the model's own number, a logit or a cosine. Default `false`."),
            "cache_salt": supported(
                "1 to 256 characters: vectors cached for a cosine are shared only under the same salt."
            ),
            "instruction": supported("What relevance means, for models that take one; refused for the others."),
            "return_text": refused("Send `return_documents`.", False),
            "truncate": refused(_NEVER_CUT, False),
            "truncation": refused(_NEVER_CUT, False),
            "truncate_prompt_tokens": refused(_NEVER_CUT),
            "top_k": refused("Send `top_n`."),
            "return_embeddings": refused("Ask `/v1/embeddings` for vectors.", False),
        }
    ),
}

_SPEAKERS = "Speakers are not told apart."
_ONLY_TRANSCRIPTIONS = "Only `/v1/audio/transcriptions` takes it."

_AUDIO: Parameters = {
    "file": supported("The audio, as a file part: wav, mp3, flac, ogg, m4a, mp4 or webm."),
    "model": _MODEL,
    "prompt": supported("Earlier text, or names and words that occur."),
    "response_format": supported("`json` (default), `text`, `srt`, `verbose_json` or `vtt`."),
    "temperature": supported("0 to 1, default 0: greedy, and warmer only where that fails."),
}

TRANSCRIPTION: Parameters = {
    **_AUDIO,
    "language": supported("An ISO-639-1 code such as `en`; without it the language is detected."),
    "languages": supported("Up to 128 codes among which the language is detected; not with `language`."),
    "keywords": supported("Up to 128 names and words that may occur."),
    "include": supported("`logprobs`: log probabilities of the text's tokens; with `json`, and in a stream."),
    "timestamp_granularities": supported("`segment` (default) and `word`; `word` only with `verbose_json`."),
    "chunking_strategy": supported("`auto` (default) or `server_vad` with its settings; see below."),
    "stream": supported("Server-sent events; with `json` or `text`."),
    "known_speaker_names": refused(_SPEAKERS),
    "known_speaker_references": refused(_SPEAKERS),
}

SERVER_VAD: Parameters = {
    "type": supported("`server_vad`."),
    "threshold": supported("0 to 1, default 0.5: the probability of a voice that counts as one."),
    "prefix_padding_ms": supported("0 to 60000, default 300: what is kept before a voice."),
    "silence_duration_ms": supported("0 to 60000, default 500: how long a pause ends a stretch of speech."),
}

TRANSLATION: Parameters = {
    **_AUDIO,
    "language": refused("The language that is spoken is always detected."),
    "languages": refused("The language that is spoken is always detected."),
    "keywords": refused("Put the words into `prompt`."),
    "include": refused(_ONLY_TRANSCRIPTIONS),
    "timestamp_granularities": refused("Segments have times, words have none.", ["segment"]),
    "chunking_strategy": refused(_ONLY_TRANSCRIPTIONS, "auto"),
    "stream": refused("Translations come in one piece.", "false", "False", "0"),
    "known_speaker_names": refused(_SPEAKERS),
    "known_speaker_references": refused(_SPEAKERS),
}

SPEECH: Parameters = {
    "input": supported("The text to speak, 1 to 4096 characters unless the server's settings allow more."),
    "model": _MODEL,
    "voice": supported("A name from `GET /v1/audio/voices`, or `{id}` with one."),
    "response_format": supported("`mp3` (default), `opus`, `aac`, `flac`, `wav` or `pcm`."),
    "speed": supported("0.25 to 4, default 1."),
    "instructions": ignored("The models have one style."),
    "stream_format": supported("`audio` (default) or `sse`, which wraps it in server-sent events."),
}
