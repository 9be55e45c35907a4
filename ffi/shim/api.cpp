// api.cpp: the operators of metalora.h. Each checks its arguments, then hands them to the backend of this library (backend.h).
// A failed check says what was attempted on which shapes; nothing was written then.
#include "backend.h"

using namespace metalora;

namespace {

// An operand of ml_gemm as the matrix it is in memory.
void check_operand(Call& call, const char* name, ml_ptr p, int32_t dtype, int32_t trans, int64_t rows, int64_t cols, int64_t ld) {
  if (trans != 0 && trans != 1) call.fail("trans_%s is %d, must be 0 or 1", name, trans);
  call.number_dtype(name, dtype);
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
  Call call(base(ctx), "multiply [%lld,%lld] by [%lld,%lld]", M, K, K, N);
  call.positive("M", M);
  call.positive("N", N);
  call.positive("K", K);
  check_operand(call, "a", a, a_dtype, trans_a, M, K, lda);
  check_operand(call, "b", b, b_dtype, trans_b, K, N, ldb);
  call.product_dtypes(a_dtype, b_dtype, c_dtype);
  call.matrix("c", c, M, N, ldc, dtype_size(c_dtype));
  if (call.failed()) return call.status();
  backend::gemm(call, *ctx, M, N, K, alpha, {a, lda, a_dtype, trans_a == 1, K, 0}, {b, ldb, b_dtype, trans_b == 1, K, 0}, beta, c,
                c_dtype, ldc);
  return call.status();
}

int32_t ml_embedding_forward(ml_ctx* ctx, int32_t T, int32_t d, int32_t V, ml_ptr table, int32_t wdtype, ml_ptr ids,
                             ml_ptr places, ml_ptr positions, int32_t n_positions, ml_ptr out, int32_t ldo, int32_t dtype) {
  Call call(base(ctx), "look up %lld ids in an embedding [%lld,%lld]", T, V, d);
  call.positive("T", T);
  call.positive("d", d);
  call.positive("V", V);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.dense("table", table, V, d, dtype_size(wdtype));
  call.indices("ids", ids, T, 0, V);
  if (places) {
    call.positive("n_positions", n_positions);
    call.dense("places", places, n_positions, d, dtype_size(wdtype));
    call.indices("positions", positions, T, 0, n_positions);
  }
  call.matrix("out", out, T, d, ldo, call.activation_size());
  if (call.failed()) return call.status();
  backend::embedding_forward(call, *ctx, T, d, V, table, wdtype, ints(ids), places, ints(positions), out, ldo);
  return call.status();
}

int32_t ml_rmsnorm_forward(ml_ctx* ctx, int32_t T, int32_t d, float eps, ml_ptr x, ml_ptr weight, ml_ptr y, int32_t ldy,
                           ml_ptr rstd, int32_t dtype) {
  Call call(base(ctx), "normalise [%lld,%lld]", T, d);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.dense("x", x, T, d, call.activation_size());
  call.dense("weight", weight, 1, d, 4);
  call.matrix("y", y, T, d, ldy, call.activation_size());
  call.dense("rstd", rstd, 1, T, 4);
  if (call.failed()) return call.status();
  backend::rmsnorm_forward(call, *ctx, T, d, eps, x, weight, y, ldy, rstd);
  return call.status();
}

int32_t ml_rmsnorm_backward(ml_ctx* ctx, int32_t T, int32_t d, ml_ptr x, ml_ptr weight, ml_ptr rstd, ml_ptr dy,
                            int32_t lddy, ml_ptr dx, int32_t lddx, int32_t dtype) {
  Call call(base(ctx), "differentiate the norm of [%lld,%lld]", T, d);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.dense("x", x, T, d, call.activation_size());
  call.dense("weight", weight, 1, d, 4);
  call.dense("rstd", rstd, 1, T, 4);
  call.matrix("dy", dy, T, d, lddy, call.activation_size());
  call.matrix("dx", dx, T, d, lddx, call.activation_size());
  if (call.failed()) return call.status();
  backend::rmsnorm_backward(call, *ctx, T, d, x, weight, rstd, dy, lddy, dx, lddx);
  return call.status();
}

int32_t ml_layernorm_forward(ml_ctx* ctx, int32_t T, int32_t d, float eps, ml_ptr x, ml_ptr weight, ml_ptr bias, ml_ptr y, int32_t ldy,
                             ml_ptr stats, int32_t dtype) {
  Call call(base(ctx), "normalise [%lld,%lld]", T, d);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.dense("x", x, T, d, call.activation_size());
  call.dense("weight", weight, 1, d, 4);
  call.dense("bias", bias, 1, d, 4);
  call.matrix("y", y, T, d, ldy, call.activation_size());
  call.dense("stats", stats, T, 2, 4);
  if (call.failed()) return call.status();
  backend::layernorm_forward(call, *ctx, T, d, eps, x, weight, bias, y, ldy, stats);
  return call.status();
}

int32_t ml_layernorm_backward(ml_ctx* ctx, int32_t T, int32_t d, ml_ptr x, ml_ptr weight, ml_ptr bias, ml_ptr stats, ml_ptr dy,
                              int32_t lddy, ml_ptr dx, int32_t lddx, ml_ptr y, int32_t ldy, int32_t dtype) {
  Call call(base(ctx), "differentiate the norm of [%lld,%lld]", T, d);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.dense("x", x, T, d, call.activation_size());
  call.dense("weight", weight, 1, d, 4);
  call.dense("bias", bias, 1, d, 4);
  call.dense("stats", stats, T, 2, 4);
  if (dx) call.matrix("dy", dy, T, d, lddy, call.activation_size());
  if (dx) call.matrix("dx", dx, T, d, lddx, call.activation_size());
  if (y) call.matrix("y", y, T, d, ldy, call.activation_size());
  if (call.failed()) return call.status();
  backend::layernorm_backward(call, *ctx, T, d, x, weight, bias, stats, dy, lddy, dx, lddx, y, ldy);
  return call.status();
}

// One layer of the table, checked; in a call of its own, so that the message tells which.
static int32_t read_layer(ml_ctx* ctx, const int64_t* row, const int32_t* groups, const float* scales, int32_t wdtype, int32_t dtype,
                          LoraLayer* layer) {
  *layer = {row[0], (int32_t)row[1], (const Group*)groups, scales, (const float*)row[2], (void*)row[3], row[4], (void*)row[5], row[6]};
  const int64_t d_in = row[0];
  Call call(base(ctx), "refresh %lld adapters of a linear layer with %lld inputs", row[1], d_in);
  int64_t N, Q, parameters = 0;
  call.groups(d_in, layer->G, groups, &N, &Q);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  if (call.failed()) return call.status();
  for (int32_t g = 0; g < layer->G; g++) parameters += groups[2 * g + 1] * (d_in + groups[2 * g]);
  call.matrix("W", layer->W, N, d_in + Q, layer->ldw, dtype_size(wdtype));
  if (parameters > 0) call.dense("theta", (ml_ptr)layer->theta, 1, parameters, 4);
  if (layer->a_cast && Q > 0) call.matrix("a_cast", layer->a_cast, Q, d_in, layer->lda, call.activation_size());
  return call.status();
}

int32_t ml_lora_refresh(ml_ctx* ctx, int32_t m, const int64_t* layers_host, const int32_t* groups_host, const float* scales_host,
                        int32_t wdtype, int32_t dtype) {
  Call call(base(ctx), "refresh the adapters of %lld linear layers", m);
  call.positive("m", m);
  if (m > MOST_LAYERS) call.fail("m is %d, at most %d layers are refreshed at once", m, MOST_LAYERS);
  call.host("layers", layers_host);
  call.host("groups", groups_host);
  call.host("scales", scales_host);
  if (call.failed()) return call.status();
  LoraLayer layers[MOST_LAYERS];
  for (int32_t i = 0; i < m; i++) {
    const int32_t status = read_layer(ctx, layers_host + 7 * i, groups_host, scales_host, wdtype, dtype, &layers[i]);
    if (status != 0) return status;
    groups_host += 2 * layers[i].G;
    scales_host += layers[i].G;
  }
  backend::lora_refresh(call, *ctx, layers, m, wdtype);
  return call.status();
}

int32_t ml_linear_forward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr xh,
                          int32_t ldx, ml_ptr A, int32_t lda, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr bias,
                          int32_t relu, ml_ptr add, int32_t ldadd, ml_ptr y, int32_t ldy, int32_t dtype) {
  Call call(base(ctx), "apply a linear layer of %lld inputs to %lld rows", d_in, T);
  int64_t N, Q;
  call.positive("T", T);
  call.groups(d_in, G, groups_host, &N, &Q);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.matrix("xh", xh, T, d_in + Q, ldx, call.activation_size());
  if (Q > 0) call.matrix("A", A, Q, d_in, lda, call.activation_size());
  call.matrix("W", W, N, d_in + Q, ldw, dtype_size(wdtype));
  if (bias) call.dense("bias", bias, 1, N, call.activation_size());
  if (add) call.matrix("add", add, T, N, ldadd, call.activation_size());
  if (add && relu) call.fail("relu is %d, must be 0 with something to add", relu);
  call.matrix("y", y, T, N, ldy, call.activation_size());
  if (call.failed()) return call.status();
  backend::linear_forward(call, *ctx, T, d_in, G, (const Group*)groups_host, xh, ldx, A, lda, W, wdtype, ldw, bias, relu != 0, add, ldadd, y, ldy);
  return call.status();
}

