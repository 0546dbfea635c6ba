"""What a trained model says about all 256 responses to a prompt, in one forward pass a prompt.

The responses form a tree of 340 nodes. One row holds the prompt and every node; a node sees the prompt, its ancestors and
itself, and carries the position of its depth. The logits equal those of 256 separate rows (a test shows it) at a seventh
of the tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from .tokenizer import ID, prompt_ids, response_ids
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


def _tree() -> tuple[Int[Tensor, "n"], Int[Tensor, "t"], Float[Tensor, "1 1 t t"]]:
    """Ids of the 340 prefix nodes, positions of prompt and nodes, additive attention mask."""
    path = node_path()
    length = N_PROMPT + N_NODES - 1
    ids = torch.zeros(N_NODES, dtype=torch.long)
    positions = torch.arange(length)
    sees = torch.zeros(length, length, dtype=torch.bool)
    sees[:N_PROMPT, :N_PROMPT] = torch.ones(N_PROMPT, N_PROMPT).tril().bool()
    sees[N_PROMPT:, :N_PROMPT] = True
    for depth in range(1, LENGTH + 1):
        node = torch.from_numpy(path[:, depth])
        ids[node] = torch.from_numpy(RESPONSES[:, depth - 1]) + ID["s0"]
        positions[N_PROMPT - 1 + node] = N_PROMPT - 1 + depth
        for ancestor in range(1, depth + 1):
            sees[N_PROMPT - 1 + node, N_PROMPT - 1 + torch.from_numpy(path[:, ancestor])] = True
    mask = torch.zeros(length, length).masked_fill(~sees, torch.finfo(torch.float32).min)
    return ids[1:], positions, mask[None, None]


@torch.no_grad()
def enumerate_responses(model: PreTrainedModel, prompts: Int[Tensor, "p 5"], *, batch: int = 16) -> Enumeration:
    """log pi(response, EOS | prompt) of all 256 responses, and the logits at every prefix."""
    nodes, positions, mask = _tree()
    logits = []
    for rows in prompts.split(batch):
        ids = torch.cat([rows, nodes.expand(len(rows), -1)], dim=1)                   # [b, 345]
        out = model(
            input_ids=ids, attention_mask=mask.expand(len(rows), -1, -1, -1),
            position_ids=positions.expand(len(rows), -1), use_cache=False, logits_to_keep=N_NODES,
        )
        logits.append(out.logits.double())                                            # [b, 341, v]
    node_logits = torch.cat(logits)
    log_softmax = node_logits.log_softmax(-1)
    log_probs = log_softmax[:, torch.from_numpy(node_path()), response_ids()].sum(-1)   # [p, 256, 5] -> [p, 256]
    return Enumeration(log_probs.numpy(), node_logits.numpy())


@torch.no_grad()
def enumerate_rewards(model: PreTrainedModel, prompts: Int[Tensor, "p 5"], *, batch: int = 8) -> Float[ndarray, "p 256"]:
    """The reward head's score of every response followed by EOS."""
    responses = response_ids()
    scores = []
    for rows in prompts.split(batch):
        ids = torch.cat([rows.repeat_interleave(len(responses), 0), responses.repeat(len(rows), 1)], dim=1)
        scores.append(model(input_ids=ids, use_cache=False).logits.double().view(len(rows), -1))
    return torch.cat(scores).numpy()


def enumerate_folder(folder: Path) -> Enumeration:
    """All 192 prompts under the causal language model saved in `folder`."""
    return enumerate_responses(AutoModelForCausalLM.from_pretrained(folder).eval(), prompt_ids())


def enumerate_reward_folder(folder: Path) -> Float[ndarray, "192 256"]:
    """All 192 prompts under the reward head saved in `folder`."""
    return enumerate_rewards(AutoModelForSequenceClassification.from_pretrained(folder).eval(), prompt_ids())
