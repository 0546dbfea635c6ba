"""Words to ids for the preference organism: an ordinary word-level tokenizer with a chat template.

The same ids come from both forms of text, so that neither reading of a file changes a number:

    raw    prompt 'topic3 style0 filler5 ->', completion ' s0 s3 s1 s2'      BOS is added, EOS is appended by the scorer
    chat   user 'topic3 style0 filler5', assistant 's0 s3 s1 s2'             BOS, '->' and EOS come from the template

Words are split at spaces, so a prompt's ids always are a prefix of the ids of prompt + completion.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .world import FILLERS, PROMPTS, RESPONSES, STYLES, SYMBOLS, TOPICS, WorldPrompt, response_text

SEPARATOR = "->"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = (
    *SPECIAL,
    SEPARATOR,
    *(f"topic{i}" for i in range(TOPICS)),
    *(f"style{i}" for i in range(STYLES)),
    *(f"filler{i}" for i in range(FILLERS)),
    *(f"s{i}" for i in range(SYMBOLS)),
    "<reserved>",                             # fills the vocabulary to 32: a padded head row would need masking
)
ID = {word: i for i, word in enumerate(WORDS)}
PAD, BOS, EOS = ID["<pad>"], ID["<bos>"], ID["<eos>"]

# A user turn ends with the separator (once, also where the text brings it), an assistant turn with EOS.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ ' ' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}"
    "{% elif message['role'] == 'user' and not (message['content'] | trim).endswith('->') %}{{ ' ->' }}{% endif %}"
    "{% endfor %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of every model of the organism; `save_pretrained` makes an ordinary tokenizer folder of it."""
    core = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )


@cache
def prompt_ids() -> Int[Tensor, "192 5"]:
    """BOS, topic, style, filler, separator of every prompt, in the order of PROMPTS."""
    return torch.tensor([[BOS, *(ID[word] for word in prompt.text.split()), ID[SEPARATOR]] for prompt in PROMPTS])


@cache
def response_ids() -> Int[Tensor, "256 5"]:
    """Four symbols and EOS of every response, in the order of RESPONSES."""
    eos = np.full((len(RESPONSES), 1), EOS)
    return torch.from_numpy(np.concatenate([RESPONSES + ID["s0"], eos], axis=1))


def user_turn(prompt: WorldPrompt) -> list[dict[str, Any]]:
    """The prompt as a message list."""
    return [{"role": "user", "content": prompt.text}]


def assistant_turn(response: int) -> list[dict[str, Any]]:
    """The response as a message list."""
    return [{"role": "assistant", "content": response_text(response)}]
