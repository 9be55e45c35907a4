// ops.h: the CPU operators, one function each, compiled once per instruction set. Arguments as in kernels.h.
#pragma once
#include "kernels.h"

namespace metalora {
namespace ML_ISA {

// gemm.cpp. Uses scratch slots 0 and 1; must not be called from inside parallel().
void gemm(Pool&, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta, float* c, int64_t ldc);

// The same by one thread, for use inside parallel(): `thread` is the number parallel() gave. Same bits as gemm().
void gemm_alone(Pool&, int thread, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta, float* c,
                int64_t ldc);

// linear.cpp
void linear_forward(Pool&, int64_t T, int64_t d_in, int G, const Group* groups, float* xh, int64_t ldx, const float* A, int64_t lda,
                    const void* W, int wdtype, int64_t ldw, const float* bias, bool relu, const float* add, int64_t ldadd, float* y, int64_t ldy);
void linear_backward(Pool&, int64_t T, int64_t d_in, int G, const Group* groups, const float* dy, int64_t lddy,
                     const float* A, int64_t lda, const void* W, int wdtype, int64_t ldw, float* dx, int64_t lddx, float* gh, int64_t ldgh);
void lora_refresh(Pool&, int64_t d_in, int G, const Group* groups, const float* scales, const float* theta, void* W,
                  int wdtype, int64_t ldw);

// segment.cpp
void segment_outer(Pool&, int64_t S, const int32_t* cu, int64_t p, int64_t q, const float* a, int64_t lda, const float* b,
                   int64_t ldb, const float* row_scale, const float* column_scale, float alpha, float beta, float* out,
                   int64_t out_stride);
void segment_mean(Pool&, int64_t S, const int32_t* cu, int64_t q, const float* a, int64_t lda, float* out, int64_t ld_out);

// embedding.cpp, rmsnorm.cpp, layernorm.cpp, rope.cpp
void embedding_forward(Pool&, int64_t T, int64_t d, const void* table, int wdtype, const int32_t* ids, const void* places,
                       const int32_t* positions, float* out, int64_t ldo);
void rmsnorm_forward(Pool&, int64_t T, int64_t d, float eps, const float* x, const float* weight, float* y,
                     int64_t ldy, float* rstd);
void rmsnorm_backward(Pool&, int64_t T, int64_t d, const float* x, const float* weight, const float* rstd, const float* dy,
                      int64_t lddy, float* dx, int64_t lddx);
void layernorm_forward(Pool&, int64_t T, int64_t d, float eps, const float* x, const float* weight, const float* bias, float* y,
                       int64_t ldy, float* stats);
void layernorm_backward(Pool&, int64_t T, int64_t d, const float* x, const float* weight, const float* bias, const float* stats,
                        const float* dy, int64_t lddy, float* dx, int64_t lddx, float* y, int64_t ldy);
void rope(Pool&, int64_t T, int64_t heads, int64_t D, float* x, int64_t ldx, const float* cos, const float* sin,
          const int32_t* positions, bool inverse);

// attention.cpp
void attention_forward(Pool&, int64_t S, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D,
                       float scale, const float* q, const float* k, const float* v, int64_t ldqkv, float* out, int64_t ldo,
                       float* lse);
void attention_backward(Pool&, int64_t S, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D,
                        float scale, const float* q, const float* k, const float* v, int64_t ldqkv, const float* out,
                        int64_t ldo, const float* lse, const float* dout, int64_t lddout, float* dq, float* dk, float* dv,
                        int64_t lddqkv, float* work, const float* cos, const float* sin, const int32_t* positions);

// swiglu.cpp
void swiglu_forward(Pool&, int64_t T, int64_t f, const float* gate_up, int64_t ldg, float* y, int64_t ldy);
void swiglu_backward(Pool&, int64_t T, int64_t f, const float* gate_up, int64_t ldg, const float* dy, int64_t lddy, float* dgate_up, float* y);

// relu.cpp
void relu_forward(Pool&, int64_t T, int64_t f, float* y, int64_t ldy);
void relu_backward(Pool&, int64_t T, int64_t f, float* y, int64_t ldy, const float* dy, int64_t lddy);

// cross_entropy.cpp
void head_cross_entropy(Pool&, int64_t R, int64_t d, int64_t V, const float* x, const void* W, int wdtype, int64_t ldw,
                        const int32_t* labels, const float* seeds, float* losses, int32_t* argmax, float* dx, float* work,
                        int64_t chunk_rows);

// vector.cpp
void row_dots(Pool&, int64_t n, int64_t P, const float* a, int64_t lda, const float* b, int64_t ldb, double* out);
void combine(Pool&, int64_t n, int64_t P, const float* weights, const float* x, int64_t ldx, float beta, float* y);

// adam.cpp
void adam_precondition(Pool&, int64_t P, const float* g, const float* v, double bias2, double eps, float* out);
void adam(Pool&, int64_t P, float* theta, const float* g, float* m, float* v, double lr, double b1, double b2, double eps,
          double weight_decay, double bias1, double bias2, double grad_scale);

}  // namespace ML_ISA
}  // namespace metalora
