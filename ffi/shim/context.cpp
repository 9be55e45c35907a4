// context.cpp: error text, argument checks and the table of allocations, the same on every device.
#include "context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

namespace metalora {

char global_error[1024] = "";

int32_t copy_text(const char* from, void* text, int32_t capacity) {
  const int32_t length = (int32_t)strlen(from);
  if (text && capacity > 0) snprintf((char*)text, (size_t)capacity, "%s", from);
  return length;
}

bool Call::tell(int32_t status, const char* format, va_list arguments) {
  if (failed()) return false;
  status_ = status;
  char* text = ctx_ ? ctx_->error : global_error;
  const size_t capacity = sizeof global_error;
  size_t used = (size_t)snprintf(text, capacity, "Cannot ");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  used += (size_t)snprintf(text + used, capacity - used, action_, numbers_[0], numbers_[1], numbers_[2], numbers_[3],
                           numbers_[4], numbers_[5]);
  used += (size_t)snprintf(text + used, capacity - used, ": ");
  vsnprintf(text + used, capacity - used, format, arguments);
#pragma GCC diagnostic pop
  return false;
}

bool Call::fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  tell(ML_WRONG, format, arguments);
  va_end(arguments);
  return false;
}

bool Call::fault(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  tell(ML_FAULT, format, arguments);
  va_end(arguments);
  return false;
}

bool Call::lost(const char* format, ...) {
  ctx_->lost = true;
  va_list arguments;
  va_start(arguments, format);
  tell(ML_LOST, format, arguments);
  va_end(arguments);
  return false;
}

bool Call::number_dtype(const char* name, int32_t dtype) {
  return dtype == ML_F32 || dtype == ML_BF16 ||
         fail("%s is %d, must be %d (f32) or %d (bf16)", name, dtype, ML_F32, ML_BF16);
}

bool Call::weight_dtype(const char* name, int32_t dtype) {
  if (!number_dtype(name, dtype) || failed()) return false;
  return dtype == ML_BF16 || ctx_->wide_weights || fail("%s is %d, must be %d (bf16) %s", name, dtype, ML_BF16, ctx_->where);
}

static const char* type_name(int32_t dtype) { return dtype == ML_F32 ? "f32" : "bf16"; }

bool Call::activation_dtype(int32_t dtype) {
  if (failed()) return false;
  const int32_t must = ctx_->activations;
  return dtype == must || fail("the activations' dtype is %d, must be %d (%s) %s", dtype, must, type_name(must), ctx_->where);
}

bool Call::product_dtypes(int32_t a, int32_t b, int32_t c) {
  if (!number_dtype("the dtype of c", c) || failed()) return false;
  if (ctx_->activations == ML_F32)
    return c == ML_F32 || fail("the dtype of c is %d, must be %d (f32) %s", c, ML_F32, ctx_->where);
  if (a != ML_BF16) return fail("the dtype of a is %d, must be %d (bf16) %s", a, ML_BF16, ctx_->where);
  return b == ML_BF16 || fail("the dtype of b is %d, must be %d (bf16) %s", b, ML_BF16, ctx_->where);
}

bool Call::bytes(const char* name, ml_ptr p, uint64_t bytes, uint64_t alignment) {
  if (failed()) return false;
  if (!p) return fail("%s is NULL", name);
  const Allocation* block = ctx_->find(p);
  if (!block) return fail("%s is no address from ml_alloc", name);
  if ((uint64_t)(uintptr_t)p % alignment != 0)
    return fail("%s is not aligned to %llu bytes", name, (unsigned long long)alignment);
  const uint64_t left = block->bytes - (uint64_t)((char*)p - block->data);
  return bytes <= left || fail("%s needs %llu bytes, its memory ends after %llu", name, (unsigned long long)bytes,
                               (unsigned long long)left);
}

bool Call::matrix(const char* name, ml_ptr p, int64_t rows, int64_t cols, int64_t ld, int64_t size) {
  if (failed()) return false;
  if (rows < 0 || cols < 0) return fail("%s would be [%lld,%lld]", name, (long long)rows, (long long)cols);
  if (rows > 1 && ld < cols)
    return fail("the rows of %s are %lld elements apart, must be at least %lld", name, (long long)ld, (long long)cols);
  uint64_t elements = 0;
  if (rows > 0 && (__builtin_mul_overflow((uint64_t)(rows - 1), (uint64_t)(ld > 0 ? ld : 0), &elements) ||
                   __builtin_add_overflow(elements, (uint64_t)cols, &elements) || elements > UINT64_MAX / 8))
    return fail("%s [%lld,%lld] exceeds the address space", name, (long long)rows, (long long)cols);
  return bytes(name, p, elements * (uint64_t)size, (uint64_t)size);
}

