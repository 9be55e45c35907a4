"""Makes tests/fixtures/similarity.*: every similarity and weight map of META-LORA, in float64, one sample at a time.

    python tests/oracle/similarity.py [--check]

stories260K, 4 training and 4 validation rows, rank 4, alpha 8 (s = 2), seven linears. Two points: "trained" (B != 0: an adapter
after 60 steps on other rows, so that similarities of both signs occur) and "fresh" (B = 0, random A). Training samples 1 and 3
carry the answer of another row, as noisy data do. l_i is the mean loss over sample i's own response tokens and every gradient
is of l_i, unscaled ("unit seeds"). Per module: x input, h = x A^T, y output, g_h = dl/dh = s (dl/dy) B; all sums over the sample's own tokens.

    exact       u_i = <V, grad l_i>, V = mean_j grad l^v_j, over all A and B                             (algorithms 5.1, 5.2)
    exactAdam   u_i = <V / (sqrt(v / (1 - beta2^step)) + eps), grad l_i>, v = the arrays "adam_v/…"                  (5.1)
    core        C_i = sum_t g_h,t h_t^T (r x r);  u_i = sum_modules <C_i, mean_j C^v_j>                              (5.2)
    pooled      z_i = mean_t h_t, g_i = mean_t g_h,t;  u_i = sum_modules (z_i . mean_j z^v_j)(g_i . mean_j g^v_j)    (1.3, but
                without pads and from l_i)
    paper       the same z and g;  u_i = (1/m) sum_j sum_modules (z_i . z^v_j)(g_i . g^v_j)                  (the paper's Eq. 17)
    cosine      exact / (|grad l_i| |V|)

"all" sums over all modules, "attention" over q, k, v, o, "mlp" over gate, up, down (V, norms likewise).

Weight maps (n samples; sums that are 0 leave zeros):
    clip     max(u, 0) / sum                       shift   if min u < 0: (u - 2 min u) / sum, else clip
    mix      (1 - lambda) / n + lambda clip, lambda = 0.5; uniform when every u <= 0
    softmax  softmax(u / (tau rms(u))), rms(u) = sqrt(mean u^2), tau = 1 unless said; uniform when rms(u) = 0

"padding" repeats both statistics on right-padded batches (pads are run, masked as keys, unlabelled): `exact` must not move;
`reference` is the authors' pooled score (batch token-mean loss, means over all T positions, pads included), which does.
"""

import torch

from common import (
    ATTENTION, LINEARS, PAD, Llama, batch_loss, check_llama, collate, inject, load_samples, make_adapter, module_names,
    peft_name, prefixed, sample_losses, warm_up, with_answer_of, write_fixture,
)

RANK, ALPHA = 4, 8
BETA2, STEP, EPS = 0.95, 7, 1e-8
LAMBDA, TAU = 0.5, 1.0
MODULES = module_names()
PARTS = {
    "all": MODULES,
    "attention": [m for m in MODULES if m.split(".")[-1] in ATTENTION],
    "mlp": [m for m in MODULES if m.split(".")[-1] not in ATTENTION],
}
rows = load_samples(76)
validation, warm = rows[20:24], rows[8:20] + rows[24:76]


train = [rows[0], with_answer_of(rows[1], rows[13]), rows[2], with_answer_of(rows[3], rows[31])]


# ---- weight maps -----------------------------------------------------------------------------------------------------


def normalise(w):
    return w / w.sum() if w.sum() > 0 else torch.zeros_like(w)


def clip(u):
    return normalise(u.clamp_min(0))


def shift(u):
    return normalise(u - 2 * u.min()) if u.min() < 0 else clip(u)


def mix(u, lam=LAMBDA):
    uniform = torch.full_like(u, 1 / len(u))
    return (1 - lam) * uniform + lam * clip(u) if (u > 0).any() else uniform


def softmax(u, tau=TAU):
    rms = u.square().mean().sqrt()
    return torch.softmax(u / (tau * rms), 0) if rms > 0 else torch.full_like(u, 1 / len(u))


