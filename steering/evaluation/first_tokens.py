"""How likely is each of a few tokens to come next? Log-probabilities behind prompts, whole vocabulary in the sum."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...probes.encoding import Ids
from ...probes.padding import padded
from ...probes.scored_rows import batches
from ...probes.subject import Subject
from ...probes.vocabulary import real_vocabulary

BATCH_TOKENS = 4096  # padded tokens of a pass


@torch.no_grad()
def next_log_probs(subject: Subject, prompts: Sequence[Ids], tokens: Sequence[int]) -> Float[Tensor, "n k"]:
    """log P(token | prompt) for every prompt and each of `tokens`, nats; float64, CPU. Edits in force act.

    Rows of the head that belong to no token do not count.
    """
    vocab = min(subject.vocab_size, real_vocabulary(subject.tokenizer))
    found = torch.zeros(len(prompts), len(tokens), dtype=torch.float64)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for batch in batches([len(prompts[i]) for i in order], BATCH_TOKENS):
        chosen = order[batch]
        ids, mask = padded([prompts[i] for i in chosen], 0)
        last = torch.tensor([[len(prompts[i]) - 1] for i in chosen])
        logits = subject.logits(ids, mask, last)[:, 0, :vocab].double()
        found[chosen] = logits.log_softmax(-1)[:, list(tokens)].cpu()
    return found
