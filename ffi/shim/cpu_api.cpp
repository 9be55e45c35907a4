// cpu_api.cpp: the operators of metalora.h on the CPU. Each checks its arguments, then calls the kernel of this machine's
// instruction set. A failed check says what was attempted on which shapes; nothing was written then.
#include "cpu_context.h"

using namespace metalora;

namespace {

const float* floats(ml_ptr p) { return (const float*)p; }
float* floats_out(ml_ptr p) { return (float*)p; }
const int32_t* ints(ml_ptr p) { return (const int32_t*)p; }

// An operand of ml_gemm as the matrix it is in memory.
void check_operand(Call& call, const char* name, ml_ptr p, int32_t dtype, int32_t trans, int64_t rows, int64_t cols, int64_t ld) {
  if (trans != 0 && trans != 1) call.fail("trans_%s is %d, must be 0 or 1", name, trans);
  call.weight_dtype(name, dtype);
  if (trans == 1)
    call.matrix(name, p, cols, rows, ld, dtype_size(dtype));
  else
    call.matrix(name, p, rows, cols, ld, dtype_size(dtype));
}

}  // namespace

extern "C" {

int32_t ml_gemm(ml_ctx* ctx, int32_t trans_a, int32_t trans_b, int32_t M, int32_t N, int32_t K, float alpha, ml_ptr a,
                int32_t a_dtype, int32_t lda, ml_ptr b, int32_t b_dtype, int32_t ldb, float beta, ml_ptr c,
                int32_t c_dtype, int32_t ldc) {
  Call call(ctx, "multiply [%lld,%lld] by [%lld,%lld]", M, K, K, N);
  call.positive("M", M);
  call.positive("N", N);
  call.positive("K", K);
  check_operand(call, "a", a, a_dtype, trans_a, M, K, lda);
  check_operand(call, "b", b, b_dtype, trans_b, K, N, ldb);
  if (c_dtype != ML_F32) call.fail("the dtype of c is %d, must be %d (f32) on the CPU", c_dtype, ML_F32);
  call.matrix("c", c, M, N, ldc, 4);
  if (call.failed()) return call.status();
  ctx->kernels->gemm(ctx->pool, M, N, K, alpha, {a, lda, a_dtype, trans_a == 1, K, 0}, {b, ldb, b_dtype, trans_b == 1, K, 0},
                     beta, floats_out(c), ldc);
  return 0;
}

int32_t ml_embedding_forward(ml_ctx* ctx, int32_t T, int32_t d, int32_t V, ml_ptr table, int32_t wdtype, ml_ptr ids,
                             ml_ptr out, int32_t ldo, int32_t dtype) {
  Call call(ctx, "look up %lld ids in an embedding [%lld,%lld]", T, V, d);
  call.positive("T", T);
  call.positive("d", d);
  call.positive("V", V);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.dense("table", table, V, d, dtype_size(wdtype));
  call.indices("ids", ids, T, 0, V);
  call.matrix("out", out, T, d, ldo, 4);
  if (call.failed()) return call.status();
  ctx->kernels->embedding_forward(ctx->pool, T, d, table, wdtype, ints(ids), floats_out(out), ldo);
  return 0;
}

int32_t ml_rmsnorm_forward(ml_ctx* ctx, int32_t T, int32_t d, float eps, ml_ptr x, ml_ptr delta, ml_ptr weight,
                           ml_ptr sum, ml_ptr y, int32_t ldy, ml_ptr rstd, int32_t dtype) {
  Call call(ctx, "normalise [%lld,%lld]", T, d);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.dense("x", x, T, d, 4);
  if (delta) call.dense("delta", delta, T, d, 4);
  if (delta || sum) call.dense("sum", sum, T, d, 4);
  call.dense("weight", weight, 1, d, 4);
  call.matrix("y", y, T, d, ldy, 4);
  call.dense("rstd", rstd, 1, T, 4);
  if (call.failed()) return call.status();
  ctx->kernels->rmsnorm_forward(ctx->pool, T, d, eps, floats(x), floats(delta), floats(weight), floats_out(sum),
                                floats_out(y), ldy, floats_out(rstd));
  return 0;
}

int32_t ml_rmsnorm_backward(ml_ctx* ctx, int32_t T, int32_t d, ml_ptr x, ml_ptr weight, ml_ptr rstd, ml_ptr dy,
                            int32_t lddy, ml_ptr dx, int32_t dtype) {
  Call call(ctx, "differentiate the norm of [%lld,%lld]", T, d);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.dense("x", x, T, d, 4);
  call.dense("weight", weight, 1, d, 4);
  call.dense("rstd", rstd, 1, T, 4);
  call.matrix("dy", dy, T, d, lddy, 4);
  call.dense("dx", dx, T, d, 4);
  if (call.failed()) return call.status();
  ctx->kernels->rmsnorm_backward(ctx->pool, T, d, floats(x), floats(weight), floats(rstd), floats(dy), lddy, floats_out(dx));
  return 0;
}

int32_t ml_lora_refresh(ml_ctx* ctx, int32_t d_in, int32_t G, const int32_t* groups_host, const float* scales_host,
                        ml_ptr theta, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr a_cast, int32_t dtype) {
  Call call(ctx, "refresh %lld adapters of a linear layer with %lld inputs", G, d_in);
  int64_t N, Q, parameters = 0;
  call.groups(d_in, G, groups_host, &N, &Q);
  call.host("scales", scales_host);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  if (!call.failed()) {
    for (int32_t g = 0; g < G; g++) parameters += groups_host[2 * g + 1] * ((int64_t)d_in + groups_host[2 * g]);
    call.matrix("W", W, N, d_in + Q, ldw, dtype_size(wdtype));
    if (parameters > 0) call.dense("theta", theta, 1, parameters, 4);
    if (a_cast) call.dense("a_cast", a_cast, Q, d_in, 4);
  }
  if (call.failed()) return call.status();
  ctx->kernels->lora_refresh(ctx->pool, d_in, G, (const Group*)groups_host, scales_host, floats(theta), W, wdtype, ldw);
  if (a_cast && a_cast != theta) return ml_copy(ctx, a_cast, theta, (uint64_t)(Q * d_in) * 4);
  return 0;
}

int32_t ml_linear_forward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr xh,
                          int32_t ldx, ml_ptr A, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr bias, ml_ptr y,
                          int32_t ldy, int32_t dtype) {
  Call call(ctx, "apply a linear layer of %lld inputs to %lld rows", d_in, T);
  int64_t N, Q;
  call.positive("T", T);
  call.groups(d_in, G, groups_host, &N, &Q);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.matrix("xh", xh, T, d_in + Q, ldx, 4);
  if (Q > 0) call.dense("A", A, Q, d_in, 4);
  call.matrix("W", W, N, d_in + Q, ldw, dtype_size(wdtype));
  if (bias) call.dense("bias", bias, 1, N, 4);
  call.matrix("y", y, T, N, ldy, 4);
  if (call.failed()) return call.status();
  ctx->kernels->linear_forward(ctx->pool, T, d_in, G, (const Group*)groups_host, floats_out(xh), ldx, floats(A), W, wdtype,
                               ldw, floats(bias), floats_out(y), ldy);
  return 0;
}

