"""What is printed when every model is warm: where to connect, what is served, and a first request to try."""

import json
import shlex
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

from gateway.settings import Settings
from handlers.registry import Model
from handlers.spec import Task
from proxy.routing import Mode

_CHAT = {"messages": [{"role": "user", "content": "Name three colours."}]}
_EMBEDDINGS = {"input": "The quick brown fox"}
_RERANK = {"query": "What is a fox?", "documents": ["A fox is a small wild dog.", "A box is a container."]}
_SPEECH = {"input": "Hello from the gateway.", "voice": "alloy"}


def ready_message(settings: Settings, models: Sequence[Model]) -> str:
    """Several lines of plain text. Holds no secret: an API key is only named as a variable of the shell."""
    url = base_url(settings)
    blocks = [f"Ready: {url}   (the base URL for OpenAI clients; Ctrl-C stops the server)"]
    if models:
        blocks.append("\n".join(_model_lines(models)))
    blocks += _upstream_lines(settings)
    if not settings.api_keys and not is_local(settings.host):
        blocks.append("Warning: no API key is set, so whoever reaches this address can use it; set GATEWAY_API_KEYS")
    blocks.append(f"Try it:\n  {_curl(url, settings, models)}")
    return "\n\n".join(blocks)


def _upstream_lines(settings: Settings) -> Iterator[str]:
    addresses = ", ".join(spec.base_url for spec in settings.upstream_specs())
    if addresses:
        what = {
            Mode.OVERFLOW: "What is not served here, or not soon enough, goes",
            Mode.FIRST: "Every request first goes",
            Mode.ONLY: "Every request goes",
        }.get(settings.upstream_mode, "What is not served here goes")
        yield f"{what} to {addresses}"


def base_url(settings: Settings) -> str:
    """An address that works from this machine, also where the server listens on every interface."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/v1"


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _model_lines(models: Sequence[Model]) -> list[str]:
    rows = [(model.spec.task, model.spec.id, _device(model), ", ".join(model.spec.aliases)) for model in models]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        f"  {task:<{widths[0]}}  {name:<{widths[1]}}  {device:<{widths[2]}}  {aliases and f'also {aliases}'}".rstrip()
        for task, name, device, aliases in rows
    ]


def _device(model: Model) -> str:
    """Empty while nobody has decided."""
    return str(model.describe().get("device") or model.spec.device).removeprefix("auto")


def _curl(url: str, settings: Settings, models: Sequence[Model]) -> str:
    """A request to the first of these that is served: chat, embeddings, speech, reranking."""
    key = ' -H "Authorization: Bearer $OPENAI_API_KEY"' if settings.api_keys else ""
    by_task = {model.spec.task: model.spec for model in reversed(models)}
    examples: list[tuple[Task, str, dict[str, Any], str]] = [
        (Task.CHAT, "chat/completions", _CHAT, ""),
        (Task.EMBEDDINGS, "embeddings", _EMBEDDINGS, ""),
        (Task.SPEECH, "audio/speech", _SPEECH, " -o hello.mp3"),
        (Task.RERANK, "rerank", _RERANK, ""),
    ]
    for task, path, body, rest in examples:
        if spec := by_task.get(task):
            name = spec.aliases[0] if spec.aliases else spec.id
            data = shlex.quote(json.dumps({"model": name, **body}))
            return f"curl {url}/{path}{key} -H 'Content-Type: application/json' -d {data}{rest}"
    return f"curl {url}/models{key}"
