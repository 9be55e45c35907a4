"""Loads an adapter folder with transformers + PEFT and checks that nothing is missing, left over or different.

Run:  python tests/oracle/check_peft_adapter.py ADAPTER MODEL   (transformers, peft; the product itself never needs Python)

Prints one line and exits with 0; a difference is an AssertionError.
"""

import math
import sys
import warnings

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main() -> None:
    adapter, base = sys.argv[1:3]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 13, 17, 21]])
    with torch.no_grad():
        before = model(ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns about missing keys
        config = PeftConfig.from_pretrained(adapter)
        model = PeftModel.from_pretrained(model, adapter)
        result = model.load_adapter(adapter, "again")
    assert not result.unexpected_keys, result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key], result.missing_keys

    stored = load_file(f"{adapter}/adapter_model.safetensors")
    loaded = {k.replace(".default", ""): v for k, v in model.state_dict().items() if ".lora_" in k and ".default" in k}
    assert stored.keys() == loaded.keys(), stored.keys() ^ loaded.keys()
    for key, value in stored.items():
        assert torch.equal(value, loaded[key]), key

    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A") and "default" in getattr(layer, "scaling", {})}
    for name, layer in layers.items():
        r = layer.lora_A["default"].weight.shape[0]
        alpha = layer.lora_alpha["default"]
        assert layer.r["default"] == r, name
        assert math.isclose(layer.scaling["default"], alpha / (math.sqrt(r) if config.use_rslora else r)), name
    with torch.no_grad():
        after = model(ids).logits
    ranks = sorted({layer.r["default"] for layer in layers.values()})
    print(f"{len(layers)} layers, ranks {ranks}, largest change of a logit {(after - before).abs().max().item():.4g}")


if __name__ == "__main__":
    main()