def maps(u) -> dict:
    u = torch.as_tensor(u, dtype=torch.float64)
    return dict(shift=shift(u), clip=clip(u), mix=mix(u), softmax=softmax(u))


# ---- gradients -------------------------------------------------------------------------------------------------------


class Point:
    """The model at one adapter. Gradients are dictionaries {module: (grad A, grad B)}."""

    def __init__(self, adapter):
        self.model = Llama()
        self.lora = inject(self.model, adapter, ALPHA / RANK)

    def losses(self, samples):
        """l_i, each sample alone: no pads."""
        with torch.no_grad():
            return torch.cat([self.forward([s]) for s in samples])

    def forward(self, samples, extra=0):
        ids, mask, labels = collate(samples, extra)
        return sample_losses(self.model(ids, mask), labels)

    def gradient(self, loss, keep_graph=False):
        """Gradients of a scalar for A, B and h of every module (h [B, T, r])."""
        wanted = [t for m in MODULES for t in (self.lora[m].A, self.lora[m].B, self.lora[m].h)]
        flat = torch.autograd.grad(loss, wanted, retain_graph=keep_graph)
        return {m: flat[3 * k : 3 * k + 3] for k, m in enumerate(MODULES)}

    def one(self, sample):
        """(l_i, {module: (grad A, grad B)}, {module: (h [T, r], g_h [T, r])}) of one sample without pads."""
        loss = self.forward([sample])[0]
        grads = self.gradient(loss)
        wires = {m: (self.lora[m].h[0].detach(), grads[m][2][0]) for m in MODULES}
        return loss.item(), {m: grads[m][:2] for m in MODULES}, wires

    def move(self, direction, step):
        """theta += step * direction."""
        with torch.no_grad():
            for m in MODULES:
                self.lora[m].A += step * direction[m][0]
                self.lora[m].B += step * direction[m][1]


def dot(a, b, modules=MODULES, sides=(0, 1)) -> float:
    return sum((a[m][k] * b[m][k]).sum().item() for m in modules for k in sides)


def size(a, modules=MODULES) -> float:
    return dot(a, a, modules) ** 0.5


def combine(weights, grads):
    return {m: tuple(sum(w * g[m][k] for w, g in zip(weights, grads)) for k in (0, 1)) for m in MODULES}


def named(gradient) -> dict:
    return {peft_name(m, side): gradient[m][k] for m in MODULES for k, side in enumerate("AB")}


# ---- one point -------------------------------------------------------------------------------------------------------