int32_t ml_linear_backward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr dy,
                           int32_t lddy, ml_ptr A, int32_t lda, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr dx, int32_t lddx,
                           ml_ptr gh, int32_t ldgh, int32_t dtype) {
  Call call(base(ctx), "differentiate a linear layer of %lld inputs on %lld rows", d_in, T);
  int64_t N, Q;
  call.positive("T", T);
  call.groups(d_in, G, groups_host, &N, &Q);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.matrix("dy", dy, T, N, lddy, call.activation_size());
  if (Q > 0) call.matrix("A", A, Q, d_in, lda, call.activation_size());
  call.matrix("W", W, N, d_in + Q, ldw, dtype_size(wdtype));
  if (dx) call.matrix("dx", dx, T, d_in, lddx, call.activation_size());
  if (Q > 0) call.matrix("gh", gh, T, Q, ldgh, call.activation_size());
  if (call.failed()) return call.status();
  backend::linear_backward(call, *ctx, T, d_in, G, (const Group*)groups_host, dy, lddy, A, lda, W, wdtype, ldw, dx, lddx, gh, ldgh);
  return call.status();
}

int32_t ml_segment_mean(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t q, ml_ptr a, int32_t lda,
                        int32_t dtype, ml_ptr out, int32_t ld_out) {
  Call call(base(ctx), "average %lld segments of width %lld", S, q);
  int64_t rows = 0;
  call.positive("S", S);
  call.positive("q", q);
  call.activation_dtype(dtype);
  call.offsets("cu_seqlens", cu_seqlens, S, &rows);
  call.matrix("a", a, rows, q, lda, call.activation_size());
  call.matrix("out", out, S, q, ld_out, 4);
  if (call.failed()) return call.status();
  backend::segment_mean(call, *ctx, S, ints(cu_seqlens), q, a, lda, out, ld_out);
  return call.status();
}

