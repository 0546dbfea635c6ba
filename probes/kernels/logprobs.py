"""What log-probability does a model give to a completion? Token by token in float32, summed in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROWS = 1024  # logits upcast at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceLogProbs:
    """Log-probabilities of completions, nats. An impossible token gives -inf, a NaN logit NaN, in its row only."""

    total: Float[Tensor, "B"]  # float64 sum over the scored tokens; 0 where none is scored
    n_tokens: Int[Tensor, "B"]  # scored tokens: a completion token in column 0 has nothing that predicts it
    per_token: Float[Tensor, "B T_minus_1"]  # column t scores input_ids[:, t + 1]; 0 where it is no completion token


def sequence_log_probs(
    logits: Float[Tensor, "B T V"],
    input_ids: Int[Tensor, "B tokens"],
    completion_mask: Int[Tensor, "rows columns"] | Bool[Tensor, "rows columns"],
) -> SequenceLogProbs:
    """tok[t] = z[t, id[t+1]] - logsumexp(z[t]) where mask[t+1]; total = sum of tok in float64. Differentiable.

    Logits below float32 are upcast first (1024 rows at a time): a log-softmax in bf16 costs nats a sequence. Ids
    outside the mask are never looked at. ValueError: shapes that do not fit, a mask other than 0 / 1, a completion id
    outside [0, V).
    """
    if logits.ndim != 3 or not logits.shape[:2] == input_ids.shape == completion_mask.shape:
        raise ValueError(
            "logits [B, T, V], input_ids [B, T] and completion_mask [B, T] share B and T, got "
            f"{tuple(logits.shape)}, {tuple(input_ids.shape)}, {tuple(completion_mask.shape)}"
        )
    n_rows, n_columns, n_vocab = logits.shape
    if n_columns == 0:
        raise ValueError(f"a sequence has at least one token, got logits of shape {tuple(logits.shape)}")
    if completion_mask.dtype != torch.bool and ((completion_mask != 0) & (completion_mask != 1)).any():
        raise ValueError("completion_mask holds 0 and 1 (or bool): 1 on the tokens of the completion")
    scored = completion_mask[:, 1:].bool()
    targets = input_ids[:, 1:][scored].long()
    outside = ((targets < 0) | (targets >= n_vocab)).nonzero()
    if len(outside):
        row, column = scored.nonzero()[int(outside[0])].tolist()
        raise ValueError(
            f"row {row}, position {column + 1}: token id {int(targets[outside[0]])} is outside the vocabulary "
            f"[0, {n_vocab}) of the logits; is the mask 0 on padding?"
        )

    dtype = torch.promote_types(logits.dtype, torch.float32)
    rows, columns = scored.nonzero(as_tuple=True)  # the predicting place is t - 1: the same column of `scored`
    scores = [torch.empty(0, dtype=torch.float64, device=logits.device)]
    for some in torch.arange(len(rows), device=logits.device).split(ROWS):
        scores.append(token_log_probs(logits[rows[some], columns[some]].to(dtype), targets[some]))
    per_token = torch.zeros(n_rows, n_columns - 1, dtype=torch.float64, device=logits.device)
    per_token = per_token.masked_scatter(scored, torch.cat(scores))
    return SequenceLogProbs(total=per_token.sum(-1), n_tokens=scored.sum(-1), per_token=per_token.to(dtype))


def token_log_probs(logits: Float[Tensor, "r V"], targets: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
    """z[target] - logsumexp(z), a row a token, nats; differentiable. Logits are float32 or wider, the answer float64.

    Peak and log of the sum are kept apart until then: added in float32 they lose the digits of the larger.
    """
    peak = logits.detach().amax(-1)  # [r]; the gradient of a shift is 0
    chosen = logits.gather(1, targets[:, None])[:, 0]
    shifted = logits - peak[:, None]
    log_sum = (shifted.exp() if shifted.requires_grad else shifted.exp_()).sum(-1).log()
    return chosen.double() - peak.double() - log_sum.double()
