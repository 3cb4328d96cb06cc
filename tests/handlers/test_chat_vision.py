"""Chats with images: as transformers' own `generate` has them, alone and in any company."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from batching.generation import Joining
from handlers.chat import budget
from handlers.chat.engine import Generated, Prompt
from handlers.chat.loading import ChatModel, load
from handlers.chat.preparation import Preparation
from handlers.chat.types import ChatRequest, ImageInput, Sampling
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from tests.handlers.engines import Run, engine_of
from tests.handlers.tiny_vision import KINDS, TEMPLATE, save_vision_model

SPEC = ModelSpec("eye", Task.CHAT, "dir:x", dtype="float32")
TOKENS = 10
LONG = Sampling(temperature=0, ignore_eos=True)


class Eye:
    """A model, its preparation, and transformers' own computation of the same chats."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.reference = save_vision_model(folder, kind)
        self.loaded: ChatModel = load(SPEC, folder)
        self.preparation = Preparation(self.loaded)

    def prompt(self, *parts: str | Image.Image, tokens: int = TOKENS) -> Prompt:
        return self.preparation.chat(chat(*parts, tokens=tokens))[0]

    def generate(self, *parts: str | Image.Image) -> list[int]:
        """transformers' greedy answer to the same text and images, through its own processor."""
        images = [part for part in parts if not isinstance(part, str)]
        reader = self.loaded.reader
        assert reader is not None
        request = chat(*parts)
        text = self.preparation._render(request)
        inputs: dict[str, Any] = dict(reader.inputs(text, images)) if images else {}
        if not images:
            inputs = {"input_ids": torch.tensor([self.prompt(*parts).token_ids])}
        generate: Any = self.reference.generate
        out = generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        answer: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return answer


def chat(*parts: str | Image.Image, tokens: int = TOKENS) -> ChatRequest:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": ImageInput(png(part), "image/png", f"messages[0].content[{i}].image_url.url")}
        for i, part in enumerate(parts)
    ]
    whole: Any = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else content
    return ChatRequest([{"role": "user", "content": whole}], tokens, LONG)


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture(seed: int, size: tuple[int, int] = (40, 24)) -> Image.Image:
    torch.manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8).numpy())


def entry(id: int, prompt: Prompt, *generated: Generated) -> Joining[Prompt, Generated]:
    return Joining(id, prompt, generated)


