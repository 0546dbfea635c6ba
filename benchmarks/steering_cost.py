"""What does a step of CDAS cost beside one that runs the whole model three times, and how much memory does it take?

python -m benchmarks.steering_cost --data FOLDER [--layer 14] [--steps 3] [--rounds 5]

D1: steps as they are usually written (a whole source pass for the state, a whole one for the target, a whole base pass
with the edit, logits everywhere, backward) / ours (source read once, base runs from the edited block on, logits where a
response is). Both on the refusal quadruples, 8 a step in both directions, from the same start, and checked to have the
same losses. D2: peak memory of a step of ours / of one bare forward and backward pass through the blocks above, each in
a process of its own.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import alignscope
from alignscope.probes.padding import padded
from alignscope.steering.cdas import fit_rows
from alignscope.steering.encoded import RunPair, run_pairs
from alignscope.steering.losses import jsd
from alignscope.steering.preparing import Prepared, prepare
from alignscope.steering.runs import predicting
from alignscope.steering.subspace import Subspace
from alignscope.steering.training import shuffled_batches
from alignscope.steering.training_rows import training_rows

from .ladder_table import ladder_data, reference_file
from .measuring import Call, Row, interleaved, peak_megabytes, table, time_ratio

LR, SEED, QUADRUPLES = 0.04, 42, 8


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steering_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--layer", type=int, default=14, help="block of 30 behind which is edited (default 14)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = [cost(options.data, options.layer, options.steps, options.rounds)]
    rows.append(memory(options.data, options.layer, options.threads))
    print(table(rows))


def rows(*, rounds: int = 5, threads: int = 2, quick: bool = False) -> Iterator[Row]:
    """D1 and D2 behind the middle block, for the table of all; not without the ladder's reference, nor quick."""
    data = ladder_data()
    if quick or data is None:
        print("D1 and D2 need the SmolLM2 ladder (make reference, ALIGNSCOPE_DATA): not measured", flush=True)
        return
    torch.set_num_threads(threads)
    yield cost(data, 14, 3, rounds)
    yield memory(data, 14, threads)


def cost(data: Path, layer: int, steps: int, rounds: int) -> Row:
    ready = prepared(data, layer)
    pairs, chosen = run_pairs(ready.train, "both"), batches(ready, steps)
    ours, whole = cached(ready, pairs, chosen), three_passes(ready, pairs, chosen)
    first, second = ours(), whole()
    torch.testing.assert_close(torch.tensor(first), torch.tensor(second), rtol=1e-4, atol=1e-5)
    timing = interleaved({"three passes": whole, "ours": ours}, rounds)
    what = f"CDAS, three whole passes a step / ours, behind block {layer} of 30, {steps} steps of 16 runs"
    return time_ratio("D1", what, timing, "three passes", "ours", goal=">= 2")


def memory(data: Path, layer: int, threads: int) -> Row:
    ours, bare = (peak_megabytes(make, data, layer, threads=threads) for make in (one_step, upper_half))
    note = f"{ours:.0f} MB / {bare:.0f} MB"
    what = "peak memory of a CDAS step / of a bare forward and backward pass of the upper blocks"
    return Row(id="D2", what=what, ratio=ours / bare, low=ours / bare, high=ours / bare, goal="<= 1.30", note=note)


def prepared(data: Path, layer: int) -> Prepared:
    subject = alignscope.load(reference_file())
    for parameter in subject.model.parameters():  # type: ignore[attr-defined]
        parameter.requires_grad_(False)
    return prepare(subject, data / "data" / "refusal_quadruples" / "train.parquet", layer=layer, seed=SEED)


def batches(ready: Prepared, steps: int) -> list[Tensor]:
    epoch = shuffled_batches(len(ready.train), epochs=1, size=QUADRUPLES, seed=SEED, both=True)
    return epoch[:steps]


def cached(ready: Prepared, pairs: Sequence[RunPair], chosen: Sequence[Tensor]) -> Call:
    """The steps of train_cdas; what they keep of the unedited model is made before."""
    rows, told = training_rows(ready.subject, ready.site, ready.positions, pairs, cache_bytes=2e9)
    assert not told, told

    def call() -> Sequence[float]:
        fit = fit_rows(
            rows,
            width=ready.subject.d_model,
            device=rows.source.device,
            rank=1,
            loss="jsd",
            steps=len(chosen),
            lr=LR,
            batch_size=QUADRUPLES,
            seed=SEED,
            batches=chosen,
        )
        return fit.losses

    return call


