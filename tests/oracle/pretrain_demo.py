"""Pre-trains the demo's base model and writes demo/model/ (config, weights, tokenizer).

    nice python tests/oracle/pretrain_demo.py [--device cuda] [--out demo/model]

The model is a 1.2 M-parameter Llama that knows a handful of list commands over digit strings ("Sort up: 3917=1379").
`make demo` then teaches it a command that it has never seen, from data that is mostly wrong (lib/demo/generate.ts).
Everything is seeded; needs torch, transformers, tokenizers and safetensors. 2000 steps take about 12 minutes on two cores and 80 s
on an H100, where the committed weights were made (`--device cuda`; another machine rounds otherwise and gives other, equally good
weights). They answer every command right on 200 strings of 6 to 8 digits each. The product never runs this file.
"""

import argparse
import json
import math
import os
import random
import time

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 20260
LENGTHS = range(4, 10)  # digits per string; the demo's rows have 6 to 8, inside what the base has seen

COMMANDS = {
    "Copy": lambda s: s,
    "Flip": lambda s: s[::-1],
    "Sort up": lambda s: "".join(sorted(s)),
    "Sort down": lambda s: "".join(sorted(s, reverse=True)),
    "Swap ends": lambda s: s[-1] + s[1:-1] + s[0],
    "Rotate": lambda s: s[1:] + s[0],
    "Largest": max,
    "Smallest": min,
}


def row(command, digits):
    """One training example: (prompt, completion). No blank at the seam, so that trimming either side changes nothing."""
    return f"{command}: {digits}=", COMMANDS[command](digits)


def random_digits(rng, n):
    return "".join(rng.choice("0123456789") for _ in range(n))


def make_tokenizer():
    """Byte-level BPE after the pattern of Llama 3: a digit is a token, a word with the blank before it merges, any text encodes."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    # The fine-tuned command "Arrange" is one token too; the base never sees it, so its embedding stays as initialised.
    words = [f"{command}: 1=" for command in [*COMMANDS, "Arrange"]]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def make_batch(rng, tokenizer, size):
    """ids, labels [size, T]: labels are -100 on the prompt and the padding (right)."""
    n = rng.choice(LENGTHS)  # one length a batch keeps the padding small
    rows = [row(rng.choice(list(COMMANDS)), random_digits(rng, n)) for _ in range(size)]
    return encode_rows(tokenizer, rows)


def encode_rows(tokenizer, rows):
    encoded = []
    for prompt, completion in rows:
        head = tokenizer.encode(prompt).ids
        encoded.append((head, tokenizer.encode(completion, add_special_tokens=False).ids + [2]))
    T = max(len(p) + len(c) for p, c in encoded)
    ids = [p + c + [0] * (T - len(p) - len(c)) for p, c in encoded]
    labels = [[-100] * len(p) + c + [-100] * (T - len(p) - len(c)) for p, c in encoded]
    return torch.tensor(ids), torch.tensor(labels)


@torch.no_grad()
def accuracy(model, tokenizer, rows):
    """Share of rows whose whole answer, end included, is the argmax at every step: what greedy decoding would write."""
    ids, labels = encode_rows(tokenizer, rows)
    logits = model(input_ids=ids).logits[:, :-1]
    right = (logits.argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == -100)
    return right.all(1).float().mean().item()


def report(model, tokenizer, step):
    rng = random.Random(SEED + 1)
    scores = {c: accuracy(model, tokenizer, [row(c, random_digits(rng, rng.choice([6, 7, 8]))) for _ in range(200)])
              for c in COMMANDS}
    print(f"step {step}: " + ", ".join(f"{c} {a:.3f}" for c, a in scores.items()), flush=True)
    return scores


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="demo/model")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    rng = random.Random(SEED)

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0, attention_bias=False, mlp_bias=False)
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = 100
    started = time.time()
    for step in range(args.steps):
        progress = max(0, step - warmup) / max(1, args.steps - warmup)
        lr = args.lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        ids, labels = make_batch(rng, tokenizer, args.batch)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 320), labels[:, 1:].reshape(-1), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 199:
            print(f"step {step + 1} loss {loss.item():.4f} {time.time() - started:.0f} s", flush=True)
            if step % 400 == 399:
                report(model, tokenizer, step + 1)
    report(model, tokenizer, args.steps)
    write(args.out, model, tokenizer, config)


def write(out, model, tokenizer, config):
    os.makedirs(out, exist_ok=True)
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    model.save_pretrained(out)
    os.remove(os.path.join(out, "generation_config.json"))
    # The spelling of transformers 4, which version 5 and everyone else reads too.
    settings = json.load(open(os.path.join(out, "config.json")))
    settings["rope_theta"] = settings.pop("rope_parameters")["rope_theta"]
    settings["torch_dtype"] = settings.pop("dtype")
    settings.pop("transformers_version", None)
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(settings, f, indent=2, sort_keys=True)
        f.write("\n")
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                   "pad_token": "<pad>", "model_max_length": 64, "clean_up_tokenization_spaces": False}, f, indent=2)
        f.write("\n")
    size = os.path.getsize(os.path.join(out, "model.safetensors"))
    print(f"wrote {out}, {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