int32_t ml_linear_backward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr dy,
                           int32_t lddy, ml_ptr A, ml_ptr W, int32_t wdtype, int32_t ldw, int32_t need_dx, ml_ptr gxh,
                           int32_t ldg, int32_t dtype) {
  Call call(ctx, "differentiate a linear layer of %lld inputs on %lld rows", d_in, T);
  int64_t N, Q;
  call.positive("T", T);
  call.groups(d_in, G, groups_host, &N, &Q);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.matrix("dy", dy, T, N, lddy, 4);
  if (Q > 0) call.dense("A", A, Q, d_in, 4);
  call.matrix("W", W, N, d_in + Q, ldw, dtype_size(wdtype));
  call.matrix("gxh", gxh, T, d_in + Q, ldg, 4);
  if (call.failed()) return call.status();
  ctx->kernels->linear_backward(ctx->pool, T, d_in, G, (const Group*)groups_host, floats(dy), lddy, floats(A), W, wdtype, ldw,
                                need_dx != 0, floats_out(gxh), ldg);
  return 0;
}

int32_t ml_segment_outer(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t p, int32_t q, ml_ptr a,
                         int32_t lda, ml_ptr b, int32_t ldb, int32_t dtype, float alpha, float beta, ml_ptr out,
                         int32_t out_stride) {
  Call call(ctx, "form %lld outer products [%lld,%lld]", S, p, q);
  int64_t rows = 0;
  call.positive("S", S);
  call.positive("p", p);
  call.positive("q", q);
  call.activation_dtype(dtype);
  call.offsets("cu_seqlens", cu_seqlens, S, &rows);
  call.matrix("a", a, rows, p, lda, 4);
  call.matrix("b", b, rows, q, ldb, 4);
  call.matrix("out", out, S, (int64_t)p * q, out_stride, 4);
  if (call.failed()) return call.status();
  ctx->kernels->segment_outer(ctx->pool, S, ints(cu_seqlens), p, q, floats(a), lda, floats(b), ldb, alpha, beta,
                              floats_out(out), out_stride);
  return 0;
}

