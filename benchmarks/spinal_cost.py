"""What does a SPINAL trace of the real ladder's reference cost beside its forward passes and bare head products?

python -m benchmarks.spinal_cost --data FOLDER [--prompts 64] [--rounds 5]

S1: the whole trace (read-outs, spectra, gates, intervals; last-token rows of all layers, transport over 18 tokens a
prompt, 9,216 of 512 prompts), with the compiled sums and with torch's / forward passes over the same batches without
the head, then [layers x tokens, d] @ [d, V] in tiles, of which nothing is kept. All in one process, in turn. S2: peak
memory of a trace of 512 / 128 prompts, each in a process of its own. S3: the spectra of all weight matrices, policy
against reference, in seconds.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import torch

import alignscope
from alignscope.diagnose.spinal_reading import batches_of
from alignscope.probes.kernels import lens
from alignscope.probes.kernels.backends import chosen
from alignscope.probes.padding import padded

from .kernels import bare_product
from .ladder_pairs import evaluation_rows
from .ladder_table import ladder_data, reference_file
from .measuring import Call, Row, interleaved, peak_megabytes, table, time_ratio

INNER = 17  # positions beside the last token
GOALS = {"numba": "<= 1.25", "eager": "<= 1.50"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spinal_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--prompts", type=int, default=64, help="of the times (default 64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measured = (
        lambda: costs(options.data, options.prompts, options.rounds),
        lambda: [weights(options.data)],
        lambda: [memory(options.data, options.threads)],
    )
    rows = []
    for measure in measured:  # minutes each: told as they come
        for row in measure():
            rows.append(row)
            print(f"{row.id} {row.ratio:.2f}  goal {row.goal} {row.met}  {row.what}; {row.note}", flush=True)
    print(table(rows))


def rows(*, rounds: int = 5, threads: int = 2, quick: bool = False) -> Iterator[Row]:
    """S1 for the table of all (S2 and S3 take minutes more); not without the ladder's reference, nor quick."""
    data = ladder_data()
    if quick or data is None:
        print("S1 needs the SmolLM2 ladder (make reference, ALIGNSCOPE_DATA): not measured", flush=True)
        return
    torch.set_num_threads(threads)
    yield from costs(data, 48, rounds)


def prompt_texts(data: Path, n: int) -> list[dict[str, str]]:
    return [{"prompt": row["prompt"]} for row in evaluation_rows(data, n)]


def traced(data: Path, n: int, backend: str = "auto") -> Call:
    """The trace of the first n prompts, its lens by that backend."""
    subject, prompts = alignscope.load(reference_file()), prompt_texts(data, n)

    def call() -> None:
        with patch.object(lens, "chosen", lambda _, dtype, device: chosen(backend, dtype, device)):
            alignscope.spinal_trace(subject, prompts, lens_positions=INNER, template="none")

    return call


def bare(data: Path, n: int) -> Call:
    """Forward passes over the same batches, the head left out, and as many products with the head as the trace has."""
    subject = alignscope.load(reference_file())
    trace = alignscope.spinal_trace(subject, prompt_texts(data, n), lens_positions=INNER, template="none")
    batches = [
        (padded([trace.prompts[i].ids for i in batch], 0), sum(len(trace.prompts[i].positions) for i in batch))
        for batch in batches_of(trace.prompts, trace.settings["batch_size"])
    ]
    body, head = subject.model.base_model, subject.head()  # type: ignore[attr-defined]
    assert head is not None
    hidden = torch.randn(subject.n_layers + 1, max(tokens for _, tokens in batches), subject.d_model)

    @torch.no_grad()
    def call() -> None:
        for (ids, mask), tokens in batches:
            body(input_ids=ids, attention_mask=mask, use_cache=False)
            bare_product(hidden[:, :tokens], head.weight)

    return call


def costs(data: Path, n: int, rounds: int) -> list[Row]:
    calls = {backend: traced(data, n, backend) for backend in GOALS}
    timing = interleaved(calls | {"bare": bare(data, n)}, rounds)
    what = f"trace / forwards + lens products, {n} prompts"
    return [time_ratio("S1", f"{what}, {name}", timing, name, "bare", goal=goal) for name, goal in GOALS.items()]


def memory(data: Path, threads: int) -> Row:
    """Of the process above its loaded model: rows are kept (layers x prompts x d), so it grows a little."""
    many, few = (peak_megabytes(traced, data, n, threads=threads) for n in (512, 128))
    rows = 31 * (512 - 128) * 576 * 4 / 2**20
    note = f"{many:.0f} MB / {few:.0f} MB; the rows of 384 more prompts alone are {rows:.0f} MB"
    ratio = many / few
    return Row(
        id="S2", what="peak memory, 512 / 128 prompts", ratio=ratio, low=ratio, high=ratio, goal="<= 1.50", note=note
    )


def weights(data: Path) -> Row:
    """Policy against reference, every matrix of every block."""
    policy = alignscope.load(data / "models" / "smollm2_hh" / "dpo" / "step_100", base=reference_file())
    reference = alignscope.load(reference_file())
    timing = interleaved({"weights": lambda: alignscope.weight_spectrum(policy, reference)}, 1)
    seconds = statistics.median(timing.wall["weights"])
    return Row(id="S3", what="spectra of all weights, seconds", ratio=seconds, low=seconds, high=seconds, goal="<= 60")


if __name__ == "__main__":
    main()
