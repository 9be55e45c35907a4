"""Loads what a run of metalora wrote into transformers + PEFT and prints its loss, to hold beside `metalora eval --json`.

    metalora preview CONFIG --json > samples.jsonl          # one {"ids", "labels"} a line; labels unshifted, -100 = untrained
    python tests/oracle/check_run.py runs/OUTPUT --model MODEL_DIR --data samples.jsonl [--per-sample]

RUN is the output folder (its adapter/ is read) or an adapter folder itself. Fails, naming the keys, unless the adapter file holds
exactly PEFT's keys with PEFT's shapes. Prints {"loss", "tokens", "samples", "perplexity", "baseLoss", "keys"}; loss = mean over all
labelled tokens, float32, one sample at a time; baseLoss is the same without the adapter.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import logging

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run", type=Path)
parser.add_argument("--model", type=Path, required=True)
parser.add_argument("--data", type=Path, required=True, help="JSON lines with ids and labels")
parser.add_argument("--per-sample", action="store_true", help="print {id, loss, tokens} a sample first")
arguments = parser.parse_args()
logging.disable_progress_bar()

adapter = arguments.run / "adapter" if (arguments.run / "adapter").is_dir() else arguments.run
config = PeftConfig.from_pretrained(adapter)
base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
model = PeftModel.from_pretrained(base, adapter, config=config, autocast_adapter_dtype=False).float().eval()

with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
    written = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    expected = {key: tuple(value.shape) for key, value in get_peft_model_state_dict(model).items()}
    missing, unexpected = sorted(expected.keys() - written.keys()), sorted(written.keys() - expected.keys())
    assert not missing and not unexpected, f"missing {missing}; unexpected {unexpected}"
    wrong = {key: (written[key], expected[key]) for key in expected if written[key] != expected[key]}
    assert not wrong, f"shapes (written, PEFT's): {wrong}"
    for key, value in get_peft_model_state_dict(model).items():
        assert torch.equal(file.get_tensor(key).float(), value), f"{key} did not arrive in the model"


@torch.no_grad()
def loss_of(sample) -> tuple[float, int]:
    """Sum of the losses of the labelled tokens, and their number."""
    ids, labels = torch.tensor(sample["ids"])[None], torch.tensor(sample["labels"])[None]
    logits = model(input_ids=ids).logits[0, :-1].float()
    losses = F.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="none")
    return losses.double().sum().item(), int((labels[0, 1:] != -100).sum())


samples = [json.loads(line) for line in arguments.data.read_text().splitlines() if line.strip()]
pairs = [loss_of(sample) for sample in samples]
if arguments.per_sample:
    for sample, (total, tokens) in zip(samples, pairs):
        print(json.dumps(dict(id=sample.get("id"), loss=total / max(tokens, 1), tokens=tokens)))
with model.disable_adapter():
    base_total = sum(loss_of(sample)[0] for sample in samples)
tokens = sum(n for _, n in pairs)
loss = sum(total for total, _ in pairs) / tokens
print(json.dumps(dict(loss=loss, tokens=tokens, samples=len(samples), perplexity=math.exp(loss), baseLoss=base_total / tokens, keys=len(written))))
