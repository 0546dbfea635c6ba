"""Did the steered model give the other answer? Greedy outputs, and the rules that judge them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from ...diagnose.report import Estimate
from ...diagnose.statistics import LEVEL, cluster_codes, wilson
from ...errors import InputError
from ...probes.encoding import Ids
from ...probes.pair_rows import Text, plain_text
from ...probes.subject import Subject
from ..quadruples import Quadruple
from .candidates import ELICIT, WAYS, Candidate
from .evaluated_rows import EvaluatedRows
from .refusals import is_refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipCase:
    """What a rule may look at: the row, the direction, and what the unedited model says to either prompt."""

    quadruple: Quadruple
    direction: str  # "elicit" or "suppress"
    plain: str  # greedy output of the unedited model to the prompt that is steered: x to elicit, x_c to suppress
    counterfactual: str  # and to the other one

    @property
    def prompt(self) -> Text:
        """What is steered."""
        row = self.quadruple
        return row.negative_input if self.direction == ELICIT else row.positive_input

    @property
    def target(self) -> str:
        """The answer that the data have for the other prompt: y_c to elicit, y to suppress."""
        row = self.quadruple
        return plain_text(row.positive_output if self.direction == ELICIT else row.negative_output)


FlipRule = Callable[[FlipCase, str], bool | None]  # (case, output) -> flipped; None: cannot be judged


def same_answer(case: FlipCase, output: str) -> bool | None:
    """Whether the output is what the unedited model says to the other prompt, word for word [reconstructed].

    None where it says the same to both. A strict rule: for long answers give one that looks for the concept.
    """
    if _words(case.plain) == _words(case.counterfactual):
        return None
    return _words(output) == _words(case.counterfactual)


def begins_with_target(case: FlipCase, output: str) -> bool | None:
    """Whether the output begins with the words of the row's own answer to the other prompt [reconstructed]."""
    target = _words(case.target)
    return _words(output)[: len(target)] == target


@dataclass(frozen=True, slots=True)
class OpeningRule:
    """Whether the output begins as answers with the concept do; to suppress, that it does not [reconstructed].

    openings: of answers with the concept, as texts; case, spaces and shape of ' do not matter. For answers that say the
    concept in their first words, as refusals do.
    """

    openings: tuple[str, ...]
    reconstructed: ClassVar[bool] = True

    def __call__(self, case: FlipCase, output: str) -> bool | None:
        return is_refusal(output, self.openings) is (case.direction == ELICIT)


def _words(text: str) -> list[str]:
    return text.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Outputs of all rows in one direction, and whether each is a flip; None: not judged."""

    outputs: tuple[str, ...]
    flipped: tuple[bool | None, ...]

    @property
    def n_judged(self) -> int:
        return sum(value is not None for value in self.flipped)

    def rate(
        self, clusters: Int[np.ndarray, "N"], label: str, *, level: float = LEVEL, reconstructed: bool = False
    ) -> Estimate:
        """Share of the judged rows that flipped, with Wilson's interval; n counts rows, the interval their prompts.

        Null where no row could be judged. reconstructed: the rule is one of ours.
        """
        judged = np.array([value is not None for value in self.flipped])
        n, n_clusters = int(judged.sum()), cluster_codes(clusters[judged])[1]
        value = sum(map(bool, self.flipped)) / n if n else None
        low, high = (None, None) if value is None else wilson(value * n_clusters, n_clusters, level=level)
        return Estimate(
            label=label,
            value=value,
            low=low,
            high=high,
            level=level,
            n=n,
            n_clusters=n_clusters,
            unit="share",
            method="Wilson's interval on prompts",
            reason=None if n else "the rule could judge none of the outputs",
            null_value=0.0,
            reconstructed=reconstructed,
        )


class Outputs:
    """Greedy continuations of both prompts of every row, unedited and under edits."""

    def __init__(self, subject: Subject, data: EvaluatedRows, *, max_new_tokens: int, batch_size: int) -> None:
        if max_new_tokens < 1 or batch_size < 1:
            raise InputError(f"max_new_tokens={max_new_tokens}, batch_size={batch_size}: expected 1 or more")
        if not hasattr(subject, "generate_ids"):
            raise InputError(f"{subject.name}: this carrier continues no ids; load it with carrier='huggingface'")
        self.subject, self.data = subject, data
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        negative, positive = (
            self._continued([getattr(row, side) for row in data.encoded]) for side in ("negative", "positive")
        )
        self.cases = {
            direction: tuple(
                FlipCase(quadruple=row, direction=direction, plain=plain, counterfactual=other)
                for row, plain, other in zip(data.quadruples, *sides, strict=True)
            )
            for direction, sides in zip(WAYS, ((negative, positive), (positive, negative)), strict=True)
        }

    def unedited(self, direction: str, rule: FlipRule) -> Flips:
        """What the rule says of the outputs of the unedited model: flips that need no vector."""
        return self._judged(direction, [case.plain for case in self.cases[direction]], rule)

    def steered(self, direction: str, candidate: Candidate, rule: FlipRule) -> Flips:
        side = "negative" if direction == ELICIT else "positive"
        with candidate.context(self.subject, direction):
            outputs = self._continued([getattr(row, side) for row in self.data.encoded])
        return self._judged(direction, outputs, rule)

    def _judged(self, direction: str, outputs: Sequence[str], rule: FlipRule) -> Flips:
        flipped = [rule(case, output) for case, output in zip(self.cases[direction], outputs, strict=True)]
        for case, value in zip(self.cases[direction], flipped, strict=True):
            if value is not None and not isinstance(value, bool | np.bool_):
                where = f"row {case.quadruple.row}, {direction}"
                raise InputError(f"{where}: the rule of flips gave {value!r}; expected True, False or None")
        return Flips(outputs=tuple(outputs), flipped=tuple(None if value is None else bool(value) for value in flipped))

    def _continued(self, prompts: Sequence[Ids]) -> list[str]:
        """Texts, greedy, of the ids that teacher forcing reads too; prompts of like length side by side."""
        subject: Any = self.subject  # a carrier with generate_ids, asked above
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found: dict[int, str] = {}
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            ids = subject.generate_ids([prompts[i] for i in some], max_new_tokens=self.max_new_tokens)
            found |= dict(zip(some, subject.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True))
        return [found[i] for i in range(len(prompts))]
