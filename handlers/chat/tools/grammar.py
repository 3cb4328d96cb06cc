"""Tool calls as a grammar."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from handlers.chat.lark import FREE_TEXT, Literals, Rules, quote
from handlers.chat.tools.formats import ToolFormat
from handlers.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Signature:
    """A tool's name, and the JSON schema of its arguments as the grammar library takes it."""

    name: str
    schema: str


def tool_rules(
    form: ToolFormat,
    signatures: Sequence[Signature],
    required: bool,
    parallel: bool,
    output: Rules | None,
    literals: Literals,
) -> Rules:
    """The rule `answer`: calls if `required`, else calls or `output`, which is free text if None."""
    several = parallel and form.several
    calls = [*_calls(form, several, literals), *_bodies(form, signatures)]
    if output is not None and not form.opener:
        calls[0] = _announced_call(form, literals)
    if required:
        return Rules(["answer: calls", *calls])
    if output is not None:
        # The other answer goes by another name, since `answer` is now the choice between the two.
        said = [line.replace("answer: ", "said: ", 1) if line.startswith("answer: ") else line for line in output.lines]
        return Rules(["answer: calls | said", *said, *calls], output.user)
    return Rules([*_among_text(form, several, literals), *calls, FREE_TEXT])


def _calls(form: ToolFormat, several: bool, literals: Literals) -> list[str]:
    """`calls`: with all that stands around them. `rest`: that of one call, or of the list, behind its opener."""
    opener, closer, between = (
        literals.exactly(form.opener),
        literals.exactly(form.closer),
        literals.exactly(form.between),
    )
    if form.listed:
        more = f" ({between} call)*" if several else ""
        return [f"calls: {opener} rest", f'rest: "[" call{more} {closer}']
    if not form.opener:
        optional = literals.exactly(form.optional_opener) + "?" if form.optional_opener in literals.special else ""
        return [f"calls: {optional} call"]
    more = f" ({between} {opener} rest)*" if several else ""
    return [
        f"calls: {opener} rest{more}",
        f"rest: {literals.exactly(form.before)} call {literals.exactly(form.after)} {closer}",
    ]


def _announced_call(form: ToolFormat, literals: Literals) -> str:
    """A call beside an answer that may begin with a brace too; the library cannot follow both at once."""
    if form.optional_opener not in literals.special:
        raise InvalidRequest(
            "This model's tool calls cannot be told from a formatted answer; make `tool_choice` `required` or `none`.",
            "response_format",
        )
    return f"calls: {literals.exactly(form.optional_opener)} call"


def _bodies(form: ToolFormat, signatures: Sequence[Signature]) -> list[str]:
    lines = [f"call: {' | '.join(f'call_{i}' for i in range(len(signatures)))}"]
    for i, signature in enumerate(signatures):
        head = f'{{"name": {json.dumps(signature.name, ensure_ascii=False)}, "{form.arguments}": '
        lines += [f'call_{i}: {quote(head)} arguments_{i} "}}"', f"arguments_{i}: %json {signature.schema}"]
    return lines


def _among_text(form: ToolFormat, several: bool, literals: Literals) -> list[str]:
    """Free text up to an opener, and the grammar of a call from there."""
    if not form.opener:
        # Text that begins like a call must be one, for nothing else tells them apart.
        return ["answer: calls | said", 'said: "" | SAID', "SAID: /\\s{0,4}[^{\\s](.|\\n)*/"]
    again = "(opening rest)* TEXT" if several and not form.listed else "opening rest | TEXT"
    return [f"answer: {again}", *literals.after_text("opening", form.opener)]
