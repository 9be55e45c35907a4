// cpu_context.cpp: opening the CPU as a device, its name, error text, and the argument checks.
#include "cpu_context.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "cpu_pages.h"

using namespace metalora;

namespace metalora {

char global_error[1024] = "";

namespace {

#if defined(__x86_64__)
const Kernels* const tables[] = {&avx512bf16::table, &avx512::table, &avx2::table, &generic::table};

bool supported(const char* isa) {
  __builtin_cpu_init();
  if (strcmp(isa, "generic") == 0) return true;
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (strcmp(isa, "avx2") == 0) return has_avx2;
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (strcmp(isa, "avx512") == 0) return has_avx512;
  return has_avx512 && __builtin_cpu_supports("avx512bf16");
}

// Whether a supported table is also worth choosing. Intel runs vdpbf16ps at half the rate of f32 multiply-adds (Sapphire
// Rapids, 2 threads: 160 GFLOP/s with bf16 weights, 275 in f32), so there bf16 weights are widened. On AMD the kernels
// are taken; that has not been timed.
bool worthwhile(const char* isa) { return strcmp(isa, "avx512bf16") != 0 || __builtin_cpu_is("amd"); }
#else
const Kernels* const tables[] = {&generic::table};
bool supported(const char*) { return true; }
bool worthwhile(const char*) { return true; }
#endif

// The best table this machine can run, or the one METALORA_ISA asks for; NULL with a message when that cannot be.
const Kernels* choose_kernels() {
  const char* wanted = getenv("METALORA_ISA");
  if (wanted && !*wanted) wanted = nullptr;
  for (const Kernels* table : tables) {
    if (wanted && strcmp(wanted, table->name) != 0) continue;
    if (supported(table->name) && (wanted || worthwhile(table->name))) return table;
    if (wanted) {
      snprintf(global_error, sizeof global_error,
               "Cannot open the CPU: METALORA_ISA is %.80s, which this processor does not support. Unset it", wanted);
      return nullptr;
    }
  }
  char known[128] = "";
  for (const Kernels* table : tables) {
    if (*known) strcat(known, ", ");
    strcat(known, table->name);
  }
  snprintf(global_error, sizeof global_error,
           "Cannot open the CPU: METALORA_ISA is %.80s. Set it to one of %s, or unset it", wanted, known);
  return nullptr;
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  const int count = CPU_COUNT(&set);
  return count < 1 ? 1 : count;
}

// The processor's name as Linux gives it, without the marks of trade.
void processor_name(char* name, size_t capacity) {
  snprintf(name, capacity, "CPU");
  FILE* file = fopen("/proc/cpuinfo", "r");
  if (!file) return;
  char line[256];
  while (fgets(line, sizeof line, file)) {
    if (strncmp(line, "model name", 10) != 0) continue;
    const char* colon = strchr(line, ':');
    if (!colon) break;
    snprintf(name, capacity, "%s", colon + 1 + strspn(colon + 1, " \t"));
    name[strcspn(name, "\n")] = 0;
    break;
  }
  fclose(file);
}

int32_t copy_text(const char* from, void* text, int32_t capacity) {
  const int32_t length = (int32_t)strlen(from);
  if (text && capacity > 0) snprintf((char*)text, (size_t)capacity, "%s", from);
  return length;
}

}  // namespace

bool Call::fail(const char* format, ...) {
  if (failed_) return false;
  failed_ = true;
  char* text = ctx_ ? ctx_->error : global_error;
  const size_t capacity = sizeof global_error;
  size_t used = (size_t)snprintf(text, capacity, "Cannot ");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  used += (size_t)snprintf(text + used, capacity - used, action_, numbers_[0], numbers_[1], numbers_[2], numbers_[3],
                           numbers_[4], numbers_[5]);
  used += (size_t)snprintf(text + used, capacity - used, ": ");
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, capacity - used, format, arguments);
  va_end(arguments);
#pragma GCC diagnostic pop
  return false;
}

bool Call::weight_dtype(const char* name, int32_t dtype) {
  return dtype == ML_F32 || dtype == ML_BF16 ||
         fail("%s is %d, must be %d (f32) or %d (bf16)", name, dtype, ML_F32, ML_BF16);
}

