"""Gates for continuous integration: `--fail-if "ranking.accuracy<0.6"` turns an estimate into an exit code."""

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import InputError
from .report import Report

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"^\s*([a-z_]+)\.([a-zA-Z0-9_/]+)(?:\.(low|high))?\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*$")


@dataclass(frozen=True, slots=True)
class Gate:
    """section.estimate[.low|.high] OP number; fires where the comparison is true."""

    text: str
    estimate: str  # section.estimate
    part: str  # value, low or high
    comparison: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> "Gate":
        match = _FORM.match(text)
        try:
            threshold = float(match[5]) if match else None
        except ValueError:
            threshold = None
        if match is None or threshold is None:
            raise InputError(
                f"--fail-if '{text}': expected SECTION.ESTIMATE<NUMBER (also >, <=, >=; also .low and "
                ".high for an end of the interval), for instance 'ranking.accuracy.low<0.5'"
            )
        return cls(text.strip(), f"{match[1]}.{match[2]}", match[3] or "value", match[4], threshold)

    def fires(self, report: Report) -> bool:
        """True where the comparison holds. InputError where the number is missing: a gate never passes blindly."""
        try:
            estimate = report.estimate(self.estimate)
        except KeyError as error:
            raise InputError(f"--fail-if '{self.text}': {error.args[0]}") from error
        number = getattr(estimate, self.part)
        if number is None:
            why = estimate.reason or "this number has no interval"
            raise InputError(f"--fail-if '{self.text}': {self.estimate} has no {self.part}: {why}")
        return _OPERATORS[self.comparison](number, self.threshold)


def require_estimates(gates: Sequence[Gate], names: Mapping[str, Collection[str]]) -> None:
    """Every gate is on an estimate that the run can make: said before the work, not after it.

    names: section -> names of its estimates. Raises InputError that suggests what may have been meant.
    """
    for gate in gates:
        section, _, estimate = gate.estimate.partition(".")
        if section not in names:
            meant = [f"{close}.{estimate}" for close in get_close_matches(section, names) if estimate in names[close]]
            problem = f"no section '{section}'; there are {', '.join(names)}"
        elif estimate not in names[section]:
            meant = [f"{section}.{close}" for close in get_close_matches(estimate, names[section], cutoff=0.5)]
            meant += [f"{other}.{estimate}" for other in names if estimate in names[other]]
            problem = f"no estimate '{estimate}' in section '{section}'"
            problem += "" if meant else f"; there are {', '.join(names[section])}"
        else:
            continue
        raise InputError(f"--fail-if '{gate.text}': {problem}" + (f"; perhaps {' or '.join(meant)}" if meant else ""))