// What rotates heads of D: a row of angles for each position.
static void check_angles(Call& call, int64_t T, int64_t D, ml_ptr cos, ml_ptr sin, ml_ptr positions, int64_t n_positions) {
  if (D % 2 != 0) call.fail("D is odd, must be even");
  call.positive("n_positions", n_positions);
  call.dense("cos", cos, n_positions, D / 2, 4);
  call.dense("sin", sin, n_positions, D / 2, 4);
  call.indices("positions", positions, T, 0, n_positions);
}

int32_t ml_rope(ml_ctx* ctx, int32_t T, int32_t heads, int32_t D, ml_ptr x, int32_t ldx, ml_ptr cos, ml_ptr sin,
                ml_ptr positions, int32_t n_positions, int32_t inverse, int32_t dtype) {
  Call call(base(ctx), "rotate %lld rows of %lld heads of %lld", T, heads, D);
  call.positive("T", T);
  call.positive("heads", heads);
  call.positive("D", D);
  call.activation_dtype(dtype);
  call.matrix("x", x, T, (int64_t)heads * D, ldx, call.activation_size());
  check_angles(call, T, D, cos, sin, positions, n_positions);
  if (call.failed()) return call.status();
  backend::rope(call, *ctx, T, heads, D, x, ldx, cos, sin, ints(positions), inverse != 0);
  return call.status();
}

