"""Refusal on SmolLM2-135M-Instruct: which layer, and CDAS beside its baselines on rows that nothing was fitted on.

python -m benchmarks.refusal_steering --data FOLDER --out FOLDER [--layers 9,15,21] [--epochs 6]

Vectors of PCA, LAT and the probe are as long as the way from f- to f+ along them: the largest projection has no length
where none is above 0, as LAT's is not.

Trained on refusal_quadruples/train.parquet, evaluated on test.parquet: share of KL(q : p) recovered in both directions
(q: the unedited run of the other prompt), what greedy answers begin with, KL and perplexity on WikiText, refusals of
XSTest's safe prompts. A vector that takes refusals away is an instrument of red teams. Vectors and tables are kept in
--out, and vectors that are there are not trained again.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import alignscope
from alignscope.probes.subject import Subject
from alignscope.steering import SteeringVector, baselines, faithfulness, scan_layers, side_effects
from alignscope.steering.evaluation import Candidate, openings_of, refusal_measure
from alignscope.steering.evaluation.candidates import WAYS

from .ladder_table import reference_file

NEW_TOKENS = 32
STRENGTHS = (1.0, 2.0, 4.0)  # and their negatives: six
TRAINED = ("cdas", "diffmean", "ssv", "bipo", "reps")  # whose answers are read
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
    parser.add_argument("--prompts", type=int, default=100, help="test prompts of either kind that are answered")
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
    faithful(subject, training, test, vectors, chosen, options.out)
    answers(subject, test, vectors, chosen, options.prompts, options.out)
    harm(subject, options.data / "data", test, vectors, chosen, options.texts, options.out)


def fitted(
    subject: Subject, training: Path, layers: Sequence[int], epochs: int, out: Path
) -> tuple[dict[str, Any], int]:
    """All vectors, `method_layer` by name, and the layer that the scan chooses."""
    vectors: dict[str, Any] = {}
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
            ("reps", baselines.fit_reps, {}),
        )
    }
    vectors |= {f"{name}_{chosen}": kept(out / f"{name}_{chosen}", subject, fit) for name, fit in learned.items()}
    started = time.perf_counter()
    vectors[f"loreft_{chosen}"] = baselines.fit_loreft(
        subject, training, layer=chosen, epochs=epochs, progress=ticking("loreft")
    )
    told(f"loreft_{chosen}: {time.perf_counter() - started:.0f} s")
    return vectors, chosen


def kept(path: Path, subject: Subject, fit: Fit) -> SteeringVector:
    file = path.with_suffix(".safetensors")
    if not file.is_file():
        started = time.perf_counter()
        fit().save(file)
        told(f"{path.name}: {time.perf_counter() - started:.0f} s")
    return SteeringVector.load(file, subject)


def candidates(vectors: Mapping[str, Any]) -> dict[str, Candidate]:
    """Both ways; LoReFT has no direction to go back in, and RePS was trained for factors of 2 to 20."""
    found = {}
    for name, vector in vectors.items():
        method = name.split("_")[0]
        if method == "loreft":
            found[name] = Candidate(vector=vector, elicit=1, suppress=None)
        elif method == "reps":
            found[name] = Candidate(vector=vector, elicit=8, suppress=-8)
        else:
            found[name] = Candidate(vector=vector)
    return found


def faithful(subject: Subject, training: Path, test: Path, vectors: Mapping[str, Any], chosen: int, out: Path) -> None:
    """The method table behind the chosen layer, CDAS behind the others; strength 1 each (RePS: 8)."""
    started = time.perf_counter()
    main, *_ = (name for name in vectors if name == f"cdas_{chosen}")
    here = {name: one for name, one in vectors.items() if name.startswith("cdas") or name.endswith(f"_{chosen}")}
    others = {name: one for name, one in candidates(here).items() if name != main}
    found = faithfulness(
        subject, test, vectors[main], compare=others, training=training, progress=ticking("faithfulness")
    )
    found.to_frame().to_csv(out / "faithfulness.csv", index=False)
    lines = []
    for row in found.rows:
        lines.append({"method": row.method, "direction": row.direction, "KL": row.kl, "recovered": row.recovered})
    table = pd.DataFrame(lines).pivot(index="method", columns="direction", values=["KL", "recovered"])
    print(table.to_string(), *found.notices, sep="\n", flush=True)
    told(f"faithfulness on 100 rows: {time.perf_counter() - started:.0f} s")


def answers(subject: Subject, test: Path, vectors: Mapping[str, Any], chosen: int, n: int, out: Path) -> None:
    """What the model says first: to harmless prompts steered to refuse, to harmful ones steered to comply."""
    openings, rows = openings_of(test), pd.read_parquet(test).head(n)
    asked = {"elicit": rows.negative_input.tolist(), "suppress": rows.positive_input.tolist()}
    tried: list[tuple[str, str, Any, float]] = [("no edit", way, None, 1.0) for way in WAYS]
    tried += [("prompted", way, None, 1.0) for way in WAYS]
    for name in (f"{method}_{chosen}" for method in TRAINED):
        scale = 4.0 if name.startswith("reps") else 1.0
        tried += [(name, way, vectors[name], sign * s * scale) for way, sign in zip(WAYS, (1, -1), strict=True)
                  for s in STRENGTHS]  # fmt: skip
    tried.append((f"loreft_{chosen}", "elicit", vectors[f"loreft_{chosen}"], 1.0))
    lines = []
    for name, way, vector, strength in tried:
        prompts: Any = asked[way]
        if name == "prompted":
            prompts = [{"prompt": text} for text in baselines.prompted(subject, test, way)[:n]]
        found = refusal_measure(subject, prompts, openings, vector=vector, strength=strength, max_new_tokens=NEW_TOKENS)
        found.frame.to_csv(out / f"answers_{name.replace(' ', '_')}_{way}_{strength:g}.csv", index=False)
        estimates = found.estimates
        lines.append(
            {"method": name, "direction": way, "strength": strength, **{k: str(v) for k, v in estimates.items()}}
        )
        told(f"{name} {way} {strength:g}: {found.summary()}")
    pd.DataFrame(lines).to_csv(out / "answers.csv", index=False)


def harm(subject: Subject, data: Path, test: Path, vectors: Mapping[str, Any], chosen: int, n: int, out: Path) -> None:
    """Unrelated text and benign prompts, at the strengths of the method table."""
    texts = pd.read_json(data / "corpora" / "wikitext_1000.json")[0].tolist()[:n]
    safe = pd.read_csv(data / "xstest" / "prompts.csv").query("label == 'safe'").prompt.tolist()[:n]
    lines = []
    for name in (f"{method}_{chosen}" for method in TRAINED):
        one = candidates(vectors)[name]
        for way in WAYS:
            strength = one.strength(way)
            assert strength is not None
            found = side_effects(
                subject, one.vector, strength, texts=texts, benign=safe, openings=openings_of(test),
                max_new_tokens=NEW_TOKENS,
            )  # fmt: skip
            values = {key: str(value) for key, value in found.estimates.items() if value.value is not None}
            lines.append({"method": name, "strength": strength, **values})
            told(f"{name} at {strength:g}: {found.summary()}")
    pd.DataFrame(lines).to_csv(out / "side_effects.csv", index=False)


def told(text: str) -> None:
    print(text, flush=True)


def ticking(name: str) -> Callable[[str, int, int], None]:
    """A line every tenth of a stage."""
    seen: dict[str, int] = {}

    def progress(stage: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if seen.get(stage) != tenth:
            seen[stage] = tenth
            told(f"  {name}: {stage} {done}/{total}")

    return progress


if __name__ == "__main__":
    main()
