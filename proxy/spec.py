"""What an upstream is, as the settings give it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpstreamSpec:
    """One OpenAI-compatible server.

    base_url: what stands in for this server's /v1. api_key: sent as a bearer token; None sends no key.
    forward_client_key: send the client's own `Authorization` instead. models: from a name here to the name there; None
    takes every name, as it is. weight: how many requests it gets, beside the others of the same model.
    connect_timeout: seconds to a connection, or to a free place among max_connections, which is also how many requests
    it has at once. first_byte_timeout: to the head of the reply. idle_timeout: between two pieces of its body.
    total_timeout: to the end of the reply. health_path: asked below base_url each health_interval seconds; None: never.
    """

    base_url: str
    name: str = "upstream"
    api_key: str | None = None
    forward_client_key: bool = False
    models: Mapping[str, str] | None = None
    weight: int = 1
    connect_timeout: float = 5.0
    first_byte_timeout: float = 300.0
    idle_timeout: float = 300.0
    total_timeout: float = 86_400.0
    max_connections: int = 1024
    health_path: str | None = None
    health_interval: float = 10.0

    def serves(self, model: str | None) -> bool:
        """Whether requests for that model may go there; those that name none may go anywhere."""
        return self.models is None or model is None or model in self.models

    def name_there(self, model: str) -> str:
        return model if self.models is None else self.models[model]
