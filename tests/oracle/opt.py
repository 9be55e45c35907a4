"""Fixtures of OPT: a tiny random model as transformers saves it, its tokenizer, and what transformers + PEFT + torch make of them in
float32. Writes tests/fixtures/families/opt/ (config.json, model.safetensors in float16 as OPT's are, tokenizer.json, expected.json)
and tests/fixtures/opt.{json,safetensors}.

    python tests/oracle/opt.py [--check]

expected.json  "losses": the loss of each labelled row of one text; "tokenizer": ids of texts, with the </s> that the tokenizer's
               post-processor puts before them
opt            LoRA on all linears with B != 0 from the start (rank 4, alpha 8): "gradient/<i>/…" of the mean loss of sample i alone;
               then ten AdamW steps over all samples, right-padded with an attention mask, loss = mean over all labelled tokens,
               clipped at 1 (as peft_trajectory.py does): loss and norm of every step, and the adapter "final/…" they end at
"""
import json
import shutil
import sys

import torch
import torch.nn.functional as F
from common import FIXTURES, IGNORE, prefixed, write_fixture
from peft import LoraConfig, get_peft_model
from tokenizers import pre_tokenizers
from transformers import GPT2Tokenizer, OPTConfig, OPTForCausalLM, get_scheduler

RANK, ALPHA, LR, BETAS, EPS, DECAY, CLIP, STEPS = 4, 8, 2e-3, (0.9, 0.95), 1e-8, 0.1, 1.0, 10
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
PAD = 1
FOLDER = FIXTURES / "families" / "opt"


def tokenizer():
    """GPT-2's byte-level BPE with OPT's special tokens: </s> begins and ends a text."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>"] + sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġt", "he"), ("Ċ", "Ċ")]
    vocabulary += ["".join(pair) for pair in merges]
    return GPT2Tokenizer(vocab={text: i for i, text in enumerate(vocabulary)}, merges=merges, bos_token="</s>", eos_token="</s>",
                         unk_token="</s>", pad_token="<pad>", add_prefix_space=False, add_bos_token=True)


def model(V: int):
    torch.manual_seed(7)
    config = OPTConfig(vocab_size=V, hidden_size=32, word_embed_proj_dim=32, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
                       max_position_embeddings=64)
    made = OPTForCausalLM(config).eval()  # no dropout
    with torch.no_grad():
        for key, p in made.named_parameters():  # biases start at 0 and norms at 1: they must count
            noise = torch.randn_like(p) * (0.3 if p.dim() == 1 else 0.2)
            p.copy_((noise + (1.0 if "norm.weight" in key else 0.0)).half().float())
    return made


def sample(length: int, V: int):
    ids = torch.randint(4, V, (length,)).tolist()
    given = length // 3
    return dict(ids=ids, labels=[IGNORE] * given + ids[given:])


def collate(samples):
    T = max(len(s["ids"]) for s in samples)
    fill = lambda values, pad: values + [pad] * (T - len(values))
    ids = torch.tensor([fill(s["ids"], PAD) for s in samples])
    labels = torch.tensor([fill(s["labels"], IGNORE) for s in samples])
    mask = torch.tensor([fill([1] * len(s["ids"]), 0) for s in samples])
    return dict(input_ids=ids, labels=labels, attention_mask=mask)


def bare(named):
    return {k.replace(".default", ""): p for k, p in named if p.requires_grad}


made = tokenizer()
base = model(len(made))
ids = torch.randint(4, len(made), (1, 60))
losses = F.cross_entropy(base(input_ids=ids).logits[0, :-1].double(), ids[0, 1:], reduction="none")
texts = ["in the end", " the\n\nthe", "a</s>b", "", "naïve – 日本"]
encoded = [dict(text=text, ids=made(text)["input_ids"], plain=made(text, add_special_tokens=False)["input_ids"]) for text in texts]
if "--check" not in sys.argv:
    shutil.rmtree(FOLDER, ignore_errors=True)
    base.half().save_pretrained(FOLDER)
    base.float()
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    made.save_pretrained(FOLDER)
    expected = dict(ids=ids[0].tolist(), losses=losses.tolist(), tokenizer=encoded)
    (FOLDER / "expected.json").write_text(json.dumps(expected) + "\n")

samples = [sample(length, len(made)) for length in (23, 41, 9)]
peft = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM"))
named = bare(peft.named_parameters())
with torch.no_grad():
    for key, p in named.items():
        if "lora_B" in key:
            p.copy_(0.05 * torch.randn_like(p))
arrays = prefixed("initial", {k: p.detach().clone() for k, p in named.items()})

alone = []
for i, each in enumerate(samples):
    loss = peft(**collate([each])).loss
    loss.backward()
    alone.append(loss.item())
    arrays |= prefixed(f"gradient/{i}", {k: p.grad.clone() for k, p in named.items()})
    peft.zero_grad()

optimizer = torch.optim.AdamW(named.values(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
schedule = get_scheduler("cosine", optimizer, 2, STEPS)
steps = []
for step in range(STEPS):
    loss = peft(**collate(samples)).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(list(named.values()), CLIP)
    steps.append(dict(step=step, lr=schedule.get_last_lr()[0], loss=loss.item(), gradNorm=norm.item()))
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
arrays |= prefixed("final", {k: p.detach().clone() for k, p in named.items()})
print([f"{s['loss']:.3f}|{s['gradNorm']:.2f}" for s in steps])
write_fixture(
    "opt",
    dict(about="transformers + PEFT, float32; made by tests/oracle/opt.py, which explains the fields", rank=RANK, alpha=ALPHA,
         targets=list(TARGETS), optimizer=dict(lr=LR, betas=BETAS, eps=EPS, weightDecay=DECAY, clip=CLIP, schedule="cosine", warmup=2),
         samples=samples, losses=alone, steps=steps),
    arrays,
)