// What both directions of attention share.
static void check_attention(Call& call, int64_t T, int64_t S, int64_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int64_t H,
                            int64_t K, int64_t D, ml_ptr q, ml_ptr k, ml_ptr v, int64_t ldqkv, ml_ptr out, int64_t ldo, ml_ptr lse,
                            int32_t dtype) {
  int64_t rows = 0;
  call.positive("T", T);
  call.positive("S", S);
  call.positive("H", H);
  call.positive("K", K);
  call.positive("D", D);
  if (!call.failed() && H % K != 0) call.fail("%lld query heads cannot share %lld key heads evenly", (long long)H, (long long)K);
  call.activation_dtype(dtype);
  if (call.offsets("cu_seqlens", cu_seqlens, S, &rows) && call.readable()) {
    if (rows > T) call.fail("cu_seqlens ends at row %lld of %lld", (long long)rows, (long long)T);
    const int32_t* cu = ints(cu_seqlens);
    for (int64_t i = 0; i < S; i++) {
      if (cu[i + 1] - cu[i] > max_length)
        call.fail("segment %lld has %d rows, max_length is %lld", (long long)i, cu[i + 1] - cu[i], (long long)max_length);
    }
  }
  if (kv_lens && call.indices("kv_lens", kv_lens, S, 0, INT32_MAX) && call.readable()) {
    const int32_t* cu = ints(cu_seqlens);
    for (int64_t i = 0; i < S; i++) {
      if (ints(kv_lens)[i] > cu[i + 1] - cu[i])
        call.fail("kv_lens[%lld] is %d, the segment has %d rows", (long long)i, ints(kv_lens)[i], cu[i + 1] - cu[i]);
    }
  }
  call.matrix("q", q, T, H * D, ldqkv, call.activation_size());
  call.matrix("k", k, T, K * D, ldqkv, call.activation_size());
  call.matrix("v", v, T, K * D, ldqkv, call.activation_size());
  call.matrix("out", out, T, H * D, ldo, call.activation_size());
  call.dense("lse", lse, T, H, 4);
}

int32_t ml_attention_forward(ml_ctx* ctx, int32_t T, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int32_t H,
                             int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv,
                             ml_ptr out, int32_t ldo, ml_ptr lse, int32_t dtype) {
  Call call(base(ctx), "attend to %lld rows in %lld segments (%lld query heads, %lld key heads of %lld)", T, S, H, K, D);
  check_attention(call, T, S, max_length, cu_seqlens, kv_lens, H, K, D, q, k, v, ldqkv, out, ldo, lse, dtype);
  if (call.failed()) return call.status();
  backend::attention_forward(call, *ctx, T, S, max_length, ints(cu_seqlens), ints(kv_lens), H, K, D, scale, q, k, v, ldqkv, out,
                             ldo, lse);
  return call.status();
}

