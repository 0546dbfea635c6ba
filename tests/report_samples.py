"""Reports to draw: a real audit of two tiny models, and the same with texts that try to break out of a page."""

import random

import torch
from spinal_models import letters, tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import Report

HOSTILE = "<script>document.title='broken'</script>&<b>\"'"


def tiny_pairs(n: int = 120, *, name: str = "pair", votes: bool = True) -> list[dict]:
    """Voted pairs of letters, two a prompt."""
    draw = random.Random(0)
    rows = []
    for i, text in enumerate(letters(2 * n, seed=3, longest=12)[:n]):
        a = draw.randint(0, 5)
        judged = {"votes_a": a, "votes_b": 5 - a} if votes else {"label": "a" if a > 2 else "b"}
        rows.append(
            {"id": f"{name}-{i}", "prompt": f"prompt {i // 2}:", "response_a": text, "response_b": text[::-1] + "x"}
            | judged
        )
    return rows


def audited(*, name: str = "pair", only: list[str] | None = None, votes: bool = True, prompts: int = 60) -> Report:
    """An audit of two tiny models that differ in one block."""
    torch.manual_seed(0)
    reference, policy = (
        alignscope.wrap(tiny_model(blocks=4, changed=3, scale=scale), tiny_tokenizer()) for scale in (1.0, 1.3)
    )
    policy.name, reference.name = f"runs/{name}/dpo", f"runs/{name}/base"
    return alignscope.audit(
        policy, reference, tiny_pairs(name=name, votes=votes), prompts=letters(prompts), only=only, beta=0.5
    )
