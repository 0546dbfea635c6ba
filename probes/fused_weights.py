"""Fused projections of a block taken apart: q, k, v in one matrix, gate and up in one, experts in one stack.

How rows divide stands in no configuration, only in a model's code: the lists below name the types whose code was read.
Whatever else looks fused is kept whole, and says so.
"""

import re
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

_Q_THEN_K_THEN_V = {("gpt2", "c_attn"), ("openai-gpt", "c_attn"), ("mpt", "Wqkv"), ("phi3", "qkv_proj")}
# rows go by group of heads that share a key: their queries, the key, the value
_BY_GROUP = {(model, "query_key_value") for model in ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "falcon")}
_GATE_THEN_UP = ("phi3", "glm", "glm4", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3")
_LOOKS_FUSED = re.compile(r"qkv|query_key_value|c_attn|W_pack|kv_[ab]_proj|gate_up")
WHOLE = "fused parts not told apart: kept whole"

Part = tuple[str, str, Float[Tensor, "_ _"], str | None]  # name, kind (name without expert), matrix, note


def parts(name: str, matrix: Float[Tensor, "rows columns"], config: Any) -> list[Part]:
    """Named parts of one matrix [out, in]; the matrix itself where nothing is fused in it.

    >>> import torch, types
    >>> config = types.SimpleNamespace(model_type="gpt_neox", num_attention_heads=2, hidden_size=4)
    >>> [(name, tuple(part.shape)) for name, _, part, _ in parts("attn.query_key_value", torch.zeros(12, 4), config)]
    [('attn.query_key_value.q', (4, 4)), ('attn.query_key_value.k', (4, 4)), ('attn.query_key_value.v', (4, 4))]
    """
    return [(f"{name}{end}", f"{name}{end}", part, note) for end, part, note in _divided(name, matrix, config)]


def stacked_parts(name: str, stack: Float[Tensor, "experts rows columns"], config: Any) -> Iterator[Part]:
    """The matrices of a stack, one an expert, each taken apart like a matrix of its own."""
    for i, matrix in enumerate(stack):
        for end, part, note in _divided(name, matrix, config):
            yield f"{name}.{i}{end}", f"{name}{end}", part, note


def _divided(name: str, matrix: Tensor, config: Any) -> list[tuple[str, Tensor, str | None]]:
    leaf, model = name.rpartition(".")[2], config.model_type
    found = None
    if (model, leaf) in _Q_THEN_K_THEN_V:
        found = _blocked(matrix, config)
    elif (model, leaf) in _BY_GROUP:
        found = _grouped(matrix, config)
    elif leaf == "gate_up_proj" and model in _GATE_THEN_UP and len(matrix) % 2 == 0:
        gate, up = matrix.chunk(2)
        found = {".gate": gate, ".up": up}
    if found is None:
        return [("", matrix, WHOLE if _LOOKS_FUSED.search(leaf) else None)]
    return [(end, part, None) for end, part in found.items()]


def _blocked(matrix: Tensor, config: Any) -> dict[str, Tensor] | None:
    """All queries, then all keys, then all values; None where the row count says otherwise."""
    heads, width = config.num_attention_heads, _head_width(config)
    keys = getattr(config, "num_key_value_heads", None) or heads
    sizes = [heads * width, keys * width, keys * width]
    if sum(sizes) != len(matrix):
        return None
    return dict(zip((".q", ".k", ".v"), matrix.split(sizes), strict=True))


def _grouped(matrix: Tensor, config: Any) -> dict[str, Tensor] | None:
    heads, width = config.num_attention_heads, _head_width(config)
    groups = heads
    if getattr(config, "new_decoder_architecture", False):
        groups = config.num_kv_heads
    elif getattr(config, "multi_query", False):
        groups = 1
    queries = heads // groups
    if heads % groups or groups * (queries + 2) * width != len(matrix):
        return None
    rows = matrix.reshape(groups, queries + 2, width, -1)
    taken = {".q": rows[:, :queries], ".k": rows[:, queries], ".v": rows[:, queries + 1]}
    return {end: part.reshape(-1, matrix.shape[1]) for end, part in taken.items()}


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
