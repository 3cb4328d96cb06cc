"""The TOML file of models: what is read from it, and what is said about mistakes in it."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batching.limits import Limits
from gateway.mistakes import SettingsError
from gateway.model_file import LimitsTable, ModelTable, read_model_file
from handlers import starter
from handlers.spec import ModelSpec, Task

SPEECH = '[[models]]\nid = "tts"\ntask = "speech"\nsource = "package:hibari-tts"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.toml"


def mistakes(file: Path, text: str) -> list[str]:
    """What is wrong with the text, without the file's name."""
    file.write_text(text, "utf-8")
    with pytest.raises(SettingsError) as caught:
        read_model_file(file)
    assert all(mistake.startswith(f"{file}: ") for mistake in caught.value.mistakes)
    return [mistake.removeprefix(f"{file}: ") for mistake in caught.value.mistakes]


def test_a_full_table_is_read(file: Path) -> None:
    file.write_text("""
        [[models]]
        id = "org/chat-1"
        task = "chat"
        source = "hub:org/name@main"
        aliases = ["gpt-4o", "gpt-4o-mini"]
        dtype = "bfloat16"
        quantization = "bnb-4bit"
        images = false
        engine = "transformers"
        device = "cuda:1"
        max_model_len = 4096
        limits = { max_queue_size = 8, max_batch_size = 4 }
    """)

    assert read_model_file(file).models == (
        ModelSpec(
            id="org/chat-1",
            task=Task.CHAT,
            source="hub:org/name@main",
            aliases=("gpt-4o", "gpt-4o-mini"),
            dtype="bfloat16",
            quantization="bnb-4bit",
            images=False,
            engine="transformers",
            device="cuda:1",
            max_model_len=4096,
            limits=replace(starter.CHAT.limits, max_queue_size=8, max_batch_size=4),
        ),
    )


def test_what_is_left_out_has_the_default(file: Path) -> None:
    file.write_text(SPEECH)

    assert read_model_file(file).models == (
        ModelSpec(id="tts", task=Task.SPEECH, source="package:hibari-tts", limits=starter.SPEECH.limits),
    )


def test_a_reranker_has_the_limits_of_an_embeddings_model(file: Path) -> None:
    file.write_text('[[models]]\nid = "rr"\ntask = "rerank"\nsource = "dir:/rr"\nmax_model_len = 256')

    [spec] = read_model_file(file).models

    assert (spec.task, spec.max_model_len, spec.limits) == (Task.RERANK, 256, starter.EMBEDDINGS.limits)


def test_an_embeddings_model_has_a_cache_and_lengths_of_its_own(file: Path) -> None:
    table = '[[models]]\nid = "e"\ntask = "embeddings"\nsource = "dir:/e"\n'
    file.write_text(table + "embedding_cache_bytes = 0\nmatryoshka_dimensions = [256, 128]")

    [spec] = read_model_file(file).models

    assert (spec.embedding_cache_bytes, spec.matryoshka_dimensions) == (0, (256, 128))


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ('dtype = "int8"', "models[0].dtype: int8 is for transcription models; this one is for rerank"),
        ('engine = "hibari"', "models[0].engine: rerank models are run by transformers; leave it out"),
        ('isolation = "process"', "models[0].isolation: is for transcription models; this one is for rerank"),
        ('openai_tokens = "dir:x"', "models[0].openai_tokens: is for embeddings models; this one is for rerank"),
        ("prefix_cache_bytes = 0", "models[0].prefix_cache_bytes: is for chat models; this one is for rerank"),
        (
            "embedding_cache_bytes = 0",
            "models[0].embedding_cache_bytes: is for embeddings models; this one is for rerank",
        ),
        (
            "matryoshka_dimensions = []",
            "models[0].matryoshka_dimensions: is for embeddings models; this one is for rerank",
        ),
    ],
)
def test_what_a_reranker_does_not_have_is_a_mistake(line: str, mistake: str, file: Path) -> None:
    assert mistakes(file, f'[[models]]\nid = "rr"\ntask = "rerank"\nsource = "dir:/rr"\n{line}') == [mistake]


SET_BY_HANDLERS = {"max_turn_cost"}


def test_the_tables_know_every_field_of_what_they_describe() -> None:
    assert list(ModelTable.model_fields) == [field.name for field in fields(ModelSpec)]
    limits = [field.name for field in fields(Limits) if field.name not in SET_BY_HANDLERS]
    assert list(LimitsTable.model_fields) == limits


