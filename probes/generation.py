"""Continue prompts with a model and nothing that its checkpoint sneaks in: greedy means greedy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .padding import padded

if TYPE_CHECKING:
    from .huggingface import HuggingFaceSubject

NEW_TOKENS = 64
SAME = 1e-4  # of the largest logit: what left padding may move where a model respects its mask


def generate(subject: "HuggingFaceSubject", prompts: Sequence[str], **options: Any) -> list[str]:
    """Texts that follow `prompts`, special tokens left out; options as of transformers' generate.

    Prompts are read raw, with what the tokenizer puts before text, padded on the left. A model that left padding moves
    (RWKV, which ignores masks) gets its prompts one by one.
    """
    from transformers import GenerationConfig

    model, tokenizer = subject.model, subject.tokenizer
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    own = model.generation_config
    ends = own.eos_token_id if own is not None and own.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": ends, "pad_token_id": pad or 0}
    size = len(rows) if len(rows) > 1 and _respects_left_padding(subject) else 1
    texts: list[str] = []
    model.generation_config = GenerationConfig(**settings)  # not an argument: unset fields would be filled from `own`
    try:
        for start in range(0, len(rows), max(size, 1)):
            ids, mask = padded(rows[start : start + size], pad or 0, left=True)
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=True, **options
            )
            texts += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    finally:
        model.generation_config = own
    return texts


def _respects_left_padding(subject: "HuggingFaceSubject") -> bool:
    """Whether three pads on the left leave the last logits of a short row where they were."""
    row = [subject.vocab_size // 3, subject.vocab_size // 2]
    with torch.no_grad():
        plain, beside = (subject.logits(*padded(rows, 0, left=True))[-1, -1] for rows in ([row], [row * 2, row]))
    return bool((plain - beside).abs().max() <= SAME * plain.abs().max())