def describe(adapter, adam_v) -> tuple[dict, dict]:
    """All numbers at one adapter, and the arrays: V and the combined gradient of `mix` on `exact`."""
    point = Point(adapter)
    per_train, per_validation = [point.one(s) for s in train], [point.one(s) for s in validation]
    grads, validation_grads = [p[1] for p in per_train], [p[1] for p in per_validation]
    wires, validation_wires = [p[2] for p in per_train], [p[2] for p in per_validation]
    m = len(validation)
    V = combine([1 / m] * m, validation_grads)
    bias2 = 1 - BETA2**STEP
    P = {k: tuple(g / ((adam_v[peft_name(k, s)].double() / bias2).sqrt() + EPS) for g, s in zip(V[k], "AB")) for k in MODULES}

    core = [{k: w[k][1].T @ w[k][0] for k in MODULES} for w in wires]  # C = g_h^T h
    core_v = [{k: w[k][1].T @ w[k][0] for k in MODULES} for w in validation_wires]
    core_V = {k: sum(c[k] for c in core_v) / m for k in MODULES}
    pool = [{k: (w[k][0].mean(0), w[k][1].mean(0)) for k in MODULES} for w in wires]  # (z [r], g [r])
    pool_v = [{k: (w[k][0].mean(0), w[k][1].mean(0)) for k in MODULES} for w in validation_wires]
    pool_V = {k: tuple(sum(p[k][i] for p in pool_v) / m for i in (0, 1)) for k in MODULES}
    match = lambda a, b, k: ((a[k][0] @ b[k][0]) * (a[k][1] @ b[k][1])).item()

    exact = {part: [dot(V, g, modules) for g in grads] for part, modules in PARTS.items()}
    exact["A"], exact["B"] = ([dot(V, g, MODULES, (side,)) for g in grads] for side in (0, 1))
    exact["byModule"] = {k: [dot(V, g, [k]) for g in grads] for k in MODULES}
    exact["pairs"] = [[dot(g, v) for v in validation_grads] for g in grads]  # [train][validation]
    similarity = dict(
        exact=exact,
        exactAdam={part: [dot(P, g, modules) for g in grads] for part, modules in PARTS.items()},
        core={part: [sum((c[k] * core_V[k]).sum().item() for k in modules) for c in core] for part, modules in PARTS.items()},
        pooled={part: [sum(match(p, pool_V, k) for k in modules) for p in pool] for part, modules in PARTS.items()},
        paper={part: [sum(match(p, v, k) for k in modules for v in pool_v) / m for p in pool] for part, modules in PARTS.items()},
        cosine={part: [dot(V, g, mods) / (size(g, mods) * size(V, mods)) for g in grads] for part, mods in PARTS.items()},
    )
    weights = {kind: maps(values["all"]) for kind, values in similarity.items()}

    # acceptance 1: central finite differences of l_i along V, one difference for all of A and B
    epsilon = 1e-4 / size(V)
    point.move(V, epsilon)
    above = point.losses(train)
    point.move(V, -2 * epsilon)
    below = point.losses(train)
    point.move(V, epsilon)
    difference = (above - below) / (2 * epsilon)
    u = torch.tensor(exact["all"], dtype=torch.float64)
    error = ((difference - u).abs() / u.abs()).max().item()
    assert error < 1e-4, error

    # acceptance 2: sum_i u_i / n = <mean train gradient, V>
    mean = combine([1 / len(train)] * len(train), grads)
    assert abs(u.mean().item() - dot(mean, V)) < 1e-12 * size(mean) * size(V)
    # acceptance 3: sum_i w_i grad_i = gradient of sum_i w_i l_i in one more (padded) backward
    mixed = combine(weights["exact"]["mix"].tolist(), grads)
    twice = point.gradient(weights["exact"]["mix"] @ point.forward(train))
    gap = {k: tuple(a - b for a, b in zip(mixed[k], twice[k])) for k in MODULES}
    assert size(gap) < 1e-10 * size(mixed), size(gap) / size(mixed)

    norms = {
        part: dict(train=[size(g, mods) for g in grads], validation=[size(g, mods) for g in validation_grads], V=size(V, mods))
        for part, mods in PARTS.items()
    }
    numbers = dict(
        losses=dict(train=[p[0] for p in per_train], validation=[p[0] for p in per_validation]),
        gradientNorms=norms, similarity=similarity, weights=weights,
        finiteDifference=dict(epsilon=epsilon, u=difference, maxRelativeErrorNoise=error),
        meanTrainGradientDotV=dot(mean, V),
        combinedNorms=dict(
            uniform=size(mean),
            **{kind: size(combine(w.tolist(), grads)) for kind, w in weights["exact"].items()},
        ),
    )
    return numbers, dict(V=named(V), combined=named(mixed))