int32_t ml_segment_mean(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t q, ml_ptr a, int32_t lda,
                        int32_t dtype, ml_ptr out, int32_t ld_out) {
  Call call(ctx, "average %lld segments of width %lld", S, q);
  int64_t rows = 0;
  call.positive("S", S);
  call.positive("q", q);
  call.activation_dtype(dtype);
  call.offsets("cu_seqlens", cu_seqlens, S, &rows);
  call.matrix("a", a, rows, q, lda, 4);
  call.matrix("out", out, S, q, ld_out, 4);
  if (call.failed()) return call.status();
  ctx->kernels->segment_mean(ctx->pool, S, ints(cu_seqlens), q, floats(a), lda, floats_out(out), ld_out);
  return 0;
}

int32_t ml_rope(ml_ctx* ctx, int32_t T, int32_t heads, int32_t D, ml_ptr x, int32_t ldx, ml_ptr cos, ml_ptr sin,
                ml_ptr positions, int32_t n_positions, int32_t inverse, int32_t dtype) {
  Call call(ctx, "rotate %lld rows of %lld heads of %lld", T, heads, D);
  call.positive("T", T);
  call.positive("heads", heads);
  call.positive("D", D);
  if (D % 2 != 0) call.fail("D is odd, must be even");
  call.positive("n_positions", n_positions);
  call.activation_dtype(dtype);
  call.matrix("x", x, T, (int64_t)heads * D, ldx, 4);
  call.dense("cos", cos, n_positions, D / 2, 4);
  call.dense("sin", sin, n_positions, D / 2, 4);
  call.indices("positions", positions, T, 0, n_positions);
  if (call.failed()) return call.status();
  ctx->kernels->rope(ctx->pool, T, heads, D, floats_out(x), ldx, floats(cos), floats(sin), ints(positions), inverse != 0);
  return 0;
}

// What both directions of attention share. Returns the rows of the packed stream.
static int64_t check_attention(Call& call, int64_t S, int64_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int64_t H, int64_t K,
                               int64_t D, ml_ptr q, ml_ptr k, ml_ptr v, int64_t ldqkv, ml_ptr out, int64_t ldo, ml_ptr lse,
                               int32_t dtype) {
  int64_t rows = 0;
  call.positive("S", S);
  call.positive("H", H);
  call.positive("K", K);
  call.positive("D", D);
  if (!call.failed() && H % K != 0) call.fail("%lld query heads cannot share %lld key heads evenly", (long long)H, (long long)K);
  call.activation_dtype(dtype);
  if (call.offsets("cu_seqlens", cu_seqlens, S, &rows)) {
    const int32_t* cu = ints(cu_seqlens);
    for (int64_t i = 0; i < S; i++) {
      if (cu[i + 1] - cu[i] > max_length)
        call.fail("segment %lld has %d rows, max_length is %lld", (long long)i, cu[i + 1] - cu[i], (long long)max_length);
    }
  }
  if (kv_lens && call.indices("kv_lens", kv_lens, S, 0, INT32_MAX)) {
    const int32_t* cu = ints(cu_seqlens);
    for (int64_t i = 0; i < S; i++) {
      if (ints(kv_lens)[i] > cu[i + 1] - cu[i])
        call.fail("kv_lens[%lld] is %d, the segment has %d rows", (long long)i, ints(kv_lens)[i], cu[i + 1] - cu[i]);
    }
  }
  call.matrix("q", q, rows, H * D, ldqkv, 4);
  call.matrix("k", k, rows, K * D, ldqkv, 4);
  call.matrix("v", v, rows, K * D, ldqkv, 4);
  call.matrix("out", out, rows, H * D, ldo, 4);
  call.dense("lse", lse, rows, H, 4);
  return rows;
}

