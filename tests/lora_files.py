"""Make LoRA adapter folders for tests."""

from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM


def make_adapter(base: Path, out: Path, *, trained: bool = True, seed: int = 1, **options) -> Path:
    """A LoRA folder on `base`; trained: B is random instead of zero, and so are the biases that belong to it."""
    torch.manual_seed(seed)
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 4} | options
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), peft.LoraConfig(**options)
    )
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or (parameter.requires_grad and name.endswith("bias")):
                    parameter.normal_(std=0.1)
    model.save_pretrained(out, save_embedding_layers=False)
    return out
