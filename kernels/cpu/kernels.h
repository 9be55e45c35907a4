// kernels.h: what the CPU kernels and the shim share.
//
// Every .cpp in this folder is compiled once per instruction set, into its own namespace ML_ISA (generic, avx2, avx512,
// avx512bf16), and fills its part of one table of functions. The shim picks the table once, when a context is created.
// Kernels use no C++ standard library templates: a weak symbol compiled for AVX-512 must never win at link time and run
// on a machine that has none.
//
// Arguments arrive checked (ffi/shim/api.cpp); kernels only compute. Letters and layouts: see ffi/metalora.h.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../types.h"

namespace metalora {

// A fixed set of threads. run() splits 0..n-1 into tasks of one index, handed out dynamically, and returns when all are
// done; the calling thread works too. A task must not depend on which thread runs it, so results never do either.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  int threads() const { return threads_; }
  // task(arg, index, thread): thread is 0..threads-1, for per-thread scratch.
  void run(int64_t n, void (*task)(void* arg, int64_t index, int thread), void* arg);
  // At least `bytes` of 64-byte-aligned scratch owned by one thread, kept between calls. Never NULL (aborts with a
  // message when memory is exhausted). `slot` 0..3 separates scratch of nested uses (a kernel that calls gemm uses 2, 3).
  void* scratch(int thread, int slot, size_t bytes);
 private:
  struct Impl;
  Impl* impl_;
  int threads_;
};

// One entry an operator; arguments in the order of ffi/metalora.h.
struct Kernels {
  const char* name;
  void (*gemm)(Pool&, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta, float* c, int64_t ldc);
  void (*linear_forward)(Pool&, int64_t T, int64_t d_in, int G, const Group* groups, float* xh, int64_t ldx, const float* A, int64_t lda,
                         const void* W, int wdtype, int64_t ldw, const float* bias, bool relu, const float* add, int64_t ldadd, float* y, int64_t ldy);
  void (*linear_backward)(Pool&, int64_t T, int64_t d_in, int G, const Group* groups, const float* dy, int64_t lddy,
                          const float* A, int64_t lda, const void* W, int wdtype, int64_t ldw, float* dx, int64_t lddx, float* gh, int64_t ldgh);
  void (*lora_refresh)(Pool&, int64_t d_in, int G, const Group* groups, const float* scales, const float* theta, void* W,
                       int wdtype, int64_t ldw);
  void (*segment_outer)(Pool&, int64_t S, const int32_t* cu, int64_t p, int64_t q, const float* a, int64_t lda, const float* b,
                        int64_t ldb, const float* row_scale, const float* column_scale, float alpha, float beta, float* out,
                        int64_t out_stride);
  void (*segment_mean)(Pool&, int64_t S, const int32_t* cu, int64_t q, const float* a, int64_t lda, float* out, int64_t ld_out);
  void (*embedding_forward)(Pool&, int64_t T, int64_t d, const void* table, int wdtype, const int32_t* ids, const void* places,
                            const int32_t* positions, float* out, int64_t ldo);
  void (*rmsnorm_forward)(Pool&, int64_t T, int64_t d, float eps, const float* x, const float* weight, float* y,
                     int64_t ldy, float* rstd);
  void (*rmsnorm_backward)(Pool&, int64_t T, int64_t d, const float* x, const float* weight, const float* rstd, const float* dy,
                           int64_t lddy, float* dx, int64_t lddx);
  void (*layernorm_forward)(Pool&, int64_t T, int64_t d, float eps, const float* x, const float* weight, const float* bias, float* y,
                       int64_t ldy, float* stats);
  void (*layernorm_backward)(Pool&, int64_t T, int64_t d, const float* x, const float* weight, const float* bias, const float* stats,
                             const float* dy, int64_t lddy, float* dx, int64_t lddx, float* y, int64_t ldy);
  void (*rope)(Pool&, int64_t T, int64_t heads, int64_t D, float* x, int64_t ldx, const float* cos, const float* sin,
               const int32_t* positions, bool inverse);
  void (*attention_forward)(Pool&, int64_t S, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D,
                            float scale, const float* q, const float* k, const float* v, int64_t ldqkv, float* out, int64_t ldo,
                            float* lse);
  void (*attention_backward)(Pool&, int64_t S, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D,
                             float scale, const float* q, const float* k, const float* v, int64_t ldqkv, const float* out,
                             int64_t ldo, const float* lse, const float* dout, int64_t lddout, float* dq, float* dk, float* dv,
                             int64_t lddqkv, float* work, const float* cos, const float* sin, const int32_t* positions);
  void (*swiglu_forward)(Pool&, int64_t T, int64_t f, const float* gate_up, int64_t ldg, float* y, int64_t ldy);
  void (*swiglu_backward)(Pool&, int64_t T, int64_t f, const float* gate_up, int64_t ldg, const float* dy, int64_t lddy, float* dgate_up, float* y);
  void (*relu_backward)(Pool&, int64_t T, int64_t f, float* y, int64_t ldy, const float* dy, int64_t lddy);
  void (*head_cross_entropy)(Pool&, int64_t R, int64_t d, int64_t V, const float* x, const void* W, int wdtype, int64_t ldw,
                             const int32_t* labels, const float* seeds, float* losses, int32_t* argmax, float* dx, float* work,
                             int64_t chunk_rows);
  void (*row_dots)(Pool&, int64_t n, int64_t P, const float* a, int64_t lda, const float* b, int64_t ldb, double* out);
  void (*combine)(Pool&, int64_t n, int64_t P, const float* weights, const float* x, int64_t ldx, float beta, float* y);
  void (*adam_precondition)(Pool&, int64_t P, const float* g, const float* v, double bias2, double eps, float* out);
  void (*adam)(Pool&, int64_t P, float* theta, const float* g, float* m, float* v, double lr, double b1, double b2, double eps,
               double weight_decay, double bias1, double bias2, double grad_scale);
};

// One table an instruction set; NULL entries never reach the shim. Defined in table.cpp, compiled once per ISA.
namespace generic { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace avx512bf16 { extern const Kernels table; }

}  // namespace metalora