int32_t ml_attention_forward(ml_ctx* ctx, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int32_t H,
                             int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv,
                             ml_ptr out, int32_t ldo, ml_ptr lse, int32_t dtype) {
  Call call(ctx, "attend within %lld segments (%lld query heads, %lld key heads of %lld)", S, H, K, D);
  check_attention(call, S, max_length, cu_seqlens, kv_lens, H, K, D, q, k, v, ldqkv, out, ldo, lse, dtype);
  if (call.failed()) return call.status();
  ctx->kernels->attention_forward(ctx->pool, S, ints(cu_seqlens), ints(kv_lens), H, K, D, scale, floats(q), floats(k),
                                  floats(v), ldqkv, floats_out(out), ldo, floats_out(lse));
  return 0;
}

int32_t ml_attention_backward(ml_ctx* ctx, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int32_t H,
                              int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv,
                              ml_ptr out, int32_t ldo, ml_ptr lse, ml_ptr dout, int32_t lddout, ml_ptr dq, ml_ptr dk,
                              ml_ptr dv, int32_t lddqkv, ml_ptr work, int32_t dtype) {
  Call call(ctx, "differentiate attention within %lld segments (%lld query heads, %lld key heads of %lld)", S, H, K, D);
  const int64_t rows = check_attention(call, S, max_length, cu_seqlens, kv_lens, H, K, D, q, k, v, ldqkv, out, ldo, lse, dtype);
  call.matrix("dout", dout, rows, (int64_t)H * D, lddout, 4);
  call.matrix("dq", dq, rows, (int64_t)H * D, lddqkv, 4);
  call.matrix("dk", dk, rows, (int64_t)K * D, lddqkv, 4);
  call.matrix("dv", dv, rows, (int64_t)K * D, lddqkv, 4);
  call.dense("work", work, rows, H, 4);
  if (call.failed()) return call.status();
  ctx->kernels->attention_backward(ctx->pool, S, ints(cu_seqlens), ints(kv_lens), H, K, D, scale, floats(q), floats(k),
                                   floats(v), ldqkv, floats(out), ldo, floats(lse), floats(dout), lddout, floats_out(dq),
                                   floats_out(dk), floats_out(dv), lddqkv, floats_out(work));
  return 0;
}

int32_t ml_swiglu_forward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, ml_ptr y, int32_t ldy, int32_t dtype) {
  Call call(ctx, "gate [%lld,%lld]", T, f);
  call.positive("T", T);
  call.positive("f", f);
  call.activation_dtype(dtype);
  call.dense("gate_up", gate_up, T, 2 * (int64_t)f, 4);
  call.matrix("y", y, T, f, ldy, 4);
  if (call.failed()) return call.status();
  ctx->kernels->swiglu_forward(ctx->pool, T, f, floats(gate_up), floats_out(y), ldy);
  return 0;
}

int32_t ml_swiglu_backward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, ml_ptr dy, int32_t lddy, ml_ptr dgate_up,
                           int32_t dtype) {
  Call call(ctx, "differentiate the gating of [%lld,%lld]", T, f);
  call.positive("T", T);
  call.positive("f", f);
  call.activation_dtype(dtype);
  call.dense("gate_up", gate_up, T, 2 * (int64_t)f, 4);
  call.matrix("dy", dy, T, f, lddy, 4);
  call.dense("dgate_up", dgate_up, T, 2 * (int64_t)f, 4);
  if (call.failed()) return call.status();
  ctx->kernels->swiglu_backward(ctx->pool, T, f, floats(gate_up), floats(dy), lddy, floats_out(dgate_up));
  return 0;
}

uint64_t ml_head_work_bytes(ml_ctx*, int32_t rows, int32_t V, int32_t) {
  return rows > 0 && V > 0 ? (uint64_t)rows * (uint64_t)V * 4 : 0;  // the logits of one chunk
}

