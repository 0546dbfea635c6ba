"""A tiny model that answers in one of two ways as a flag says, and quadruples that differ in the flag alone.

Sequence `<bos> flag c1 .. c5 SEP answer <eos>`: under POS the answer repeats the content in the words p0 .. p15, under
NEG in n0 .. n15. POS is the concept. The answers of either side are known, so every flip can be counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..probes.huggingface import HuggingFaceSubject
from ..probes.loading import wrap
from .train import one_thread

PAD, BOS, POS, NEG, SEP, EOS = range(6)
CONTENT, KINDS, LENGTH = 16, 16, 5  # first id of the content, its words, words of a sequence
SHIFT = {POS: 32, NEG: 16}  # from a content id to its answer
N_PROMPT = LENGTH + 3
WORDS = (
    *("<pad>", "<bos>", "POS", "NEG", "SEP", "<eos>"),
    *(f"<reserved{i}>" for i in range(6, CONTENT)),
    *(f"{letter}{i}" for letter in "cnp" for i in range(KINDS)),
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptOrganism:
    """The model, and rows for read_quadruples: `quadruples` to train on, `fresh` to test on."""

    subject: HuggingFaceSubject
    quadruples: tuple[dict[str, str], ...]
    fresh: tuple[dict[str, str], ...]


def build_concept_organism(
    seed: int = 0, *, n_quadruples: int = 72, n_fresh: int = 256, steps: int = 500, progress: Progress | None = None
) -> ConceptOrganism:
    """Train a Llama of 4 blocks, width 64, vocabulary 64: AdamW 3e-3, batches of 64, loss on the six answer tokens.

    The weights start from torch.manual_seed(seed), the data have a generator of their own. One thread: the same
    seed gives the same weights on one machine with one version of torch.
    """
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config())
        data = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(steps):
            ids = sequences(torch.randint(2, (64,), generator=data) == 1, _contents(64, data))
            logits = model(input_ids=ids, use_cache=False).logits[:, N_PROMPT - 1 : -1]
            optimiser.zero_grad()
            cross_entropy(logits.flatten(0, 1), ids[:, N_PROMPT:].flatten()).backward()
            optimiser.step()
            if progress is not None:
                progress("concept organism", step + 1, steps)
        model.eval()
        contents = _contents(n_quadruples + n_fresh, data).tolist()
    rows = [concept_quadruple(content) for content in contents]
    return ConceptOrganism(
        subject=wrap(model, concept_tokenizer()),
        quadruples=tuple(rows[:n_quadruples]),
        fresh=tuple(rows[n_quadruples:]),
    )


def sequences(positive: Tensor, content: Int[Tensor, "n 5"]) -> Int[Tensor, "n 14"]:
    """Ids of whole sequences: flag POS where `positive`, content words by number."""
    flag = torch.where(positive, POS, NEG)[:, None]
    shift = torch.where(positive, SHIFT[POS], SHIFT[NEG])[:, None]
    ids = content + CONTENT

    def column(value: int) -> Tensor:
        return torch.full_like(flag, value)

    return torch.cat([column(BOS), flag, ids, column(SEP), ids + shift, column(EOS)], dim=1)


def concept_quadruple(content: Sequence[int]) -> dict[str, str]:
    """The row of one content: the same under NEG and POS, each with its answer. <bos> and <eos> come of the encoder."""
    words = " ".join(f"c{i}" for i in content)
    return {
        "negative_input": f"NEG {words} SEP",
        "negative_output": " " + " ".join(f"n{i}" for i in content),
        "positive_input": f"POS {words} SEP",
        "positive_output": " " + " ".join(f"p{i}" for i in content),
    }


def concept_tokenizer() -> PreTrainedTokenizerFast:
    """Words to ids, split at blanks; <bos> before plain text, no chat template. An unknown word is <pad>."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<pad>",  # said, so that id 0 is not taken for a word
        model_input_names=["input_ids", "attention_mask"],
    )


def _contents(n: int, generator: torch.Generator) -> Int[Tensor, "n 5"]:
    """Words by number, each drawn from all 16."""
    return torch.randint(KINDS, (n, LENGTH), generator=generator)


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        tie_word_embeddings=False, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )
