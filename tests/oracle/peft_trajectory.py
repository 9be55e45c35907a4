"""Makes tests/fixtures/peft_trajectory.*: LoRA fine-tuning as transformers + PEFT + torch do it, float32, ten steps.

    python tests/oracle/peft_trajectory.py [--check]

Setting: stories260K, 40 rows of mawps_asdiv_svamp_train in file order, batch b = samples 4b … 4b+3, right-padded with an
attention mask; loss = mean over all response tokens of the batch; torch.nn.utils.clip_grad_norm_ (scale = 1 / (norm + 1e-6)
when that is below 1); torch.optim.AdamW; transformers' schedules, which give step 0 of a warm-up the rate 0. `lr` is the rate
the step used, `gradNorm` the norm before clipping.

    plain  rank 8, alpha 16, seven linears, weight decay 0, clip 1 (every step is clipped), cosine with 2 warm-up steps
    decay  the same with weight decay 0.1 (of its final adapter only layers 0 and 4 are kept)
    mlp    rank 4, alpha 8, gate/up/down only, weight decay 0, clip 5 (some steps are clipped), linear without warm-up

`step0`: per-sample mean losses of batch 0 at B = 0 (`losses`) and at final_plain (`finalLosses`); logits of sample 0 at the listed
positions (those that predict a label) are the arrays "logits/initial" and "logits/final_plain", [positions, V]. `accumulation`: the
gradient of batch 0 at final_plain (not clipped), whole, and as two micro-batches normalised once over all tokens of the batch.

Every trajectory is repeated by the float64 model of common.py; `float32Noise` tells how far float32 is from it: what a third
float32 program may differ by for no fault of its own.
"""

import torch
from transformers import get_scheduler

from common import (
    IGNORE, LINEARS, MLP, PAD, Llama, batch_loss, check_llama, collate, inject, load_samples, make_adapter, peft_model,
    peft_name, prefixed, relative, sample_losses, token_losses, write_fixture,
)

STEPS, BATCH, LR, BETAS, EPS = 10, 4, 2e-3, (0.9, 0.95), 1e-8
SETTINGS = {
    "plain": dict(rank=8, alpha=16, targets=LINEARS, weightDecay=0.0, clip=1.0, schedule="cosine", warmup=2),
    "decay": dict(rank=8, alpha=16, targets=LINEARS, weightDecay=0.1, clip=1.0, schedule="cosine", warmup=2),
    "mlp": dict(rank=4, alpha=8, targets=MLP, weightDecay=0.0, clip=5.0, schedule="linear", warmup=0),
}

samples = load_samples(STEPS * BATCH)
batches = [list(range(b * BATCH, (b + 1) * BATCH)) for b in range(STEPS)]
chosen = lambda indices: [samples[i] for i in indices]