int32_t ml_head_cross_entropy(ml_ctx* ctx, int32_t R, int32_t d, int32_t V, ml_ptr x, ml_ptr W, int32_t wdtype,
                              int32_t ldw, ml_ptr labels, ml_ptr seeds, ml_ptr losses, ml_ptr argmax, ml_ptr dx,
                              ml_ptr work, uint64_t work_bytes, int32_t dtype) {
  Call call(ctx, "compute the loss of %lld rows with a head [%lld,%lld]", R, V, d);
  call.positive("R", R);
  call.positive("d", d);
  call.positive("V", V);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.dense("x", x, R, d, 4);
  call.matrix("W", W, V, d, ldw, dtype_size(wdtype));
  call.indices("labels", labels, R, 0, V);
  call.dense("losses", losses, 1, R, 4);
  if (argmax) call.dense("argmax", argmax, 1, R, 4);
  if (dx) call.dense("seeds", seeds, 1, R, 4);
  if (dx) call.dense("dx", dx, R, d, 4);
  call.bytes("work", work, work_bytes, 4);
  const uint64_t one_row = ml_head_work_bytes(ctx, 1, V, dtype);
  if (!call.failed() && work_bytes < one_row)
    call.fail("work has %llu bytes, one row of logits needs %llu", (unsigned long long)work_bytes, (unsigned long long)one_row);
  if (call.failed()) return call.status();
  // As many rows at a time as work holds, in chunks of about equal size.
  const int64_t rows = R, most = (int64_t)(work_bytes / one_row), chunks = (rows + most - 1) / most;
  ctx->kernels->head_cross_entropy(ctx->pool, R, d, V, floats(x), W, wdtype, ldw, ints(labels), floats(seeds),
                                   floats_out(losses), (int32_t*)argmax, floats_out(dx), floats_out(work),
                                   (rows + chunks - 1) / chunks);
  return 0;
}

int32_t ml_row_dots(ml_ctx* ctx, int32_t n, int32_t P, ml_ptr a, int32_t lda, ml_ptr b, int32_t ldb, ml_ptr out) {
  Call call(ctx, "take %lld inner products of %lld numbers", n, P);
  call.positive("n", n);
  call.positive("P", P);
  call.matrix("a", a, n, P, lda, 4);
  call.matrix("b", b, ldb == 0 ? 1 : n, P, ldb, 4);
  call.dense("out", out, 1, n, 8);
  if (call.failed()) return call.status();
  ctx->kernels->row_dots(ctx->pool, n, P, floats(a), lda, floats(b), ldb, (double*)out);
  return 0;
}

int32_t ml_combine(ml_ctx* ctx, int32_t n, int32_t P, ml_ptr weights, ml_ptr x, int32_t ldx, float beta,
                   ml_ptr y) {
  Call call(ctx, "combine %lld vectors of %lld numbers", n, P);
  call.positive("n", n);
  call.positive("P", P);
  call.dense("weights", weights, 1, n, 4);
  call.matrix("x", x, n, P, ldx, 4);
  call.dense("y", y, 1, P, 4);
  if (call.failed()) return call.status();
  ctx->kernels->combine(ctx->pool, n, P, floats(weights), floats(x), ldx, beta, floats_out(y));
  return 0;
}

int32_t ml_adam_precondition(ml_ctx* ctx, int32_t P, ml_ptr g, ml_ptr v, double bias2, double eps, ml_ptr out) {
  Call call(ctx, "precondition %lld numbers", P);
  call.positive("P", P);
  call.dense("g", g, 1, P, 4);
  call.dense("v", v, 1, P, 4);
  call.dense("out", out, 1, P, 4);
  if (call.failed()) return call.status();
  ctx->kernels->adam_precondition(ctx->pool, P, floats(g), floats(v), bias2, eps, floats_out(out));
  return 0;
}

int32_t ml_adam(ml_ctx* ctx, int32_t P, ml_ptr theta, ml_ptr g, ml_ptr m, ml_ptr v, double lr, double b1, double b2,
                double eps, double weight_decay, double bias1, double bias2, double grad_scale) {
  Call call(ctx, "update %lld parameters", P);
  call.positive("P", P);
  call.dense("theta", theta, 1, P, 4);
  call.dense("g", g, 1, P, 4);
  call.dense("m", m, 1, P, 4);
  call.dense("v", v, 1, P, 4);
  if (call.failed()) return call.status();
  ctx->kernels->adam(ctx->pool, P, floats_out(theta), floats(g), floats_out(m), floats_out(v), lr, b1, b2, eps, weight_decay,
                     bias1, bias2, grad_scale);
  return 0;
}

}  // extern "C"
