"""Writes a checkpoint of Llama-2-7B's shape with random bf16 weights (13 GB) for tests/bench/load.ts.

    python tests/bench/make_checkpoint.py FOLDER
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

D, F, L, V = 4096, 11008, 32, 32000
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
device = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape):
    return (torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02).cpu()


config = dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L,
              num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5, torch_dtype="bfloat16")
(folder / "config.json").write_text(json.dumps(config))
files, weight_map = 4, {}
for part in range(files):
    tensors = {}
    if part == 0:
        tensors["model.embed_tokens.weight"] = random(V, D)
        tensors["lm_head.weight"] = random(V, D)
        tensors["model.norm.weight"] = torch.ones(D, dtype=torch.bfloat16)
    for layer in range(part * L // files, (part + 1) * L // files):
        name = f"model.layers.{layer}."
        for matrix in "qkvo":
            tensors[f"{name}self_attn.{matrix}_proj.weight"] = random(D, D)
        tensors[name + "mlp.gate_proj.weight"] = random(F, D)
        tensors[name + "mlp.up_proj.weight"] = random(F, D)
        tensors[name + "mlp.down_proj.weight"] = random(D, F)
        tensors[name + "input_layernorm.weight"] = torch.ones(D, dtype=torch.bfloat16)
        tensors[name + "post_attention_layernorm.weight"] = torch.ones(D, dtype=torch.bfloat16)
    file = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
    save_file(tensors, folder / file)
    weight_map.update({name: file for name in tensors})
(folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
