// cpu_memory.cpp: memory of the CPU device, copies to, from and within it, and the conversions of uploads.
#include <stdlib.h>
#include <string.h>

#include "cpu_context.h"
#include "cpu_pages.h"

using namespace metalora;

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
void each_row(ml_ctx* ctx, int64_t rows, int64_t bytes_a_row, const Body& body) {
  const int64_t rows_a_task = 1 + 65536 / (bytes_a_row + 1);
  struct Shared {
    const Body& body;
    int64_t rows, step;
  } shared = {body, rows, rows_a_task};
  ctx->pool.run(
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

extern "C" {

int32_t ml_alloc(ml_ctx* ctx, uint64_t bytes, void* out) {
  Call call(ctx, "allocate %lld bytes", bytes);
  call.host("out", out);
  if (bytes == 0) call.fail("the size must be positive");
  if (call.failed()) return call.status();
  if (ctx->count == ctx->capacity) {
    const int64_t capacity = ctx->capacity ? 2 * ctx->capacity : 64;
    void* grown = realloc(ctx->allocations, (size_t)capacity * sizeof(ml_allocation));
    if (!grown) return call.fail("the machine's memory is exhausted"), call.status();
    ctx->allocations = (ml_allocation*)grown;
    ctx->capacity = capacity;
  }
  char* data = (char*)pages_map(bytes);
  if (!data) {
    call.fail("the machine's memory is exhausted (%llu bytes are held already)", (unsigned long long)ctx->allocated);
    return call.status();
  }
  int64_t at = ctx->count++;
  for (; at > 0 && ctx->allocations[at - 1].data > data; at--) ctx->allocations[at] = ctx->allocations[at - 1];
  ctx->allocations[at] = {data, bytes};
  ctx->allocated += bytes;
  memcpy(out, &data, sizeof data);
  return 0;
}

int32_t ml_free(ml_ctx* ctx, ml_ptr p) {
  Call call(ctx, "free memory");
  if (call.failed()) return call.status();
  if (!p) return 0;
  const ml_allocation* block = ctx->find(p);
  if (!block || block->data != p) {
    call.fail("the address is not one that ml_alloc gave, or is free already");
    return call.status();
  }
  pages_unmap(block->data, block->bytes);
  ctx->allocated -= block->bytes;
  const int64_t at = block - ctx->allocations;
  ctx->count--;
  memmove(ctx->allocations + at, ctx->allocations + at + 1, (size_t)(ctx->count - at) * sizeof(ml_allocation));
  return 0;
}

uint64_t ml_allocated_bytes(ml_ctx* ctx) { return ctx ? ctx->allocated : 0; }

int32_t ml_upload(ml_ctx* ctx, ml_ptr dst, const void* src_host, uint64_t bytes) {
  Call call(ctx, "upload %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.host("the source", src_host);
  call.bytes("the destination", dst, bytes, 1);
  if (call.failed()) return call.status();
  memcpy(dst, src_host, bytes);
  return 0;
}

int32_t ml_download(ml_ctx* ctx, void* dst_host, ml_ptr src, uint64_t bytes) {
  Call call(ctx, "download %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.host("the destination", dst_host);
  call.bytes("the source", src, bytes, 1);
  if (call.failed()) return call.status();
  memcpy(dst_host, src, bytes);
  return 0;
}

int32_t ml_copy(ml_ctx* ctx, ml_ptr dst, ml_ptr src, uint64_t bytes) {
  Call call(ctx, "copy %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.bytes("the destination", dst, bytes, 1);
  call.bytes("the source", src, bytes, 1);
  if (!call.failed() && (char*)dst < (char*)src + bytes && (char*)src < (char*)dst + bytes && dst != src)
    call.fail("source and destination overlap");
  if (call.failed()) return call.status();
  if (dst == src) return 0;
  each_row(ctx, (int64_t)((bytes + PIECE - 1) / PIECE), PIECE, [=](int64_t i) {
    const uint64_t from = (uint64_t)i * PIECE, left = bytes - from;
    memcpy((char*)dst + from, (const char*)src + from, left < PIECE ? left : PIECE);
  });
  return 0;
}

int32_t ml_zero(ml_ctx* ctx, ml_ptr dst, uint64_t bytes) {
  Call call(ctx, "zero %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.bytes("the destination", dst, bytes, 1);
  if (call.failed()) return call.status();
  each_row(ctx, (int64_t)((bytes + PIECE - 1) / PIECE), PIECE, [=](int64_t i) {
    const uint64_t from = (uint64_t)i * PIECE, left = bytes - from;
    memset((char*)dst + from, 0, left < PIECE ? left : PIECE);
  });
  return 0;
}

int32_t ml_upload_2d(ml_ctx* ctx, int32_t rows, int32_t cols, const void* src_host, int32_t src_dtype, ml_ptr dst,
                     int32_t dst_dtype, int32_t ld_dst) {
  Call call(ctx, "upload [%lld,%lld]", rows, cols);
  call.positive("rows", rows);
  call.positive("cols", cols);
  call.host("the source", src_host);
  if (src_dtype != ML_F16) call.weight_dtype("the source's dtype", src_dtype);
  call.weight_dtype("the destination's dtype", dst_dtype);
  call.matrix("the destination", dst, rows, cols, ld_dst, dtype_size(dst_dtype));
  if (call.failed()) return call.status();
  const int64_t from = cols * dtype_size(src_dtype), to = ld_dst * dtype_size(dst_dtype);
  each_row(ctx, rows, from, [=](int64_t i) {
    convert_row(cols, (const char*)src_host + i * from, src_dtype, (char*)dst + i * to, dst_dtype);
  });
  return 0;
}

int32_t ml_copy_2d(ml_ctx* ctx, int32_t rows, int32_t cols, int32_t dtype, ml_ptr src, int32_t ld_src, ml_ptr dst,
                   int32_t ld_dst) {
  Call call(ctx, "copy [%lld,%lld]", rows, cols);
  call.positive("rows", rows);
  call.positive("cols", cols);
  call.weight_dtype("dtype", dtype);
  const int64_t size = dtype_size(dtype);
  call.matrix("the source", src, rows, cols, ld_src, size);
  call.matrix("the destination", dst, rows, cols, ld_dst, size);
  if (call.failed()) return call.status();
  each_row(ctx, rows, cols * size, [=](int64_t i) {
    memmove((char*)dst + i * ld_dst * size, (const char*)src + i * ld_src * size, (size_t)(cols * size));
  });
  return 0;
}

int32_t ml_gather_rows(ml_ctx* ctx, int32_t R, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr out, int32_t ldo,
                       int32_t dtype) {
  Call call(ctx, "gather %lld rows of %lld", R, d);
  call.positive("R", R);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.matrix("x", x, 1, d, ldx, 4);
  call.at_least("ldx", ldx, d, "d");
  if (call.failed()) return call.status();
  // x has as many rows as fit into its allocation
  const ml_allocation* block = ctx->find(x);
  const int64_t there = ((int64_t)((block->data + block->bytes - (char*)x) / 4) - d) / ldx + 1;
  call.indices("rows", rows, R, 0, there);
  call.matrix("out", out, R, d, ldo, 4);
  if (call.failed()) return call.status();
  const int32_t* row = (const int32_t*)rows;
  each_row(ctx, R, (int64_t)d * 4, [=](int64_t i) {
    memcpy((float*)out + i * ldo, (const float*)x + (int64_t)row[i] * ldx, (size_t)d * 4);
  });
  return 0;
}

int32_t ml_scatter_rows(ml_ctx* ctx, int32_t R, int32_t T, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr out,
                        int32_t ldo, int32_t dtype) {
  Call call(ctx, "scatter %lld rows of %lld into %lld", R, d, T);
  call.positive("R", R);
  call.positive("T", T);
  call.positive("d", d);
  call.activation_dtype(dtype);
  call.matrix("x", x, R, d, ldx, 4);
  call.indices("rows", rows, R, 0, T);
  call.matrix("out", out, T, d, ldo, 4);
  if (call.failed()) return call.status();
  const int32_t* row = (const int32_t*)rows;
  each_row(ctx, T, (int64_t)d * 4, [=](int64_t t) { memset((float*)out + t * ldo, 0, (size_t)d * 4); });
  each_row(ctx, R, (int64_t)d * 4, [=](int64_t i) {
    memcpy((float*)out + (int64_t)row[i] * ldo, (const float*)x + i * ldx, (size_t)d * 4);
  });
  return 0;
}

int32_t ml_segment_sum(ml_ctx* ctx, int32_t S, ml_ptr row_offsets, ml_ptr values, ml_ptr out) {
  Call call(ctx, "sum the rows of %lld segments", S);
  int64_t rows = 0;
  call.positive("S", S);
  call.offsets("row_offsets", row_offsets, S, &rows);
  call.dense("values", values, 1, rows, 4);
  call.dense("out", out, 1, S, 8);
  if (call.failed()) return call.status();
  const int32_t* offset = (const int32_t*)row_offsets;
  const float* value = (const float*)values;
  for (int64_t i = 0; i < S; i++) {
    double sum = 0;
    for (int32_t row = offset[i]; row < offset[i + 1]; row++) sum += value[row];
    ((double*)out)[i] = sum;
  }
  return 0;
}

}  // extern "C"
