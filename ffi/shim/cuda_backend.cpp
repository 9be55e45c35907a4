// cuda_backend.cpp: the GPU's side of backend.h: products go to cuBLAS, everything else to kernels/cuda.
#include "cuda_device.h"
#include "cuda_products.h"

namespace metalora {

using cuda::bf16;

namespace {

const bf16* in(const void* p) { return (const bf16*)p; }
bf16* out_(void* p) { return (bf16*)p; }
const float* f32(const void* p) { return (const float*)p; }
float* f32_out(void* p) { return (float*)p; }

void product(Call& call, ml_ctx& ctx, int64_t M, int64_t N, int64_t K, float alpha, const void* a, int64_t lda, bool trans_a, const void* b,
             int64_t ldb, bool trans_b, float beta, void* c, int32_t c_dtype, int64_t ldc) {
  product(call, ctx, {M, N, K, a, lda, trans_a, b, ldb, trans_b, alpha, beta, c, c_dtype, ldc});
}

int64_t rank_of(int32_t G, const Group* groups) {
  int64_t Q = 0;
  for (int32_t g = 0; g < G; g++) Q += groups[g].r;
  return Q;
}

int64_t outputs_of(int32_t G, const Group* groups) {
  int64_t N = 0;
  for (int32_t g = 0; g < G; g++) N += groups[g].d_out;
  return N;
}

}  // namespace

namespace backend {

void gemm(Call& call, ml_ctx& ctx, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta, void* c, int32_t c_dtype,
          int64_t ldc) {
  product(call, ctx, M, N, K, alpha, a.data, a.ld, a.trans, b.data, b.ld, b.trans, beta, c, c_dtype, ldc);
}

void embedding_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, int64_t V, const void* table, int32_t, const int32_t* ids,
                       const void* places, const int32_t* positions, void* out, int64_t ldo) {
  if (!enter(call, ctx)) return;
  launched(call, ctx, cuda::embedding_forward(ctx.on, T, d, V, in(table), ids, in(places), positions, out_(out), ldo, ctx.fault));
}

void gather_rows(Call& call, ml_ctx& ctx, int64_t R, int64_t d, const void* x, int64_t ldx, const int32_t* rows, void* out, int64_t ldo) {
  if (enter(call, ctx)) launched(call, ctx, cuda::gather_rows(ctx.on, R, d, in(x), ldx, rows, out_(out), ldo));
}

void scatter_rows(Call& call, ml_ctx& ctx, int64_t R, int64_t T, int64_t d, const void* x, int64_t ldx, const int32_t* rows, void* out,
                  int64_t ldo) {
  if (enter(call, ctx)) launched(call, ctx, cuda::scatter_rows(ctx.on, R, T, d, in(x), ldx, rows, out_(out), ldo));
}

void rmsnorm_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, float eps, const void* x, const void* weight, void* y,
                     int64_t ldy, void* rstd) {
  if (enter(call, ctx)) launched(call, ctx, cuda::rmsnorm_forward(ctx.on, T, d, eps, in(x), f32(weight), out_(y), ldy, f32_out(rstd)));
}

void rmsnorm_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, const void* x, const void* weight, const void* rstd, const void* dy,
                      int64_t lddy, void* dx, int64_t lddx) {
  if (!enter(call, ctx)) return;
  launched(call, ctx, cuda::rmsnorm_backward(ctx.on, T, d, in(x), f32(weight), f32(rstd), in(dy), lddy, out_(dx), lddx));
}

void layernorm_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, float eps, const void* x, const void* weight, const void* bias, void* y,
                       int64_t ldy, void* stats) {
  if (!enter(call, ctx)) return;
  launched(call, ctx, cuda::layernorm_forward(ctx.on, T, d, eps, in(x), f32(weight), f32(bias), out_(y), ldy, f32_out(stats)));
}

void layernorm_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, const void* x, const void* weight, const void* bias, const void* stats,
                        const void* dy, int64_t lddy, void* dx, int64_t lddx, void* y, int64_t ldy) {
  if (!enter(call, ctx)) return;
  launched(call, ctx,
           cuda::layernorm_backward(ctx.on, T, d, in(x), f32(weight), f32(bias), f32(stats), in(dy), lddy, out_(dx), lddx, out_(y), ldy));
}

void lora_refresh(Call& call, ml_ctx& ctx, const LoraLayer* layers, int count, int32_t) {
  if (enter(call, ctx)) launched(call, ctx, cuda::lora_refresh(ctx.on, layers, count));
}