bool Call::indices(const char* name, ml_ptr p, int64_t n, int64_t low, int64_t high) {
  if (!dense(name, p, 1, n, 4)) return false;
  if (!ctx_->host_memory) return true;
  const int32_t* values = (const int32_t*)p;
  for (int64_t i = 0; i < n; i++) {
    if (values[i] < low || values[i] >= high)
      return fail("%s[%lld] is %d, must be in %lld..%lld", name, (long long)i, values[i], (long long)low, (long long)high - 1);
  }
  return true;
}

bool Call::offsets(const char* name, ml_ptr p, int64_t S, int64_t* rows) {
  *rows = 0;
  if (!dense(name, p, 1, S + 1, 4)) return false;
  if (!ctx_->host_memory) return true;
  const int32_t* values = (const int32_t*)p;
  if (values[0] < 0) return fail("%s[0] is %d, must not be negative", name, values[0]);
  for (int64_t i = 0; i < S; i++) {
    if (values[i + 1] < values[i])
      return fail("%s falls from %d to %d at %lld", name, values[i], values[i + 1], (long long)i + 1);
  }
  *rows = values[S];
  return true;
}

bool Call::groups(int64_t d_in, int32_t G, const int32_t* groups, int64_t* N, int64_t* Q) {
  *N = *Q = 0;
  if (!positive("d_in", d_in) || !positive("G", G) || !host("groups", groups)) return false;
  if (G > MOST_GROUPS) return fail("G is %d, at most %d matrices share an input", G, MOST_GROUPS);
  for (int32_t g = 0; g < G; g++) {
    if (groups[2 * g] <= 0) return fail("d_out of matrix %d is %d, must be positive", g, groups[2 * g]);
    if (groups[2 * g + 1] < 0) return fail("the rank of matrix %d is %d, must not be negative", g, groups[2 * g + 1]);
    *N += groups[2 * g];
    *Q += groups[2 * g + 1];
  }
  return true;
}

const Allocation* Context::find(const void* p) const {
  int64_t low = 0, high = count;  // the last allocation that starts at or before p is at low - 1
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if ((const char*)p >= allocations[middle].data)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == 0) return nullptr;
  const Allocation& block = allocations[low - 1];
  return (const char*)p < block.data + block.bytes ? &block : nullptr;
}

bool Context::reserve() {
  if (count < capacity) return true;
  const int64_t wanted = capacity ? 2 * capacity : 64;
  void* grown = realloc(allocations, (size_t)wanted * sizeof(Allocation));
  if (!grown) return false;
  allocations = (Allocation*)grown;
  capacity = wanted;
  return true;
}

void Context::add(char* data, uint64_t bytes) {
  int64_t at = count++;
  for (; at > 0 && allocations[at - 1].data > data; at--) allocations[at] = allocations[at - 1];
  allocations[at] = {data, bytes};
  allocated += bytes;
}

void Context::remove(const Allocation* block) {
  allocated -= block->bytes;
  const int64_t at = block - allocations;
  count--;
  memmove(allocations + at, allocations + at + 1, (size_t)(count - at) * sizeof(Allocation));
}

}  // namespace metalora

using namespace metalora;

extern "C" {

uint32_t ml_abi_version(void) { return ML_ABI_VERSION; }

int32_t ml_last_error(ml_ctx* ctx, void* text, int32_t capacity) {
  return copy_text(ctx ? base(ctx)->error : global_error, text, capacity);
}

int32_t ml_device_name(ml_ctx* ctx, void* text, int32_t capacity) {
  return copy_text(ctx ? base(ctx)->name : "", text, capacity);
}

int32_t ml_activation_dtype(ml_ctx* ctx) { return ctx ? base(ctx)->activations : ML_F32; }

uint64_t ml_allocated_bytes(ml_ctx* ctx) { return ctx ? base(ctx)->allocated : 0; }

}  // extern "C"
