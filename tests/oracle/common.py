"""What every oracle of this folder shares: paths, samples, adapters, a float64 Llama, and the writer of fixtures.

Two models of the same weights are used. `hf_model` is transformers' own, in float32: what users compare with.
`Llama` below is the same network written out in about eighty lines, in any dtype: transformers upcasts to float32 inside
RMSNorm, RoPE and softmax, so a float64 truth needs a model of its own (`check_llama` shows that both agree).

Layout of every fixture, under tests/fixtures/:
    <name>.json          scalars and token ids; floats carry all their digits (repr of a float64)
    <name>.safetensors   float32 arrays, named "<state>/<PEFT name>" for adapters,
                         e.g. "initial/base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
A sample in the JSON is {"id", "row", "ids", "labels"}: `row` counts the lines of the data file from 0, `labels` has the length
of `ids`, holds -100 where nothing is trained, else ids[t]; position t is predicted from position t - 1 (no shift is applied).
"""

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "stories260K"
DATA = SHARED / "data" / "mawps_asdiv_svamp_train.jsonl"
FIXTURES = ROOT / "tests" / "fixtures"

PAD = 0  # <unk>: stories260K has no pad token and no sample below contains this id
IGNORE = -100
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LINEARS = ATTENTION + MLP

torch.set_num_threads(1)  # one summation order on every machine with the same instructions
torch.use_deterministic_algorithms(True)


# ---- samples ---------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    id: str
    row: int
    ids: list[int]
    labels: list[int]

    @property
    def n(self) -> int:
        """Response tokens: labelled positions that have a predecessor."""
        return sum(label != IGNORE for label in self.labels[1:])


def load_samples(count: int, max_tokens: int = 128) -> list[Sample]:
    """The first `count` rows that fit: BOS, "instruction\\n" (masked), output, EOS (both trained)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    samples = []
    for row, line in enumerate(DATA.read_text().splitlines()):
        record = json.loads(line)
        prompt = [1] + encode(record["instruction"] + "\n")
        response = encode(record["output"]) + [2]
        if len(prompt) + len(response) > max_tokens:
            continue
        ids = prompt + response
        assert PAD not in ids
        samples.append(Sample(f"mawps-{row}", row, ids, [IGNORE] * len(prompt) + response))
        if len(samples) == count:
            return samples
    raise SystemExit(f"Cannot draw {count} samples from {DATA.name}: only {len(samples)} fit")


def with_answer_of(sample: Sample, other: Sample) -> Sample:
    """The sample's prompt followed by the other's response."""
    start, from_ = (next(t for t, label in enumerate(s.labels) if label != IGNORE) for s in (sample, other))
    ids = sample.ids[:start] + other.ids[from_:]
    return Sample(f"{sample.id}-answered-{other.row}", sample.row, ids, [IGNORE] * start + other.ids[from_:])


def collate(samples: list[Sample], extra: int = 0):
    """Right-padded ids, attention mask and labels [B, T], T = the longest sample plus `extra`; mask = (id != pad)."""
    T = max(len(s.ids) for s in samples) + extra
    ids = torch.tensor([s.ids + [PAD] * (T - len(s.ids)) for s in samples])
    labels = torch.tensor([s.labels + [IGNORE] * (T - len(s.labels)) for s in samples])
    return ids, ids != PAD, labels


def token_losses(logits: torch.Tensor, labels: torch.Tensor):
    """Cross-entropy [B, T-1] of the shifted labels (0 where masked) and the mask of what is labelled."""
    targets = labels[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return losses, targets != IGNORE


def sample_losses(logits, labels) -> torch.Tensor:
    """l_i [B]: mean over the sample's own response tokens."""
    losses, mask = token_losses(logits, labels)
    return losses.sum(1) / mask.sum(1)


def batch_loss(logits, labels) -> torch.Tensor:
    """Mean over all response tokens of the batch: what transformers computes."""
    losses, mask = token_losses(logits, labels)
    return losses.sum() / mask.sum()


# ---- the model, in any dtype -----------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.H, self.K = c["num_attention_heads"], c["num_key_value_heads"]
        self.D = c["hidden_size"] // self.H
        d = c["hidden_size"]
        self.q_proj = nn.Linear(d, self.H * self.D, bias=False)
        self.k_proj = nn.Linear(d, self.K * self.D, bias=False)
        self.v_proj = nn.Linear(d, self.K * self.D, bias=False)
        self.o_proj = nn.Linear(self.H * self.D, d, bias=False)
        self.theta = c["rope_theta"]

    def rotate(self, x):  # (B, heads, T, D): pairs x_j with x_{j + D/2}
        T, half = x.shape[2], self.D // 2
        frequencies = self.theta ** (-torch.arange(half, dtype=x.dtype) * 2 / self.D)
        angle = torch.arange(T, dtype=x.dtype)[:, None] * frequencies  # (T, D/2)
        cos, sin = angle.cos(), angle.sin()
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x, mask):  # x (B, T, d), mask (B, T, T) true = may attend
        B, T, _ = x.shape
        heads = lambda y, n: y.view(B, T, n, self.D).transpose(1, 2)
        q, k, v = heads(self.q_proj(x), self.H), heads(self.k_proj(x), self.K), heads(self.v_proj(x), self.K)
        q, k = self.rotate(q), self.rotate(k)
        k, v = (y.repeat_interleave(self.H // self.K, dim=1) for y in (k, v))
        scores = (q @ k.transpose(2, 3) / math.sqrt(self.D)).masked_fill(~mask[:, None], -torch.inf)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1))


