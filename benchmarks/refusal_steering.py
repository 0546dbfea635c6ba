"""Refusal on SmolLM2-135M-Instruct: which layer, and CDAS beside its baselines on rows that nothing was fitted on.

python -m benchmarks.refusal_steering --data FOLDER --out FOLDER [--layers 9,15,21] [--epochs 6]

Vectors of PCA, LAT and the probe are as long as the way from f- to f+ along them: the largest projection has no length
where none is above 0, as LAT's is not.

Trained on refusal_quadruples/train.parquet, evaluated on test.parquet as `alignscope steer evaluate` does: share of KL
recovered in both directions, a sweep of five strengths, how greedy answers begin, KL and perplexity on WikiText,
refusals of XSTest's safe prompts, AUROC of answers. A vector that takes refusals away is an instrument of red teams.
Vectors and the report are kept in --out: what is there is not made again.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import alignscope
from alignscope.diagnose.report import Report
from alignscope.probes.shards import DETAIL
from alignscope.probes.subject import Subject
from alignscope.steering import SteeringVector, baselines, evaluate_steering, scan_layers

from .ladder_table import reference_file

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
# beside the vectors that are kept: strengths are chosen, or there is no file
TRAINED = ("das", "reps", "loreft", "lora", "prompt")
Fit = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.refusal_steering",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", default="9,15,21", help="blocks that CDAS and the closed forms are fitted behind")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--texts", type=int, default=60, help="of WikiText, and as many safe prompts of XSTest")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    subject = alignscope.load(reference_file())
    rows = options.data / "data" / "refusal_quadruples"
    training, test = rows / "train.parquet", rows / "test.parquet"
    layers = [int(layer) for layer in options.layers.split(",")]

    vectors, chosen = fitted(subject, training, layers, options.epochs, options.out)
    started = time.perf_counter()
    report = evaluated(subject, options.data / "data", training, test, vectors, chosen, options)
    told(report.summary())
    told(f"evaluation: {time.perf_counter() - started:.0f} s; alignscope page {options.out / 'evaluation'}")


def fitted(
    subject: Subject, training: Path, layers: Sequence[int], epochs: int, out: Path
) -> tuple[dict[str, SteeringVector], int]:
    """All vectors, `method_layer` by name, and the layer that the scan chooses."""
    vectors: dict[str, SteeringVector] = {}
    scanned = out / "layers.csv"
    if not scanned.is_file():
        started = time.perf_counter()
        scan = scan_layers(subject, training, layers, epochs=epochs, progress=ticking("scan"))
        for layer, vector in scan.vectors.items():
            vector.save(out / f"cdas_{layer}.safetensors")
        scan.to_frame().to_csv(scanned, index=False)
        told(f"scan of {len(layers)} layers: {time.perf_counter() - started:.0f} s. {scan.summary()}")
    table = pd.read_csv(scanned)
    print(table.to_string(index=False), flush=True)
    chosen = int(table[table.chosen].layer.iloc[0])
    for layer in layers:
        vectors[f"cdas_{layer}"] = SteeringVector.load(out / f"cdas_{layer}.safetensors", subject)
        closed: Mapping[str, Fit] = {
            "diffmean": lambda at=layer: baselines.fit_diffmean(subject, training, layer=at),
            "caa": lambda at=layer: baselines.fit_diffmean(subject, training, layer=at, tokens="last"),
            "pca": lambda at=layer: baselines.fit_pca(subject, training, layer=at, norm="gap"),
            "lat": lambda at=layer: baselines.fit_lat(subject, training, layer=at, norm="gap"),
            "probe": lambda at=layer: baselines.fit_probe(subject, training, layer=at, norm="gap"),
            "ablate": lambda at=layer: baselines.ablation(subject, training, layer=at),
        }
        vectors |= {f"{name}_{layer}": kept(out / f"{name}_{layer}", subject, fit) for name, fit in closed.items()}
    learned: Mapping[str, Fit] = {
        name: lambda fit=fit, name=name, more=more: fit(
            subject, training, layer=chosen, epochs=epochs, progress=ticking(name), **more
        )
        for name, fit, more in (
            ("ssv", baselines.fit_ssv, {}),
            ("bipo", baselines.fit_bipo, {}),
        )
    }
    vectors |= {f"{name}_{chosen}": kept(out / f"{name}_{chosen}", subject, fit) for name, fit in learned.items()}
    return vectors, chosen


def evaluated(
    subject: Subject,
    data: Path,
    training: Path,
    test: Path,
    vectors: Mapping[str, SteeringVector],
    chosen: int,
    options: argparse.Namespace,
) -> Report:
    """CDAS behind the chosen layer; beside it CDAS and the closed forms behind all of them, and what was trained."""
    main = f"cdas_{chosen}"
    of_itself = (main, f"diffmean_{chosen}")  # the difference of means is always there
    beside = {name: one for name, one in vectors.items() if name not in of_itself}
    answers = pd.read_parquet(test)
    texts = {
        kind: answers[[f"{kind}_input", f"{kind}_output"]].set_axis(["prompt", "response"], axis=1).to_dict("records")
        for kind in ("positive", "negative")
    }
    wiki = pd.read_json(data / "corpora" / "wikitext_1000.json")[0].tolist()[: options.texts]
    safe = pd.read_csv(data / "xstest" / "prompts.csv").query("label == 'safe'").prompt.tolist()[: options.texts]
    return evaluate_steering(
        subject,
        vectors[main],
        test,
        training=training,
        compare=beside,
        baselines=TRAINED,
        baseline_epochs=options.epochs,
        texts=[{"text": text} for text in wiki],
        benign=[{"prompt": prompt} for prompt in safe],
        strengths=STRENGTHS,
        flips="opening",
        max_new_tokens=32,
        out=options.out / "evaluation",
        progress=ticking("evaluation"),
        **texts,
    )


def kept(path: Path, subject: Subject, fit: Fit) -> SteeringVector:
    file = path.with_suffix(".safetensors")
    if not file.is_file():
        started = time.perf_counter()
        fit().save(file)
        told(f"{path.name}: {time.perf_counter() - started:.0f} s")
    return SteeringVector.load(file, subject)


def told(text: str) -> None:
    print(text, flush=True)


def ticking(name: str) -> Callable[[str, int, int], None]:
    """A line every tenth of a stage."""
    seen: dict[str, int] = {}

    def progress(stage: str, done: int, total: int) -> None:
        stage, *_ = stage.split(DETAIL)
        tenth = 10 * done // max(1, total)
        if seen.get(stage) != tenth:
            seen[stage] = tenth
            told(f"  {name}: {stage} {done}/{total}")

    return progress


if __name__ == "__main__":
    main()
