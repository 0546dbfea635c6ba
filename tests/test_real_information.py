"""Three real pairs of the SmolLM2 ladder: the streaming report against full logits in float64 and another scorer."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from information_oracle import PANEL, histories_of, panel, strict_json
from peft.tuners.tuners_utils import BaseTunerLayer
from scipy.special import log_softmax
from test_real_scores import AGREE, KEYS, RAW, lines

import alignscope
from alignscope import information_report
from alignscope.diagnose.identities import failed
from alignscope.diagnose.information_report import InformationReport
from alignscope.probes.histories import History

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # peft on transformers 5.23
]

N_PAIRS = 3
EXACT = 1e-3  # nats a token, float32 against float64 throughout; 5e-5 was measured
BATCH = 1e-4  # nats a token between two batches: each may be off by the 5e-5, and a single token was by 4e-5
MEAN = 1e-5  # nats a token, of a mean over tokens: the errors of single tokens cancel (3e-7 measured)
CLEAR = 1e-4  # nats from the threshold of plausible tokens within which float32 may decide otherwise


@pytest.fixture(scope="module")
def numbers(ladder: Path) -> list[int]:
    return json.loads((ladder / "split.json").read_text(encoding="utf-8"))["eval"][:N_PAIRS]


@pytest.fixture(scope="module")
def rows(data_folder: Path, numbers: list[int]) -> list[dict]:
    found = lines(data_folder / "data" / "hh_harmless" / "test.jsonl")
    return [found[f"hh-harmless-base-test-{number:04d}"] for number in numbers]


@pytest.fixture(scope="module")
def policy(ladder: Path, ladder_reference: Path):
    return alignscope.load(ladder_reference, adapter=ladder / "dpo" / "step_100")


@pytest.fixture(scope="module")
def report(policy, rows: list[dict]) -> InformationReport:
    return information_report(policy, "adapter-disabled", rows, resamples=20, measure_floor=False, **RAW)


def logits(model: torch.nn.Module, history: History) -> np.ndarray:
    """What predicts each response token, [n, V]."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([[*history.prompt_ids, *history.response_ids]])).logits[0]
    return found[len(history.prompt_ids) - 1 : -1].numpy()


@pytest.fixture(scope="module")
def exact(policy, rows: list[dict]) -> pd.DataFrame:
    """The panel at every position from logits of models in float64, and how clear the plausible tokens are."""
    histories = histories_of(rows, policy.tokenizer, **RAW)
    wide = copy.deepcopy(policy.model).double()
    sides = [[logits(wide, history) for history in histories]]
    for layer in wide.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(False)
    sides.append([logits(wide, history) for history in histories])
    found = []
    for both in zip(*map(np.concatenate, sides), strict=True):
        margin = min(float(np.abs(log_softmax(z) - np.log(1e-4)).min()) for z in both)
        found.append({**panel(*both), "margin": margin})
    return pd.DataFrame(found)


def test_every_position_is_that_of_full_logits_in_float64(report, exact):
    clear = exact["margin"] > CLEAR
    assert clear.mean() > 0.9
    assert len(report.positions) == len(exact)
    for name in PANEL:
        off = (report.positions[name] - exact[name]).abs()
        assert off[clear if name == "plausible_information" else slice(None)].max() <= EXACT, name
    assert (report.positions[list(PANEL)].mean() > 0.1).all()  # a change that an error of EXACT could not hide


def test_responses_read_one_at_a_time_have_the_numbers_of_a_batch(policy, rows, report):
    alone = information_report(
        policy, "adapter-disabled", rows, batch_tokens=1, resamples=20, measure_floor=False, **RAW
    )
    for name in (*PANEL, "log_ratio"):
        off = alone.positions[name] - report.positions[name]
        assert off.abs().max() <= BATCH, name
        assert off.abs().mean() <= MEAN, name
    for source, rates in report.rates.items():
        for name in PANEL:
            assert alone.rates[source][name].value == pytest.approx(rates[name].value, abs=MEAN)


def test_the_identities_hold_and_no_number_is_nan(report):
    assert failed(report.identities) == []
    judged = {row.name for row in report.identities if row.ok}
    assert judged >= {"ratio_mass", "kl", "reverse_kl", "information", "swapped"}
    assert strict_json(report)["name"] == "information"


def test_log_ratios_of_whole_responses_are_those_of_the_independent_scorer(report, ladder, numbers):
    scores = lines(ladder / "scores_dpo_step_100.jsonl")
    whole = report.positions.groupby("history")["log_ratio"].agg(["sum", "size"])
    for place, side in enumerate(("chosen", "rejected")):
        expected = [scores[n][KEYS[f"policy_{side}"]] - scores[n][KEYS[f"reference_{side}"]] for n in numbers]
        found = whole.iloc[place::2]
        assert found["size"].to_list() == [scores[n][KEYS[f"n_{side}"]] for n in numbers]
        np.testing.assert_allclose(found["sum"], expected, rtol=0, atol=AGREE)