bool Call::activation_dtype(int32_t dtype) {
  return dtype == ML_F32 || fail("the activations' dtype is %d, must be %d (f32) on the CPU", dtype, ML_F32);
}

bool Call::bytes(const char* name, ml_ptr p, uint64_t bytes, uint64_t alignment) {
  if (failed_) return false;
  if (!p) return fail("%s is NULL", name);
  const ml_allocation* block = ctx_->find(p);
  if (!block) return fail("%s is no address from ml_alloc", name);
  if ((uint64_t)(uintptr_t)p % alignment != 0)
    return fail("%s is not aligned to %llu bytes", name, (unsigned long long)alignment);
  const uint64_t left = block->bytes - (uint64_t)((char*)p - block->data);
  return bytes <= left || fail("%s needs %llu bytes, its memory ends after %llu", name, (unsigned long long)bytes,
                               (unsigned long long)left);
}

bool Call::matrix(const char* name, ml_ptr p, int64_t rows, int64_t cols, int64_t ld, int64_t size) {
  if (failed_) return false;
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
  for (int32_t g = 0; g < G; g++) {
    if (groups[2 * g] <= 0) return fail("d_out of matrix %d is %d, must be positive", g, groups[2 * g]);
    if (groups[2 * g + 1] < 0) return fail("the rank of matrix %d is %d, must not be negative", g, groups[2 * g + 1]);
    *N += groups[2 * g];
    *Q += groups[2 * g + 1];
  }
  return true;
}

}  // namespace metalora

const ml_allocation* ml_ctx::find(const void* p) const {
  int64_t low = 0, high = count;  // the last allocation that starts at or before p is at low - 1
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if ((const char*)p >= allocations[middle].data)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == 0) return nullptr;
  const ml_allocation& block = allocations[low - 1];
  return (const char*)p < block.data + block.bytes ? &block : nullptr;
}

extern "C" {

uint32_t ml_abi_version(void) { return ML_ABI_VERSION; }

int32_t ml_create(int32_t device, int32_t threads, void* out) {
  (void)device;  // all cores are one device
  constexpr int32_t MOST = 4096;
  if (!out || threads > MOST) {
    if (!out)
      snprintf(global_error, sizeof global_error, "Cannot open the CPU: out is NULL");
    else
      snprintf(global_error, sizeof global_error, "Cannot open the CPU with %d threads: at most %d", threads, MOST);
    return 1;
  }
  const Kernels* kernels = choose_kernels();
  if (!kernels) return 1;
  void* memory = calloc(1, sizeof(ml_ctx) + 64);
  if (!memory) {
    snprintf(global_error, sizeof global_error, "Cannot open the CPU: the machine's memory is exhausted");
    return 1;
  }
  ml_ctx* ctx = new (memory) ml_ctx(threads > 0 ? threads : available_threads());
  ctx->kernels = kernels;
  char processor[96];
  processor_name(processor, sizeof processor);
  snprintf(ctx->name, sizeof ctx->name, "%s, %s, %d thread%s", processor, kernels->name, ctx->pool.threads(),
           ctx->pool.threads() == 1 ? "" : "s");
  memcpy(out, &ctx, sizeof ctx);
  return 0;
}

void ml_destroy(ml_ctx* ctx) {
  if (!ctx) return;
  for (int64_t i = 0; i < ctx->count; i++) pages_unmap(ctx->allocations[i].data, ctx->allocations[i].bytes);
  free(ctx->allocations);
  ctx->~ml_ctx();
  free(ctx);
}

int32_t ml_last_error(ml_ctx* ctx, void* text, int32_t capacity) {
  return copy_text(ctx ? ctx->error : global_error, text, capacity);
}

int32_t ml_device_name(ml_ctx* ctx, void* text, int32_t capacity) { return copy_text(ctx ? ctx->name : "", text, capacity); }

int32_t ml_device_units(ml_ctx* ctx) { return ctx ? ctx->pool.threads() : 0; }

int32_t ml_activation_dtype(ml_ctx*) { return ML_F32; }

int32_t ml_synchronize(ml_ctx* ctx) { return Call(ctx, "wait for the device").status(); }

}  // extern "C"
