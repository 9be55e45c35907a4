// gemm.cpp: speed of the matrix products of one training step, beside the peak of one core measured in the same run.
//
//   make bench-gemm          all shapes
//   build/bench-gemm peak    the peak alone
//
// Shapes are those of SmolLM2-135M at T = 512 tokens and r = 32. "of peak" compares one thread with the fastest loop of
// register-only multiply-adds that this core runs; "speed-up" is all threads over one.
#include "../../ffi/metalora.h"

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double clock_seconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static double seconds() { return clock_seconds(CLOCK_MONOTONIC); }
// Of this thread alone: what is measured on one thread does not depend on who else uses the machine.
static double own_seconds() { return clock_seconds(CLOCK_THREAD_CPUTIME_ID); }

static void check(ml_ctx* ctx, int32_t status) {
  if (status == 0) return;
  char text[1024];
  ml_last_error(ctx, text, sizeof text);
  fprintf(stderr, "%s\n", text);
  exit(1);
}

// GFLOP/s of independent multiply-adds that never touch memory.
#define PEAK_LOOP(NAME, TARGET, VECTOR, SET1, FMA, LANES, CHAINS)                     \
  __attribute__((target(TARGET))) static double NAME() {                              \
    double best = 0;                                                                  \
    for (int run = 0; run < 20; run++) {                                              \
      VECTOR acc[CHAINS], a = SET1(1.0f), b = SET1(1e-9f);                            \
      for (int i = 0; i < CHAINS; i++) acc[i] = SET1((float)i);                       \
      const int64_t steps = 500000;                                                   \
      const double start = own_seconds();                                             \
      for (int64_t k = 0; k < steps; k++) {                                           \
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) acc[i] = FMA(a, b, acc[i]); \
        __asm__ volatile("" : "+x"(a), "+x"(b));                                      \
      }                                                                               \
      const double time = own_seconds() - start;                                      \
      for (int i = 0; i < CHAINS; i++) __asm__ volatile("" : : "x"(acc[i]));          \
      const double rate = 2.0 * LANES * CHAINS * (double)steps / time * 1e-9;         \
      best = rate > best ? rate : best;                                               \
    }                                                                                 \
    return best;                                                                      \
  }
PEAK_LOOP(peak_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, 8, 12)
PEAK_LOOP(peak_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, 16, 16)

struct Shape {
  const char* what;
  int32_t trans_a, trans_b, M, N, K;
};

static const Shape shapes[] = {
    {"gate or up, forward", 0, 1, 512, 1536, 576},
    {"gate or up with r, forward", 0, 1, 512, 1536, 608},
    {"down, forward", 0, 1, 512, 576, 1536},
    {"down with r, forward", 0, 1, 512, 576, 1568},
    {"q, forward", 0, 1, 512, 576, 608},
    {"k or v, forward", 0, 1, 512, 192, 608},
    {"gate and up, backward", 0, 0, 512, 576, 3072},
    {"down with r, backward", 0, 0, 512, 1568, 576},
    {"q, k, v, backward", 0, 0, 512, 576, 960},
    {"h, r = 32", 0, 1, 512, 32, 576},
    {"h, r = 64 of gate and up", 0, 1, 512, 64, 576},
    {"h, r = 8", 0, 1, 512, 8, 576},
    {"g_h, r = 32", 0, 0, 512, 32, 1536},
    {"dx += g_h A", 0, 0, 512, 576, 64},
    {"grad A of a sample", 1, 0, 32, 576, 128},
    {"grad B of a sample", 1, 0, 1536, 32, 128},
    {"head, forward", 0, 1, 256, 49152, 576},
    {"head, backward", 0, 0, 256, 576, 49152},
};

struct Bench {
  ml_ctx* ctx;
  void *a, *b, *c;
};

static double rate(const Bench& bench, const Shape& s, int32_t b_dtype) {
  double (*now)() = ml_device_units(bench.ctx) == 1 ? own_seconds : seconds;
  const int32_t lda = s.trans_a ? s.M : s.K, ldb = s.trans_b ? s.K : s.N;
  const double flops = 2.0 * s.M * s.N * s.K;
  double best = 1e9;
  const double until = seconds() + 0.25;
  for (int run = 0; run < 3 || (seconds() < until && run < 200); run++) {
    const double start = now();
    check(bench.ctx, ml_gemm(bench.ctx, s.trans_a, s.trans_b, s.M, s.N, s.K, 1, bench.a, ML_F32, lda, bench.b, b_dtype, ldb, 0,
                             bench.c, ML_F32, s.N));
    const double time = now() - start;
    best = time < best ? time : best;
  }
  return flops / best * 1e-9;
}

static Bench open_bench(int threads, uint64_t a, uint64_t b, uint64_t c) {
  Bench bench;
  if (ml_create(0, threads, &bench.ctx) != 0) check(nullptr, 1);
  check(bench.ctx, ml_alloc(bench.ctx, a * 4, &bench.a));
  check(bench.ctx, ml_alloc(bench.ctx, b * 4, &bench.b));
  check(bench.ctx, ml_alloc(bench.ctx, c * 4, &bench.c));
  for (uint64_t i = 0; i < a; i++) ((float*)bench.a)[i] = (float)(i % 17) * 0.1f - 0.8f;
  for (uint64_t i = 0; i < b; i++) ((float*)bench.b)[i] = (float)(i % 13) * 0.1f - 0.6f;
  return bench;
}

int main(int argc, char** argv) {
  const Bench one = open_bench(1, 256 * 49152, 49152 * 576, 256 * 49152);
  const Bench all = open_bench(0, 256 * 49152, 49152 * 576, 256 * 49152);
  char name[200];
  ml_device_name(all.ctx, name, sizeof name);
  const bool wide = strstr(name, "avx512") != nullptr;
  const double peak = wide ? peak_avx512() : peak_avx2();
  printf("%s; peak of one core %.1f GFLOP/s (f32)\n", name, peak);
  if (argc > 1 && strcmp(argv[1], "peak") == 0) return 0;
  printf("%-28s %18s %9s %8s %9s %9s %12s\n", "", "M x N x K", "1 thread", "of peak", "threads", "speed-up", "bf16 weights");
  for (const Shape& s : shapes) {
    if (argc > 1 && strstr(s.what, argv[1]) == nullptr) continue;
    const double r1 = rate(one, s, ML_F32), r2 = rate(all, s, ML_F32), half = rate(all, s, ML_BF16);
    char size[40];
    snprintf(size, sizeof size, "%d x %d x %d", s.M, s.N, s.K);
    printf("%-28s %18s %9.1f %7.1f%% %9.1f %9.2f %12.1f\n", s.what, size, r1, 100 * r1 / peak, r2, r2 / r1, half);
    fflush(stdout);
  }
  ml_destroy(one.ctx);
  ml_destroy(all.ctx);
  return 0;
}
