"""Makes tests/fixtures/metalora_reference.*: META-LORA step by step, as the authors' code does it and as their paper says it.

    python tests/oracle/metalora_reference.py [--check]

Written from the specification (algorithms 1.2–1.5), on transformers' float32 Llama with a LoRA module and hooks of its own; it
shares nothing with the product. 52 training rows (every other one with the answer of another row) and 12 validation rows, read in
order, n = m = 4, rank 4, alpha 1 (s = 1/4), A ~ U(±1/sqrt r), B = 0, Adam (0.9, 0.95), eps 1e-8, no decay, cosine from `lr` to 0
without warm-up, clip to global norm 1.

Runs `reference`, `referenceWarm` (the authors' code)
    Batches are right-padded to their longest sample and run with the pads (attention mask = id is no pad, labels masked).
    Step 0 of every epoch is a plain step on the batch token-mean loss. For s >= 1, when (s - 1) mod every == 0, the next
    validation batch (wrapping around) runs forward and backward with its batch token-mean loss, leaves its statistics, and is
    trained on. Then the training batch runs forward once; backward 1 of the batch token-mean loss gives its statistics, gradients
    are dropped; backward 2 of sum_i w_i l_i (l_i = the sample's own token mean) is clipped and stepped.
    Statistics per module: z = input of lora_left (h = x A^T), g = gradient at that input (s (dl/dy) B), each the mean over all T
    positions, pads included; validation: a further mean over the m samples, z and g apart.
    u_i = sum_modules (z_i . z_v)(g_i . g_v); w = (u - 2 min u) / sum when min u < 0, else u / sum.
    When sum_i w_i l_i is exactly 0 the batch is consumed without a step. Every update, validation too, advances the schedule.
    The limit is read before a training batch is taken; a validation step that reaches it is still followed by its training
    step, at rate 0 (see `accounting`, maxSteps 14: 15 updates).
    `referenceWarm` starts from an adapter with B != 0, where similarities of both signs occur, and takes two epochs of 24 rows:
    step 8 is plain again; the validation iterator goes on where it was.

Runs `paper`, `paperWarm` (the equations; the reading chosen here)
    No pads: every sample runs alone. Statistics from per-sample mean losses l_i: z_i, g_i = means over the sample's own tokens
    (prompt and response). u_i = (1/m) sum_j sum_modules (z_j . z_i)(g_j . g_i); w_i = max(u_i, 0) / sum; update with
    sum_i w_i l_i. Validation batches serve the weights only: drawn before training batches s = 1, 1 + every, 1 + 2 every, …
    (s counts consumed training batches), never trained on. The first step of a run has B = 0, hence every u = 0: it is plain,
    with w_i = 1/n. When no u_i is positive the batch is consumed without an update (`skipped`).

Each run: `initial` names its first adapter; `steps`, one entry an attempted update: `kind` plain | validation | train, `step`
(updates before it), `batch` (s within the epoch), `indices` into `train` or `validation`, `loss` (batch token mean), `losses`
(l_i), `u`, `w`, `objective` (the number that was differentiated), `gradNorm` before clipping, `lr` it used, `ess` = 1 / sum w^2,
`skipped`, `validation` (paper: the samples behind u). `accounting` counts steps alone.
`float32Noise` compares with the same program on the float64 model of common.py.
"""

import math

import torch
from torch import nn

from common import (
    LINEARS, PAD, HfLlama, Llama, batch_loss, collate, inject, load_samples, make_adapter, module_names, peft_name, prefixed,
    relative, sample_losses, warm_up, with_answer_of, write_fixture,
)

RANK, ALPHA, BATCH = 4, 1, 4
BETAS, EPS, CLIP = (0.9, 0.95), 1e-8, 1.0
MODULES = module_names()
rows = load_samples(132)
warm, validation = rows[72:], rows[60:72]
# every other training row carries the answer of a row 7 places on: data that no validation row agrees with
train = [with_answer_of(rows[i], rows[i + 7]) if i % 2 else rows[i] for i in range(52)]


