// gradients.cpp: the operators of metalora.h that form adapter gradients. They are lists of outer products; each checks its arguments
// as those of api.cpp do.
#include "backend.h"

using namespace metalora;

extern "C" {

int32_t ml_segment_outer(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t p, int32_t q, ml_ptr a,
                         int32_t lda, ml_ptr b, int32_t ldb, ml_ptr row_scale, ml_ptr column_scale, int32_t dtype,
                         float alpha, float beta, ml_ptr out, int32_t out_stride) {
  Call call(base(ctx), "form %lld outer products [%lld,%lld]", S, p, q);
  int64_t rows = 0;
  call.positive("S", S);
  call.positive("p", p);
  call.positive("q", q);
  call.activation_dtype(dtype);
  call.offsets("cu_seqlens", cu_seqlens, S, &rows);
  call.matrix("a", a, rows, p, lda, call.activation_size());
  call.matrix("b", b, rows, q, ldb, call.activation_size());
  if (row_scale) call.dense("row_scale", row_scale, 1, rows, 4);
  if (column_scale) call.dense("column_scale", column_scale, 1, q, 4);
  call.matrix("out", out, S, (int64_t)p * q, out_stride, 4);
  if (call.failed()) return call.status();
  const OuterProduct product = {p, q, a, lda, b, ldb, {row_scale, column_scale}, alpha, out};
  backend::segment_outers(call, *ctx, S, ints(cu_seqlens), &product, 1, beta, out_stride);
  return call.status();
}

int32_t ml_linear_gradients(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t d_in, int32_t G, const int32_t* groups_host,
                            const float* scales_host, ml_ptr x, int32_t ldx, ml_ptr row_scale, ml_ptr column_scale, ml_ptr gh,
                            int32_t ldgh, ml_ptr h, int32_t ldh, ml_ptr dy, int32_t lddy, float beta, ml_ptr out,
                            int32_t out_stride, int32_t dtype) {
  Call call(base(ctx), "form %lld gradients of the adapters of a linear layer with %lld inputs", S, d_in);
  int64_t N, Q, rows = 0;
  call.positive("S", S);
  call.groups(d_in, G, groups_host, &N, &Q);
  call.host("scales", scales_host);
  call.activation_dtype(dtype);
  call.offsets("cu_seqlens", cu_seqlens, S, &rows);
  if (call.failed()) return call.status();
  if (Q == 0) return 0;
  if (x) {
    call.matrix("x", x, rows, d_in, ldx, call.activation_size());
    call.matrix("gh", gh, rows, Q, ldgh, call.activation_size());
    if (row_scale) call.dense("row_scale", row_scale, 1, rows, 4);
    if (column_scale) call.dense("column_scale", column_scale, 1, d_in, 4);
  }
  if (dy) {
    call.matrix("dy", dy, rows, N, lddy, call.activation_size());
    call.matrix("h", h, rows, Q, ldh, call.activation_size());
  }
  OuterProduct products[1 + MOST_GROUPS];
  int count = 0;
  const int64_t size = call.activation_size();
  float* to = (float*)out;
  if (x) products[count++] = {Q, d_in, gh, ldgh, x, ldx, {row_scale, column_scale}, 1, to};
  to += Q * d_in;
  int64_t n = 0, q = 0;
  for (int32_t g = 0; g < G; g++) {
    const int64_t d_out = groups_host[2 * g], r = groups_host[2 * g + 1];
    if (dy && r > 0) products[count++] = {d_out, r, (const char*)dy + n * size, lddy, (const char*)h + q * size, ldh, {}, scales_host[g], to};
    to += d_out * r;
    n += d_out, q += r;
  }
  call.matrix("out", out, S, to - (float*)out, out_stride, 4);
  if (call.failed()) return call.status();
  backend::segment_outers(call, *ctx, S, ints(cu_seqlens), products, count, beta, out_stride);
  return call.status();
}

// What a step back through an activation is told beside its own matrices: sizes, segments, and dL/d(its output).
static void check_step_back(Call& call, int64_t T, int64_t f, int64_t S, ml_ptr cu_seqlens, ml_ptr dy, int64_t lddy, int32_t dtype) {
  int64_t rows = 0;
  call.positive("T", T);
  call.positive("f", f);
  call.positive("S", S);
  call.activation_dtype(dtype);
  if (call.offsets("cu_seqlens", cu_seqlens, S, &rows) && rows > T)
    call.fail("cu_seqlens ends at row %lld of %lld", (long long)rows, (long long)T);
  call.matrix("dy", dy, T, f, lddy, call.activation_size());
}

// A narrow side [T, r] and the gradients [S, r f] that are made with it, of rank 0 none.
static void check_side(Call& call, const char* side, ml_ptr rows, int64_t T, int64_t r, int64_t ld, const char* name, ml_ptr out, int64_t S,
                       int64_t f, int64_t out_stride) {
  if (r == 0) return;
  call.matrix(side, rows, T, r, ld, call.activation_size());
  call.matrix(name, out, S, r * f, out_stride, 4);
}

int32_t ml_swiglu_gradients(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr dy, int32_t lddy, int32_t S,
                            ml_ptr cu_seqlens, int32_t r_y, ml_ptr gh, int32_t ldgh, ml_ptr out_y, int32_t r_gate, int32_t r_up,
                            ml_ptr h, int32_t ldh, float s_gate, float s_up, ml_ptr out_gate, float beta, int32_t out_stride,
                            int32_t dtype) {
  Call call(base(ctx), "differentiate the gating of [%lld,%lld] and form %lld gradients of its adapters", T, f, S);
  call.at_least("r_y", r_y, 0, "a rank");
  call.at_least("r_gate", r_gate, 0, "a rank");
  call.at_least("r_up", r_up, 0, "a rank");
  check_step_back(call, T, f, S, cu_seqlens, dy, lddy, dtype);
  call.matrix("gate_up", gate_up, T, 2 * (int64_t)f, ldg, call.activation_size());
  check_side(call, "gh", gh, T, r_y, ldgh, "out_y", out_y, S, f, out_stride);
  check_side(call, "h", h, T, (int64_t)r_gate + r_up, ldh, "out_gate", out_gate, S, f, out_stride);
  if (call.failed()) return call.status();
  const int64_t size = call.activation_size();
  const NarrowSide y = {r_y, gh, ldgh, out_y, 1}, gate = {r_gate, h, ldh, out_gate, s_gate};
  const NarrowSide up = {r_up, (const char*)h + r_gate * size, ldh, (float*)out_gate + (int64_t)r_gate * f, s_up};
  if (backend::swiglu_gradients(call, *ctx, T, f, gate_up, ldg, dy, lddy, S, ints(cu_seqlens), y, gate, up, beta, out_stride))
    return call.status();
  // No kernel does it at once: y takes dy's place, and every gradient reads its side again.
  backend::swiglu_backward(call, *ctx, T, f, gate_up, ldg, dy, lddy, gate_up, r_y > 0 ? dy : nullptr);
  OuterProduct products[3];
  int count = 0;
  if (y.r > 0) products[count++] = {r_y, f, gh, ldgh, dy, lddy, {}, 1, out_y};
  if (gate.r > 0) products[count++] = {f, r_gate, gate_up, ldg, h, ldh, {}, s_gate, out_gate};
  if (up.r > 0) products[count++] = {f, r_up, (const char*)gate_up + f * size, ldg, up.rows, ldh, {}, s_up, up.out};
  if (count > 0) backend::segment_outers(call, *ctx, S, ints(cu_seqlens), products, count, beta, out_stride);
  return call.status();
}

int32_t ml_relu_gradients(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr y, int32_t ldy, ml_ptr dy, int32_t lddy, int32_t S,
                          ml_ptr cu_seqlens, int32_t r_y, ml_ptr gh, int32_t ldgh, ml_ptr out_y, int32_t r_x, ml_ptr h, int32_t ldh,
                          float s, ml_ptr out_x, float beta, int32_t out_stride, int32_t dtype) {
  Call call(base(ctx), "differentiate the rectifier of [%lld,%lld] and form %lld gradients of its adapters", T, f, S);
  call.at_least("r_y", r_y, 0, "a rank");
  call.at_least("r_x", r_x, 0, "a rank");
  check_step_back(call, T, f, S, cu_seqlens, dy, lddy, dtype);
  call.matrix("y", y, T, f, ldy, call.activation_size());
  check_side(call, "gh", gh, T, r_y, ldgh, "out_y", out_y, S, f, out_stride);
  check_side(call, "h", h, T, r_x, ldh, "out_x", out_x, S, f, out_stride);
  if (call.failed()) return call.status();
  const NarrowSide behind = {r_y, gh, ldgh, out_y, 1}, before = {r_x, h, ldh, out_x, s};
  if (backend::relu_gradients(call, *ctx, T, f, y, ldy, dy, lddy, S, ints(cu_seqlens), behind, before, beta, out_stride))
    return call.status();
  // No kernel does it at once: y is read before dx takes its place.
  const OuterProduct first = {r_y, f, gh, ldgh, y, ldy, {}, 1, out_y}, second = {f, r_x, y, ldy, h, ldh, {}, s, out_x};
  if (r_y > 0) backend::segment_outers(call, *ctx, S, ints(cu_seqlens), &first, 1, beta, out_stride);
  backend::relu_backward(call, *ctx, T, f, y, ldy, dy, lddy);
  if (r_x > 0) backend::segment_outers(call, *ctx, S, ints(cu_seqlens), &second, 1, beta, out_stride);
  return call.status();
}

}  // extern "C"