def padding(adapter) -> dict:
    """Acceptance 5: exact and the authors' pooled score at several amounts of extra right padding."""
    point, cases = Point(adapter), []
    for extra in (0, 8, 32):
        lengths = [len(collate(s, extra)[0][0]) for s in (train, validation)]
        V = point.gradient(point.forward(validation, extra).mean())
        losses = point.forward(train, extra)
        exact = [dot(point.gradient(l, keep_graph=True), V) for l in losses]

        def pooled(samples):  # per module z, g [B, r]: means over all T positions, from the batch token-mean loss
            ids, mask, labels = collate(samples, extra)
            grads = point.gradient(batch_loss(point.model(ids, mask), labels))
            return {m: (point.lora[m].h.detach().mean(1), grads[m][2].mean(1)) for m in MODULES}

        v, t = pooled(validation), pooled(train)
        score = lambda m: (t[m][0] @ v[m][0].mean(0)) * (t[m][1] @ v[m][1].mean(0))
        pooled_score = sum(score(m) for m in MODULES)
        cases.append(dict(extra=extra, T=lengths[0], validationT=lengths[1], exact=exact, reference=pooled_score))
    first = cases[0]
    scale = max(map(abs, first["exact"]))
    for case in cases[1:]:
        moved = max(abs(a - b) for a, b in zip(case["exact"], first["exact"])) / scale
        assert moved < 1e-10, moved
        reference = (case["reference"] - first["reference"]).abs().max() / first["reference"].abs().max()
        assert reference > 1e-2, reference
        case["referenceMoved"] = reference
    return dict(adapter="trained", cases=cases)


fresh = make_adapter(seed=21, rank=RANK)
trained = warm_up(fresh, ALPHA / RANK, warm, steps=60)
# second moments of the size that gradients have here, spread over two decades
noise = torch.Generator().manual_seed(5)
adam_v = {k: (10 ** (-6 + 2 * torch.rand(w.shape, generator=noise))).float() for k, w in trained.items()}

points, arrays = {}, prefixed("trained", trained) | prefixed("fresh", fresh) | prefixed("adam_v", adam_v)
for name, adapter in dict(trained=trained, fresh=fresh).items():
    points[name], states = describe(adapter, adam_v)
    for state, values in states.items():
        if name == "fresh":  # grad A is exactly 0 there
            assert all((g == 0).all() for k, g in values.items() if "lora_A" in k)
            values = {k: g for k, g in values.items() if "lora_B" in k}
        if name == "trained" or state == "combined":
            arrays |= prefixed(f"{name}/{state}", values)
zero = points["fresh"]["similarity"]  # acceptance 4
assert all(u == 0 for kind in ("core", "pooled", "paper") for u in zero[kind]["all"]) and all(u == 0 for u in zero["exact"]["A"])
assert all(u != 0 for u in zero["exact"]["B"])

map_cases = [[-1, -2, -3, -4], [1, 2, 3, 4], [0, 0, 0, 0], [3, -1, 0, 2], [-5, 2, 2, -1e-3], [7], [-7], [1e-30, 2e-30, -1e-30]]
weight_maps = [dict(u=[float(x) for x in u], **maps(u)) for u in map_cases]
option_u = torch.tensor([3, -1, 0.5, 2], dtype=torch.float64)
extras = [dict(u=option_u, tau=tau, softmax=softmax(option_u, tau)) for tau in (0.25, 4.0)]
extras += [dict(u=option_u, lam=lam, mix=mix(option_u, lam)) for lam in (0.0, 0.25, 1.0)]

write_fixture(
    "similarity",
    dict(
        about="float64 PyTorch; made by tests/oracle/similarity.py, which defines every quantity",
        model="stories260K", data="mawps_asdiv_svamp_train.jsonl", padId=PAD, rank=RANK, alpha=ALPHA, scale=ALPHA / RANK,
        targets=list(LINEARS), modules=MODULES, adam=dict(beta2=BETA2, step=STEP, bias2=1 - BETA2**STEP, eps=EPS),
        mixLambda=LAMBDA, softmaxTau=TAU, train=train, validation=validation, points=points, padding=padding(trained),
        weightMaps=weight_maps, weightMapOptions=extras,
        modelNoise=check_llama(train),
    ),
    arrays,
)
for name, p in points.items():
    print(name, p["losses"]["train"], p["gradientNorms"]["all"], p["combinedNorms"])
    for kind, values in p["similarity"].items():
        print("  ", kind, [f"{u:.4g}" for u in values["all"]], [f"{w:.3f}" for w in p["weights"][kind]["mix"]])
    print("  finite differences", f"{p['finiteDifference']['maxRelativeErrorNoise']:.1e}")
