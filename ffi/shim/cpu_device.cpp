// cpu_device.cpp: the CPU as a device: its instruction set, its name, its threads.
#include "cpu_device.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "cpu_pages.h"

using namespace metalora;

namespace metalora {

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

// By number, as ml_create takes them; 0 asks for the best.
const char* const NAMES[] = {nullptr, "generic", "avx2", "avx512", "avx512bf16"};
constexpr int MOST_NAMES = sizeof NAMES / sizeof *NAMES;

// The best table this machine can run, or the one that `number` or METALORA_ISA asks for; NULL with a message when that
// cannot be.
const Kernels* choose_kernels(int number) {
  if (number < 0 || number >= MOST_NAMES) {
    snprintf(global_error, sizeof global_error, "Cannot open the CPU: its instruction sets are numbered 0..%d, not %d", MOST_NAMES - 1,
             number);
    return nullptr;
  }
  const char* asked = getenv("METALORA_ISA");
  const char* wanted = NAMES[number] ? NAMES[number] : asked && *asked ? asked : nullptr;
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

}  // namespace

Context* base(ml_ctx* ctx) { return ctx; }

}  // namespace metalora

extern "C" {

int32_t ml_create(int32_t device, int32_t threads, void* out) {
  constexpr int32_t MOST = 4096;
  if (!out || threads > MOST) {
    if (!out)
      snprintf(global_error, sizeof global_error, "Cannot open the CPU: out is NULL");
    else
      snprintf(global_error, sizeof global_error, "Cannot open the CPU with %d threads: at most %d", threads, MOST);
    return 1;
  }
  const Kernels* kernels = choose_kernels(device);
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

int32_t ml_device_units(ml_ctx* ctx) { return ctx ? ctx->pool.threads() : 0; }

int32_t ml_report(void* text, int32_t capacity) {
  const Kernels* kernels = choose_kernels(0);
  char processor[96], report[256];
  processor_name(processor, sizeof processor);
  for (char* c = processor; *c; c++)
    if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = ' ';
  snprintf(report, sizeof report, "{\"processor\":\"%s\",\"instructions\":\"%s\",\"threads\":%d}", processor,
           kernels ? kernels->name : "", available_threads());
  return copy_text(report, text, capacity);
}

}  // extern "C"