class Norm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Mlp(c)

    def forward(self, x, mask):
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """ids [B, T], mask [B, T] -> logits [B, T, V]. Submodules carry transformers' names without the leading "model."."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        c = json.loads((MODEL / "config.json").read_text())
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        weights = load_file(MODEL / "model.safetensors")
        self.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k != "lm_head.weight"})
        self.to(dtype).requires_grad_(False)

    def forward(self, ids, mask):
        T = ids.shape[1]
        allowed = torch.ones(T, T, dtype=torch.bool).tril() & mask[:, None, :]  # causal, and no key that is a pad
        x = self.embed_tokens(ids)
        for block in self.layers:
            x = block(x, allowed)
        return self.norm(x) @ self.embed_tokens.weight.T  # tied head


class HfLlama(nn.Module):
    """transformers' own float32 model behind the same call and the same names as `Llama`."""

    def __init__(self):
        super().__init__()
        causal = hf_model()
        self.layers = causal.model.layers
        self.causal = [causal]  # in a list: not registered twice
        causal.requires_grad_(False)

    def forward(self, ids, mask):
        return self.causal[0](input_ids=ids, attention_mask=mask, use_cache=False).logits


def hf_model():
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    return model.eval()  # nothing here has dropout; eval keeps it so


def check_llama(samples: list[Sample]) -> float:
    """Largest difference of the logits of `Llama` (float64) and transformers (float32) at real tokens; asserts < 1e-4."""
    ids, mask, _ = collate(samples)
    with torch.no_grad():
        gap = (Llama()(ids, mask) - HfLlama()(ids, mask).double())[mask].abs().max().item()
    assert gap < 1e-4, gap
    return gap


# ---- adapters --------------------------------------------------------------------------------------------------------


def module_names(targets=LINEARS) -> list[str]:
    """Adapted modules in forward order: "layers.0.self_attn.q_proj", …"""
    layers = json.loads((MODEL / "config.json").read_text())["num_hidden_layers"]
    part = lambda name: "self_attn" if name in ATTENTION else "mlp"
    return [f"layers.{i}.{part(name)}.{name}" for i in range(layers) for name in LINEARS if name in targets]


def peft_name(module: str, side: str) -> str:
    """The key of PEFT's adapter_model.safetensors; side is A or B."""
    return f"base_model.model.model.{module}.lora_{side}.weight"


def make_adapter(seed: int, rank: int, a_bound="fan_in", b_std=0.0, targets=LINEARS) -> dict[str, torch.Tensor]:
    """Seeded float32 adapter by PEFT name. A ~ U(±bound): "fan_in" is 1/sqrt(d_in), as PEFT; "rank" is 1/sqrt(r), as the
    authors' code. B ~ N(0, b_std)."""
    random = np.random.default_rng(seed)
    weights = load_file(MODEL / "model.safetensors")
    adapter = {}
    for module in module_names(targets):
        d_out, d_in = weights[f"model.{module}.weight"].shape
        bound = 1 / math.sqrt(d_in if a_bound == "fan_in" else rank)
        adapter[peft_name(module, "A")] = torch.from_numpy(random.uniform(-bound, bound, (rank, d_in)).astype(np.float32))
        B = random.standard_normal((d_out, rank)) * b_std
        adapter[peft_name(module, "B")] = torch.from_numpy(B.astype(np.float32))
    return adapter


class LoraLinear(nn.Module):
    """y = x W^T + s (x A^T) B^T. Keeps h = x A^T, so that its gradient can be asked for."""

    def __init__(self, base: nn.Linear, A, B, scale: float):
        super().__init__()
        dtype = base.weight.dtype
        self.base, self.scale = base, scale
        self.A, self.B = nn.Parameter(A.to(dtype).clone()), nn.Parameter(B.to(dtype).clone())

    def forward(self, x):
        self.h = x @ self.A.T
        return self.base(x) + self.scale * (self.h @ self.B.T)