int32_t ml_attention_backward(ml_ctx* ctx, int32_t T, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int32_t H,
                              int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv,
                              ml_ptr out, int32_t ldo, ml_ptr lse, ml_ptr dout, int32_t lddout, ml_ptr dq, ml_ptr dk,
                              ml_ptr dv, int32_t lddqkv, ml_ptr work, ml_ptr cos, ml_ptr sin, ml_ptr positions,
                              int32_t n_positions, int32_t dtype) {
  Call call(base(ctx), "differentiate attention to %lld rows in %lld segments (%lld query heads, %lld key heads of %lld)", T, S, H, K, D);
  check_attention(call, T, S, max_length, cu_seqlens, kv_lens, H, K, D, q, k, v, ldqkv, out, ldo, lse, dtype);
  call.matrix("dout", dout, T, (int64_t)H * D, lddout, call.activation_size());
  call.matrix("dq", dq, T, (int64_t)H * D, lddqkv, call.activation_size());
  call.matrix("dk", dk, T, (int64_t)K * D, lddqkv, call.activation_size());
  call.matrix("dv", dv, T, (int64_t)K * D, lddqkv, call.activation_size());
  call.dense("work", work, T, H, 4);
  if (cos) check_angles(call, T, D, cos, sin, positions, n_positions);
  if (call.failed()) return call.status();
  backend::attention_backward(call, *ctx, T, S, max_length, ints(cu_seqlens), ints(kv_lens), H, K, D, scale, q, k, v, ldqkv, out,
                              ldo, lse, dout, lddout, dq, dk, dv, lddqkv, work, cos, sin, ints(positions));
  return call.status();
}

int32_t ml_swiglu_forward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr y, int32_t ldy,
                          int32_t dtype) {
  Call call(base(ctx), "gate [%lld,%lld]", T, f);
  call.positive("T", T);
  call.positive("f", f);
  call.activation_dtype(dtype);
  call.matrix("gate_up", gate_up, T, 2 * (int64_t)f, ldg, call.activation_size());
  call.matrix("y", y, T, f, ldy, call.activation_size());
  if (call.failed()) return call.status();
  backend::swiglu_forward(call, *ctx, T, f, gate_up, ldg, y, ldy);
  return call.status();
}

int32_t ml_swiglu_backward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr dy, int32_t lddy,
                           ml_ptr dgate_up, ml_ptr y, int32_t dtype) {
  Call call(base(ctx), "differentiate the gating of [%lld,%lld]", T, f);
  call.positive("T", T);
  call.positive("f", f);
  call.activation_dtype(dtype);
  call.matrix("gate_up", gate_up, T, 2 * (int64_t)f, ldg, call.activation_size());
  call.matrix("dy", dy, T, f, lddy, call.activation_size());
  call.matrix("dgate_up", dgate_up, T, 2 * (int64_t)f, ldg, call.activation_size());
  if (y) call.matrix("y", y, T, f, lddy, call.activation_size());
  if (call.failed()) return call.status();
  backend::swiglu_backward(call, *ctx, T, f, gate_up, ldg, dy, lddy, dgate_up, y);
  return call.status();
}

int32_t ml_relu_backward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr y, int32_t ldy, ml_ptr dy, int32_t lddy, int32_t dtype) {
  Call call(base(ctx), "differentiate the rectifier of [%lld,%lld]", T, f);
  call.positive("T", T);
  call.positive("f", f);
  call.activation_dtype(dtype);
  call.matrix("y", y, T, f, ldy, call.activation_size());
  call.matrix("dy", dy, T, f, lddy, call.activation_size());
  if (call.failed()) return call.status();
  backend::relu_backward(call, *ctx, T, f, y, ldy, dy, lddy);
  return call.status();
}

int32_t ml_gather_rows(ml_ctx* ctx, int32_t R, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr out, int32_t ldo,
                       int32_t dtype) {
  Call call(base(ctx), "gather %lld rows of %lld", R, d);
  call.positive("R", R);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.matrix("x", x, 1, d, ldx, call.activation_size());
  call.at_least("ldx", ldx, d, "d");
  if (call.failed()) return call.status();
  // x has as many rows as fit into its allocation
  const Allocation* block = base(ctx)->find(x);
  const int64_t there = ((int64_t)((block->data + block->bytes - (char*)x) / call.activation_size()) - d) / ldx + 1;
  call.indices("rows", rows, R, 0, there);
  call.matrix("out", out, R, d, ldo, call.activation_size());
  if (call.failed()) return call.status();
  backend::gather_rows(call, *ctx, R, d, x, ldx, ints(rows), out, ldo);
  return call.status();
}

