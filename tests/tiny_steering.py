"""A tiny model, and quadruples with inputs of their own, for the tests of evaluation."""

from spinal_models import letters, tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import Subject

WAYS = ("elicit", "suppress")
WORDS = [
    {"negative_input": f"say {word}", "negative_output": f"{word[:3]} no", "positive_input": f"say {word} ab",
     "positive_output": f"yes {word[::-1]}"[: 4 + i % 5]}
    for i, word in enumerate(letters(24, longest=9))
]  # fmt: skip
TWENTY = [  # inputs that five rows share
    {"negative_input": f"say {a}", "negative_output": f"{a}{b} no", "positive_input": f"say {a} ab {b}",
     "positive_output": f"yes {b}{a}"}
    for a in "cdef" for b in "ghijk"
]  # fmt: skip


def fixed_subject() -> Subject:
    """Its fingerprint is not hashed anew: checked types ask for it at every call."""
    live = alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())
    return live.under(live.name, live.fingerprints)
