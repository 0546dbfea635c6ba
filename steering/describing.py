"""What does a vector's file say of itself? All of it as JSON values, numbers with their n; no model is needed."""

from collections.abc import Mapping
from typing import Any

from ..diagnose.report import Estimate
from .encoded import DIRECTIONS
from .vector import SteeringVector

_MEANS_ALONE = "the file keeps means, no rows; evaluation on a model gives intervals"
_NATS = "nats a token"


def vector_facts(vector: SteeringVector) -> dict[str, Any]:
    """Site, edit, factors (units of the hidden states), held-out losses, data, settings, fingerprint and notices."""
    factors, meta = vector.factors, vector.metadata
    known = ("data", "settings", "metrics", "notices", "fingerprint", "sha256", "seed", "source")
    return {
        "method": vector.method or None,
        "edit": vector.edit,
        "site": {"layer": vector.site.layer, "component": vector.site.component},
        "rank": vector.subspace.rank,
        "width": vector.subspace.width,
        "length": None if vector.vector is None else float(vector.vector.norm()),
        "positions": vector.positions.to_dict(),
        "source": meta.get("source"),
        "factors": None
        if factors is None
        else {
            "positive": factors.positive.tolist(),
            "negative": factors.negative.tolist(),
            "std_positive": None if factors.std is None else factors.std[0].tolist(),
            "std_negative": None if factors.std is None else factors.std[1].tolist(),
            "n": factors.n,
            "auroc": held_out_auroc(vector).model_dump(),
        },
        "held_out": {
            when: {way: loss.model_dump() for way, loss in losses.items()}
            for when, losses in held_out_losses(vector).items()
        },
        "data": {**meta["data"], "sha256": meta.get("sha256")} if meta.get("data") else None,
        "seed": meta.get("seed"),
        "settings": dict(meta.get("settings") or {}),
        "metrics": dict(meta.get("metrics") or {}),
        "steps": len(vector.history),
        "fingerprint": dict(vector.fingerprint) or None,
        "more": {key: value for key, value in meta.items() if key not in known},
        "notices": list(vector.notices()),
    }


def told_positions(positions: Mapping[str, Any]) -> str:
    """In words; positions: as of Positions.to_dict.

    >>> told_positions({"where": "prompt", "prefix": 1, "last": None, "span": [0, 5]})
    'the prompt, tokens 0 to 4, without the first 1'
    """
    text = {"all": "prompt and answer", "prompt": "the prompt", "generation": "the answer"}[positions["where"]]
    if positions["last"] is not None:
        text = f"the last {positions['last']} of the prompt"
    if positions["span"] is not None:
        text += f", tokens {positions['span'][0]} to {positions['span'][1] - 1}"
    return f"{text}, without the first {positions['prefix']}" if positions["prefix"] else text


def held_out_losses(vector: SteeringVector) -> dict[str, dict[str, Estimate]]:
    """When -> direction -> mean loss on the rows held out; null with the reason.

    When: "unedited", without an edit, where the file has it; "before" the first step, of what training starts from (of
    CDAS a random direction, or init); "after".
    The loss is that of metrics["loss"] (CDAS, nats a response token), or what the method minimises. n: rows.
    """
    metrics = vector.metadata.get("metrics") or {}
    curve = metrics.get("held_out") or []
    kept = [point for point in curve if point["step"] == metrics.get("kept_step")] or curve[-1:]
    first, last = (curve[0], kept[0]) if curve else ({}, {})
    places: dict[str, Mapping[str, Any]] = {"before": first, "after": last}
    if unedited := metrics.get("held_out_unedited"):
        places = {"unedited": unedited, **places}
    return {
        when: {name: _loss(vector, when, name, losses.get(name)) for name in DIRECTIONS[1:]}
        for when, losses in places.items()
    }


def held_out_auroc(vector: SteeringVector) -> Estimate:
    """Of the coordinate along the direction, prompts x_c against x that were held out; null with the reason."""
    value = None if vector.factors is None else vector.factors.auroc
    n = 2 * _n_held(vector)
    if value is not None:
        reason = _MEANS_ALONE
    elif vector.subspace.rank > 1:
        reason = f"of rank 1 only, and this is of rank {vector.subspace.rank}"
    else:
        reason = "no prompts were held out" if vector.metadata.get("data") else "the file does not say"
    label = "AUROC of the coordinate on held-out prompts"
    return Estimate(label=label, value=value, n=n, method="ties half", reason=reason, null_value=0.5)


def loss_unit(vector: SteeringVector) -> str:
    """Of `held_out_losses`: token losses are nats a token, losses of preferences nats a pair."""
    return "nats a pair" if vector.method in ("bipo", "reps") else _NATS


def _loss(vector: SteeringVector, when: str, direction: str, value: float | None) -> Estimate:
    if value is not None:
        reason = _MEANS_ALONE
    else:
        reason = _why_no_loss(vector, direction)
    return Estimate(
        label=f"held-out loss {when}{'' if when == 'unedited' else ' training'}, {direction}",
        value=value,
        n=_n_held(vector) if value is not None else 0,
        unit=loss_unit(vector),
        method="mean over held-out rows",
        reason=reason,
    )


def _why_no_loss(vector: SteeringVector, direction: str) -> str:
    if not vector.metadata.get("data"):
        return "the file does not say"
    if not vector.history:
        return f"{vector.method} is read off states or drawn: nothing was minimised"
    if not _n_held(vector):
        return "no rows were held out"
    return f"not trained to {direction}"


def _n_held(vector: SteeringVector) -> int:
    return int((vector.metadata.get("data") or {}).get("n_held_out") or 0)