int32_t ml_scatter_rows(ml_ctx* ctx, int32_t R, int32_t T, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr out,
                        int32_t ldo, int32_t dtype) {
  Call call(base(ctx), "scatter %lld rows of %lld into %lld", R, d, T);
  call.positive("R", R);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.matrix("x", x, R, d, ldx, call.activation_size());
  call.indices("rows", rows, R, 0, T);
  call.matrix("out", out, T, d, ldo, call.activation_size());
  if (call.failed()) return call.status();
  backend::scatter_rows(call, *ctx, R, T, d, x, ldx, ints(rows), out, ldo);
  return call.status();
}

int32_t ml_segment_sum(ml_ctx* ctx, int32_t S, ml_ptr row_offsets, ml_ptr values, ml_ptr out) {
  Call call(base(ctx), "sum the rows of %lld segments", S);
  int64_t rows = 0;
  call.positive("S", S);
  call.offsets("row_offsets", row_offsets, S, &rows);
  call.dense("values", values, 1, rows, 4);
  call.dense("out", out, 1, S, 8);
  if (call.failed()) return call.status();
  backend::segment_sum(call, *ctx, S, ints(row_offsets), values, out);
  return call.status();
}

uint64_t ml_head_work_bytes(ml_ctx*, int32_t rows, int32_t V, int32_t) {
  return rows > 0 && V > 0 ? (uint64_t)rows * (uint64_t)V * 4 : 0;  // the logits of one chunk
}

int32_t ml_head_cross_entropy(ml_ctx* ctx, int32_t R, int32_t d, int32_t V, ml_ptr x, ml_ptr W, int32_t wdtype,
                              int32_t ldw, ml_ptr labels, ml_ptr seeds, ml_ptr losses, ml_ptr argmax, ml_ptr dx,
                              ml_ptr work, uint64_t work_bytes, int32_t dtype) {
  Call call(base(ctx), "compute the loss of %lld rows with a head [%lld,%lld]", R, V, d);
  call.positive("R", R);
  call.positive("d", d);
  call.positive("V", V);
  call.weight_dtype("wdtype", wdtype);
  call.activation_dtype(dtype);
  call.dense("x", x, R, d, call.activation_size());
  call.matrix("W", W, V, d, ldw, dtype_size(wdtype));
  call.indices("labels", labels, R, 0, V);
  call.dense("losses", losses, 1, R, 4);
  if (argmax) call.dense("argmax", argmax, 1, R, 4);
  if (dx) call.dense("seeds", seeds, 1, R, 4);
  if (dx) call.dense("dx", dx, R, d, call.activation_size());
  call.bytes("work", work, work_bytes, 4);
  const uint64_t one_row = ml_head_work_bytes(ctx, 1, V, dtype);
  if (!call.failed() && work_bytes < one_row)
    call.fail("work has %llu bytes, one row of logits needs %llu", (unsigned long long)work_bytes, (unsigned long long)one_row);
  if (call.failed()) return call.status();
  // As many rows at a time as work holds, in chunks of about equal size.
  const int64_t rows = R, most = (int64_t)(work_bytes / one_row), chunks = (rows + most - 1) / most;
  backend::head_cross_entropy(call, *ctx, R, d, V, x, W, wdtype, ldw, ints(labels), seeds, losses, (int32_t*)argmax, dx, work,
                              (rows + chunks - 1) / chunks);
  return call.status();
}

// What the lengths in a table of pieces add up to, as far as there is a table.
static int64_t length_of(int32_t m, const int32_t* table) {
  int64_t P = 0;
  for (int32_t i = 0; table && i < m && i < MOST_PIECES; i++) P += table[3 * i + 2];
  return P;
}