// h = x A^T behind x, then one product over K = d_in + Q gives y = x W^T + s h B^T: the adapters are inside it (design, section 4).
void linear_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d_in, int32_t G, const Group* groups, void* xh, int64_t ldx, const void* A,
                    int64_t lda, const void* W, int32_t, int64_t ldw, const void* bias, bool relu, const void* add, int64_t ldadd, void* y, int64_t ldy) {
  const int64_t Q = rank_of(G, groups), N = outputs_of(G, groups);
  if (Q > 0) product(call, ctx, T, Q, d_in, 1, xh, ldx, false, A, lda, true, 0, out_(xh) + d_in, ML_BF16, ldx);
  product(call, ctx, {T, N, d_in + Q, xh, ldx, false, W, ldw, true, 1, 0, y, ML_BF16, ldy, add, ldadd, bias, relu});
}

// g_h = s dY B. With A below W and g_h behind dY, dx = [dY | g_h] [W; A] is one product over K = N + Q: four products of a Llama-2-7B layer
// take 0.5 ms less at 8,192 tokens than with dY W and g_h A added up (H200, tests/bench/gemm_cuda.ts).
void linear_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t d_in, int32_t G, const Group* groups, const void* dy, int64_t lddy,
                     const void* A, int64_t lda, const void* W, int32_t, int64_t ldw, void* dx, int64_t lddx, void* gh, int64_t ldgh) {
  const int64_t Q = rank_of(G, groups), N = outputs_of(G, groups);
  if (Q > 0) product(call, ctx, T, Q, N, 1, dy, lddy, false, in(W) + d_in, ldw, false, 0, gh, ML_BF16, ldgh);
  if (!dx) return;
  const bool one = Q > 0 && A == in(W) + N * ldw && lda == ldw && gh == in(dy) + N && ldgh == lddy;
  product(call, ctx, T, d_in, one ? N + Q : N, 1, dy, lddy, false, W, ldw, false, 0, dx, ML_BF16, lddx);
  if (Q > 0 && !one) product(call, ctx, T, d_in, Q, 1, gh, ldgh, false, A, lda, false, 1, dx, ML_BF16, lddx);
}

void segment_outers(Call& call, ml_ctx& ctx, int64_t S, const int32_t* cu, const OuterProduct* products, int count, float beta,
                    int64_t out_stride) {
  if (enter(call, ctx)) launched(call, ctx, cuda::segment_outers(ctx.on, S, cu, products, count, beta, out_stride));
}

void segment_mean(Call& call, ml_ctx& ctx, int64_t S, const int32_t* cu, int64_t q, const void* a, int64_t lda, void* out, int64_t ld_out) {
  if (enter(call, ctx)) launched(call, ctx, cuda::segment_mean(ctx.on, S, cu, q, in(a), lda, f32_out(out), ld_out));
}

void segment_sum(Call& call, ml_ctx& ctx, int64_t S, const int32_t* row_offsets, const void* values, void* out) {
  if (enter(call, ctx)) launched(call, ctx, cuda::segment_sum(ctx.on, S, row_offsets, f32(values), (double*)out));
}

void rope(Call& call, ml_ctx& ctx, int64_t T, int64_t heads, int64_t D, void* x, int64_t ldx, const void* cos, const void* sin,
          const int32_t* positions, bool inverse) {
  if (enter(call, ctx)) launched(call, ctx, cuda::rope(ctx.on, T, heads, D, out_(x), ldx, f32(cos), f32(sin), positions, inverse));
}

void attention_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                       int64_t H, int64_t K, int64_t D, float scale, const void* q, const void* k, const void* v, int64_t ldqkv, void* out,
                       int64_t ldo, void* lse) {
  if (!enter(call, ctx)) return;
  launched(call, ctx, cuda::attention_forward(ctx.on, T, S, max_length, cu, kv_lens, H, K, D, scale, in(q), in(k), in(v), ldqkv, out_(out),
                                              ldo, f32_out(lse)));
}

void attention_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                        int64_t H, int64_t K, int64_t D, float scale, const void* q, const void* k, const void* v, int64_t ldqkv,
                        const void* out, int64_t ldo, const void* lse, const void* dout, int64_t lddout, void* dq, void* dk, void* dv,
                        int64_t lddqkv, void* work, const void* cos, const void* sin, const int32_t* positions) {
  if (!enter(call, ctx)) return;
  launched(call, ctx,
           cuda::attention_backward(ctx.on, T, S, max_length, cu, kv_lens, H, K, D, scale, in(q), in(k), in(v), ldqkv, in(out), ldo, f32(lse),
                                    in(dout), lddout, out_(dq), out_(dk), out_(dv), lddqkv, f32_out(work), f32(cos), f32(sin), positions));
}

void swiglu_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t f, const void* gate_up, int64_t ldg, void* y, int64_t ldy) {
  if (enter(call, ctx)) launched(call, ctx, cuda::swiglu_forward(ctx.on, T, f, in(gate_up), ldg, out_(y), ldy));
}

void swiglu_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t f, const void* gate_up, int64_t ldg, const void* dy, int64_t lddy, void* dgate_up, void* y) {
  if (enter(call, ctx)) launched(call, ctx, cuda::swiglu_backward(ctx.on, T, f, in(gate_up), ldg, in(dy), lddy, out_(dgate_up), out_(y)));
}

