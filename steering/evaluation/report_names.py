"""Which numbers and tables can the report of a steering vector hold? Known before the work, for gates and refusals."""

from collections.abc import Mapping

from .candidates import WAYS

PARTS = ("sweep", "faithfulness", "both_ways", "side_effects", "detection")

# estimate of side_effects -> its name here, which ends in the direction
OF_EFFECTS: Mapping[str, str] = {
    "kl": "unrelated_kl",
    "perplexity_ratio": "perplexity_ratio",
    **{name: name for of in ("refusals", "capability") for name in (f"{of}_before", f"{of}_after", f"{of}_change")},
    "refusal_log_odds_change": "refusal_log_odds_change",
}
OF_DETECTION: Mapping[str, str] = {
    name: f"detection_{name}" for name in ("auroc", "sensitivity", "specificity", "hard_negative_accuracy")
}
OF_SWEEP = ("reported_score", "optimism", "unit_score", "selection_score")
OF_BOTH_WAYS = ("flips_before", "flips", "flips_selected", "recovered_selected")
BY_PART: Mapping[str, tuple[str, ...]] = {
    "sweep": tuple(f"{name}_{way}" for way in WAYS for name in ("selected", *OF_SWEEP)),
    "faithfulness": tuple(
        f"{name}_{way}"
        for way in WAYS
        for name in (
            *("recovered", "recovered_another", "kl", "kl_unedited"),
            *("over_exchanged", "over_random", "over_diffmean", "over_prompt"),
            *("opening_log_odds_before", "opening_log_odds_change"),
        )
    ),
    "both_ways": (
        "asymmetry",
        "asymmetry_selected",
        *(f"{name}_{way}" for way in WAYS for name in OF_BOTH_WAYS),
    ),
    "side_effects": tuple(f"{name}_{way}" for way in WAYS for name in OF_EFFECTS.values()),
    "detection": tuple(OF_DETECTION.values()),
}
NAMES = tuple(name for names in BY_PART.values() for name in names)
TABLES: Mapping[str, str] = {
    "methods": "a row a method and direction: KL(q : p) in nats a response token with the edit and without (kl_none), "
    "the recovered share 1 - KL / KL without, its interval, and flips of greedy answers where they were generated",
    "openings": "a row a method and direction: log-odds (nats) that the answer is about to begin as those with the "
    "concept do, before and after on the same prompts, and the share of prompts where they are above 0",
    "both_ways": "a row a direction: flips and KL before and after at strength 1 and at the selected strength",
    "rows": "a row a method, direction and row: KL in nats a token",
    "examples": "a row a direction and row: the greedy output without the vector and with it, and whether it flipped",
    "side_effects": "a row a direction and measure, on the same rows before and after",
    "paired": "a row a direction and share (of prompts refused, of questions answered right) before and after on the "
    "same rows: how many are so before alone and after alone, and p if nothing changed "
    "(exact McNemar; sign flips of whole prompts where rows share one)",
    "unrelated_texts": "a row a direction and unrelated text: KL(base : edited) and both losses, nats a token",
    "benign": "a row a direction and benign prompt: greedy answers before and after",
    "questions": "a row a direction and question: the place of the right choice and of the one chosen before and after",
    "sweep_curve": "a row a concept, direction, half of the prompts and strength: the mean score with its interval",
    "selection": "a row a concept and direction: the strength that the first half of the prompts chose, and its scores",
    "answers": "a row an answer of the sweep: strength, output, the three ratings and the score",
    "detection": "a row a text: its largest coordinate along the direction",
    "layers": "a row a layer that was tried when the vector was trained: KL on held-out rows, nats a token",
}
