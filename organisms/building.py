"""The preference organism from nothing: trains every model and writes every file into one folder."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..probes.quiet import quiet_loading
from .enumeration import enumerate_responses
from .recipe import Recipe
from .tokenizer import assistant_turn, build_tokenizer, prompt_ids, user_turn
from .train import (
    Step,
    new_model,
    reward_model,
    shuffled_batches,
    train_dpo,
    train_language_model,
    train_reward,
)
from .world import HELD_OUT, PROMPTS, Draws, World, draw_pairs, draw_world, normalised

Progress = Callable[[str, int, int], None]    # stage, optimiser steps done, optimiser steps of the stage


class Builder:
    """The steps in order. Every stage has a random stream of its own: changing one leaves the others alone."""

    def __init__(self, folder: Path, recipe: Recipe, seed: int, progress: Progress | None) -> None:
        self.folder, self.recipe, self.seed, self.progress = folder, recipe, seed, progress
        self.tokenizer = build_tokenizer()

    def build(self) -> dict[str, float]:
        recipe = self.recipe
        world = draw_world(self._rng("world"))
        self._write("world.json", [{"initial": world.initial.tolist(), "transition": world.transition.tolist()}])

        base = new_model(int(self._rng("weights").integers(2**31)))
        prompts, responses = self._corpus(world)
        train_language_model(base, prompts, responses, rate=recipe.base_rate, step=self._step("base"))
        self._save(base, "base")
        enumeration = enumerate_responses(base, prompt_ids())
        reference = enumeration.log_probs

        pairs = self._pairs("training pairs", reference, ~HELD_OUT, recipe.training_draws, distinct=False)
        self._write("training_pairs.jsonl", _records(pairs, "train"))
        evaluation = {"pairs": (~HELD_OUT, recipe.pairs_draws), "shifted": (HELD_OUT, recipe.shifted_draws)}
        for name, (asked, draws) in evaluation.items():
            self._write(f"{name}.jsonl", _records(self._pairs(name, reference, asked, draws, distinct=True), name))
        prompts_file = [{"prompt": user_turn(p), "prompt_id": p.text} for p in PROMPTS if not p.held_out]
        self._write("prompts.jsonl", prompts_file)

        self._sft(base, pairs)
        self._dpo("dpo", base, reference, pairs, kept=recipe.dpo_kept)
        dealt = self._rng("deal").permutation(pairs.votes_a)
        shuffled = Draws(pairs.prompt, pairs.a, pairs.b, dealt, pairs.votes)
        self._dpo("shuffled", base, reference, shuffled, kept=())
        self._reward(base, pairs)

        truth = world.log_probs()
        kl = (np.exp(truth) * (truth - np.log(normalised(reference)))).sum(1)
        return {
            "kl_world_to_base_mean": float(kl.mean()), "kl_world_to_base_max": float(kl.max()),    # nats a response
            "base_mass_mean": float(enumeration.mass.mean()), "base_mass_min": float(enumeration.mass.min()),
        }

    def _corpus(self, world: World) -> tuple[np.ndarray, np.ndarray]:
        """Prompts drawn uniformly, a response of the world to each; [steps, batch] of indices."""
        rng = self._rng("base")
        prompts = rng.integers(len(PROMPTS), size=(self.recipe.base_steps, self.recipe.batch))
        cumulative = np.exp(world.log_probs()).cumsum(1)
        level = rng.random(prompts.shape)
        responses = np.empty_like(prompts)
        for i in range(len(PROMPTS)):
            at = prompts == i
            responses[at] = np.searchsorted(cumulative[i, :-1], level[at])
        return prompts, responses

    def _pairs(self, stream: str, reference: np.ndarray, prompts: np.ndarray, draws: int, *, distinct: bool) -> Draws:
        return draw_pairs(
            self._rng(stream), reference, prompts, draws=draws, votes=self.recipe.votes, distinct=distinct
        )

    def _sft(self, base: PreTrainedModel, pairs: Draws) -> None:
        batches = self._batches("sft", len(pairs), self.recipe.sft_steps)
        winner = np.where(2 * pairs.votes_a > pairs.votes, pairs.a, pairs.b)
        model = deepcopy(base)
        train_language_model(
            model, pairs.prompt[batches], winner[batches], rate=self.recipe.sft_rate, step=self._step("sft")
        )
        self._save(model, "sft")

    def _dpo(
        self, name: str, base: PreTrainedModel, reference: np.ndarray, pairs: Draws, *, kept: Sequence[int]
    ) -> None:
        model = deepcopy(base)
        report = self._step(name)

        def step(i: int) -> None:
            if i in kept:
                self._save(model, f"{name}/step_{i:04d}")
            report(i)

        batches = self._batches("dpo", len(pairs), self.recipe.dpo_steps)    # the control sees the same batches
        train_dpo(model, reference, pairs, beta=self.recipe.beta, batches=batches, rate=self.recipe.dpo_rate, step=step)
        if not kept:
            self._save(model, name)

    def _reward(self, base: PreTrainedModel, pairs: Draws) -> None:
        model = reward_model(base)
        batches = self._batches("reward", len(pairs), self.recipe.reward_steps)
        train_reward(model, pairs, batches=batches, rate=self.recipe.reward_rate, step=self._step("reward"))
        self._save(model, "reward")

    def _batches(self, stream: str, n: int, steps: int) -> np.ndarray:
        return shuffled_batches(self._rng(f"{stream} batches"), n, batch=self.recipe.batch, steps=steps)

    def _rng(self, stream: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream.encode()])

    def _step(self, stage: str) -> Step:
        steps = {"shuffled": "dpo_steps"}.get(stage, f"{stage}_steps")
        total = getattr(self.recipe, steps)
        return lambda done: self.progress(stage, done, total) if self.progress else None

    def _save(self, model: PreTrainedModel, name: str) -> None:
        with quiet_loading(offline=True):
            model.save_pretrained(self.folder / name)
        self.tokenizer.save_pretrained(self.folder / name)

    def _write(self, name: str, records: Sequence[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (self.folder / name).write_text(lines, encoding="utf-8")


def _records(pairs: Draws, name: str) -> list[dict[str, Any]]:
    """Rows of a preference file: two responses and their votes, nothing else (the reader finds the majority)."""
    return [
        {
            "id": f"{name}-{i}", "prompt_id": PROMPTS[asked].text, "prompt": user_turn(PROMPTS[asked]),
            "response_a": assistant_turn(int(pairs.a[i])), "response_b": assistant_turn(int(pairs.b[i])),
            "votes_a": int(pairs.votes_a[i]), "votes_b": int(pairs.votes - pairs.votes_a[i]),
        }
        for i, asked in enumerate(pairs.prompt)
    ]
