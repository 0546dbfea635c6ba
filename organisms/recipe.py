"""How much of everything the preference organism gets; one value names one content."""

import hashlib
import json
from dataclasses import asdict, dataclass

FORMAT = 1                                    # part of the key: raise it when the same recipe gives other files


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How much is trained and drawn. The defaults take about two minutes on one core; tests use fewer steps."""

    base_steps: int = 600
    base_rate: float = 3e-3
    sft_steps: int = 200
    sft_rate: float = 1e-3
    dpo_steps: int = 400
    dpo_rate: float = 1e-3
    reward_steps: int = 400
    reward_rate: float = 1e-3
    batch: int = 64                           # responses or pairs a step
    beta: float = 0.5                         # of DPO, nats
    votes: int = 5                            # a pair
    training_draws: int = 25                  # pairs a training prompt
    pairs_draws: int = 10                     # evaluation pairs a training prompt, before repeats are dropped
    shifted_draws: int = 20                   # evaluation pairs a held-out prompt, before repeats are dropped

    def __post_init__(self) -> None:
        if self.votes % 2 == 0:
            raise ValueError(f"votes={self.votes}: must be odd, so that every pair has a majority")

    @property
    def dpo_kept(self) -> tuple[int, ...]:
        """Steps of the DPO ladder that are saved: 1/16, 1/8, 1/4, 1/2 and all of the way."""
        return tuple(sorted({max(1, self.dpo_steps * i // 16) for i in (1, 2, 4, 8, 16)}))

    def key(self, seed: int) -> str:
        """Names the content: equal keys mean equal recipes, seeds and file formats."""
        content = json.dumps({"format": FORMAT, "seed": seed, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]
