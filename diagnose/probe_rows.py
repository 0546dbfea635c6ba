"""Rows of ids to examine a model with, and the score that must not move when they are batched or padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..probes.kernels import sequence_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..probes.subject import Subject

LENGTHS = (2, 3, 4, 5, 6, 8, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)  # tokens; two are equal
PADS = 17  # added on the right by the padding check: more than any one kernel tile rounds up

TEXTS = (
    "Yes.",
    "The cat sat on the mat.",
    "What is the capital of France?",
    "Water boils at 100 degrees Celsius at sea level.",
    "She said: 'I will be there by noon, unless it rains.'",
    "def add(a, b):\n    return a + b\n",
    "Die Straße über den Fluß ist gesperrt; naïve café, 東京, \u0442\u0435\u0441\u0442.",
    "Once upon a time there was a little girl who liked to play in the garden with her dog.",
    "Human: How do I keep basil alive in winter?\n\nAssistant: Give it light, warmth and not too much water.",
    "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987",
    "The committee met twice in March. It heard four witnesses, read two reports, and put off its decision to autumn.",
    "A recipe for bread: mix flour, water, salt and yeast; wait an hour; knead; wait again; bake until the crust is "
    "brown and the loaf sounds hollow.",
    "In the middle of the night the phone rang. Nobody spoke. When she had put it down it rang again, and this time a "
    "voice she had not heard for years asked whether the old house was still for sale.",
    "The train leaves at 07:45 from platform 9. Tickets bought on board cost 20 % more. Dogs travel free of charge, "
    "bicycles need a ticket of their own, and children under six need none if they sit on somebody's lap.",
    "To find the roots of x^2 - 5x + 6, look for two numbers whose sum is 5 and whose product is 6: they are 2 and 3. "
    "So x^2 - 5x + 6 = (x - 2)(x - 3), and the roots are x = 2 and x = 3. Check: 4 - 10 + 6 = 0 and 9 - 15 + 6 = 0.",
    "There was no wind that day. The boats lay still in the harbour, and the fishermen mended their nets or slept in "
    "the shade of the wall. Towards evening a single cloud came up from the west, small and grey; the oldest "
    "man looked at it for a long time, got up without a word, and began to pull his boat on land.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRows:
    """Rows of unequal length and where they come from; `pads` is how many pads the model's limit leaves room for."""

    rows: tuple[tuple[int, ...], ...]
    source: str  # "16 built-in texts", "seeded random ids: <why>", "12 texts given"
    pads: int

    @property
    def n_scored(self) -> int:
        return sum(len(row) - 1 for row in self.rows)


def probe_rows(subject: "Subject", texts: Sequence[str] | None) -> ProbeRows:
    """At most 16 rows of 2 to 64 tokens: the texts given, else ours, else seeded random ids where neither can be read.

    Raises InputError where `texts` are given and none of them gives two ids that the model knows.
    """
    room = subject.limit or 10**9
    pads = min(PADS, max(1, room // 4))
    longest = min(max(LENGTHS), room - pads)
    tokenizer = tokenizer_of(subject)
    rows = _encoded(tokenizer, TEXTS if texts is None else texts, longest, subject.vocab_size, cut=texts is None)
    if texts is not None:
        if not rows:
            raise InputError(
                f"none of the {len(texts)} texts gives 2 tokens that {subject.name} knows (it has {subject.vocab_size})"
            )
        return ProbeRows(rows=rows[:16], source=f"{len(rows[:16])} of the texts given", pads=pads)
    if len(rows) == len(TEXTS) and longest == max(LENGTHS):
        return ProbeRows(rows=rows, source=f"{len(rows)} built-in texts", pads=pads)
    cause = "no tokenizer" if tokenizer is None else "the tokenizer refuses the built-in texts"
    if len(rows) == len(TEXTS):
        cause = f"the limit of {room} tokens is too short for the built-in texts"
    return ProbeRows(rows=_random(longest, subject.vocab_size), source=f"seeded random ids ({cause})", pads=pads)


def tokenizer_of(subject: "Subject") -> "PreTrainedTokenizerBase | None":
    """The subject's tokenizer, or None where it was wrapped without one."""
    try:
        return subject.tokenizer
    except InputError:
        return None


def encode(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool = True) -> list[int] | None:
    """Ids of a text; None where the tokenizer has no entry for a character of it and no unknown token either."""
    try:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])
    except Exception as error:
        if type(error) is Exception:  # tokenizers raises just that: "Missing [UNK] token from the vocabulary"
            return None
        raise


def row_scores(subject: "Subject", ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """Summed log-probability of the ids after each row's first, nats, float64."""
    with torch.no_grad():
        return scores_of(subject.logits(ids, mask), ids, mask)


def scores_of(logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """`row_scores` of logits that are there already."""
    first = mask.argmax(-1)
    scored = mask.clone()
    scored[torch.arange(len(ids)), first] = 0  # nothing predicts a row's first id
    device = logits.device
    return sequence_log_probs(logits, ids.to(device), scored.to(device).bool()).total.cpu()


def _encoded(
    tokenizer: "PreTrainedTokenizerBase | None", texts: Sequence[str], longest: int, vocabulary: int, *, cut: bool
) -> tuple[tuple[int, ...], ...]:
    if tokenizer is None:
        return ()
    rows = []
    for i, text in enumerate(texts):
        ids = encode(tokenizer, text) or []
        ids = ids[: min(longest, LENGTHS[i])] if cut else ids[:longest]
        if len(ids) >= 2 and max(ids) < vocabulary:
            rows.append(tuple(ids))
    return tuple(rows)


def _random(longest: int, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(0)
    lengths = [max(2, min(longest, round(n * longest / max(LENGTHS)))) for n in LENGTHS]
    return tuple(tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in lengths)
