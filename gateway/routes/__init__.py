"""One file a resource of the OpenAI API; this is the list of all URLs."""

from collections.abc import Sequence

from starlette.routing import Route

from gateway.routes.chat import create_chat_completion
from gateway.routes.completions import create_completion
from gateway.routes.embeddings import create_embeddings
from gateway.routes.forwarding import forward, or_upstream
from gateway.routes.health import healthz, readyz
from gateway.routes.metrics import metrics
from gateway.routes.models import knows_models, list_models, retrieve_model
from gateway.routes.rerank import RERANK_PATHS, create_rerank
from gateway.routes.speech import create_speech, list_voices
from gateway.routes.transcription import create_transcription, create_translation

routes: Sequence[Route] = [
    Route("/healthz", healthz, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/v1/models", or_upstream(list_models, knows=knows_models), methods=["GET"]),
    Route("/v1/models/{model:path}", or_upstream(retrieve_model, knows=knows_models), methods=["GET"]),
    Route("/v1/chat/completions", or_upstream(create_chat_completion), methods=["POST"]),
    Route("/v1/completions", or_upstream(create_completion), methods=["POST"]),
    Route("/v1/embeddings", or_upstream(create_embeddings), methods=["POST"]),
    *(Route(path, or_upstream(create_rerank, at=RERANK_PATHS[0]), methods=["POST"]) for path in RERANK_PATHS),
    Route("/v1/audio/transcriptions", or_upstream(create_transcription), methods=["POST"]),
    Route("/v1/audio/translations", or_upstream(create_translation), methods=["POST"]),
    Route("/v1/audio/speech", or_upstream(create_speech), methods=["POST"]),
    Route("/v1/audio/voices", or_upstream(list_voices), methods=["GET"]),
]

metrics_routes: Sequence[Route] = [Route("/metrics", metrics, methods=["GET"])]

upstream_routes: Sequence[Route] = [
    Route("/v1/{path:path}", forward, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
]
"""The rest of the API, which only an upstream can answer."""
