"""What the tests of the information report share: the panel by hand in float64, tiny models and texts."""

import copy
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr, log_softmax, logsumexp, softmax
from test_scoring import many
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
import zoo
from alignscope.diagnose.history_sets import encoded_histories, history_input
from alignscope.diagnose.information_reading import Tail, read_information
from alignscope.probes import final_states
from alignscope.probes.encoding import Encoder, TextPolicy
from alignscope.probes.histories import History

PANEL = ("information", "plausible_information", "kl", "reverse_kl")
CLOSE = 1e-5  # nats a token: float32 states against float64 throughout
QUICK: dict[str, Any] = {"resamples": 20, "measure_floor": False}
EOS = PIECES["<eos>"]
ZOO_ROWS = [
    {"prompt": "The quick brown fox\n", "chosen": "jumps over", "rejected": "sets slowly behind"},
    {"prompt": "In the morning\n", "chosen": "the children went", "rejected": "nobody"},
]
NAMES = ("information", "plausible_information", "kl", "reverse_kl", "entropy", "normalized_entropy")


def full_logits(model, history: History, vocab: int) -> np.ndarray:
    """Logits that predict each response token, [n, vocab], of a transformers model widened to float64."""
    ids = [*history.prompt_ids, *history.response_ids]
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=torch.tensor([ids])).logits[0]
    return logits[len(history.prompt_ids) - 1 : -1, :vocab].numpy()


def panel(z_policy: np.ndarray, z_reference: np.ndarray, eps: float = 1e-4) -> dict[str, float]:
    """At one position, straight from the definitions."""
    log_p, log_r = log_softmax(z_policy), log_softmax(z_reference)
    q = softmax(z_policy - z_reference)
    entropy = entr(q).sum()
    plausible = (np.exp(log_p) >= eps) | (np.exp(log_r) >= eps)
    q_s = q[plausible] / q[plausible].sum()
    return {
        "information": np.log(len(q)) - entropy,
        "plausible_information": np.log(plausible.sum()) - entr(q_s).sum(),
        "kl": float((np.exp(log_p) * (log_p - log_r)).sum()),
        "reverse_kl": float((np.exp(log_r) * (log_r - log_p)).sum()),
        "entropy": entropy,
        "normalized_entropy": entropy / np.log(len(q)),
    }


def log_ratio(z_policy: np.ndarray, z_reference: np.ndarray, ids: Iterable[int]) -> float:
    """log pi - log ref of a whole response, from its logits [n, V]."""
    rows, some = np.arange(len(z_policy)), np.array(list(ids))
    picked = [z[rows, some] - logsumexp(z, axis=1) for z in (z_policy, z_reference)]
    return float((picked[0] - picked[1]).sum())


def rates(policy, reference, histories: list[History], vocab: int) -> dict[str, dict[str, float]]:
    """source -> measure -> mean over tokens, then a prompt's responses, then prompts; in loops."""
    by: dict[str, dict[str, list[dict[str, float]]]] = {}
    for history in histories:
        rows = zip(*(full_logits(model, history, vocab) for model in (policy, reference)), strict=True)
        panels = [panel(*row) for row in rows]
        mean = {name: sum(one[name] for one in panels) / len(panels) for name in NAMES}
        by.setdefault(history.source, {}).setdefault(history.prompt_id, []).append(mean)
    found: dict[str, dict[str, float]] = {}
    for source, prompts in by.items():
        means = [{name: np.mean([one[name] for one in some]) for name in NAMES} for some in prompts.values()]
        found[source] = {name: float(np.mean([one[name] for one in means])) for name in NAMES}
    return found


def histories_of(rows: list[dict], tokenizer, **options) -> list[History]:
    encoder = Encoder(tokenizer, TextPolicy(**options), vocab_rows=len(tokenizer))
    return [*encoded_histories(history_input(rows), encoder, vocab_rows=len(tokenizer)).histories]


def values(report) -> dict[str, dict[str, float]]:
    return {source: {name: e.value for name, e in found.items()} for source, found in report.rates.items()}


def assert_same_rates(found, expected, tolerance: float = CLOSE) -> None:
    assert found.keys() == expected.keys()
    for source in expected:
        assert found[source] == pytest.approx(expected[source], abs=tolerance), source


def strict_json(report) -> dict:
    """The section as JSON; a NaN or Infinity in it raises."""

    def refuse(name: str):
        raise AssertionError(f"{name} in the JSON")

    return json.loads(report.section().section.model_dump_json(), parse_constant=refuse)


def responses(prompt: str, *given: tuple[int, ...], **more) -> list[History]:
    return [History(prompt_id=prompt, prompt_ids=(1, 5, 6), response_ids=ids, **more) for ids in given]


def zoo_pair(name: str):
    """An architecture's random model, and the same with every weight moved a little."""
    moved = zoo.model(name)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return [alignscope.wrap(model.eval(), zoo.tokenizer()) for model in (moved, zoo.model(name))]


ZOO_ROWS = [
    {"prompt": "The quick brown fox\n", "chosen": "jumps over", "rejected": "sets slowly behind"},
    {"prompt": "In the morning\n", "chosen": "the children went", "rejected": "nobody"},
]


def read_all(policy, reference, rows=None):
    """The reading inside a report."""
    histories = histories_of(rows or many(30), tiny_tokenizer())
    sequences = [history.sequence for history in histories]
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            (final_states.write_states(model, sequences, f"{folder}/{i}"), Tail.of(model))
            for i, model in enumerate((policy, reference))
        ]
        return read_information(*sides, histories, vocab=len(PIECES), end_id=EOS)


def saved_llama(folder: Path) -> Path:
    """A tiny random Llama as a checkpoint folder."""
    zoo.model("llama").save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    return folder
