"""What a trained model says about all 256 responses to a prompt, in one forward pass a prompt.

The responses form a tree of 340 nodes. One row holds the prompt and every node; a node sees the prompt, its ancestors
and itself, and carries the position of its depth. The logits equal those of 256 separate rows (a test shows it) at a
seventh of the tokens.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from ..probes.quiet import quiet_loading
from .tokenizer import EOS, ID, prompt_ids, response_ids
from .world import LENGTH, RESPONSES, SYMBOLS

N_PROMPT = 5                                  # BOS, topic, style, filler, separator
N_NODES = 1 + sum(SYMBOLS ** depth for depth in range(1, LENGTH + 1))   # 341: the separator and 340 prefixes
FIRST_NODE = [0, *(1 + sum(SYMBOLS ** k for k in range(1, depth)) for depth in range(1, LENGTH + 1))]   # by depth


@dataclass(frozen=True, eq=False)
class Enumeration:
    """Every response to every prompt under one model."""

    log_probs: Float[ndarray, "p 256"]        # log pi(response, EOS | prompt), nats, float64, not renormalised
    node_logits: Float[ndarray, "p 341 v"]    # at the separator and after every prefix; float64 copies of float32

    @property
    def mass(self) -> Float[ndarray, "p"]:
        """What the 256 responses hold of all probability; the rest is text outside the world."""
        return np.exp(self.log_probs).sum(1)


def node_path() -> Int[ndarray, "256 5"]:
    """Node that predicts each of the five tokens (four symbols, EOS) of each response."""
    prefix = np.zeros(len(RESPONSES), dtype=np.int64)                 # prefix as a number in base 4
    columns = [prefix]
    for depth in range(1, LENGTH + 1):
        prefix = prefix * SYMBOLS + RESPONSES[:, depth - 1]
        columns.append(FIRST_NODE[depth] + prefix)
    return np.stack(columns, axis=1)


@cache
def _tree() -> tuple[Int[Tensor, "n"], Int[Tensor, "t"], Float[Tensor, "1 1 t t"]]:
    """Ids of the 340 prefix nodes and 256 EOS leaves, positions of prompt and tree, additive attention mask."""
    path = torch.from_numpy(node_path())
    leaves = N_NODES + torch.arange(len(RESPONSES))
    length = N_PROMPT - 1 + N_NODES + len(RESPONSES)                  # node 0, the separator, ends the prompt
    ids = torch.full((N_NODES + len(RESPONSES),), EOS)
    positions = torch.arange(length)
    sees = torch.zeros(length, length, dtype=torch.bool)
    sees[:N_PROMPT, :N_PROMPT] = torch.ones(N_PROMPT, N_PROMPT).tril().bool()
    sees[N_PROMPT:, :N_PROMPT] = True
    line = torch.cat([path, leaves[:, None]], dim=1)                  # [256, 6]: separator, four prefixes, EOS
    for depth in range(1, line.shape[1]):
        at = N_PROMPT - 1 + line[:, depth]
        positions[at] = N_PROMPT - 1 + depth
        if depth <= LENGTH:
            ids[line[:, depth]] = torch.from_numpy(RESPONSES[:, depth - 1]) + ID["s0"]
        for ancestor in range(1, depth + 1):
            sees[at, N_PROMPT - 1 + line[:, ancestor]] = True
    mask = torch.zeros(length, length).masked_fill(~sees, torch.finfo(torch.float32).min)
    return ids[1:], positions, mask[None, None]


def _inputs(prompts: Int[Tensor, "b 5"], *, leaves: bool) -> dict[str, Any]:
    """What a model is called with: the prompt and its tree in one row, with the EOS leaves or without."""
    nodes, positions, mask = _tree()
    length = N_PROMPT - 1 + N_NODES + (len(RESPONSES) if leaves else 0)
    ids = torch.cat([prompts, nodes.expand(len(prompts), -1)], dim=1)
    return {
        "input_ids": ids[:, :length],
        "attention_mask": mask[..., :length, :length].expand(len(prompts), -1, -1, -1),
        "position_ids": positions[:length].expand(len(prompts), -1),
        "use_cache": False,
    }


@torch.no_grad()
def enumerate_responses(model: PreTrainedModel, prompts: Int[Tensor, "p 5"], *, batch: int = 16) -> Enumeration:
    """log pi(response, EOS | prompt) of all 256 responses, and the logits at every prefix."""
    node_logits = torch.cat([
        model(**_inputs(rows, leaves=False), logits_to_keep=N_NODES).logits.double() for rows in prompts.split(batch)
    ])                                                                                  # [p, 341, v]
    log_softmax = node_logits.log_softmax(-1)
    log_probs = log_softmax[:, torch.from_numpy(node_path()), response_ids()].sum(-1)   # [p, 256, 5] -> [p, 256]
    return Enumeration(log_probs.numpy(), node_logits.numpy())


@torch.no_grad()
def enumerate_rewards(
    model: PreTrainedModel, prompts: Int[Tensor, "p 5"], *, batch: int = 8
) -> Float[ndarray, "p 256"]:
    """The reward head's score of every response followed by EOS, read at the EOS."""
    states = torch.cat([
        model.model(**_inputs(rows, leaves=True)).last_hidden_state[:, -len(RESPONSES):]
        for rows in prompts.split(batch)
    ])                                                                                  # [p, 256, d]
    return model.score(states)[..., 0].double().numpy()


def enumerate_folder(folder: Path) -> Enumeration:
    """All 192 prompts under the causal language model saved in `folder`."""
    with quiet_loading(offline=True):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return enumerate_responses(model.eval(), prompt_ids())


def enumerate_reward_folder(folder: Path) -> Float[ndarray, "192 256"]:
    """All 192 prompts under the reward head saved in `folder`."""
    with quiet_loading(offline=True):
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return enumerate_rewards(model.eval(), prompt_ids())
