"""What a TOML file of models says, once it has been read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from handlers.spec import ModelSpec
from proxy.routing import Mode
from proxy.spec import UpstreamSpec


@dataclass(frozen=True, slots=True)
class ModelFile:
    """upstreams: with the name of the environment variable that holds its key, if it has one, in place of the key.

    modes: of the models that have one of their own.
    """

    models: tuple[ModelSpec, ...] = ()
    upstreams: tuple[UpstreamSpec, ...] = ()
    modes: Mapping[str, Mode] = field(default_factory=dict)
