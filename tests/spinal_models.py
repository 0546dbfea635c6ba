"""Tiny live models and prompts for the SPINAL tests: seeded, letters as tokens."""

import random
from string import ascii_lowercase

import torch
from tiny_tokenizer import PIECES, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import alignscope
from alignscope import Subject

LETTERS = f"{ascii_lowercase} 0123"


def tiny_model(*, blocks: int = 6, width: int = 64, scale: float = 1.0, changed: int | None = None) -> LlamaForCausalLM:
    """A random Llama, always the same; the weights of block `changed` (from 1) are multiplied by `scale`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(PIECES),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            initializer_range=0.15,
        )
    )
    if changed is not None:
        with torch.no_grad():
            for parameter in model.model.layers[changed - 1].parameters():
                parameter.mul_(scale)
    return model


def tiny_subject(**options) -> Subject:
    return alignscope.wrap(tiny_model(**options), tiny_tokenizer())


def letters(n: int, seed: int = 0, longest: int = 40) -> list[str]:
    """n distinct prompts of 4 to `longest` letters."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(draw.choice(LETTERS) for _ in range(draw.randint(4, longest)))] = None
    return list(found)