def inject(model: nn.Module, adapter: dict, scale: float, targets=LINEARS, layer=LoraLinear) -> dict[str, nn.Module]:
    """Replaces the targets of `model` by LoRA layers; returns them by module name, in forward order."""
    lora = {}
    for name in module_names(targets):
        parent, _, child = name.rpartition(".")
        base = model.get_submodule(name)
        lora[name] = layer(base, adapter[peft_name(name, "A")], adapter[peft_name(name, "B")], scale)
        setattr(model.get_submodule(parent), child, lora[name])
    return lora


def warm_up(adapter: dict, scale: float, samples: list[Sample], steps: int, batch=8, lr=5e-3) -> dict[str, torch.Tensor]:
    """The adapter after Adam steps (0.9, 0.95) on the samples in order, in float64, rounded to float32 at the end."""
    model = Llama()
    lora = inject(model, adapter, scale)
    optimizer = torch.optim.Adam([p for layer in lora.values() for p in (layer.A, layer.B)], lr=lr, betas=(0.9, 0.95))
    for step in range(steps):
        ids, mask, labels = collate([samples[(step * batch + k) % len(samples)] for k in range(batch)])
        sample_losses(model(ids, mask), labels).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {peft_name(m, side): getattr(layer, side).detach().float().clone() for m, layer in lora.items() for side in "AB"}


def peft_model(rank: int, alpha: float, targets, adapter: dict):
    """transformers + PEFT in float32 with the given adapter weights; every key must find its place."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(targets), task_type="CAUSAL_LM")
    model = get_peft_model(hf_model(), config)
    outcome = set_peft_model_state_dict(model, adapter)
    lost = [key for key in outcome.missing_keys if "lora_" in key]
    assert not lost and not outcome.unexpected_keys, (lost, outcome.unexpected_keys)
    return model


# ---- fixtures --------------------------------------------------------------------------------------------------------


def plain(value):
    """Tensors, arrays and samples to what JSON holds."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().tolist() if value.is_floating_point() else value.tolist()
    if isinstance(value, Sample):
        return asdict(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.floating, np.integer)):
        return value.item()
    return value


def dump(value, indent=0, key="") -> str:
    """JSON with one line a sample, step or short list: small, and a diff of it can be read."""
    flat = json.dumps(value)
    if not isinstance(value, (dict, list)) or len(flat) <= 118 or (isinstance(value, dict) and "ids" in value):
        return flat
    if isinstance(value, list) and not any(isinstance(v, (dict, list)) for v in value):
        return flat
    pad, end = "  " * (indent + 1), "  " * indent
    if isinstance(value, dict):
        parts = [f"{pad}{json.dumps(k)}: {dump(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + dump(v, indent + 1) for v in value) + f"\n{end}]"


def prefixed(state: str, adapter: dict) -> dict[str, torch.Tensor]:
    return {f"{state}/{key}": value for key, value in adapter.items()}


def write_fixture(name: str, scalars: dict, arrays: dict[str, torch.Tensor]) -> None:
    """Writes tests/fixtures/<name>.{json,safetensors}; with --check compares with what lies there instead."""
    scalars = plain(scalars)
    arrays = {k: v.detach().float().contiguous().clone() for k, v in arrays.items()}
    json_path, tensor_path = FIXTURES / f"{name}.json", FIXTURES / f"{name}.safetensors"
    if "--check" in sys.argv:
        worst = _compare(json.loads(json_path.read_text()), scalars, name)
        old = load_file(tensor_path)
        assert old.keys() == arrays.keys(), old.keys() ^ arrays.keys()
        for key, value in arrays.items():
            worst = max(worst, ((old[key] - value).abs().max() / old[key].abs().max().clamp_min(1e-30)).item())
        print(f"{name}: same keys, largest relative difference {worst:.2e}")
        raise SystemExit(0 if worst < 1e-4 else 1)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    json_path.write_text(dump(scalars) + "\n")
    save_file(arrays, tensor_path)
    tensor_path.chmod(0o644)
    print(f"{name}: {json_path.stat().st_size + tensor_path.stat().st_size:,} bytes, {len(arrays)} arrays")


def _compare(old, new, where) -> float:
    """Largest relative difference of two JSON values of the same shape (keys that tell rounding noise are skipped)."""
    if isinstance(old, dict):
        assert old.keys() == new.keys(), (where, old.keys() ^ new.keys())
        return max([_compare(old[k], new[k], f"{where}.{k}") for k in old if "noise" not in k.lower()], default=0.0)
    if isinstance(old, list):
        assert len(old) == len(new), where
        if old and all(isinstance(v, float) for v in old):  # relative to the list: an entry may be near zero
            return max(abs(a - b) for a, b in zip(old, new)) / max(max(map(abs, old)), 1e-30)
        return max([_compare(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(old, new))], default=0.0)
    if isinstance(old, float):
        return abs(old - new) / max(abs(old), 1e-30)
    assert old == new, (where, old, new)
    return 0.0


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)).item()