@pytest.mark.parametrize(
    ("source", "read"),
    [("dir:weights", "dir:{folder}/weights"), ("dir:/weights", "dir:/weights"), ("dir:~/weights", "dir:~/weights")],
)
def test_a_relative_folder_is_relative_to_the_file(source: str, read: str, file: Path) -> None:
    file.write_text(f'[[models]]\nid = "a"\ntask = "chat"\nsource = "{source}"')

    assert read_model_file(file).models[0].source == read.format(folder=file.parent)


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ('id = "two words"', "models[0].id: must be a name of letters"),
        ('id = ""', "models[0].id: must be a name of letters"),
        ("id = 1", "models[0].id: must be a name of letters"),
        ('task = "chats"', "models[0].task: must be chat, embeddings, transcription, speech or rerank, not 'chats'"),
        ('source = "ftp:x"', "models[0].source: ftp:x: not a source"),
        ('source = "hub:org/name"', "models[0].source: hub:org/name: no revision"),
        ("source = 1", "models[0].source: must be a source: hub:…"),
        ('aliases = "one"', "models[0].aliases: must be a list of names"),
        ('aliases = ["one", 2]', "models[0].aliases[1]: must be a list of names"),
        ('dtype = "float8"', "models[0].dtype: must be auto, float32, bfloat16, float16 or int8, not 'float8'"),
        ('quantization = "gptq"', "models[0].quantization: must be none, bnb-8bit or bnb-4bit, not 'gptq'"),
        ("images = true", "models[0].images: is for chat models; this one is for speech"),
        ("images = 1", "models[0].images: must be true or false, not 1"),
        ('quantization = "bnb-4bit"', "models[0].quantization: is for chat models; this one is for speech"),
        (
            "max_model_len = 512",
            "models[0].max_model_len: is for chat, embeddings and rerank models; this one is for speech",
        ),
        ("max_model_len = true", "models[0].max_model_len: must be a whole number of at least 1, not True"),
        ('engine = "vllm"', "models[0].engine: must be auto, transformers, faster-whisper, hibari or kokoro, not"),
        ('engine = "faster-whisper"', "models[0].engine: speech models are run by hibari or"),
        ('device = "gpu"', "models[0].device: must be auto, cpu, mps, cuda, cuda:1 or split, not 'gpu'"),
        ('device = "split"', "models[0].device: this voice runs on the CPU; leave it out"),
        ('max_memory = { cpu = "1GiB" }', 'models[0].max_memory: has no effect unless device is "split"'),
        ('max_memory = { gpu = "1GiB" }', "models[0].max_memory.gpu: must be a table of sizes by device"),
        ('max_memory = { cpu = "much" }', "models[0].max_memory.cpu: must be a table of sizes by device"),
        ("max_memory = {}", "models[0].max_memory: must be a table of sizes by device"),
        ('offload_folder = "x"', 'models[0].offload_folder: has no effect unless device is "split"'),
        ('dtype = "float16"', "models[0].dtype: this voice runs in int8; leave it out"),
        ('engine = "kokoro"\ndtype = "int8"', "models[0].dtype: this voice runs in the format of its file"),
        ('engine = "kokoro"\ndevice = "cuda"', "models[0].device: this voice runs on the CPU; leave it out"),
        ('device = "cuda"', "models[0].device: this voice runs on the CPU; leave it out"),
        ("limits.max_batch_size = 2", "models[0].limits.max_batch_size: has no effect"),
        ('openai_tokens = "dir:x"', "models[0].openai_tokens: is for embeddings models; this one is for speech"),
        (
            "embedding_cache_bytes = -1",
            "models[0].embedding_cache_bytes: must be a number of bytes, 0 for none, not -1",
        ),
        ("matryoshka_dimensions = 8", "models[0].matryoshka_dimensions: must be a list of whole numbers of at least 1"),
        ("matryoshka_dimensions = [0]", "models[0].matryoshka_dimensions[0]: must be a list of whole numbers"),
        ("limits = 3", "models[0].limits: must be a table of max_queue_size, max_queue_cost"),
        ("limits.max_batch_size = 0", "models[0].limits.max_batch_size: must be a whole number of at least 1, not 0"),
        ("limits.max_wait = -1", "models[0].limits.max_wait: must be a number of seconds from 0 to 60, not -1"),
        ("limits.max_batch = 1", "models[0].limits.max_batch: is unknown; did you mean max_batch_size?"),
        ('alias = ["one"]', "models[0].alias: is unknown; did you mean aliases?"),
        ("zzz = 1", "models[0].zzz: is unknown"),
    ],
)
def test_a_mistake_is_named_by_its_place(line: str, mistake: str, file: Path) -> None:
    kept = [other for other in SPEECH.splitlines() if other.split(" =")[0] != line.split(" =")[0]]

    [found] = mistakes(file, "\n".join([*kept, line]))

    assert found.startswith(mistake)


