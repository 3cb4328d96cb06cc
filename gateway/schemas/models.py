"""GET /v1/models: one entry a model."""

import time
from typing import Any

from handlers.registry import Model

STARTED = int(time.time())
"""Unix seconds; since when upstreams are known to serve what the settings say."""


def upstream_entry(name: str, upstream: str) -> dict[str, Any]:
    """A model of that name which an upstream serves."""
    return {"id": name, "object": "model", "created": STARTED, "owned_by": upstream}


def model_entry(model: Model, name: str | None = None) -> dict[str, Any]:
    """OpenAI's four fields, and what the handler says about itself: capabilities, max_model_len, voices, …

    name: what the model was asked for by, if not by its id.
    """
    return {
        "id": name or model.spec.id,
        "object": "model",
        "created": model.created,
        "owned_by": "local",
        **model.describe(),
        "aliases": list(model.spec.aliases),
        "loaded": model.ready,
    }
