"""Writes tests/fixtures/rope.json: config.json fragments and the cos/sin that transformers makes of them.

Run:  python tests/oracle/rope.py   (transformers 5, torch; the product itself never needs Python)
"""

import json
import pathlib

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 128,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_type": "llama3"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# name, config.json, longest sequence
CASES = [
    ("default", {}, 96),
    ("default with head_dim and theta", {"head_dim": 24, "rope_theta": 500000.0}, 96),
    ("linear, old key type", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 96),
    ("linear in rope_parameters", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 20000.0}}, 96),
    ("dynamic, short", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 96),
    ("dynamic, as long as it was made for", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 128),
    ("dynamic, longer", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 300),
    ("llama3", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}, 96),
    ("llama3 in rope_parameters", {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0, "factor": 32.0}}, 96),
    ("yarn", {"rope_scaling": YARN}, 96),
    ("yarn, betas and attention_factor", {"rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2, "attention_factor": 1.25}}, 96),
    ("yarn, mscale", {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}}, 96),
    ("yarn, not truncated", {"rope_parameters": YARN | {"truncate": False, "rope_theta": 10000.0}}, 96),
    ("yarn, original length by default", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 96),
]


def main() -> None:
    cases = []
    for name, extra, length in CASES:
        config_json = BASE | extra
        config = LlamaConfig.from_dict(json.loads(json.dumps(config_json)))
        rope = LlamaRotaryEmbedding(config)
        cos, sin = rope(torch.zeros(1), torch.arange(length)[None])
        half = cos.shape[-1] // 2
        rows = [0, 1, 2, 31, 32, 33, 63, 64, 95, 127, 128, 200, 299]
        rows = [p for p in rows if p < length]
        cases.append({
            "name": name, "config": config_json, "length": length, "rows": rows,
            "inv_freq": rope.inv_freq.tolist(),
            "cos": [cos[0, p, :half].tolist() for p in rows], "sin": [sin[0, p, :half].tolist() for p in rows],
        })
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "rope.json"
    with path.open("w") as file:
        json.dump({"transformers": transformers.__version__, "cases": cases}, file)
        file.write("\n")
    print(f"{path}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
