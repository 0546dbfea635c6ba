"""What does asking do? The inputs that call for a concept, or forbid it: the row that every vector is compared with."""

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.pair_rows import Messages, RowError, Text
from ...probes.rendering import Renderer
from ...probes.subject import Subject
from ..encoded import DIRECTIONS
from ..quadruple_rows import asking
from ..quadruples import QuadrupleFile, read_quadruples

FORBID = "Do not do this in your answer, and do not mention it: {concept}"
_PROBE = "alignscope-probe"


def prompted(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    direction: str,
    *,
    instruction: str = FORBID,
) -> tuple[Text, ...]:
    """The inputs that ask for what a vector steers to, one a usable row: text alone, no model is run.

    elicit: x_c as it stands. suppress: x_c with `instruction` as a system message where the tokenizer has a chat
    template that shows one, else as a line of text in front of the input. {concept} in it is the row's concept; the
    words are reconstructed. Raises InputError for another direction, and for a row without a concept that needs one.
    """
    if direction not in DIRECTIONS[1:]:
        raise InputError(f"direction '{direction}': expected {' or '.join(DIRECTIONS[1:])}")
    file = read_quadruples(quadruples)
    if direction == "elicit":
        return tuple(row.positive_input for row in file)
    system = shows_system(subject)
    found = []
    for row in file:
        if "{concept}" in instruction and not row.concept:
            raise InputError(f"{file.source}, row {row.row}: no `concept` to forbid; name it, or give the instruction")
        told = instruction.replace("{concept}", row.concept or "")
        try:
            found.append(_from_system(row.positive_input, told) if system else _in_front(row.positive_input, told))
        except RowError as error:
            raise InputError(f"{file.source}, row {row.row}: {error}") from error
    return tuple(found)


def shows_system(subject: Subject) -> bool:
    """Whether the tokenizer's chat template writes a system message out: some refuse it, some leave it away."""
    renderer = Renderer(subject.tokenizer, "auto")
    if renderer.template is None:
        return False
    asked = ({"role": "system", "content": _PROBE}, {"role": "user", "content": "?"})
    try:
        return _PROBE in renderer.render(asked, None, 0).prompt
    except RowError:
        return False


def _from_system(prompt: Text, told: str) -> Messages:
    """With a system message, or in front of what the first one says."""
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    first = messages[0]
    if first["role"] != "system":
        return ({"role": "system", "content": told}, *messages)
    return (first | {"content": f"{told}\n{first['content']}"}, *messages[1:])


def _in_front(prompt: Text, told: str) -> Text:
    return asking(prompt, lambda text: f"{told}\n{text}")
