// cpu_backend.cpp: the CPU's side of backend.h: operators go to the kernels of this machine's instruction set, memory is the host's.
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cpu_device.h"
#include "cpu_pages.h"

namespace metalora {

namespace {

float bits_to_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

uint32_t float_to_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

float from_bf16(uint16_t h) { return bits_to_float((uint32_t)h << 16); }

// Nearest, ties to even; NaN stays NaN.
uint16_t to_bf16(float x) {
  const uint32_t u = float_to_bits(x);
  if (x != x) return (uint16_t)((u >> 16) | 0x40);
  return (uint16_t)((u + (0x7fff + ((u >> 16) & 1))) >> 16);
}

// Exact: the exponent's bias is corrected by a multiplication, which also normalises subnormal numbers.
float from_f16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = (uint32_t)(h & 0x7fff) << 13;
  if (magnitude >= 0x0f800000) return bits_to_float(sign | 0x7f800000 | magnitude);  // infinity and NaN
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude) * 0x1p112f));
}

void convert_row(int64_t n, const char* src, int32_t src_dtype, char* dst, int32_t dst_dtype) {
  if (src_dtype == dst_dtype) {
    memcpy(dst, src, (size_t)(n * dtype_size(dst_dtype)));
    return;
  }
  for (int64_t j = 0; j < n; j++) {
    uint16_t half = 0;
    float value;
    if (src_dtype == ML_F32) {
      memcpy(&value, src + 4 * j, 4);
    } else {
      memcpy(&half, src + 2 * j, 2);
      value = src_dtype == ML_BF16 ? from_bf16(half) : from_f16(half);
    }
    if (dst_dtype == ML_F32) {
      memcpy(dst + 4 * j, &value, 4);
    } else {
      half = to_bf16(value);
      memcpy(dst + 2 * j, &half, 2);
    }
  }
}

// body(i) for i < rows, on all threads when the rows are long enough in all.
template <class Body>
void each_row(ml_ctx& ctx, int64_t rows, int64_t bytes_a_row, const Body& body) {
  const int64_t rows_a_task = 1 + 65536 / (bytes_a_row + 1);
  struct Shared {
    const Body& body;
    int64_t rows, step;
  } shared = {body, rows, rows_a_task};
  ctx.pool.run(
      (rows + rows_a_task - 1) / rows_a_task,
      [](void* raw, int64_t task, int) {
        const Shared& s = *(const Shared*)raw;
        const int64_t end = (task + 1) * s.step < s.rows ? (task + 1) * s.step : s.rows;
        for (int64_t i = task * s.step; i < end; i++) s.body(i);
      },
      &shared);
}

// Plain copies and fills of any length, in pieces that all threads share.
constexpr int64_t PIECE = 1 << 20;

}  // namespace