def three_passes(ready: Prepared, pairs: Sequence[RunPair], chosen: Sequence[Tensor]) -> Call:
    """The same steps with whole passes of the Hugging Face model, a hook for the state and one for the edit."""
    model: Any = ready.subject.model  # type: ignore[attr-defined]
    block = model.model.layers[ready.site.layer]
    prefix = ready.positions.prefix
    assert isinstance(prefix, int)

    def logits(runs: Sequence[Any], hook: Any) -> Tensor:
        ids, mask = padded([run.ids for run in runs], 0)
        handle = block.register_forward_hook(hook)
        try:
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        finally:
            handle.remove()

    def states(runs: Sequence[Any], places: Sequence[int]) -> Tensor:
        found: list[Tensor] = []
        logits(runs, lambda _, __, out: found.append(_residual(out)))
        return torch.stack([found[0][row, place] for row, place in enumerate(places)])

    def of_responses(whole: Tensor, runs: Sequence[Any]) -> Tensor:
        return torch.cat([whole[row, predicting(run)] for row, run in enumerate(runs)])

    def call() -> list[float]:
        generator = torch.Generator().manual_seed(SEED)
        weight = Subspace(torch.randn(1, ready.subject.d_model, generator=generator)).basis.requires_grad_(True)
        optimizer = torch.optim.AdamW([weight], lr=LR, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(chosen))
        losses = []
        for rows in chosen:
            some = [pairs[int(k)] for k in rows]
            sources, bases = [pair.source for pair in some], [pair.base for pair in some]
            with torch.no_grad():
                at = states(sources, [pair.place for pair in some])
                target = of_responses(logits(sources, lambda *_: None), sources)

            def edit(_: Any, __: Any, out: Any, at: Tensor = at) -> Any:
                h = _residual(out)
                moved = ((at @ weight.T)[:, None] - h @ weight.T) @ weight
                moved = torch.cat([torch.zeros_like(moved[:, :prefix]), moved[:, prefix:]], dim=1)
                return (h + moved, *out[1:]) if isinstance(out, tuple) else h + moved

            edited = of_responses(logits(bases, edit), bases)
            each = jsd(edited, target)
            halves = torch.tensor([pair.elicit for pair in some for _ in range(pair.base.n_scored)])
            loss = (each[halves].mean() + each[~halves].mean()) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                weight.div_(weight.norm())
            losses.append(float(loss.detach()))
        return losses

    return call


def one_step(data: Path, layer: int) -> Call:
    ready = prepared(data, layer)
    return cached(ready, run_pairs(ready.train, "both"), longest(ready))


def upper_half(data: Path, layer: int) -> Call:
    """The blocks above, final norm, and the head at response tokens, of the same 16 runs; backward to the input."""
    ready = prepared(data, layer)
    model: Any = ready.subject.model  # type: ignore[attr-defined]
    pairs = run_pairs(ready.train, "both")
    bases = [pairs[int(k)].base for k in longest(ready)[0]]
    longest_run = max(len(run.ids) for run in bases)
    places = torch.arange(longest_run)[None]

    def call() -> None:
        h = torch.zeros(len(bases), longest_run, ready.subject.d_model, requires_grad=True)
        rope = model.model.rotary_emb(h, places)
        out = h
        for block in model.model.layers[layer + 1 :]:
            out = block(out, attention_mask=None, position_embeddings=rope)
            out = _residual(out)
        last = torch.cat([out[row, predicting(run)] for row, run in enumerate(bases)])
        model.lm_head(model.model.norm(last)).sum().backward()

    return call


def longest(ready: Prepared) -> list[Tensor]:
    """One batch: the eight quadruples with the longest runs."""
    order = sorted(range(len(ready.train)), key=lambda k: -len(ready.train[k].positive))[:QUADRUPLES]
    rows = torch.tensor(order)
    return [torch.cat([rows, rows + len(ready.train)])]


def _residual(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


if __name__ == "__main__":
    main()
