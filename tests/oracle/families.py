"""Fixture families: tiny random models of every family but plain Llama, as transformers saves them, and transformers' loss of each
labelled row on one text. Writes tests/fixtures/families/<family>/ (config.json, model.safetensors in float32, expected.json).

    python tests/oracle/families.py
"""
import json
import shutil

import torch
import torch.nn.functional as F
from common import FIXTURES
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZE = dict(vocab_size=160, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64)
FAMILIES = {
    "mistral": (MistralForCausalLM, MistralConfig(**SIZE, head_dim=16, sliding_window=48, rope_theta=1000000.0)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZE, tie_word_embeddings=True, rope_theta=1000000.0)),
}

for name, (cls, config) in FAMILIES.items():
    torch.manual_seed(7)
    model = cls(config).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():  # biases start at 0 and norms at 1: they must count
            p.copy_(torch.randn_like(p) * (0.3 if p.dim() == 1 else 0.2) + (1.0 if "norm" in key else 0.0))
    ids = torch.randint(0, config.vocab_size, (1, 40))
    logits = model(input_ids=ids).logits[0].double()
    losses = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    folder = FIXTURES / "families" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "expected.json").write_text(json.dumps({"ids": ids[0].tolist(), "losses": losses.tolist()}) + "\n")
    print(name, losses.mean().item())