def test_a_model_over_several_devices_is_read(file: Path) -> None:
    file.write_text("""
        [[models]]
        id = "big"
        task = "chat"
        source = "dir:/weights"
        device = "split"
        max_memory = { "cuda:0" = "20GiB", cpu = 1000 }
        offload_folder = "left over"
    """)

    [spec] = read_model_file(file).models

    assert (spec.device, spec.max_memory) == ("split", {"cuda:0": 20 * 2**30, "cpu": 1000})
    assert spec.offload_folder == str(file.parent / "left over")


@pytest.mark.parametrize("task", ["embeddings", "transcription"])
def test_only_chat_models_are_split(task: str, file: Path) -> None:
    text = SPEECH.replace('"speech"', f'"{task}"') + 'device = "split"'

    assert mistakes(file, text) == [f"models[0].device: split is for chat models; this one is for {task}"]


def test_what_must_be_there_is_named(file: Path) -> None:
    assert [mistake.split(";")[0] for mistake in mistakes(file, "[[models]]\n")] == [
        "models[0].id: is missing",
        "models[0].task: is missing",
        "models[0].source: is missing",
    ]


@pytest.mark.parametrize("text", ["", "models = 1", "models = []"])
def test_a_file_without_models_is_a_mistake(text: str, file: Path) -> None:
    assert mistakes(file, text) == ["models: is missing; write one [[models]] table for each model"]


def test_a_model_must_be_a_table(file: Path) -> None:
    assert mistakes(file, "models = [1]") == ["models[0]: must be a table"]


def test_an_unknown_key_beside_the_models_is_a_mistake(file: Path) -> None:
    assert mistakes(file, "[[model]]\n\n" + SPEECH) == ["model: is unknown; did you mean models?"]


def test_names_used_twice_are_named_with_both_places(file: Path) -> None:
    first = SPEECH + 'aliases = ["tts-1", "tts"]\n'
    second = SPEECH.replace('"tts"', '"other"') + 'aliases = ["voice", "tts-1"]\n'

    assert mistakes(file, first + second + SPEECH) == [
        "models[0].aliases[1]: must be a name of its own; tts is models[0].id too",
        "models[1].aliases[1]: must be a name of its own; tts-1 is models[0].aliases[0] too",
        "models[2].id: must be a name of its own; tts is models[0].id too",
    ]


def test_mistakes_in_all_models_are_reported_together(file: Path) -> None:
    found = mistakes(file, SPEECH.replace("speech", "sing") + SPEECH.replace("package", "pack") + SPEECH + SPEECH)

    assert [mistake.split(": ")[0] for mistake in found] == ["models[0].task", "models[1].source", "models[3].id"]


@pytest.mark.parametrize("text", ["[[models]", 'id = "\udc80"', "a = " + "[" * 5000])
def test_a_file_that_is_not_toml_is_a_mistake(text: str, file: Path) -> None:
    file.write_text(text, "utf-8", errors="surrogateescape")

    with pytest.raises(SettingsError, match="is not TOML"):
        read_model_file(file)


def test_a_file_that_is_not_there_is_the_callers_to_explain(file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_model_file(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from([*ModelTable.model_fields, "limits.max_wait", "limits.x", "x"]), value=st.text())
def test_no_text_raises_anything_but_a_settings_error(file: Path, key: str, value: str) -> None:
    escaped = "".join(f"\\U{ord(char):08x}" for char in value if not 0xD800 <= ord(char) < 0xE000)
    kept = [line for line in SPEECH.splitlines() if line.split(" =")[0] != key]
    file.write_text("\n".join([*kept, f'{key} = "{escaped}"']), "utf-8")

    try:
        [spec] = read_model_file(file).models
    except SettingsError as error:
        assert error.mistakes
    else:
        assert spec.id
