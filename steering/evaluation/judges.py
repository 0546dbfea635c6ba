"""Raters that need no language-model judge: words to look for, and a reward model against reference answers.

Each gives one of the three ratings and takes the others from `rest`, another scorer; without one they are missing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...errors import InputError
from ...probes.encoding import Encoder, TextPolicy
from ...probes.pair_rows import RowError, Text
from ...probes.sequence_scores import TokenSequence, reward_sequences
from ...probes.subject import RewardSubject
from ...probes.vocabulary import real_vocabulary
from .ratings import Ratings, Scorer

PLACES = {"concept": 0, "instruction": 1, "fluency": 2}
ABSENT: Ratings = (None, None, None)


class KeywordScorer:
    """Rates the concept by regular expressions: 0 where none matches, 2 from `full` matches on, else 1 [reconstructed].

    Matches are counted over all patterns, letters of either case. rest: a scorer of instruction and fluency.
    Raises InputError for no pattern, one that is no regular expression, or full < 1.

    >>> KeywordScorer([r"ahoy", r"matey"])("Hello?", "Ahoy! What a day.", "pirate speech")
    (1.0, None, None)
    """

    reconstructed = True

    def __init__(self, patterns: Iterable[str], *, full: int = 2, rest: Scorer | None = None) -> None:
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        if not given or full < 1:
            raise InputError(f"{len(given)} patterns, full={full}: expected at least one of each")
        try:
            self.patterns = [re.compile(pattern, re.IGNORECASE) for pattern in given]
        except re.error as error:
            raise InputError(f"pattern {error.pattern!r}: not a regular expression ({error})") from error
        self.full, self.rest = full, rest
        self.name = f"keywords: {', '.join(given)}"

    def __call__(self, prompt: Text, output: str, concept: str) -> Ratings:
        n = sum(1 for pattern in self.patterns for _ in pattern.finditer(output))
        rated = 0.0 if n == 0 else 2.0 if n >= self.full else 1.0
        return _with_rest("concept", rated, self.rest, (prompt, output, concept))


class RewardScorer:
    """Rates by where an answer's reward stands among those of reference answers to the same prompt [reconstructed].

    share = references with a lower reward, equal ones half: 0 below 1/3, 2 from 2/3 on, else 1. Rewards compare within
    a prompt only, so a prompt without references, or text that cannot be encoded, has no rating. An output without text
    is rated 0.
    references: prompt -> answers, for instance of the unsteered model. rates: which of the three ratings it is.
    template, eos: how text becomes the reward model's ids, as of TextPolicy; template None: as one user turn where its
    tokenizer has a chat template.
    """

    reconstructed = True

    def __init__(
        self,
        reward: RewardSubject,
        references: Mapping[str, Sequence[str]],
        *,
        rates: str = "instruction",
        rest: Scorer | None = None,
        template: str | None = None,
        eos: str = "auto",
    ) -> None:
        if rates not in PLACES:
            raise InputError(f"rates '{rates}': expected one of {', '.join(PLACES)}")
        if not references or not all(references.values()):
            raise InputError("every prompt needs reference answers, and there has to be one")
        own = bool(getattr(reward.tokenizer, "chat_template", None))
        self.encoder = Encoder(
            reward.tokenizer,
            TextPolicy(template if template is not None else "chat" if own else "none", eos),
            vocab_rows=getattr(reward, "vocab_size", real_vocabulary(reward.tokenizer)),
            limit=reward.limit,
            source=f"reward model {reward.name}",
        )
        self.reward, self.rates, self.rest = reward, rates, rest
        self.references = {prompt: tuple(answers) for prompt, answers in references.items()}
        self.name = f"{reward.name} against reference answers ({rates})"
        self._known: dict[str, list[float]] = {}

    def __call__(self, prompt: Text, output: str, concept: str) -> Ratings:
        return _with_rest(self.rates, self._rating(prompt, output), self.rest, (prompt, output, concept))

    def _rating(self, prompt: Text, output: str) -> float | None:
        if not output.strip():
            return 0.0
        if not isinstance(prompt, str) or prompt not in self.references:
            return None
        if prompt not in self._known:
            found = [self._reward(prompt, answer) for answer in self.references[prompt]]
            self._known[prompt] = [value for value in found if value is not None]
        own, others = self._reward(prompt, output), np.array(self._known[prompt])
        if own is None or not len(others):
            return None
        share = float((others < own).mean() + (others == own).mean() / 2)
        return 0.0 if share < 1 / 3 else 2.0 if share >= 2 / 3 else 1.0

    def _reward(self, prompt: Text, answer: str) -> float | None:
        """None where it cannot be read: too long, refused by the template, not finite."""
        try:
            before, after = self.encoder.encode_apart(prompt, answer, row=0)
        except RowError:
            return None
        ids = (*before, *after)
        if self.encoder.max_length is not None and len(ids) > self.encoder.max_length:
            return None
        value = reward_sequences(self.reward, [TokenSequence(ids, len(ids))])[0]
        return value if np.isfinite(value) else None


def _with_rest(name: str, rated: float | None, rest: Scorer | None, call: tuple[Text, str, str]) -> Ratings:
    given = ABSENT if rest is None else rest(*call)
    place = PLACES[name]
    first, second, third = (rated if i == place else rating for i, rating in enumerate(given))
    return first, second, third