namespace backend {

// ---- memory ----------------------------------------------------------------------------------------------------------

char* allocate(Call& call, ml_ctx& ctx, uint64_t bytes, bool) {
  char* data = (char*)pages_map(bytes);
  if (!data) call.fault("the machine's memory is exhausted (%llu bytes are held already)", (unsigned long long)ctx.allocated);
  return data;
}

void release(ml_ctx&, char* data, uint64_t bytes) { pages_unmap(data, bytes); }

void upload(Call&, ml_ctx&, void* dst, const void* src, uint64_t bytes) { memcpy(dst, src, bytes); }

void download(Call&, ml_ctx&, void* dst, const void* src, uint64_t bytes) { memcpy(dst, src, bytes); }

void copy(Call&, ml_ctx& ctx, void* dst, const void* src, uint64_t bytes) {
  each_row(ctx, (int64_t)((bytes + PIECE - 1) / PIECE), PIECE, [=](int64_t i) {
    const uint64_t from = (uint64_t)i * PIECE, left = bytes - from;
    memcpy((char*)dst + from, (const char*)src + from, left < PIECE ? left : PIECE);
  });
}

void zero(Call&, ml_ctx& ctx, void* dst, uint64_t bytes) {
  each_row(ctx, (int64_t)((bytes + PIECE - 1) / PIECE), PIECE, [=](int64_t i) {
    const uint64_t from = (uint64_t)i * PIECE, left = bytes - from;
    memset((char*)dst + from, 0, left < PIECE ? left : PIECE);
  });
}

void upload_2d(Call&, ml_ctx& ctx, int64_t rows, int64_t cols, const void* src, int32_t src_dtype, void* dst, int32_t dst_dtype,
               int64_t ld_dst) {
  const int64_t from = cols * dtype_size(src_dtype), to = ld_dst * dtype_size(dst_dtype);
  each_row(ctx, rows, from, [=](int64_t i) {
    convert_row(cols, (const char*)src + i * from, src_dtype, (char*)dst + i * to, dst_dtype);
  });
}

void copy_2d(Call&, ml_ctx& ctx, int64_t rows, int64_t cols, int64_t size, const void* src, int64_t ld_src, void* dst, int64_t ld_dst) {
  each_row(ctx, rows, cols * size, [=](int64_t i) {
    memmove((char*)dst + i * ld_dst * size, (const char*)src + i * ld_src * size, (size_t)(cols * size));
  });
}

void synchronize(Call&, ml_ctx&) {}

void memory_info(Call&, ml_ctx&, uint64_t* free_bytes, uint64_t* total_bytes) {
  const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  *free_bytes = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * page;
  *total_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * page;
}

// ---- time and graphs -------------------------------------------------------------------------------------------------

void mark(Call&, ml_ctx& ctx, int32_t slot) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  ctx.marks[slot] = 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

void elapsed(Call&, ml_ctx& ctx, int32_t from, int32_t to, double* milliseconds) {
  *milliseconds = ctx.marks[to] - ctx.marks[from];
}

static const char NO_GRAPHS[] = "graphs are for CUDA devices; run the operators themselves";
void graph_begin(Call& call, ml_ctx&) { call.fail(NO_GRAPHS); }
void* graph_end(Call& call, ml_ctx&) { return call.fail(NO_GRAPHS), nullptr; }
void graph_launch(Call& call, ml_ctx&, void*) { call.fail(NO_GRAPHS); }
void graph_free(Call& call, ml_ctx&, void*) { call.fail(NO_GRAPHS); }

// ---- operators -------------------------------------------------------------------------------------------------------

namespace {
const float* in(const void* p) { return (const float*)p; }
float* out_(void* p) { return (float*)p; }
}  // namespace

void gemm(Call&, ml_ctx& ctx, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta, void* c, int32_t, int64_t ldc) {
  ctx.kernels->gemm(ctx.pool, M, N, K, alpha, a, b, beta, out_(c), ldc);
}

void embedding_forward(Call&, ml_ctx& ctx, int64_t T, int64_t d, int64_t, const void* table, int32_t wdtype, const int32_t* ids, const void* places, const int32_t* positions, void* out, int64_t ldo) {
  ctx.kernels->embedding_forward(ctx.pool, T, d, table, wdtype, ids, places, positions, out_(out), ldo);
}

void gather_rows(Call&, ml_ctx& ctx, int64_t R, int64_t d, const void* x, int64_t ldx, const int32_t* rows, void* out, int64_t ldo) {
  each_row(ctx, R, d * 4, [=](int64_t i) { memcpy((float*)out + i * ldo, in(x) + rows[i] * ldx, (size_t)d * 4); });
}

void scatter_rows(Call&, ml_ctx& ctx, int64_t R, int64_t T, int64_t d, const void* x, int64_t ldx, const int32_t* rows, void* out,
                  int64_t ldo) {
  each_row(ctx, T, d * 4, [=](int64_t t) { memset((float*)out + t * ldo, 0, (size_t)d * 4); });
  each_row(ctx, R, d * 4, [=](int64_t i) { memcpy((float*)out + rows[i] * ldo, in(x) + i * ldx, (size_t)d * 4); });
}

void rmsnorm_forward(Call&, ml_ctx& ctx, int64_t T, int64_t d, float eps, const void* x, const void* weight, void* y, int64_t ldy, void* rstd) {
  ctx.kernels->rmsnorm_forward(ctx.pool, T, d, eps, in(x), in(weight), out_(y), ldy, out_(rstd));
}

void rmsnorm_backward(Call&, ml_ctx& ctx, int64_t T, int64_t d, const void* x, const void* weight, const void* rstd, const void* dy, int64_t lddy, void* dx, int64_t lddx) {
  ctx.kernels->rmsnorm_backward(ctx.pool, T, d, in(x), in(weight), in(rstd), in(dy), lddy, out_(dx), lddx);
}

void layernorm_forward(Call&, ml_ctx& ctx, int64_t T, int64_t d, float eps, const void* x, const void* weight, const void* bias, void* y, int64_t ldy, void* stats) {
  ctx.kernels->layernorm_forward(ctx.pool, T, d, eps, in(x), in(weight), in(bias), out_(y), ldy, out_(stats));
}

void layernorm_backward(Call&, ml_ctx& ctx, int64_t T, int64_t d, const void* x, const void* weight, const void* bias, const void* stats, const void* dy, int64_t lddy, void* dx, int64_t lddx, void* y, int64_t ldy) {
  ctx.kernels->layernorm_backward(ctx.pool, T, d, in(x), in(weight), in(bias), in(stats), in(dy), lddy, out_(dx), lddx, out_(y), ldy);
}

void lora_refresh(Call&, ml_ctx& ctx, const LoraLayer* layers, int count, int32_t wdtype) {
  for (int i = 0; i < count; i++) {
    const LoraLayer& layer = layers[i];
    ctx.kernels->lora_refresh(ctx.pool, layer.d_in, layer.G, layer.groups, layer.scales, layer.theta, layer.W, wdtype, layer.ldw);
    if (!layer.a_cast || layer.a_cast == layer.theta) continue;
    int64_t Q = 0;
    for (int32_t g = 0; g < layer.G; g++) Q += layer.groups[g].r;
    for (int64_t q = 0; q < Q; q++)
      memcpy(out_(layer.a_cast) + q * layer.lda, layer.theta + q * layer.d_in, (size_t)layer.d_in * 4);
  }
}

void linear_forward(Call&, ml_ctx& ctx, int64_t T, int64_t d_in, int32_t G, const Group* groups, void* xh, int64_t ldx, const void* A, int64_t lda, const void* W, int32_t wdtype, int64_t ldw, const void* bias, bool relu, const void* add, int64_t ldadd, void* y, int64_t ldy) {
  ctx.kernels->linear_forward(ctx.pool, T, d_in, G, groups, out_(xh), ldx, in(A), lda, W, wdtype, ldw, in(bias), relu, in(add), ldadd, out_(y), ldy);
}

void linear_backward(Call&, ml_ctx& ctx, int64_t T, int64_t d_in, int32_t G, const Group* groups, const void* dy, int64_t lddy, const void* A, int64_t lda, const void* W, int32_t wdtype, int64_t ldw, void* dx, int64_t lddx, void* gh, int64_t ldgh) {
  ctx.kernels->linear_backward(ctx.pool, T, d_in, G, groups, in(dy), lddy, in(A), lda, W, wdtype, ldw, out_(dx), lddx, out_(gh), ldgh);
}

void segment_outers(Call&, ml_ctx& ctx, int64_t S, const int32_t* cu, const OuterProduct* products, int count, float beta, int64_t out_stride) {
  for (int i = 0; i < count; i++) {
    const OuterProduct& o = products[i];
    ctx.kernels->segment_outer(ctx.pool, S, cu, o.p, o.q, in(o.a), o.lda, in(o.b), o.ldb, in(o.scales.rows), in(o.scales.columns), o.alpha, beta, out_(o.out), out_stride);
  }
}

void segment_mean(Call&, ml_ctx& ctx, int64_t S, const int32_t* cu, int64_t q, const void* a, int64_t lda, void* out, int64_t ld_out) {
  ctx.kernels->segment_mean(ctx.pool, S, cu, q, in(a), lda, out_(out), ld_out);
}

void segment_sum(Call&, ml_ctx&, int64_t S, const int32_t* row_offsets, const void* values, void* out) {
  for (int64_t i = 0; i < S; i++) {
    double sum = 0;
    for (int32_t row = row_offsets[i]; row < row_offsets[i + 1]; row++) sum += in(values)[row];
    ((double*)out)[i] = sum;
  }
}

// Rows from .. T-1 of x belong to no segment: they are zero.
static void clear_rows(int64_t from, int64_t T, int64_t cols, float* x, int64_t ld) {
  for (int64_t t = from; t < T; t++) memset(x + t * ld, 0, (size_t)cols * 4);
}

void rope(Call&, ml_ctx& ctx, int64_t T, int64_t heads, int64_t D, void* x, int64_t ldx, const void* cos, const void* sin, const int32_t* positions, bool inverse) {
  ctx.kernels->rope(ctx.pool, T, heads, D, out_(x), ldx, in(cos), in(sin), positions, inverse);
}

void attention_forward(Call&, ml_ctx& ctx, int64_t T, int64_t S, int64_t, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D, float scale, const void* q, const void* k, const void* v, int64_t ldqkv, void* out, int64_t ldo, void* lse) {
  ctx.kernels->attention_forward(ctx.pool, S, cu, kv_lens, H, K, D, scale, in(q), in(k), in(v), ldqkv, out_(out), ldo, out_(lse));
  clear_rows(cu[S], T, H * D, out_(out), ldo);
  clear_rows(cu[S], T, H, out_(lse), H);
}

void attention_backward(Call&, ml_ctx& ctx, int64_t T, int64_t S, int64_t, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D, float scale, const void* q, const void* k, const void* v, int64_t ldqkv, const void* out, int64_t ldo, const void* lse, const void* dout, int64_t lddout, void* dq, void* dk, void* dv, int64_t lddqkv, void* work, const void* cos, const void* sin, const int32_t* positions) {
  ctx.kernels->attention_backward(ctx.pool, S, cu, kv_lens, H, K, D, scale, in(q), in(k), in(v), ldqkv, in(out), ldo, in(lse), in(dout), lddout, out_(dq), out_(dk), out_(dv), lddqkv, out_(work), in(cos), in(sin), positions);
  clear_rows(cu[S], T, H * D, out_(dq), lddqkv);
  clear_rows(cu[S], T, K * D, out_(dk), lddqkv);
  clear_rows(cu[S], T, K * D, out_(dv), lddqkv);
}

void swiglu_forward(Call&, ml_ctx& ctx, int64_t T, int64_t f, const void* gate_up, int64_t ldg, void* y, int64_t ldy) {
  ctx.kernels->swiglu_forward(ctx.pool, T, f, in(gate_up), ldg, out_(y), ldy);
}

void swiglu_backward(Call&, ml_ctx& ctx, int64_t T, int64_t f, const void* gate_up, int64_t ldg, const void* dy, int64_t lddy, void* dgate_up, void* y) {
  ctx.kernels->swiglu_backward(ctx.pool, T, f, in(gate_up), ldg, in(dy), lddy, out_(dgate_up), out_(y));
}

void relu_backward(Call&, ml_ctx& ctx, int64_t T, int64_t f, void* y, int64_t ldy, const void* dy, int64_t lddy) {
  ctx.kernels->relu_backward(ctx.pool, T, f, out_(y), ldy, in(dy), lddy);
}

bool swiglu_gradients(Call&, ml_ctx&, int64_t, int64_t, void*, int64_t, const void*, int64_t, int64_t, const int32_t*, const NarrowSide&, const NarrowSide&, const NarrowSide&, float, int64_t) {
  return false;
}

bool relu_gradients(Call&, ml_ctx&, int64_t, int64_t, void*, int64_t, const void*, int64_t, int64_t, const int32_t*, const NarrowSide&, const NarrowSide&, float, int64_t) {
  return false;
}

void head_cross_entropy(Call&, ml_ctx& ctx, int64_t R, int64_t d, int64_t V, const void* x, const void* W, int32_t wdtype, int64_t ldw, const int32_t* labels, const void* seeds, void* losses, int32_t* argmax, void* dx, void* work, int64_t chunk_rows) {
  ctx.kernels->head_cross_entropy(ctx.pool, R, d, V, in(x), W, wdtype, ldw, labels, in(seeds), out_(losses), argmax, out_(dx), out_(work), chunk_rows);
}

void row_dots(Call&, ml_ctx& ctx, int64_t n, const Piece* pieces, int count, const void* b, int64_t ldb, void* out) {
  memset(out, 0, (size_t)n * 8);
  for (int i = 0; i < count; i++) {
    const Piece& piece = pieces[i];
    ctx.kernels->row_dots(ctx.pool, n, piece.length, piece.x, piece.ld, b ? in(b) + piece.first : piece.x, b ? ldb : piece.ld, (double*)out);
  }
}

void combine(Call&, ml_ctx& ctx, int64_t n, const Piece* pieces, int count, const void* weights, float beta, void* y) {
  for (int i = 0; i < count; i++) {
    const Piece& piece = pieces[i];
    float* sum = y ? out_(y) + piece.first : (float*)piece.x;
    ctx.kernels->combine(ctx.pool, n, piece.length, in(weights), piece.x, piece.ld, beta, sum);
  }
}

void adam_precondition(Call&, ml_ctx& ctx, int64_t P, const void* g, const void* v, double bias2, double eps, void* out) {
  ctx.kernels->adam_precondition(ctx.pool, P, in(g), in(v), bias2, eps, out_(out));
}

void adam(Call&, ml_ctx& ctx, const Piece* g, int count, void* theta, void* m, void* v, double lr, double b1, double b2, double eps, double weight_decay, double bias1, double bias2, double grad_scale) {
  for (int i = 0; i < count; i++) {
    const int64_t first = g[i].first;
    ctx.kernels->adam(ctx.pool, g[i].length, out_(theta) + first, g[i].x, out_(m) + first, out_(v) + first, lr, b1, b2, eps, weight_decay, bias1, bias2, grad_scale);
  }
}

}  // namespace backend
}  // namespace metalora
