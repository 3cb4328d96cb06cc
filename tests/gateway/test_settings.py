"""Settings are read from what is handed in, checked whole, and every mistake is named."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.reference import env_example, with_tables
from gateway.settings import VARIABLES, Settings, SettingsError, cache_folder
from handlers.starter import STARTER_MODELS

ROOT = Path(__file__).parents[2]


def load(env_file: Path | None = None, /, **variables: str) -> Settings:
    return Settings.load({f"GATEWAY_{name}": value for name, value in variables.items()}, env_file)


def mistakes(env_file: Path | None = None, /, **variables: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(env_file, **variables)
    return caught.value.mistakes


def test_nothing_has_to_be_set() -> None:
    settings = load()

    assert (settings.host, settings.port, settings.models) == ("127.0.0.1", 8000, "starter")
    assert settings.model_specs() == STARTER_MODELS
    assert settings.api_keys == () and settings.cors_origins == ()
    assert settings.rate_limit is None and settings.upstream_url is None


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),
        ("HOST", "::1", "::1"),
        ("HOST", "gpu-box.example.com", "gpu-box.example.com"),
        ("PORT", "0", 0),
        ("LOG_LEVEL", "DEBUG", "debug"),
        ("LOG_FORMAT", "json", "json"),
        ("MAX_BODY_BYTES", "2MiB", 2 * 1024 * 1024),
        ("MAX_AUDIO_BYTES", "1.5 kB", 1500),
        ("MAX_BODY_BYTES", "512", 512),
        ("BODY_TIMEOUT", "0.5", 0.5),
        ("DRAIN_TIMEOUT", "0", 0.0),
        ("RATE_LIMIT", " 60/minute ", "60/minute"),
        ("RATE_LIMIT", "10/second; 1000 per hour", "10/second; 1000 per hour"),
        (
            "CORS_ORIGINS",
            "https://a.example.com, http://localhost:3000",
            ("https://a.example.com", "http://localhost:3000"),
        ),
        ("CORS_ORIGINS", "tauri://localhost", ("tauri://localhost",)),
        ("IMAGE_HOSTS", "a.example.com, *.example.org:8443", ("a.example.com", "*.example.org:8443")),
        ("MAX_IMAGES", "2", 2),
        ("MODELS_DIR", "/var/lib/models-of-nobody", Path("/var/lib/models-of-nobody")),
        ("MODELS_DIR", "~/models", Path.home() / "models"),
        ("DEVICE", "cuda:1", "cuda:1"),
        ("THREADS", "4", 4),
        ("OFFLINE", "yes", True),
        ("STRICT_PARAMS", "1", True),
        ("UPSTREAM_URL", "https://api.example.com/v1", "https://api.example.com/v1"),
        ("UPSTREAM_READ_TIMEOUT", "5e1", 50.0),
        ("MAX_CONNECTIONS", "64", 64),
    ],
)
def test_a_value_is_taken_over(variable: str, text: str, value: object) -> None:
    assert getattr(load(**{variable: text}), variable.lower()) == value


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("HOST", "not a host", "an IP address or a host name"),
        ("HOST", "[::1]", "an IP address or a host name"),
        ("PORT", "65536", "from 0 (any free one) to 65535"),
        ("PORT", "-1", "from 0 (any free one) to 65535"),
        ("PORT", "http", "from 0 (any free one) to 65535"),
        ("LOG_LEVEL", "loud", "debug, info, warning, error or critical"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("MAX_BODY_BYTES", "0", "at least 1 byte"),
        ("MAX_BODY_BYTES", "10 MB or so", "at least 1 byte"),
        ("MAX_BODY_BYTES", "5 parsecs", "at least 1 byte"),
        ("MAX_BODY_BYTES", "9" * 400, "at least 1 byte"),
        ("BODY_TIMEOUT", "0", "seconds above 0"),
        ("BODY_TIMEOUT", "inf", "seconds above 0 and up to 86400"),
        ("BODY_TIMEOUT", "nan", "seconds above 0 and up to 86400"),
        ("DRAIN_TIMEOUT", "-1", "seconds from 0"),
        ("RATE_LIMIT", "often", "such as 60/minute"),
        ("RATE_LIMIT", "0/minute", "such as 60/minute"),
        ("CORS_ORIGINS", "*", "never *"),
        ("CORS_ORIGINS", "https://a.example.com/app", "without a path"),
        ("CORS_ORIGINS", "https://a.example.com,,https://b.example.com", "separated by commas"),
        ("IMAGE_HOSTS", "*", "host names such as"),
        ("IMAGE_HOSTS", "127.0.0.1", "host names such as"),
        ("IMAGE_HOSTS", "https://a.example.com", "host names such as"),
        ("MAX_IMAGES", "0", "at least 1"),
        ("MAX_IMAGE_PIXELS", "33e6", "at least 1"),
        ("MODELS_DIR", __file__, "a folder"),
        ("MODELS_DIR", "~nobody-of-this-name/models", "a folder"),
        ("MODELS_DIR", f"{__file__}/models", "a folder"),
        ("MODELS", "~nobody-of-this-name/models.toml", "the path of a TOML file"),
        ("MODELS", "two\nlines", "the path of a TOML file"),
        ("DEVICE", "tpu", "auto, cpu, mps, cuda or cuda:1"),
        ("DEVICE", "cuda:", "auto, cpu, mps, cuda or cuda:1"),
        ("THREADS", "0", "from 1 to 1024"),
        ("OFFLINE", "perhaps", "true or false"),
        ("MAX_CONNECTIONS", "0", "from 1 to 65535"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(variable: str, text: str, allowed: str) -> None:
    [mistake] = mistakes(**{variable: text})

    assert mistake.startswith(f"GATEWAY_{variable}: must be ")
    assert allowed in mistake
    assert repr(text)[:20] in mistake or variable in ("CORS_ORIGINS", "IMAGE_HOSTS")
    assert len(mistake) < 250


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("API_KEYS", "good-key,hush hush"),
        ("API_KEYS", "hush,,"),
        ("API_KEYS", "hüsh"),
        ("UPSTREAM_API_KEY", "hush\n"),
        ("UPSTREAM_URL", "https://me:hush@api.example.com/v1"),
        ("UPSTREAM_URL", "https://api.example.com/v1?key=hush"),
        ("UPSTREAM_URL", "ftp://hush"),
        ("UPSTREAM_URL", "hush"),
        ("API_KEY", "hush"),
    ],
)
def test_a_refused_secret_is_not_repeated(variable: str, text: str) -> None:
    reported = "\n".join(mistakes(**{variable: text, "UPSTREAM_URL": "https://x.example.com"} | {variable: text}))

    assert f"GATEWAY_{variable}: " in reported
    assert "hush" not in reported and "hüsh" not in reported


def test_secrets_are_not_shown_and_can_be_listed_for_the_log() -> None:
    settings = load(API_KEYS="key-one, key-two", UPSTREAM_URL="https://api.example.com", UPSTREAM_API_KEY="key-three")

    assert "key-" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.secrets() == ("key-one", "key-two", "key-three")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("GATEWAY_PORT=none\nnot an assignment\nGATEWAY_DEVISE=cpu\n")
    models = tmp_path / "models.toml"
    models.write_text('[[models]]\nid = "a"\ntask = "chat"\n')

    reported = mistakes(env_file, HOST="a host", MODELS=str(models))

    assert [mistake.split(": must")[0].split(": is")[0] for mistake in reported] == [
        f"{env_file}: line 2 must be NAME=value",
        "GATEWAY_DEVISE",
        "GATEWAY_HOST",
        "GATEWAY_PORT",
        f"{models}: models[0].source",
    ]
    assert "did you mean GATEWAY_DEVICE?" in reported[1]


def test_the_error_has_one_line_a_mistake() -> None:
    with pytest.raises(SettingsError) as caught:
        load(PORT="x", HOST="y z")

    assert str(caught.value).splitlines() == list(caught.value.mistakes)


@pytest.mark.parametrize(
    ("name", "hint"), [("GATEWAY_PROT", "GATEWAY_PORT"), ("gateway_port", "GATEWAY_PORT"), ("GATEWAY_QQQQ", None)]
)
def test_an_unknown_variable_is_a_mistake_with_a_suggestion_where_one_is_near(name: str, hint: str | None) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({name: "1"}, None)

    [mistake] = caught.value.mistakes
    assert mistake == f"{name}: is unknown" + (f"; did you mean {hint}?" if hint else "")


def test_variables_of_other_programs_are_none_of_ours() -> None:
    assert Settings.load({"PORT": "x", "GATEWAYS": "y"}, None).port == 8000


def test_the_environment_comes_before_the_env_file_and_that_before_the_default(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("# ours\n\nexport GATEWAY_PORT=9000\nGATEWAY_HOST='::1'\nOTHER=1\n")

    settings = load(env_file, PORT="9001")

    assert (settings.host, settings.port, settings.log_level) == ("::1", 9001, "info")


def test_an_empty_value_means_the_default_and_hides_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("GATEWAY_PORT=9000\nGATEWAY_API_KEYS=\n")

    settings = load(env_file, PORT="")

    assert settings.port == 8000
    assert settings.api_keys == ()


def test_a_missing_env_file_is_fine(tmp_path: Path) -> None:
    assert load(tmp_path / ".env").port == 8000


@pytest.mark.parametrize("content", [b"GATEWAY_HOST=\xff\xfe", None])
def test_an_env_file_that_cannot_be_read_is_a_mistake(content: bytes | None, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.mkdir() if content is None else env_file.write_bytes(content)

    [mistake] = mistakes(env_file)

    assert mistake.startswith(f"{env_file}: cannot be read as a .env file (")


def test_a_broken_line_of_the_env_file_is_named_by_its_number_and_not_shown(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("GATEWAY_PORT=9000\n\n\nGATEWAY_API_KEYS hush\n")

    assert mistakes(env_file) == (f"{env_file}: line 4 must be NAME=value",)


@pytest.mark.parametrize("text", ["startr", "/no/such/file.toml", "/"])
def test_a_model_file_that_cannot_be_read_is_a_mistake(text: str) -> None:
    [mistake] = mistakes(MODELS=text)

    assert mistake.startswith(f"GATEWAY_MODELS: {text} cannot be read (")
    assert ("did you mean starter?" in mistake) == (text == "startr")


def test_without_models_there_must_be_an_upstream() -> None:
    [mistake] = mistakes(MODELS="none")
    assert mistake.startswith("GATEWAY_MODELS: there is nothing to serve; set GATEWAY_UPSTREAM_URL")

    assert load(MODELS="none", UPSTREAM_URL="http://127.0.0.1:9000/v1").model_specs() == ()


def test_an_upstream_key_without_an_upstream_is_a_mistake() -> None:
    assert mistakes(UPSTREAM_API_KEY="key") == (
        "GATEWAY_UPSTREAM_API_KEY: has no effect without GATEWAY_UPSTREAM_URL; set both or none",
    )


def test_the_device_of_the_settings_takes_the_place_of_auto(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        '[[models]]\nid = "a"\ntask = "chat"\nsource = "dir:a"\n'
        '[[models]]\nid = "b"\ntask = "chat"\nsource = "dir:b"\ndevice = "cuda:1"\n'
    )

    specs = load(MODELS=str(models), DEVICE="cpu").model_specs()

    assert [spec.device for spec in specs] == ["cpu", "cuda:1"]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load().port = 1  # type: ignore[misc]


def test_the_constructor_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9000")
    monkeypatch.setenv("GATEWAY_NONSENSE", "1")

    assert Settings(models="none").port == 8000
    assert load().port == 8000


def test_load_reads_the_environment_of_the_process_if_none_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("GATEWAY_HOST=::1\n")
    monkeypatch.setenv("GATEWAY_PORT", "9000")

    settings = Settings.load()

    assert (settings.host, settings.port) == ("::1", 9000)


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {}, "~/.cache"),
        ("linux", {"XDG_CACHE_HOME": "/var/cache"}, "/var/cache"),
        ("darwin", {"XDG_CACHE_HOME": "/var/cache"}, "~/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "C:/Users/me/AppData/Local"}, "C:/Users/me/AppData/Local"),
        ("win32", {}, "~/AppData/Local"),
    ],
)
def test_models_are_kept_in_the_cache_folder_of_the_platform(
    platform: str, environ: dict[str, str], folder: str
) -> None:
    assert cache_folder(environ, platform) == Path(folder) / "openai-inference-gateway" / "models"


def test_the_cache_folder_is_taken_from_the_given_environment() -> None:
    settings = Settings.load({"XDG_CACHE_HOME": "/var/cache-of-nobody"}, None)

    assert settings.models_dir == Path("/var/cache-of-nobody/openai-inference-gateway/models")


@given(st.dictionaries(st.sampled_from([*VARIABLES, "GATEWAY_X", "gateway_port"]), st.text() | st.sampled_from("*/~0")))
def test_no_text_raises_anything_but_a_settings_error(variables: dict[str, str]) -> None:
    try:
        settings = Settings.load(variables, None)
    except SettingsError as error:
        assert error.mistakes
        assert all(mistake.split(":")[0] in {*VARIABLES, "GATEWAY_X", "gateway_port"} for mistake in error.mistakes)
    else:
        assert 0 <= settings.port <= 65_535


@given(st.sampled_from(sorted(VARIABLES)), st.text())
def test_no_text_in_one_variable_raises_anything_but_a_settings_error(name: str, text: str) -> None:
    try:
        Settings.load({name: text}, None)
    except SettingsError as error:
        assert error.mistakes


def test_every_setting_has_a_meaning() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description


def test_env_example_is_what_the_settings_say() -> None:
    assert (ROOT / "env.example").read_text("utf-8") == env_example(), "run: python -m gateway.reference"


def test_the_documented_tables_are_what_the_settings_and_the_metrics_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")

    assert page == with_tables(page), "run: python -m gateway.reference"


def test_env_example_uncommented_is_the_default(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("\n".join(line.removeprefix("#") for line in env_example().splitlines() if "=" in line))

    assert Settings.load({}, env_file) == Settings.load({"XDG_CACHE_HOME": os.path.expanduser("~/.cache")}, None)
