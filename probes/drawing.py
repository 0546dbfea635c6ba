"""What does a model itself say? Completions drawn at temperature 1 from the whole distribution, as rows of a file.

    rows = draw_samples(alignscope.load("dpo/"), "prompts.jsonl", n=2, max_tokens=64)

Nothing is cut off the distribution: averages over such draws are expectations, those over top-p samples are not.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from .encoding import Encoder, TextPolicy
from .generation import stop_ids
from .inputs import Invalid, Prompt, PromptFile, check_invalid, read_prompts
from .shards import Progress

if TYPE_CHECKING:
    from .subject import Subject

FULL = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # transformers would keep the top 50


def draw_samples(
    subject: "Subject",
    prompts: "str | os.PathLike[str] | Iterable[Any] | PromptFile",
    *,
    n: int = 1,
    max_tokens: int = 128,
    template: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    max_invalid: float = 0.05,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """n completions of every prompt, a row each: id, prompt, completion, finished, n_tokens, same_ids, temperature.

    Drawn token by token from the model's softmax at temperature 1, without top-k, top-p or penalties. finished: the
    model ended it; else it was cut at `max_tokens`. same_ids: its text becomes the very ids that were drawn; where not,
    a scorer reads other ids. prompt_id: where the prompts have one. The rows are what `read_samples` takes. Draws
    depend on seed and batch_size.
    progress: called as progress(stage, completions done, completions in all).
    Raises InputError for a carrier that cannot draw ids, prompts that cannot be encoded, n or max_tokens below 1.
    """
    if n < 1 or max_tokens < 1 or batch_size < 1:
        raise InputError(f"n={n}, max_tokens={max_tokens}, batch_size={batch_size}: all are at least 1")
    if not hasattr(subject, "generate_ids"):
        raise InputError(f"{subject.name}: this carrier draws no ids; load the checkpoint with carrier='huggingface'")
    file = read_prompts(prompts)
    encoder = Encoder(
        subject.tokenizer,
        TextPolicy(template, "none"),
        vocab_rows=subject.vocab_size,
        limit=None if subject.limit is None else subject.limit - max_tokens,
        source=file.source,
    )
    encoded = [(prompt, encoder.encode_prompt(prompt)) for prompt in file]
    invalid = [ids for _, ids in encoded if isinstance(ids, Invalid)]
    check_invalid(file, max_invalid, more=invalid)
    wanted = [(prompt, ids) for prompt, ids in encoded if not isinstance(ids, Invalid) and ids for _ in range(n)]
    found: dict[int, tuple[int, ...]] = {}
    order = sorted(range(len(wanted)), key=lambda i: (-len(wanted[i][1]), i))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in _batches(order, batch_size):
            drawn = subject.generate_ids([wanted[i][1] for i in batch], max_new_tokens=max_tokens, **FULL)
            found.update(zip(batch, drawn, strict=True))
            if progress is not None:
                progress(f"drawing from {subject.name}", len(found), len(wanted))
    ends = stop_ids(subject)  # type: ignore[arg-type]  # a carrier with generate_ids, asked above
    return [_row(subject, number, prompt, found[number], ends) for number, (prompt, _) in enumerate(wanted)]


def _row(subject: "Subject", number: int, prompt: Prompt, ids: tuple[int, ...], ends: list[int]) -> dict[str, Any]:
    tokenizer = subject.tokenizer
    finished = bool(ids) and ids[-1] in ends
    body = ids[:-1] if finished else ids
    text = tokenizer.decode(body, skip_special_tokens=True)
    again = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {
        "id": str(number),
        **({} if prompt.prompt_id is None else {"prompt_id": prompt.prompt_id}),
        "prompt": prompt.text,
        "completion": text,
        "finished": finished,
        "n_tokens": len(body),
        "same_ids": again == body,
        "temperature": FULL["temperature"],
    }


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
