"""How families of models write tool calls."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from handlers.chat.types import Tool


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A call is a JSON object with a name and arguments; families differ in what stands around it.

    opener: what begins a call, or the list of calls; empty if a call is told by its brace alone.
    arguments: the key of the arguments.
    optional_opener: may stand before a call that is told by its brace.
    listed: the calls are the members of one JSON array.
    closer: ends each call, or the array; empty if an answer holds but one call.
    before, after: the blanks inside opener and closer. between: what stands between two calls.
    system: tells a model of its tools whose template cannot; `{tools}` stands for them, one a line.
    result: how a tool's result is put to such a model.
    short_ids: ids have nine letters or digits.
    """

    name: str
    opener: str
    arguments: str
    system: str
    optional_opener: str = ""
    listed: bool = False
    before: str = ""
    after: str = ""
    closer: str = ""
    between: str = ""
    result: str = "{content}"
    short_ids: bool = False

    @property
    def several(self) -> bool:
        """Whether an answer can hold more than one call."""
        return bool(self.closer)

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens of these names must be kept when the answer is turned into text."""
        return tuple(filter(None, (self.opener, self.optional_opener, self.closer if not self.listed else "")))

    def describe(self, tools: Sequence[Tool]) -> str:
        """The system text for a template that knows no tools."""
        return self.system.replace("{tools}", "\n".join(map(signature, tools)))

    def write_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        """Past calls, each a name and its arguments as JSON text, as the model would have written them."""
        bodies = [
            f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments}": {arguments or "{}"}}}'
            for name, arguments in calls
        ]
        if self.listed:
            return f"{self.opener}[{self.between.join(bodies)}]"
        return self.between.join(f"{self.opener}{self.before}{body}{self.after}{self.closer}" for body in bodies)

    def write_result(self, content: str) -> str:
        return self.result.replace("{content}", content)


def signature(tool: Tool) -> str:
    """The tool as one line of JSON, as OpenAI writes it, which is what models are trained on."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


HERMES = ToolFormat(
    name="hermes",
    opener="<tool_call>",
    arguments="arguments",
    before="\n",
    after="\n",
    closer="</tool_call>",
    between="\n",
    result="<tool_response>\n{content}\n</tool_response>",
    # The wording of Qwen's chat template, after that of NousResearch's Hermes 2 Pro.
    system="""# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>""",
)
"""Qwen, Hermes, SmolLM and others; the default."""

LLAMA = ToolFormat(
    name="llama",
    opener="",
    optional_opener="<|python_tag|>",
    arguments="parameters",
    between="; ",
    # The wording of Llama 3.1's chat template.
    system="""Given the following functions, please respond with a JSON for a function call with its proper arguments \
that best answers the given prompt.

Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. \
Do not use variables.

{tools}""",
)
"""Llama 3.1 to 3.3."""

MISTRAL = ToolFormat(
    name="mistral",
    opener="[TOOL_CALLS]",
    arguments="arguments",
    listed=True,
    closer="]",
    between=", ",
    short_ids=True,
    system="""[AVAILABLE_TOOLS]
{tools}
[/AVAILABLE_TOOLS]

To call functions, answer with [TOOL_CALLS] and a list: \
[TOOL_CALLS][{"name": function name, "arguments": arguments as a JSON object}]""",
)
"""Mistral and Mixtral up to their third tokenizer."""

_SIGNS = (
    ("<tool_call>", HERMES),
    ("[TOOL_CALLS]", MISTRAL),
    ("<|python_tag|>", LLAMA),
    ('"parameters": dictionary of argument name', LLAMA),
)


def knows_tools(template: str | None) -> bool:
    """Whether the chat template writes tools, calls and results into the prompt itself."""
    return "tools" in (template or "")


def choose(template: str | None, vocabulary: Collection[str]) -> ToolFormat:
    """The format the template writes calls in; else, if it takes tools, the one whose marker is a token."""
    if not knows_tools(template):
        return HERMES
    signs = [form for sign, form in _SIGNS if sign in (template or "")]
    signs += [form for sign, form in _SIGNS if sign in vocabulary]
    return next(iter(signs), HERMES)
