"""29 tiny random models of as many architectures, saved as ordinary folders, and the awkward ones for the probe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = (
    "The quick brown fox jumps over the lazy dog while the sun sets slowly behind the old stone bridge near the river.",
    "A language model reads one token after another and gives every next token a probability, which can be measured.",
    "Preference training raises the log-probability of chosen answers over rejected answers, as far as the reference "
    "lets it; the reference stays where it was.",
    "In the morning the fishermen went out to sea, the children went to school, and nobody spoke about the night.",
)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ENTRIES = 411
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# the names most configurations share; GPT-2's generation has its own
WIDE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
GROUPED = {**WIDE, "num_key_value_heads": 2}
NARROW_HEADS = {**GROUPED, "head_dim": 16}
GEMMA = {**NARROW_HEADS, "sliding_window": 32, "query_pre_attn_scalar": 16}
OPT = {
    "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 128, "n_positions": 256}

Config = Callable[[], Any]
CONFIGS: dict[str, Config] = {
    "gpt2": lambda: _made("GPT2", **GPT),
    "gptj": lambda: _made("GPTJ", **GPT, rotary_dim=8),
    "gptneo": lambda: _made(
        "GPTNeo", hidden_size=64, num_layers=4, num_heads=4, intermediate_size=128, max_position_embeddings=256,
        attention_types=[[["global", "local"], 2]], window_size=32,
    ),
    "gptneox": lambda: _made("GPTNeoX", **WIDE),
    "bloom": lambda: _made("Bloom", hidden_size=64, n_layer=4, n_head=4),
    "falcon": lambda: _made("Falcon", hidden_size=64, num_hidden_layers=4, num_attention_heads=4, ffn_hidden_size=128),
    "mpt": lambda: _made("Mpt", d_model=64, n_layers=4, n_heads=4, max_seq_len=256, expansion_ratio=2),
    "opt": lambda: _made("OPT", **OPT, word_embed_proj_dim=64),
    "phi": lambda: _made("Phi", **WIDE),
    "phi3": lambda: _made("Phi3", **GROUPED),
    "stablelm": lambda: _made("StableLm", **GROUPED),
    "llama": lambda: _made("Llama", **GROUPED),
    "llama_tied": lambda: _made("Llama", **GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: _made("Qwen2", **GROUPED),
    "mistral": lambda: _made("Mistral", **GROUPED, sliding_window=None),
    "olmo2": lambda: _made("Olmo2", **GROUPED),
    "smollm3": lambda: _made("SmolLM3", **GROUPED),
    "qwen3": lambda: _made("Qwen3", **NARROW_HEADS),
    "gemma": lambda: _made("Gemma", **NARROW_HEADS),
    "gemma2": lambda: _made("Gemma2", **GEMMA),
    "gemma3": lambda: _made("Gemma3Text", **GEMMA),
    "cohere": lambda: _made("Cohere", **GROUPED, logit_scale=0.0625),
    "granite": lambda: _made(
        "Granite", **GROUPED, logits_scaling=8.0, residual_multiplier=0.22, embedding_multiplier=12.0
    ),
    "mixtral": lambda: _made("Mixtral", **GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: _made(
        "Qwen3Moe", **NARROW_HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64
    ),
    "gpt_oss": lambda: _made(
        "GptOss", **NARROW_HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=32
    ),
    "deepseek_v3": lambda: _made(
        "DeepseekV3", **{**WIDE, "num_key_value_heads": 4}, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, moe_intermediate_size=64, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
    ),
    "mamba": lambda: _made("Mamba", hidden_size=64, num_hidden_layers=4, state_size=8),
    "rwkv": lambda: _made(
        "Rwkv", hidden_size=64, num_hidden_layers=4, attention_hidden_size=64, intermediate_size=128,
        context_length=256,
    ),
}  # fmt: skip

# no part of the zoo: read-outs that a table of architectures would get wrong
AWKWARD: dict[str, Config] = {
    "opt_projected_pre_norm": lambda: _made("OPT", **OPT, word_embed_proj_dim=32, do_layer_norm_before=True),
    "opt_projected_post_norm": lambda: _made("OPT", **OPT, word_embed_proj_dim=32, do_layer_norm_before=False),
    "opt_post_norm": lambda: _made("OPT", **OPT, word_embed_proj_dim=64, do_layer_norm_before=False),
    "opt_without_final_norm": lambda: _made("OPT", **OPT, word_embed_proj_dim=64, _remove_final_layer_norm=True),
    "openai_gpt": lambda: _made("OpenAIGPT", n_embd=64, n_layer=4, n_head=4, n_positions=256),
    "recurrent_gemma": lambda: _made(
        "RecurrentGemma", hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192,
        lru_width=64, attention_window_size=64,
    ),
    "one_layer_llama": lambda: _made("Llama", **{**GROUPED, "num_hidden_layers": 1}),
    "padded_llama": lambda: _made("Llama", **{**GROUPED, "vocab_size": ENTRIES + 21}),
}  # fmt: skip


def build(folder: Path) -> dict[str, Path]:
    """Save every model of `CONFIGS` with its tokenizer under `folder`; name -> folder."""
    made = tokenizer()
    found = {}
    for name in CONFIGS:
        found[name] = folder / name
        model(name).save_pretrained(found[name])
        made.save_pretrained(found[name])
    return found


def model(name: str) -> Any:
    """A random model, always the same; every vector of gains or biases moved, since a fresh one hides norm bugs."""
    torch.manual_seed(0)
    config = {**CONFIGS, **AWKWARD}[name]()
    made = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE of 411 entries trained on `SENTENCES`; a short chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(SENTENCES, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
    )


def _made(architecture: str, **values: Any) -> Any:
    return getattr(hf, f"{architecture}Config")(**{"vocab_size": ENTRIES, **IDS, **values})
