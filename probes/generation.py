"""Continue prompts with a model and nothing that its checkpoint sneaks in: greedy means greedy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .padding import padded
from .token_positions import announced_prompts, unedited

if TYPE_CHECKING:
    from .huggingface import HuggingFaceSubject

NEW_TOKENS = 64
SAME = 1e-4  # of the largest logit: what left padding may move where a model respects its mask


def generate(subject: "HuggingFaceSubject", prompts: Sequence[str], **options: Any) -> list[str]:
    """Texts that follow `prompts`, special tokens left out; options as of transformers' generate.

    Prompts are read raw, with what the tokenizer puts before text. See `generated_ids`.
    """
    tokenizer = subject.tokenizer
    ids = generated_ids(subject, [tokenizer(prompt)["input_ids"] for prompt in prompts], **options)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def generated_ids(
    subject: "HuggingFaceSubject", rows: Sequence[Sequence[int]], **options: Any
) -> list[tuple[int, ...]]:
    """The ids that follow each row, padding cut off; options as of transformers' generate.

    Rows are padded on the left to one batch. A model that left padding moves (RWKV, which ignores masks) gets its rows
    one by one.
    """
    from transformers import GenerationConfig

    model, tokenizer = subject.model, subject.tokenizer
    own, ends = model.generation_config, stop_ids(subject)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else None
    stops = ends or None
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": stops, "pad_token_id": pad or 0}
    size = len(rows) if len(rows) > 1 and respects_left_padding(subject) else 1
    found: list[tuple[int, ...]] = []
    model.generation_config = GenerationConfig(**settings)  # not an argument: unset fields would be filled from `own`
    try:
        for start in range(0, len(rows), max(size, 1)):
            ids, mask = padded(rows[start : start + size], pad or 0, left=True)
            given = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            with announced_prompts(mask.sum(-1)):
                out = model.generate(**given, **{"use_cache": True, **options})
            found += [_to_the_end(new, ends) for new in out[:, ids.shape[1] :].tolist()]
    finally:
        model.generation_config = own
    return found


def stop_ids(subject: "HuggingFaceSubject") -> list[int]:
    """Ids at which `generate` stops: those of the checkpoint's generation settings, else the tokenizer's own."""
    own = subject.model.generation_config
    ends = own.eos_token_id if own is not None and own.eos_token_id is not None else subject.tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _to_the_end(ids: list[int], ends: list[int]) -> tuple[int, ...]:
    """Up to and with the first end-of-sequence id: what stands behind it is padding."""
    last = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return tuple(ids[: last + 1])


def respects_left_padding(subject: "HuggingFaceSubject") -> bool:
    """Whether three pads on the left leave the last logits of a short row where they were."""
    row = [subject.vocab_size // 3, subject.vocab_size // 2]
    with torch.no_grad(), unedited():
        plain, beside = (subject.logits(*padded(rows, 0, left=True))[-1, -1] for rows in ([row], [row * 2, row]))
    return bool((plain - beside).abs().max() <= SAME * plain.abs().max())