// The table of pieces of n rows behind `base`, checked; their lengths add up to P.
static bool read_pieces(Call& call, const char* name, int64_t n, int32_t m, const int32_t* table, ml_ptr base, Piece (&pieces)[MOST_PIECES],
                        int64_t* P) {
  *P = 0;
  if (!call.positive("n", n) || !call.positive("m", m) || !call.host("pieces", table)) return false;
  if (m > MOST_PIECES) return call.fail("m is %d, at most %d pieces make a row", m, MOST_PIECES);
  for (int32_t i = 0; i < m; i++) {
    const int32_t* entry = table + 3 * i;
    if (!call.at_least("an offset", entry[0], 0, "pieces lie behind the address") || !call.positive("the length of a piece", entry[2])) return false;
    const float* x = (const float*)((const char*)base + (int64_t)entry[0] * 256);
    if (!call.matrix(name, (ml_ptr)x, n, entry[2], entry[1], 4)) return false;
    pieces[i] = {x, entry[1], *P, entry[2]};
    *P += entry[2];
  }
  return *P <= INT32_MAX || call.fail("the pieces hold %lld numbers, at most %d", (long long)*P, INT32_MAX);
}

int32_t ml_row_dots(ml_ctx* ctx, int32_t n, int32_t m, const int32_t* pieces_host, ml_ptr a, ml_ptr b, int32_t ldb, ml_ptr out) {
  Call call(base(ctx), "take %lld inner products of %lld numbers", n, length_of(m, pieces_host));
  Piece pieces[MOST_PIECES];
  int64_t P;
  read_pieces(call, "a", n, m, pieces_host, a, pieces, &P);
  if (b && !call.failed()) call.matrix("b", b, ldb == 0 ? 1 : n, P, ldb, 4);
  call.dense("out", out, 1, n, 8);
  if (call.failed()) return call.status();
  backend::row_dots(call, *ctx, n, pieces, m, b, ldb, (double*)out);
  return call.status();
}

int32_t ml_combine(ml_ctx* ctx, int32_t n, int32_t m, const int32_t* pieces_host, ml_ptr weights, ml_ptr x, float beta, ml_ptr y) {
  Call call(base(ctx), "combine %lld vectors of %lld numbers", n, length_of(m, pieces_host));
  Piece pieces[MOST_PIECES];
  int64_t P;
  read_pieces(call, "x", n, m, pieces_host, x, pieces, &P);
  call.dense("weights", weights, 1, n, 4);
  if (y && !call.failed()) call.dense("y", y, 1, P, 4);
  if (!y && !call.failed() && beta != 0) call.fail("beta is %g, must be 0 where x's first row takes the sum", (double)beta);
  if (call.failed()) return call.status();
  backend::combine(call, *ctx, n, pieces, m, weights, beta, y);
  return call.status();
}

int32_t ml_adam_precondition(ml_ctx* ctx, int32_t P, ml_ptr g, ml_ptr v, double bias2, double eps, ml_ptr out) {
  Call call(base(ctx), "precondition %lld numbers", P);
  call.positive("P", P);
  call.dense("g", g, 1, P, 4);
  call.dense("v", v, 1, P, 4);
  call.dense("out", out, 1, P, 4);
  if (call.failed()) return call.status();
  backend::adam_precondition(call, *ctx, P, g, v, bias2, eps, out);
  return call.status();
}

int32_t ml_adam(ml_ctx* ctx, int32_t P, ml_ptr theta, int32_t n_pieces, const int32_t* pieces_host, ml_ptr g, ml_ptr m, ml_ptr v, double lr,
                double b1, double b2, double eps, double weight_decay, double bias1, double bias2, double grad_scale) {
  Call call(base(ctx), "update %lld parameters", P);
  Piece pieces[MOST_PIECES];
  int64_t length;
  call.positive("P", P);
  call.dense("theta", theta, 1, P, 4);
  if (!call.failed() && read_pieces(call, "g", 1, n_pieces, pieces_host, g, pieces, &length) && length != P)
    call.fail("the pieces of g hold %lld numbers, must hold %d", (long long)length, P);
  call.dense("m", m, 1, P, 4);
  call.dense("v", v, 1, P, 4);
  if (call.failed()) return call.status();
  backend::adam(call, *ctx, pieces, n_pieces, theta, m, v, lr, b1, b2, eps, weight_decay, bias1, bias2, grad_scale);
  return call.status();
}

}  // extern "C"