void relu_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t f, void* y, int64_t ldy, const void* dy, int64_t lddy) {
  if (enter(call, ctx)) launched(call, ctx, cuda::relu_backward(ctx.on, T, f, out_(y), ldy, in(dy), lddy));
}

bool swiglu_gradients(Call& call, ml_ctx& ctx, int64_t T, int64_t f, void* gate_up, int64_t ldg, const void* dy, int64_t lddy, int64_t S,
                      const int32_t* cu, const NarrowSide& y, const NarrowSide& gate, const NarrowSide& up, float beta, int64_t out_stride) {
  if (!cuda::swiglu_gradients_fits(f, in(gate_up), ldg, in(dy), lddy, y, gate, up)) return false;
  if (enter(call, ctx))
    launched(call, ctx, cuda::swiglu_gradients(ctx.on, T, f, out_(gate_up), ldg, in(dy), lddy, S, cu, y, gate, up, beta, out_stride));
  return true;
}

bool relu_gradients(Call& call, ml_ctx& ctx, int64_t T, int64_t f, void* y, int64_t ldy, const void* dy, int64_t lddy, int64_t S,
                    const int32_t* cu, const NarrowSide& behind, const NarrowSide& before, float beta, int64_t out_stride) {
  if (!cuda::relu_gradients_fits(f, in(y), ldy, in(dy), lddy, behind, before)) return false;
  if (enter(call, ctx)) launched(call, ctx, cuda::relu_gradients(ctx.on, T, f, out_(y), ldy, in(dy), lddy, S, cu, behind, before, beta, out_stride));
  return true;
}

// Logits of a chunk of rows in f32, loss and gradient in place (dlogits in bf16 over the first half of each row), dx from them.
void head_cross_entropy(Call& call, ml_ctx& ctx, int64_t R, int64_t d, int64_t V, const void* x, const void* W, int32_t, int64_t ldw,
                        const int32_t* labels, const void* seeds, void* losses, int32_t* argmax, void* dx, void* work, int64_t chunk_rows) {
  for (int64_t start = 0; start < R && !call.failed(); start += chunk_rows) {
    const int64_t rows = R - start < chunk_rows ? R - start : chunk_rows;
    product(call, ctx, rows, V, d, 1, in(x) + start * d, d, false, W, ldw, true, 0, work, ML_F32, V);
    if (call.failed()) return;
    launched(call, ctx, cuda::cross_entropy(ctx.on, rows, V, f32_out(work), labels + start, dx ? f32(seeds) + start : nullptr,
                                            f32_out(losses) + start, argmax ? argmax + start : nullptr, dx != nullptr));
    if (dx) product(call, ctx, rows, d, V, 1, work, 2 * V, false, W, ldw, false, 0, out_(dx) + start * d, ML_BF16, d);
  }
}

// As many rows at a time as there is room for their partial sums.
void row_dots(Call& call, ml_ctx& ctx, int64_t n, const Piece* pieces, int count, const void* b, int64_t ldb, void* out) {
  if (!enter(call, ctx)) return;
  const int64_t room = (int64_t)SCRATCH_BYTES / ((int64_t)sizeof(double) * cuda::row_dots_parts(1, pieces, count));
  Piece rows[MOST_PIECES];
  for (int64_t first = 0; first < n && !call.failed(); first += room) {
    for (int i = 0; i < count; i++) {
      rows[i] = pieces[i];
      rows[i].x += first * pieces[i].ld;
    }
    launched(call, ctx,
             cuda::row_dots(ctx.on, n - first < room ? n - first : room, rows, count, b ? f32(b) + first * ldb : nullptr, ldb,
                            (double*)out + first, (double*)ctx.scratch));
  }
}

void combine(Call& call, ml_ctx& ctx, int64_t n, const Piece* pieces, int count, const void* weights, float beta, void* y) {
  if (enter(call, ctx)) launched(call, ctx, cuda::combine(ctx.on, n, pieces, count, f32(weights), beta, f32_out(y)));
}

void adam_precondition(Call& call, ml_ctx& ctx, int64_t P, const void* g, const void* v, double bias2, double eps, void* out) {
  if (enter(call, ctx)) launched(call, ctx, cuda::adam_precondition(ctx.on, P, f32(g), f32(v), bias2, eps, f32_out(out)));
}

void adam(Call& call, ml_ctx& ctx, const Piece* g, int count, void* theta, void* m, void* v, double lr, double b1, double b2, double eps,
          double weight_decay, double bias1, double bias2, double grad_scale) {
  if (!enter(call, ctx)) return;
  launched(call, ctx, cuda::adam(ctx.on, g, count, f32_out(theta), f32_out(m), f32_out(v), lr, b1, b2, eps, weight_decay, bias1, bias2,
                                 grad_scale));
}

}  // namespace backend
}  // namespace metalora
