"""The panel of differential information by hand: full logits of two models in float64, one position after the other."""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from scipy.special import entr, log_softmax, logsumexp, softmax

from alignscope.probes.histories import History

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