class Peft:
    """float32: transformers' forward and loss, PEFT's adapters."""

    def __init__(self, setting, adapter):
        self.model = peft_model(setting["rank"], setting["alpha"], setting["targets"], adapter)
        self.named = {k.replace(".default", ""): p for k, p in self.model.named_parameters() if p.requires_grad}

    def logits(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    def loss(self, ids, mask, labels):
        return self.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


class Truth:
    """float64: the model and the LoRA layers of common.py."""

    def __init__(self, setting, adapter):
        self.logits = Llama()
        lora = inject(self.logits, adapter, setting["alpha"] / setting["rank"], setting["targets"])
        self.named = {peft_name(m, side): getattr(layer, side) for m, layer in lora.items() for side in "AB"}

    def loss(self, ids, mask, labels):
        return batch_loss(self.logits(ids, mask), labels)


def train(program, setting) -> list[dict]:
    parameters = list(program.named.values())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=setting["weightDecay"])
    schedule = get_scheduler(setting["schedule"], optimizer, setting["warmup"], STEPS)
    steps = []
    for step, batch in enumerate(batches):
        loss = program.loss(*collate(chosen(batch)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, setting["clip"])
        steps.append(dict(step=step, batch=batch, lr=schedule.get_last_lr()[0], loss=loss.item(), gradNorm=norm.item()))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return steps


def snapshot(program) -> dict:
    return {k: p.detach().float().clone() for k, p in program.named.items()}


@torch.no_grad()
def evaluate(program) -> dict:
    """Mean loss over the response tokens of all 40 samples, one sample at a time."""
    total, tokens = 0.0, 0
    for sample in samples:
        ids, mask, labels = collate([sample])
        losses, labelled = token_losses(program.logits(ids, mask), labels)
        total, tokens = total + losses.double().sum().item(), tokens + int(labelled.sum())
    return dict(loss=total / tokens, tokens=tokens)


def gradient(program, groups: list[list[int]], token_total: int):
    """Gradient of (sum of response-token losses) / token_total, accumulated over the groups; the loss with it."""
    loss_sum = 0.0
    for group in groups:
        ids, mask, labels = collate(chosen(group))
        losses, _ = token_losses(program.logits(ids, mask), labels)
        loss = losses.sum() / token_total
        loss.backward()
        loss_sum += loss.item()
    grads = {k: p.grad.clone() for k, p in program.named.items()}
    for p in program.named.values():
        p.grad = None
    return loss_sum, grads


def norm(grads) -> float:
    return torch.stack([g.double().square().sum() for g in grads.values()]).sum().sqrt().item()


def flat(grads) -> torch.Tensor:
    return torch.cat([g.double().flatten() for g in grads.values()])


arrays, trajectories, step0 = {}, {}, {}
for name, setting in SETTINGS.items():
    initial = make_adapter(seed=8 if setting["rank"] == 8 else 4, rank=setting["rank"], targets=setting["targets"])
    program, truth = Peft(setting, initial), Truth(setting, initial)
    state = "initial_mlp" if name == "mlp" else "initial"
    arrays |= prefixed(state, initial)

    if name == "plain":  # what the model says before the first step (B = 0: the bare base model)
        ids, mask, labels = collate(chosen(batches[0]))
        with torch.no_grad():
            logits = program.logits(ids, mask)
        positions = [t - 1 for t, label in enumerate(samples[0].labels) if label != IGNORE]
        step0 = dict(losses=sample_losses(logits, labels), tokens=[s.n for s in chosen(batches[0])])
        step0["logits"] = dict(sample=0, positions=positions)
        arrays["logits/initial"] = logits[0, positions]

    before = evaluate(program)
    steps, exact = train(program, setting), train(truth, setting)
    final, final64 = snapshot(program), snapshot(truth)
    keep = [k for k in final if name != "decay" or ".layers.0." in k or ".layers.4." in k]  # two layers tell the decay
    arrays |= prefixed(f"final_{name}", {k: final[k] for k in keep})
    noise = dict(
        loss=max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(steps, exact)),
        gradNorm=max(abs(a["gradNorm"] - b["gradNorm"]) / b["gradNorm"] for a, b in zip(steps, exact)),
        weights=max(relative(final[k], final64[k]) for k in final),
        update=relative(flat(final) - flat(initial), flat(final64) - flat(initial)),
    )
    after = evaluate(program)
    trajectories[name] = dict(
        **{**setting, "targets": list(setting["targets"])}, initial=state, final=f"final_{name}", steps=steps,
        evaluation=dict(tokens=before["tokens"], initialLoss=before["loss"], finalLoss=after["loss"]), float32Noise=noise,
    )

    if name == "plain":  # at a trained adapter: logits, per-sample losses, and gradients in one piece or in two
        ids, mask, labels = collate(chosen(batches[0]))
        with torch.no_grad():
            logits = program.logits(ids, mask)
        arrays["logits/final_plain"] = logits[0, positions]
        step0["finalLosses"] = sample_losses(logits, labels)

        batch, halves = batches[0], [batches[0][:2], batches[0][2:]]
        tokens = [s.n for s in chosen(batch)]
        whole_loss, whole = gradient(program, [batch], sum(tokens))
        split_loss, split = gradient(program, halves, sum(tokens))
        # the usual mistake: each half's own mean, then the mean of both
        wrong = [gradient(program, [half], sum(samples[i].n for i in half)) for half in halves]
        _, exact_grads = gradient(truth, [batch], sum(tokens))
        arrays |= prefixed("gradient", whole)
        accumulation = dict(
            adapter="final_plain", gradient="gradient", batch=batch, microBatches=halves, tokens=tokens,
            loss=whole_loss, gradNorm=norm(whole), accumulatedLoss=split_loss, accumulatedGradNorm=norm(split),
            meanOfHalvesLoss=(wrong[0][0] + wrong[1][0]) / 2,
            float32Noise=dict(accumulation=relative(flat(split), flat(whole)), gradient=relative(flat(whole), flat(exact_grads))),
        )
        assert accumulation["float32Noise"]["accumulation"] < 1e-5, accumulation
        assert abs(accumulation["meanOfHalvesLoss"] - whole_loss) > 1e-4 * whole_loss
    print(name, {k: f"{v:.1e}" for k, v in noise.items()}, [f"{s['loss']:.3f}|{s['gradNorm']:.2f}" for s in steps])

check_llama(samples[:4])
write_fixture(
    "peft_trajectory",
    dict(
        about="transformers + PEFT, float32; made by tests/oracle/peft_trajectory.py, which explains the fields",
        model="stories260K", data="mawps_asdiv_svamp_train.jsonl", padId=PAD, ignoreIndex=IGNORE,
        optimizer=dict(lr=LR, betas=BETAS, eps=EPS), batchSize=BATCH,
        samples=samples, batches=batches, step0=step0, trajectories=trajectories, accumulation=accumulation,
    ),
    arrays,
)
