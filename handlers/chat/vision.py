"""Image-text models of transformers: images become vectors that stand in the prompt where words have embeddings.

The model's processor cuts images into what the vision tower takes and writes as many placeholders into the text as
there will be vectors. From then on a prompt with images is computed as any other, beside the rest of the batch.
"""

import inspect
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from handlers.chat.engine import PromptImages
from handlers.chat.general import GeneralModel, checked, load_with_packed_attention, refusing
from handlers.chat.self_check import check_images
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec

_READ = {"image_processor", "tokenizer", "video_processor"}


def reads_images(config: Mapping[str, Any]) -> bool:
    """config: a model's config.json."""
    return "vision_config" in config and config.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


class ImageReader:
    """Makes token ids and images of a rendered text and its images. processor: the model's own."""

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        """Raises ModelLoadError for a model that is not made of parts as they are used here."""
        self._model = model
        self._processor = processor
        self._mark: str | None = getattr(processor, "image_token", None)
        self._image_id: int | None = getattr(model.config, "image_token_id", None)
        self._see: Any = getattr(model, "get_image_features", None)
        if self._mark is None or self._image_id is None or self._see is None:
            raise ModelLoadError("their images do not become tokens of the prompt")
        self._tower_takes = inspect.signature(self._see).parameters.keys()
        self._rope_index: Any = getattr(model.base_model, "get_rope_index", None)

    def check_marks(self, text: str, images: int) -> None:
        """A mark that no image belongs to was written by the caller. Raises InvalidRequest."""
        if text.count(str(self._mark)) != images:
            message = (
                f"The messages hold the text {self._mark!r}, which stands for an image in this model. "
                "Leave it out, and send images as parts of type 'image_url'."
            )
            raise InvalidRequest(message, "messages", "invalid_value")

    def read(self, text: str, images: Sequence[Image.Image]) -> tuple[list[int], PromptImages]:
        """text: with a mark for every image. Raises InvalidRequest."""
        try:
            return self.prompt_of(self.inputs(text, images), images)
        except (ValueError, TypeError, ArithmeticError, LookupError) as error:
            message = "The model cannot read these images: their sides may be too short, or too unlike each other."
            raise InvalidRequest(message, "messages", "invalid_value") from error

    def inputs(self, text: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """All that the model takes, on the CPU."""
        inputs = self._processor(text=[text], images=list(images), add_special_tokens=False, return_tensors="pt")
        return {
            name: value.to(self._model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }

    def prompt_of(
        self, inputs: Mapping[str, torch.Tensor], images: Sequence[Image.Image]
    ) -> tuple[list[int], PromptImages]:
        token_ids: list[int] = inputs["input_ids"][0].tolist()
        at = [i for i, token in enumerate(token_ids) if token == self._image_id]
        tower = {name: value for name, value in inputs.items() if name in self._tower_takes}
        name = _name(images)
        names = [name if token == self._image_id else token for token in token_ids]
        return token_ids, PromptImages(at, lambda: self._vectors(tower, len(at)), names, self._positions(inputs))

    def _vectors(self, tower: Mapping[str, torch.Tensor], places: int) -> torch.Tensor:
        """[places, hidden_size]. Raises RuntimeError if the tower sees more or less than the processor said."""
        given = {name: value.to(self._model.device) for name, value in tower.items()}
        features = self._see(**given, return_dict=True)
        if getattr(features, "deepstack_features", None) is not None:
            raise ModelLoadError("their images go into several layers, not only the first")
        parts = features.pooler_output
        vectors: torch.Tensor = parts if isinstance(parts, torch.Tensor) else torch.cat(list(parts))
        vectors = vectors.reshape(-1, vectors.shape[-1]).to(self._model.dtype)
        if len(vectors) != places:
            raise RuntimeError(f"{places} places for images, but {len(vectors)} vectors")
        return vectors

    def _positions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """[axes, tokens] for models with rotary positions of several axes (Wang et al., Qwen2-VL, 2024)."""
        if self._rope_index is None:
            return None
        takes = inspect.signature(self._rope_index).parameters.keys()
        positions, _ = self._rope_index(**{name: value for name, value in inputs.items() if name in takes})
        whole: torch.Tensor = positions[:, 0]
        return whole

    @torch.inference_mode()
    def check(self, general: GeneralModel, text: str) -> None:
        """Compare a prompt with an image with the model's own computation. Raises as `GeneralModel.check`.

        text: as the chat template writes a message with one image.
        """
        if text.count(str(self._mark)) != 1:
            raise ModelLoadError("the chat template does not say where an image stands")
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
        inputs = self.inputs(text, [image])
        token_ids, images = self.prompt_of(inputs, [image])
        wanted = _some_of(len(token_ids), images.at)
        given = {name: value.to(self._model.device) for name, value in inputs.items()}
        expected = general.alone(**given, logits_to_keep=wanted.to(self._model.device))
        check_images(general, token_ids, images, wanted, expected)


def load_image_text(spec: ModelSpec, folder: Path, text: str | None) -> tuple[GeneralModel, ImageReader | None]:
    """text: as the model's chat template writes a message with one image; None if it is to read texts only.

    Raises ModelLoadError with one line that names the model and what is wrong.
    """
    model = load_with_packed_attention(AutoModelForImageTextToText, spec, folder)
    try:
        general = checked(model)
    except ModelLoadError as error:
        raise ModelLoadError(f"model {spec.id}: {error}") from error
    if text is None:
        return general, None
    try:
        with refusing(model):
            reader = ImageReader(model, load_processor(model.config, folder))
            reader.check(general, text)
    except ModelLoadError as error:
        raise ModelLoadError(f"model {spec.id}: {error}; `images = false` serves it for texts alone") from error
    return general, reader


def load_processor(config: PretrainedConfig, folder: Path) -> Any:
    """The processor of a model, made of parts so that nothing asks for torchvision: videos are not read.

    Raises ModelLoadError, OSError, ValueError or ImportError.
    """
    kind: Any = PROCESSOR_MAPPING[type(config)]
    if unknown := sorted(set(kind.get_attributes()) - _READ):
        raise ModelLoadError(f"their processor has a part that is not known here: {', '.join(unknown)}")
    image_processor: Any = AutoImageProcessor
    parts = {
        "image_processor": image_processor.from_pretrained(folder, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "video_processor": None,
    }
    known, _ = kind.get_processor_dict(folder)
    stills: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda self, name, part: type(part)})
    return stills.from_args_and_dict([parts[name] for name in kind.get_attributes()], known)


def _name(images: Sequence[Image.Image]) -> int:
    """What tells these images from all others: a number below 0, so that it is never a token's.

    It is one for all images of a prompt, as some processors cut an image otherwise when there are others beside it.
    """
    digest = blake2b(digest_size=16)
    for image in images:
        digest.update(b"%d,%d;" % image.size)
        digest.update(image.tobytes())
    return -1 - int.from_bytes(digest.digest(), "big")


def _some_of(tokens: int, at: Sequence[int]) -> torch.Tensor:
    """Places all over a prompt, its image's beginning and its own end included; all logits would take gigabytes."""
    return torch.tensor(sorted({*range(0, tokens, -(-tokens // 48)), *at[:4], at[-1], *range(tokens - 4, tokens)}))
