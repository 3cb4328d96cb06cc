"""Settings and metrics for people to read: `python -m gateway.reference` writes env.example and the tables anew."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from gateway.settings import ALLOWED, MIB, VARIABLES, Settings
from gateway.telemetry.metrics import FAMILIES

_HEAD = """\
# Every setting with its default. Copy this file to .env and uncomment what you change, or set the variables in the
# environment, which comes before .env. An empty value means the default. docs/configuration.md says more.
"""
_BEGIN = "<!-- {}: written by python -m gateway.reference -->"
_END = "<!-- end of {} -->"


def env_example() -> str:
    """The text of env.example."""
    entries = (f"# {field.description}\n#{name}={default}\n" for name, field, default in _settings())
    return "\n".join([_HEAD, *entries])


def settings_table() -> str:
    """The settings as a table in Markdown."""
    rows = (
        f"| `{name}` | {default and f'`{default}`'} | {ALLOWED[VARIABLES[name]].text} | {field.description} |"
        for name, field, default in _settings()
    )
    return "\n".join(["| variable | default | what it may be | meaning |", "|---|---|---|---|", *rows])


def metrics_table() -> str:
    """The metrics as a table in Markdown."""
    rows = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |"
        for family in FAMILIES
    )
    return "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows])


def with_tables(page: str) -> str:
    """The page with the present tables, each between its two marks. Raises ValueError if one has no marks."""
    for subject, table in (("settings", settings_table()), ("metrics", metrics_table())):
        begin, end = _BEGIN.format(subject), _END.format(subject)
        head, rest = page.split(begin)
        _, tail = rest.split(end)
        page = f"{head}{begin}\n{table}\n{end}{tail}"
    return page


def _settings() -> Iterator[tuple[str, FieldInfo, str]]:
    """Variable, field and default, as it would be written in the variable."""
    for name, field_name in VARIABLES.items():
        field = Settings.model_fields[field_name]
        yield name, field, field.examples[0] if field.examples else _written(field.default)


def _written(value: object) -> str:
    match value:
        case None | ():
            return ""
        case bool():
            return str(value).lower()
        case ByteSize():
            return f"{value // MIB}MiB" if value % MIB == 0 else str(int(value))
        case float():
            return f"{value:g}"
    return str(value)


def _write(root: Path) -> None:
    (root / "env.example").write_text(env_example(), "utf-8")
    page = root / "docs" / "configuration.md"
    page.write_text(with_tables(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    _write(Path(__file__).parents[1])
