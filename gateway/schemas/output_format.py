"""What the whole answer must be: OpenAI's `response_format`, and the extensions of vLLM that say the same and more."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.schemas.common import Screen, Wire
from gateway.schemas.json_schema import Schema, SchemaOrText
from gateway.schemas.parameters import STRUCTURED_OUTPUTS
from handlers.chat.types import OutputFormat
from handlers.errors import InvalidRequest

Regex = Annotated[str, Field(min_length=1, max_length=8192)]
Grammar = Annotated[str, Field(min_length=1, max_length=65_536)]
ChoiceText = Annotated[str, Field(min_length=1, max_length=1024)]
Choices = Annotated[list[ChoiceText], Field(min_length=1, max_length=1024)]


class JsonSchema(Wire):
    """description: taken, and reported as ignored; a schema says more."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool = False
    description: str = ""


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Wire):
    json_: Annotated[SchemaOrText | None, Field(alias="json")] = None
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool = False


class OutputParams(Wire):
    """The part of the parameters that says so. One of them at most may be used."""

    response_format: ResponseFormat | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None
    structured_outputs: StructuredOutputs | None = None

    def output_format(self) -> OutputFormat | None:
        """Raises InvalidRequest if there are two of them."""
        formats = list(self._formats())
        if len(formats) > 1:
            first, second = formats[0].param, formats[1].param
            message = f"'{first}' and '{second}' cannot be combined: an answer has one format. Leave one of them out."
            raise InvalidRequest(message, second, "invalid_value")
        return formats[0] if formats else None

    def _formats(self) -> Iterator[OutputFormat]:
        if self.response_format is not None:
            yield from _of_response_format(self.response_format)
        yield from _named("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        if (outputs := self.structured_outputs) is not None:
            yield from _named("structured_outputs.", outputs.json_, outputs.regex, outputs.choice, outputs.grammar)
            if outputs.json_object:
                yield OutputFormat("json_object", param="structured_outputs.json_object")


def _of_response_format(response_format: ResponseFormat) -> Iterator[OutputFormat]:
    if response_format.type == "json_object":
        yield OutputFormat("json_object")
    elif response_format.type == "json_schema":
        if response_format.json_schema is None:
            param = "response_format.json_schema"
            raise InvalidRequest(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
        yield OutputFormat("json_schema", response_format.json_schema.schema_)


def _named(prefix: str, json: Any, regex: Any, choice: Any, grammar: Any) -> Iterator[OutputFormat]:
    if json is not None:
        yield OutputFormat("json_schema", json, f"{prefix}json")
    if regex is not None:
        yield OutputFormat("regex", regex, f"{prefix}regex")
    if choice is not None:
        yield OutputFormat("choice", choice, f"{prefix}choice")
    if grammar is not None:
        yield OutputFormat("grammar", grammar, f"{prefix}grammar")


def sort_formats(fields: dict[str, Any], screen: Screen) -> None:
    """Take out of `fields` what is null, and report or refuse what is not taken."""
    if "response_format" in fields:
        known = screen.known(fields["response_format"], ResponseFormat, "response_format")
        fields["response_format"] = known
        match known:
            case {"json_schema": {"description": _}}:
                screen.ignore("response_format.json_schema.description")
    if isinstance(outputs := fields.get("structured_outputs"), dict):
        fields["structured_outputs"] = screen.sort(outputs, STRUCTURED_OUTPUTS, "structured_outputs.")
