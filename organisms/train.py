"""The training loops of the preference organism: language modelling, DPO with soft labels, a Bradley-Terry reward head.

Every row has the same ten tokens (five of prompt, four symbols, EOS), so nothing is padded. AdamW without weight decay,
linear decay to zero, one thread: the same seed gives the same weights on one machine with one version of torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from .enumeration import N_PROMPT
from .tokenizer import BOS, EOS, PAD, WORDS, prompt_ids, response_ids
from .world import LENGTH, Draws

Step = Callable[[int], None]                  # called with the number of optimiser steps done


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside: sums in a fixed order, and no contention on small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained Llama: 4 blocks, width 64, 4 heads, vocabulary 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(_config())


def reward_model(base: LlamaForCausalLM) -> LlamaForSequenceClassification:
    """The base with a scalar head on the last real token, which starts at zero."""
    config = _config()
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(base.model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=False, initializer_range=0.1,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )


def rows(prompts: Int[ndarray, "n"], responses: Int[ndarray, "n"]) -> Int[Tensor, "n 10"]:
    """Ids of prompt, response and EOS."""
    return torch.cat([prompt_ids()[torch.from_numpy(prompts)], response_ids()[torch.from_numpy(responses)]], dim=1)


def response_log_probs(model: PreTrainedModel, ids: Int[Tensor, "n 10"]) -> Float[Tensor, "n"]:
    """log pi(response, EOS | prompt), summed over the five tokens, nats."""
    out = model(input_ids=ids, use_cache=False, logits_to_keep=LENGTH + 2)          # separator .. EOS
    log_softmax = out.logits[:, :-1].log_softmax(-1)
    return log_softmax.gather(-1, ids[:, N_PROMPT:, None])[..., 0].sum(-1)


def train_language_model(
    model: PreTrainedModel, prompts: Int[ndarray, "s b"], responses: Int[ndarray, "s b"], *, rate: float, step: Step
) -> None:
    """Maximise log pi(response, EOS | prompt), one row of the arguments a step."""
    def loss(i: int) -> Tensor:
        return -response_log_probs(model, rows(prompts[i], responses[i])).mean()

    _optimise(model, loss, steps=len(prompts), rate=rate, step=step)


def train_dpo(
    model: PreTrainedModel,
    reference: Float[ndarray, "192 256"],
    pairs: Draws,
    *,
    beta: float,
    batches: Int[ndarray, "s b"],
    rate: float,
    step: Step,
) -> None:
    """DPO with soft labels: cross-entropy of sigmoid(beta (log-ratio_a - log-ratio_b)) against a's share of the votes.

    reference: summed log-probabilities of the reference by enumeration. Source: arXiv 2305.18290; soft labels as in
    arXiv 2405.19534. `batches` holds indices into `pairs`.
    """
    shift = torch.from_numpy(reference[pairs.prompt, pairs.a] - reference[pairs.prompt, pairs.b]).float()
    target = torch.from_numpy(pairs.preference).float()

    def loss(i: int) -> Tensor:
        of_a, of_b = response_log_probs(model, _both(pairs, batches[i])).chunk(2)
        margin = beta * (of_a - of_b - shift[batches[i]])
        return binary_cross_entropy_with_logits(margin, target[batches[i]])

    _optimise(model, loss, steps=len(batches), rate=rate, step=step)


def train_reward(
    model: PreTrainedModel, pairs: Draws, *, batches: Int[ndarray, "s b"], rate: float, step: Step
) -> None:
    """Bradley-Terry: cross-entropy of sigmoid(s_a - s_b) against a's share of the votes."""
    target = torch.from_numpy(pairs.preference).float()

    def loss(i: int) -> Tensor:
        of_a, of_b = model(input_ids=_both(pairs, batches[i]), use_cache=False).logits[:, 0].chunk(2)
        return binary_cross_entropy_with_logits(of_a - of_b, target[batches[i]])

    _optimise(model, loss, steps=len(batches), rate=rate, step=step)


def _both(pairs: Draws, index: Int[ndarray, "b"]) -> Int[Tensor, "c 10"]:
    return torch.cat([rows(pairs.prompt[index], pairs.a[index]), rows(pairs.prompt[index], pairs.b[index])])


def _optimise(model: PreTrainedModel, loss: Callable[[int], Tensor], *, steps: int, rate: float, step: Step) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / steps)
    model.train()                             # the config has no dropout: the mode changes no number
    for i in range(steps):
        optimiser.zero_grad()
        loss(i).backward()
        optimiser.step()
        decay.step()
        step(i + 1)
    model.eval()


def shuffled_batches(rng: np.random.Generator, n: int, *, batch: int, steps: int) -> Int[ndarray, "s b"]:
    """Indices below n in passes without repetition, cut into `steps` batches."""
    passes = -(-batch * steps // n)
    return np.concatenate([rng.permutation(n) for _ in range(passes)])[:batch * steps].reshape(steps, batch)