class LoraLayer(nn.Module):
    """The authors' layout: y = W x + s lora_left(lora_right(x)); hooks on lora_left see the r-dimensional wire."""

    def __init__(self, base, A, B, scale):
        super().__init__()
        d_out, d_in = base.weight.shape
        self.base, self.scale = base, scale
        self.lora_right = nn.Linear(d_in, len(A), bias=False, dtype=base.weight.dtype)
        self.lora_left = nn.Linear(len(A), d_out, bias=False, dtype=base.weight.dtype)
        with torch.no_grad():
            self.lora_right.weight.copy_(A)
            self.lora_left.weight.copy_(B)

    def forward(self, x):
        return self.base(x) + self.lora_left(self.lora_right(x)) * self.scale


class Trainer:
    """Model, hooks, optimizer and schedule of one run."""

    def __init__(self, model, adapter, max_steps, lr):
        self.model = model
        self.lora = inject(model, adapter, ALPHA / RANK, layer=LoraLayer)
        self.inputs, self.grads = {}, {}  # {module: [B, T, r]} of the latest forward and backward
        for name, layer in self.lora.items():
            layer.lora_left.register_forward_hook(lambda _, x, __, name=name: self.inputs.__setitem__(name, x[0].detach()))
            layer.lora_left.register_full_backward_hook(lambda _, g, __, name=name: self.grads.__setitem__(name, g[0].detach()))
        self.parameters = [p for layer in self.lora.values() for p in (layer.lora_right.weight, layer.lora_left.weight)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, betas=BETAS, eps=EPS)
        self.max_steps, self.lr, self.done = max_steps, lr, 0

    def rate(self):
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(self.done / self.max_steps, 1)))

    def backward(self, loss, keep_graph=False):
        for p in self.parameters:
            p.grad = None
        loss.backward(retain_graph=keep_graph)

    def update(self, **entry) -> dict:
        """Clips what backward left, steps, and completes the log entry."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        entry = dict(step=self.done, **entry, gradNorm=norm.item(), lr=self.rate())
        self.optimizer.param_groups[0]["lr"] = entry["lr"]
        self.optimizer.step()
        self.done += 1
        return entry

    def adapter(self) -> dict:
        sides = lambda layer: (("A", layer.lora_right.weight), ("B", layer.lora_left.weight))
        return {peft_name(m, s): w.detach().clone() for m, layer in self.lora.items() for s, w in sides(layer)}


def shift(u):
    """The authors' map of similarities to weights."""
    w = u - 2 * u.min() if u.min() < 0 else u.clamp_min(0)
    return w / (w.sum() + float(w.sum() == 0))


def clip(u):
    """The paper's Eq. 7–8."""
    w = u.clamp_min(0)
    return w / (w.sum() + float(w.sum() == 0))


def ess(w) -> float:
    return (1 / w.square().sum()).item() if w.sum() > 0 else 0.0


