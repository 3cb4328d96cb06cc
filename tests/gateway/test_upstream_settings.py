"""Upstreams in the environment and in the TOML file."""

import re
from pathlib import Path

import pytest

from gateway.mistakes import SettingsError
from gateway.settings import Settings
from handlers.starter import STARTER_MODELS
from proxy.routing import Mode
from proxy.spec import UpstreamSpec

ROOT = Path(__file__).parents[2]
URL = "https://api.example.com/v1"
ONE = f'[[upstreams]]\nname = "one"\nbase_url = "{URL}"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.toml"


def load(file: Path | None = None, **variables: str) -> Settings:
    models = {"GATEWAY_MODELS": str(file)} if file else {}
    return Settings.load({**models, **variables}, env_file=None)


def mistakes(file: Path, text: str, **variables: str) -> list[str]:
    file.write_text(text, "utf-8")
    with pytest.raises(SettingsError) as caught:
        load(file, **variables)
    return [mistake.removeprefix(f"{file}: ") for mistake in caught.value.mistakes]


def test_three_variables_are_an_upstream() -> None:
    settings = load(GATEWAY_UPSTREAM_URL=URL, GATEWAY_UPSTREAM_API_KEY="key", GATEWAY_UPSTREAM_MODE="First")

    assert settings.upstream_specs() == (UpstreamSpec(URL, api_key="key"),)
    assert settings.mode_of("any") is settings.mode_of(None) is Mode.FIRST
    assert settings.model_specs() == STARTER_MODELS


def test_mode_only_has_no_model_and_mode_off_no_upstream() -> None:
    assert load(GATEWAY_UPSTREAM_URL=URL, GATEWAY_UPSTREAM_MODE="only").model_specs() == ()
    assert load(GATEWAY_UPSTREAM_URL=URL, GATEWAY_UPSTREAM_MODE="off").upstream_specs() == ()


def test_the_documented_file_is_read(file: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "upstream_proxy.md").read_text("utf-8"), re.DOTALL)
    file.write_text(text, "utf-8")
    settings = load(file, HOSTED_KEY="a-secret")

    gpu, hosted = settings.upstream_specs()
    assert (gpu.models, gpu.max_connections, gpu.health_path) == ({"qwen-32b": "qwen-32b"}, 64, "/models")
    assert (hosted.api_key, hosted.name_there("qwen-32b")) == ("a-secret", "gpt-5-mini")
    assert settings.mode_of("whisper-1") is Mode.OVERFLOW
    assert settings.mode_of("qwen-32b") is Mode.FALLBACK
    assert "a-secret" in settings.secrets()
    assert "a-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[[upstreams]]\n",
            "upstreams[0].name: is missing; it must be a name of small letters, digits, _ and -",
        ),
        (ONE + "wieght = 1", "upstreams[0].wieght: is unknown; did you mean weight?"),
        (ONE + "weight = 0", "upstreams[0].weight: must be a whole number from 1 to 1000, not 0"),
        (
            ONE + "idle_timeout = 0",
            "upstreams[0].idle_timeout: must be a number of seconds above 0 and up to 86400, not 0",
        ),
        (
            ONE + 'health_path = "models"',
            "upstreams[0].health_path: must be a path below the base URL, such as /models",
        ),
        (
            ONE + "health_interval = 5",
            "upstreams[0].health_interval: has no effect without health_path; set both or none",
        ),
        (ONE + ONE, "upstreams[1].name: must be a name of its own; one is upstreams[0].name too"),
        (
            ONE.replace("one", "local"),
            "upstreams[0].name: must be a name of its own; local is the word for this server",
        ),
        (ONE + 'api_key_env = "NONE_SUCH"', "NONE_SUCH: must be a key of printable ASCII without spaces"),
        (ONE + "models = []", "upstreams[0].models"),
        (ONE + 'models = { "a" = 1 }', "upstreams[0].models"),
        (
            ONE + '[upstream_modes]\n"a" = "sometimes"',
            "upstream_modes.a: must be off, fallback, overflow, first or only",
        ),
        ('upstreams = "one"', "upstreams: must be tables"),
        (ONE.replace("https://", "ftp://"), "upstreams[0].base_url: must be an http:// or https:// URL"),
    ],
)
def test_what_is_wrong_with_an_upstream_is_said_where_it_is(text: str, expected: str, file: Path) -> None:
    assert any(mistake.startswith(expected) for mistake in mistakes(file, text)), mistakes(file, text)


def test_settings_that_contradict_each_other_are_mistakes(file: Path) -> None:
    model = '[[models]]\nid = "a"\ntask = "chat"\nsource = "dir:/none"\n'
    [with_models] = mistakes(file, ONE + model, GATEWAY_UPSTREAM_MODE="only")
    assert with_models.startswith("GATEWAY_UPSTREAM_MODE: only loads no model; take the [[models]] out")

    with pytest.raises(SettingsError, match="ROUTE_KEYS: must be among GATEWAY_API_KEYS"):
        load(GATEWAY_UPSTREAM_URL=URL, GATEWAY_API_KEYS="a", GATEWAY_UPSTREAM_ROUTE_KEYS="b")
    with pytest.raises(SettingsError, match="there is nothing to serve"):
        load(GATEWAY_MODELS="none", GATEWAY_UPSTREAM_URL=URL, GATEWAY_UPSTREAM_MODE="off")
