"""Makes tests/fixtures/operators.safetensors: one small case after another for every operator of ffi/metalora.h.

Inputs are drawn in float32, every expected value is computed by PyTorch in float64 with autograd and rounded once, so a
test that fails disagrees with the mathematics and not with another float32 program.

    python tests/oracle/operators.py        # needs torch, safetensors; the seed is fixed

A tensor is named "<case>/<tensor>"; the metadata key "cases" holds a JSON list of {"name", "op", scalars...}.
Letters are those of ffi/metalora.h.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

torch.manual_seed(20240607)
tensors: dict[str, torch.Tensor] = {}
cases: list[dict] = []


def case(name: str, op: str, tensors_of_case: dict, **scalars) -> None:
    for key, value in tensors_of_case.items():
        if value.dtype == torch.float64 and not key.endswith("64"):
            value = value.float()
        tensors[f"{name}/{key}"] = value.detach().clone().contiguous()
    cases.append({"name": name, "op": op, **scalars})


def randn(*shape, scale=1.0):
    """float32 values, kept to 11 significant bits so that inputs are exact in f16 too (they are stored that way)."""
    return (torch.randn(*shape) * scale).half().float()


def bf16(x):
    return x.bfloat16().float()


def f64(*xs, grad=False):
    out = [x.double().requires_grad_(grad) for x in xs]
    return out if len(out) > 1 else out[0]


def half(x):
    """Stores an input exactly in two bytes."""
    assert torch.equal(x.half().float(), x)
    return x.half()


def offsets(lengths):
    return torch.tensor([0] + lengths).cumsum(0).int()


# ---- embedding ----------------------------------------------------------------------------------------------------
for name, (V, d) in {"embedding": (11, 7), "embedding_wide": (5, 48)}.items():
    table = bf16(randn(V, d))
    ids = torch.randint(0, V, (9,)).int()
    ids[0], ids[-1] = V - 1, 0
    case(name, "embedding", dict(table=table, ids=ids, out=table[ids.long()]), T=9, d=d, V=V)

# ---- rmsnorm: y = s / sqrt(mean(s^2) + eps) * w, s = x + delta ---------------------------------------------------------
for name, (T, d, eps, has_delta) in {
    "rmsnorm": (7, 16, 1e-5, False),
    "rmsnorm_residual": (5, 80, 1e-6, True),
    "rmsnorm_odd": (3, 67, 1e-5, True),
    "rmsnorm_row": (1, 5, 1e-2, False),
}.items():
    x, weight, dy, dx0 = randn(T, d), randn(d), randn(T, d), randn(T, d)
    delta = randn(T, d) if has_delta else torch.zeros(T, d)
    s = (x + delta).double().requires_grad_(True)
    rstd = 1 / torch.sqrt((s * s).mean(-1) + eps)
    y = s * rstd[:, None] * weight.double()
    (y * dy.double()).sum().backward()
    case(name, "rmsnorm",
         dict(x=half(x), delta=half(delta), weight=half(weight), sum=s, y=y, rstd=rstd, dy=half(dy), dx0=half(dx0),
              dx=dx0.double() + s.grad),
         T=T, d=d, eps=eps, delta=has_delta)


# ---- rope: Hugging Face Llama, x' = x cos + rotate_half(x) sin -----------------------------------------------------------
def rope_tables(n, D, theta=10000.0):
    inverse = theta ** (-torch.arange(0, D, 2).double() / D)
    angles = torch.arange(n).double()[:, None] * inverse[None]
    return angles.cos().float(), angles.sin().float()


for name, (T, heads, D, n) in {"rope": (6, 3, 8, 16), "rope_64": (5, 2, 64, 40), "rope_80": (4, 1, 80, 9), "rope_2": (3, 2, 2, 4)}.items():
    cos, sin = rope_tables(n, D)
    positions = torch.randint(0, n, (T,)).int()
    x, dy = f64(randn(T, heads, D), grad=True), randn(T, heads, D)
    c, s = [torch.cat([t, t], -1).double()[positions.long()][:, None] for t in (cos, sin)]
    rotated = torch.cat([-x[..., D // 2:], x[..., : D // 2]], -1)
    y = x * c + rotated * s
    (y * dy.double()).sum().backward()
    case(name, "rope", dict(x=half(x.float()), cos=cos, sin=sin, positions=positions, y=y, dy=half(dy), dx=x.grad),
         T=T, heads=heads, D=D, n=n)

# ---- attention: causal within segments, grouped-query ------------------------------------------------------------------
for name, (lengths, H, K, D, kv_lens) in {
    "attention_mha_8": ([1, 5, 17], 2, 2, 8, None),
    "attention_gqa2_8": ([150, 2, 1, 66], 2, 1, 8, None),
    "attention_gqa3_64": ([1, 33, 6], 3, 1, 64, None),
    "attention_gqa8_16": ([9, 20], 8, 1, 16, None),
    "attention_gqa2_80": ([3, 1, 18], 4, 2, 80, None),
    "attention_one_80": ([70], 1, 1, 80, None),
    "attention_kv_lens": ([7, 20, 5, 90], 3, 1, 8, [4, 20, 1, 70]),
    "attention_2": ([5, 4], 2, 2, 2, None),
    "attention_6": ([37], 1, 1, 6, None),
}.items():
    T, scale = sum(lengths), 1 / math.sqrt(D)
    q, k, v = f64(randn(T, H, D, scale=2.0), randn(T, K, D), randn(T, K, D), grad=True)
    dout = randn(T, H, D)
    outs, lses = [], []
    for i, n in enumerate(lengths):
        at = slice(sum(lengths[:i]), sum(lengths[:i]) + n)
        visible = torch.ones(n, n, dtype=torch.bool).tril()
        if kv_lens:
            visible[:, kv_lens[i]:] = False
        ks, vs = k[at].repeat_interleave(H // K, 1), v[at].repeat_interleave(H // K, 1)
        scores = torch.einsum("qhd,khd->hqk", q[at], ks) * scale
        scores = scores.masked_fill(~visible, -math.inf)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), vs))
        lses.append(scores.logsumexp(-1).T)
    out, lse = torch.cat(outs), torch.cat(lses)
    (out * dout.double()).sum().backward()
    tensors_of_case = dict(q=half(q.float()), k=half(k.float()), v=half(v.float()), cu=offsets(lengths), out=out, lse=lse,
                           dout=half(dout), dq=q.grad, dk=k.grad, dv=v.grad)
    if kv_lens:
        tensors_of_case["kv_lens"] = torch.tensor(kv_lens).int()
    case(name, "attention", tensors_of_case, T=T, S=len(lengths), H=H, K=K, D=D, scale=scale, max_length=max(lengths))

# ---- swiglu: y = silu(gate) * up ------------------------------------------------------------------------------------
for name, (T, f, spread) in {"swiglu": (5, 7, 1.0), "swiglu_33": (3, 33, 3.0), "swiglu_saturated": (2, 40, 60.0)}.items():
    gate, up, dy = randn(T, f, scale=spread), randn(T, f), randn(T, f)
    g, u = f64(gate, up, grad=True)
    y = g * torch.sigmoid(g) * u
    (y * dy.double()).sum().backward()
    case(name, "swiglu",
         dict(gate_up=half(torch.cat([gate, up], 1)), y=y, dy=half(dy), dgate_up=torch.cat([g.grad, u.grad], 1)), T=T, f=f)

# ---- head and cross-entropy ------------------------------------------------------------------------------------------
for name, (R, d, V, spread) in {"head": (7, 16, 101, 0.5), "head_peaked": (5, 24, 33, 4.0), "head_one": (1, 3, 2, 1.0)}.items():
    x, W = randn(R, d), bf16(randn(V, d, scale=spread))
    labels, seeds = torch.randint(0, V, (R,)).int(), torch.rand(R).half().float()
    xg = f64(x, grad=True)
    logits = xg @ W.double().T
    losses = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none")
    (losses * seeds.double()).sum().backward()
    case(name, "head", dict(x=half(x), W=W, labels=labels, seeds=half(seeds), losses=losses, argmax=logits.argmax(-1).int(), dx=xg.grad),
         R=R, d=d, V=V)

# ---- linear with adapters: y = x W^T + s h B^T + b, h = x A^T ------------------------------------------------------------
for name, (T, d_in, groups, scales, has_bias) in {
    "linear_plain": (5, 9, [(7, 0)], [0.0], True),
    "linear_one": (6, 12, [(10, 3)], [2.0], False),
    "linear_qkv": (9, 16, [(16, 4), (8, 2), (8, 3)], [0.5, 1.0, 2.0], True),
    "linear_gate_up": (11, 24, [(19, 8), (19, 8)], [2.0, 2.0], False),
    "linear_partial": (4, 33, [(16, 4), (5, 0), (8, 1)], [0.25, 0.0, 3.0], True),
    "linear_row": (1, 40, [(24, 16)], [1.0], False),
}.items():
    N, Q = sum(n for n, _ in groups), sum(r for _, r in groups)
    x, W, dy = randn(T, d_in), bf16(randn(N, d_in, scale=d_in**-0.5)), randn(T, N)
    bias = randn(N) if has_bias else torch.zeros(N)
    A = [randn(r, d_in, scale=d_in**-0.5) for _, r in groups]
    B = [bf16(randn(n, r)) for n, r in groups]
    xg, Ag, Bg = f64(x, grad=True), [f64(a, grad=True) for a in A], [f64(b, grad=True) for b in B]
    hs = [xg @ a.T for a in Ag]
    for h in hs:
        h.retain_grad()
    w_parts = W.double().split([n for n, _ in groups])
    y = torch.cat([xg @ w.T + s * (h @ b.T) for w, s, h, b in zip(w_parts, scales, hs, Bg)], 1) + bias.double()
    (y * dy.double()).sum().backward()
    zero = lambda t: torch.zeros_like(t) if t.grad is None else t.grad  # noqa: E731 — rank 0 takes no part in the graph
    case(name, "linear",
         dict(x=half(x), W=W, bias=bias, theta=torch.cat([t.flatten() for t in A + B]) if Q else torch.zeros(1), dy=half(dy), y=y,
              h=torch.cat(hs, 1), gh=torch.cat([zero(h) for h in hs], 1), dx=xg.grad,
              dtheta=torch.cat([zero(t).flatten() for t in Ag + Bg]) if Q else torch.zeros(1)),
         T=T, d_in=d_in, N=N, Q=Q, groups=groups, scales=scales, bias=has_bias,
         exact_in_bf16=all(torch.equal(s * b, bf16(s * b)) for s, b in zip(scales, B)))

# ---- sums over segments ------------------------------------------------------------------------------------------------
for name, (lengths, p, q, alpha, beta) in {
    "segment_small": ([3, 1, 5], 2, 7, 1.0, 0.0),
    "segment_wide": ([4, 9], 8, 50, 0.5, 1.0),
    "segment_tall": ([13, 2, 1], 33, 4, -2.0, 0.25),
}.items():
    T, S, cu = sum(lengths), len(lengths), offsets(lengths)
    a, b, out0 = randn(T, p), randn(T, q), randn(S, p, q)
    rows = [slice(cu[i], cu[i + 1]) for i in range(S)]
    outer = torch.stack([alpha * a[i].double().T @ b[i].double() for i in rows]) + beta * out0.double()
    mean = torch.stack([b[i].double().mean(0) for i in rows])
    total = torch.stack([b[i, 0].double().sum() for i in rows])
    case(name, "segment", dict(cu=cu, a=half(a), b=half(b), out0=half(out0), outer=outer, mean=mean, total64=total),
         S=S, T=T, p=p, q=q, alpha=alpha, beta=beta)

# ---- flat vectors ------------------------------------------------------------------------------------------------------
for name, (n, P) in {"vector": (3, 1003), "vector_short": (5, 6), "vector_one": (1, 64)}.items():
    a, b, weights, y0 = randn(n, P), randn(n, P), randn(n), randn(P)
    case(name, "vector",
         dict(a=half(a), b=half(b), weights=half(weights), y0=half(y0), dots64=(a.double() * b.double()).sum(1),
              shared64=(a.double() * b[0].double()).sum(1), norms64=(a.double() ** 2).sum(1),
              combined=0.75 * y0.double() + weights.double() @ a.double()),
         n=n, P=P, beta=0.75)

for name, (P, lr, betas, eps, decay) in {"adam": (203, 1e-2, (0.9, 0.95), 1e-8, 0.0), "adamw": (37, 3e-3, (0.8, 0.999), 1e-6, 0.1)}.items():
    steps, grad_scale = 5, 0.5
    theta0, grads = randn(P), randn(steps, P)
    theta = torch.nn.Parameter(theta0.double())
    optimizer = torch.optim.AdamW([theta], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    trajectory = []
    for g in grads:
        theta.grad = g.double() * grad_scale
        optimizer.step()
        trajectory.append(theta.detach().clone())
    state = optimizer.state[theta]
    bias2 = 1 - betas[1] ** steps
    g = randn(P)
    case(name, "adam",
         dict(theta0=half(theta0), grads=half(grads), thetas=torch.stack(trajectory), m=state["exp_avg"], v=state["exp_avg_sq"], g=half(g),
              preconditioned=g.double() / ((state["exp_avg_sq"] / bias2).sqrt() + eps)),
         P=P, steps=steps, lr=lr, b1=betas[0], b2=betas[1], eps=eps, weight_decay=decay, grad_scale=grad_scale)

# Cases that came later stand here, so that the numbers drawn for those above stay what they were.

# ---- embedding with learned positions: out = table[ids] + places[positions] -------------------------------------------------
for name, (V, n, d) in {"places": (11, 6, 7), "places_wide": (5, 40, 48)}.items():
    table, places = bf16(randn(V, d)), bf16(randn(n, d))
    ids, positions = torch.randint(0, V, (9,)).int(), torch.randint(0, n, (9,)).int()
    positions[0], positions[-1] = n - 1, 0
    case(name, "places", dict(table=table, places=places, ids=ids, positions=positions, out=table[ids.long()] + places[positions.long()]),
         T=9, d=d, V=V, n=n)

# ---- layernorm of s = x + delta + delta_bias --------------------------------------------------------------------------------
for name, (T, d, eps, has_delta, shift) in {
    "layernorm": (7, 16, 1e-5, False, 0.0),
    "layernorm_residual": (5, 80, 1e-5, True, 0.0),
    "layernorm_odd": (3, 67, 1e-5, True, 3.0),
    "layernorm_row": (1, 5, 1e-2, False, -20.0),
}.items():
    x, weight, bias, dy, dx0 = randn(T, d) + shift, randn(d), randn(d), randn(T, d), randn(T, d)
    delta, delta_bias = (randn(T, d), randn(d)) if has_delta else (torch.zeros(T, d), torch.zeros(d))
    s = (x.half().double() + delta.double() + delta_bias.double()).requires_grad_(True)
    y = torch.nn.functional.layer_norm(s, (d,), weight.double(), bias.double(), eps)
    (y * dy.double()).sum().backward()
    mean, variance = s.mean(-1), s.var(-1, unbiased=False)
    case(name, "layernorm",
         dict(x=x.half(), delta=half(delta), delta_bias=half(delta_bias), weight=half(weight), bias=half(bias), sum=s, y=y,
              stats=torch.stack([mean, 1 / torch.sqrt(variance + eps)], -1), dy=half(dy), dx0=half(dx0), dx=dx0.double() + s.grad),
         T=T, d=d, eps=eps, delta=has_delta)

# ---- relu: y = max(x + b, 0) ------------------------------------------------------------------------------------------------
for name, (T, f, has_bias) in {"relu": (5, 7, False), "relu_bias": (3, 33, True), "relu_wide": (9, 48, True)}.items():
    x, bias, dy = randn(T, f), randn(f) if has_bias else torch.zeros(f), randn(T, f)
    x[0, 0], bias[0] = 0.0, 0.0  # its slope is 0 there
    z = f64(x, grad=True)
    y = torch.relu(z + bias.double())
    (y * dy.double()).sum().backward()
    case(name, "relu", dict(x=half(x), bias=half(bias), y=y, dy=half(dy), dx=z.grad), T=T, f=f, bias=has_bias)

path = Path(__file__).parent.parent / "fixtures" / "operators.safetensors"
save_file(tensors, str(path), metadata={"cases": json.dumps(cases)})
print(f"{path.name}: {len(cases)} cases, {len(tensors)} tensors, {path.stat().st_size / 1024:.0f} KiB")