def reference(model, adapter, train, validation, max_steps, every, lr, epochs=1):
    """The authors' loop; returns the log and the trainer."""
    trainer, log, drawn = Trainer(model, adapter, max_steps, lr), [], 0

    def forward(samples):
        ids, mask, labels = collate(samples)
        logits = model(ids, mask)
        return batch_loss(logits, labels), sample_losses(logits, labels)

    def statistics():  # z, g [B, L, r]: means over all T positions
        return [torch.stack([of[m].mean(1) for m in MODULES], 1) for of in (trainer.inputs, trainer.grads)]

    for epoch in range(epochs):
        for s in range(len(train) // BATCH):
            if trainer.done >= max_steps:
                break
            indices = list(range(s * BATCH, (s + 1) * BATCH))
            where = dict(epoch=epoch, batch=s)
            if s == 0:
                loss, losses = forward([train[i] for i in indices])
                trainer.backward(loss)
                log.append(trainer.update(kind="plain", **where, indices=indices, loss=loss, losses=losses, objective=loss))
                continue
            if (s - 1) % every == 0:
                picked = [(drawn + k) % len(validation) for k in range(BATCH)]
                drawn += BATCH
                loss, losses = forward([validation[i] for i in picked])
                trainer.backward(loss)
                z_v, g_v = (x.mean(0) for x in statistics())  # [L, r]
                log.append(trainer.update(kind="validation", **where, indices=picked, loss=loss, losses=losses, objective=loss))
            loss, losses = forward([train[i] for i in indices])
            trainer.backward(loss, keep_graph=True)
            z, g = statistics()
            u = ((z * z_v).sum(-1) * (g * g_v).sum(-1)).sum(-1)
            w = shift(u)
            objective = w @ losses
            entry = dict(kind="train", **where, indices=indices, loss=loss, losses=losses, u=u, w=w, objective=objective, ess=ess(w))
            if objective.item() == 0:
                log.append(dict(step=trainer.done, **entry, skipped=True))
                continue
            trainer.backward(objective)
            log.append(trainer.update(**entry))
    return log, trainer


def paper(model, adapter, train, validation, max_steps, every, lr):
    """The paper's equations, one sample at a time; returns the log and the trainer."""
    trainer, log, drawn = Trainer(model, adapter, max_steps, lr), [], 0

    def sample_statistics(sample):  # l_i, z, g [L, r] and the gradient of l_i
        ids, mask, labels = collate([sample])
        loss = sample_losses(model(ids, mask), labels)[0]
        trainer.backward(loss)
        z, g = (torch.stack([of[m][0].mean(0) for m in MODULES]) for of in (trainer.inputs, trainer.grads))
        return loss.detach(), z, g, [p.grad for p in trainer.parameters]

    s = 0
    while trainer.done < max_steps:
        indices = [i % len(train) for i in range(s * BATCH, (s + 1) * BATCH)]
        if s >= 1 and (s - 1) % every == 0:
            picked = [(drawn + k) % len(validation) for k in range(BATCH)]
            drawn += BATCH
            stored = [sample_statistics(validation[j])[1:3] for j in picked]
        batch = [sample_statistics(train[i]) for i in indices]
        losses = torch.stack([b[0] for b in batch])
        counts = torch.tensor([train[i].n for i in indices])
        entry = dict(batch=s, indices=indices, loss=(losses * counts).sum() / counts.sum(), losses=losses)
        if s == 0:
            entry |= dict(kind="plain", w=torch.full_like(losses, 1 / BATCH))
        else:
            match = lambda z, g, z_v, g_v: ((z * z_v).sum(-1) * (g * g_v).sum(-1)).sum()
            u = torch.stack([sum(match(z, g, *v) for v in stored) / len(stored) for _, z, g, _ in batch])
            entry |= dict(kind="train", validation=picked, u=u, w=clip(u))
        entry |= dict(objective=entry["w"] @ losses, ess=ess(entry["w"]))
        s += 1
        if entry["w"].sum() == 0:
            log.append(dict(step=trainer.done, **entry, skipped=True))
            continue
        for k, p in enumerate(trainer.parameters):  # sum_i w_i grad l_i
            p.grad = sum(w * b[3][k] for w, b in zip(entry["w"], batch))
        log.append(trainer.update(**entry))
    return log, trainer


def account(max_steps: int, every: int) -> dict:
    """Counts the updates of the authors' loop in one long epoch in which no batch is skipped."""
    done, counts, s = 0, dict(plain=0, train=0, validation=0), 0
    while done < max_steps:
        if s > 0 and (s - 1) % every == 0:
            counts["validation"] += 1
            done += 1
        counts["plain" if s == 0 else "train"] += 1
        done += 1
        s += 1
    final = 0.5 * (1 + math.cos(math.pi * min(done / max_steps, 1)))
    return dict(maxSteps=max_steps, every=every, **counts, trainBatches=s, updates=done, finalLrFactor=final)


def run(program, start: str, *arguments, **options) -> tuple[dict, dict]:
    """A run in float32 from a named adapter, its final adapter, and how far the float64 model is from it."""
    initial = starts[start]
    log, trainer = program(HfLlama(), initial, *arguments, **options)
    log64, trainer64 = program(Llama(), initial, *arguments, **options)
    final, final64 = trainer.adapter(), trainer64.adapter()
    assert [e["kind"] for e in log] == [e["kind"] for e in log64]
    worst = lambda key: max([relative(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for a, b in zip(log, log64) if key in a])
    noise = {key: worst(key) for key in ("losses", "u", "w", "gradNorm") if any(key in e for e in log)}
    noise["weights"] = max(relative(final[k], final64[k]) for k in final)
    keys = ("max_steps", "every", "lr", "epochs")
    settings = {k.replace("max_steps", "maxSteps"): options[k] for k in keys if k in options}
    return dict(initial=start, **settings, steps=log, finalLr=trainer.rate(), float32Noise=noise), final


initial = make_adapter(seed=33, rank=RANK, a_bound="rank")
starts = dict(initial=initial, warm=warm_up(initial, ALPHA / RANK, warm, steps=60, lr=1e-2))
runs, finals = {}, {}
for name, (program, start, data, options) in {
    "reference": (reference, "initial", train, dict(max_steps=15, every=3, lr=5e-3)),
    "referenceWarm": (reference, "warm", train[:24], dict(max_steps=16, every=3, lr=5e-4, epochs=2)),
    "paper": (paper, "initial", train, dict(max_steps=8, every=3, lr=5e-3)),
    "paperWarm": (paper, "warm", train, dict(max_steps=10, every=3, lr=5e-4)),
}.items():
    runs[name], finals[name] = run(program, start, data, validation, **options)

accounting = [account(500, 10), account(15, 3), account(14, 3), account(1, 10), account(2, 10), account(12, 10), account(13, 10)]
first = accounting[0]
assert (first["plain"] + first["train"], first["validation"], first["finalLrFactor"]) == (454, 46, 0.0), first  # acceptance 6
kinds = [e["kind"] for e in runs["reference"]["steps"]]
assert kinds.count("validation") == account(15, 3)["validation"] and len(kinds) == 15 and runs["reference"]["finalLr"] == 0
# what the runs are there to exercise
assert any(e["u"].min() < 0 for e in runs["referenceWarm"]["steps"] if "u" in e)
assert any(0 < (e["u"] > 0).sum() < BATCH for e in runs["paperWarm"]["steps"] if "u" in e)
assert any("skipped" in e for e in runs["paperWarm"]["steps"])

write_fixture(
    "metalora_reference",
    dict(
        about="float32 PyTorch; made by tests/oracle/metalora_reference.py, which defines every field",
        model="stories260K", data="mawps_asdiv_svamp_train.jsonl", padId=PAD, rank=RANK, alpha=ALPHA, scale=ALPHA / RANK,
        targets=list(LINEARS), modules=MODULES, batchSize=BATCH, optimizer=dict(betas=BETAS, eps=EPS, clip=CLIP, schedule="cosine"),
        train=train, validation=validation, accounting=accounting,
        runs=runs,
    ),
    prefixed("initial", starts["initial"]) | prefixed("warm", starts["warm"])
    | prefixed("final_reference", finals["reference"]) | prefixed("final_paperWarm", finals["paperWarm"]),
)
for name, r in runs.items():
    print(name, {k: f"{v:.1e}" for k, v in r["float32Noise"].items()}, f"final lr {r['finalLr']:.2g}")
    for e in r["steps"]:
        show = lambda k: " ".join(f"{x:.3g}" for x in e[k].tolist()) if k in e else "-"
        norm = f"{e['gradNorm']:.3f}" if "gradNorm" in e else "skipped"
        print(f"  {e['step']:2d} {e['kind']:10s} {e['indices']} loss {e['loss']:.4f} norm {norm} u [{show('u')}] w [{show('w')}]")