@pytest.fixture(scope="module", params=KINDS)
def eye(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Eye:
    return Eye(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are cut within their images."""
    monkeypatch.setattr(budget, "_MOST", 7)
    monkeypatch.setattr(budget, "_LEAST", 3)


CHATS: tuple[tuple[str | Image.Image, ...], ...] = (
    ("What is this?", picture(1), "Say it."),
    ("Text alone, and of some length.",),
    (picture(2, (24, 40)), picture(3), "Which is larger?"),
    ("Short.",),
)


def test_chats_with_and_without_images_are_answered_in_a_batch_as_alone(eye: Eye, small_steps: None) -> None:
    run = Run(engine_of(eye.loaded.model))
    run.until_done(*(entry(i, eye.prompt(*parts)) for i, parts in enumerate(CHATS)))
    assert run.tokens == {i: eye.generate(*parts) for i, parts in enumerate(CHATS)}


def test_a_chat_joins_while_others_generate(eye: Eye, small_steps: None) -> None:
    run = Run(engine_of(eye.loaded.model))
    run.step(entry(1, eye.prompt(*CHATS[1])))
    for _ in range(6):
        run.step()
    run.until_done(entry(0, eye.prompt(*CHATS[0])), entry(2, eye.prompt(*CHATS[2])))
    assert run.tokens == {i: eye.generate(*CHATS[i]) for i in (0, 1, 2)}


def test_the_same_image_is_found_in_the_prefix_cache_and_another_is_not(eye: Eye) -> None:
    run = Run(engine_of(eye.loaded.model, prefix_cache_bytes=1 << 24))
    for id, parts in enumerate([(picture(1), "Same?"), (picture(1), "Same?"), (picture(9), "Same?")]):
        run.until_done(entry(id, eye.prompt(*parts)))
        assert run.tokens[id] == eye.generate(*parts)
    cached = [run.given[id][0].cached_tokens for id in range(3)]
    images = eye.prompt(picture(1), "Same?").images
    assert images is not None
    assert cached[0] == 0 and cached[1] > images.at[0] and cached[2] <= images.at[0]


def test_a_preempted_chat_goes_on_where_it_was(eye: Eye, small_steps: None) -> None:
    run = Run(engine_of(eye.loaded.model))
    prompt = eye.prompt(*CHATS[2])
    run.step(entry(0, prompt))
    while len(run.given.get(0, [])) < 4:
        run.step()
    run.engine.reset()  # as after out-of-memory
    run.until_done(entry(0, prompt, *run.given[0]))
    assert run.tokens[0] == eye.generate(*CHATS[2])


def test_answers_to_one_request_share_one_look_at_its_images(eye: Eye) -> None:
    prompt, looks = eye.prompt(*CHATS[0]), 0
    assert prompt.images is not None
    vectors = prompt.images.vectors

    def look() -> torch.Tensor:
        nonlocal looks
        looks += 1
        return vectors()

    watched = replace(prompt, images=replace(prompt.images, vectors=look))
    run = Run(engine_of(eye.loaded.model))
    run.until_done(entry(0, watched), entry(1, replace(watched, sampling=LONG)))
    assert looks == 1
    assert run.tokens[0] == run.tokens[1] == eye.generate(*CHATS[0])


def test_images_of_one_prompt_a_step_are_computed(eye: Eye) -> None:
    steps: list[int] = []
    run = Run(engine_of(eye.loaded.model))

    def counted(prompt: Prompt) -> Prompt:
        assert prompt.images is not None
        vectors = prompt.images.vectors

        def look() -> torch.Tensor:
            steps[-1] += 1
            return vectors()

        return replace(prompt, images=replace(prompt.images, vectors=look))

    steps.append(0)
    run.step(*(entry(i, counted(eye.prompt(picture(i), "?"))) for i in range(3)))
    while run.engine.cache_bytes:
        steps.append(0)
        run.step()
    assert steps[:3] == [1, 1, 1] and sum(steps) == 3


def test_image_tokens_count_as_tokens_of_the_prompt(eye: Eye) -> None:
    prompt = eye.prompt(*CHATS[0])
    assert prompt.images is not None and len(prompt.images.at) > 3
    with pytest.raises(InvalidRequest) as refused:
        eye.prompt(*CHATS[0], tokens=512)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


def test_a_mark_in_a_text_is_not_taken_for_an_image(eye: Eye) -> None:
    assert eye.loaded.reader is not None
    mark = eye.loaded.reader._mark
    for parts in ((f"an {mark} here",), (f"an {mark} here", picture(1))):
        with pytest.raises(InvalidRequest, match="which stands for an image in this model"):
            eye.prompt(*parts)


def test_a_reader_that_sees_less_than_it_said_fails_the_step(eye: Eye) -> None:
    reader = eye.loaded.reader
    assert reader is not None
    inputs = reader.inputs(eye.preparation._render(chat(*CHATS[0])), [picture(1)])
    with pytest.raises(RuntimeError, match="5 places for images"):
        reader._vectors({name: value for name, value in inputs.items() if name in reader._tower_takes}, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_enough_not_to_be_refused(kind: str, tmp_path: Path) -> None:
    save_vision_model(tmp_path, kind)
    assert load(replace(SPEC, dtype="bfloat16"), tmp_path).reader is not None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("gemma3", "their results in a batch are not those they have alone"), ("qwen3_vl", "into several layers")],
)
def test_a_model_whose_images_cannot_be_batched_is_refused_or_reads_texts_alone(
    kind: str, reason: str, tmp_path: Path
) -> None:
    save_vision_model(tmp_path, kind)
    with pytest.raises(ModelLoadError, match=f"^model eye: models of type {kind} .*{reason}.*; `images = false`"):
        load(SPEC, tmp_path)
    loaded = load(replace(SPEC, images=False), tmp_path)
    assert loaded.reader is None
    prompt, _ = Preparation(loaded).chat(chat("Hello"))
    run = Run(engine_of(loaded.model))
    assert len(run.until_done(entry(0, prompt))[0]) == TOKENS


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "{% for message in messages %}{{ raise_exception('text only') }}{% endfor %}",
    ],
)
def test_a_template_without_a_place_for_images_is_refused(template: str, tmp_path: Path) -> None:
    save_vision_model(tmp_path, "llava", template=template)
    with pytest.raises(ModelLoadError, match="^model eye: .*template.*`images = false`"):
        load(SPEC, tmp_path)


def test_texts_reach_a_template_that_knows_lists_only(tmp_path: Path) -> None:
    only_parts = TEMPLATE.format(mark="<image>").replace("message['content'] is string", "false")
    save_vision_model(tmp_path, "llava", template=only_parts)
    preparation = Preparation(load(SPEC, tmp_path))
    assert preparation._render(chat("Hello")) == "<|user|>Hello<|end|><|assistant|>"
