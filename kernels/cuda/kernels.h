// kernels.h: what the CUDA kernels and the shim share.
//
// One launcher an operator, arguments in the order of ffi/metalora.h, already checked by the shim (ffi/shim/api.cpp).
// A launcher enqueues work on `on.stream` and returns what the launch said; it allocates nothing, never synchronises and
// reads no device memory on the host, so that every launcher can be captured into a CUDA graph. Whatever depends on
// the batch (offsets, ids, rows, labels, weights) is read on the device.
//
// Same inputs, same bits: no floating-point atomics, and no reduction whose order depends on scheduling.
//
// Letters and layouts: see ffi/metalora.h. Activations are bf16; leading dimensions count elements. Rows T may be padded: the
// rows behind cu_seqlens[S] belong to no segment; operators over segments leave them alone unless they say otherwise.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "../types.h"

namespace metalora {
namespace cuda {

using bf16 = __nv_bfloat16;

// Where a launcher puts its work.
struct Launch {
  cudaStream_t stream;
  int arch;   // compute capability, 80 = 8.0, 90 = 9.0
  int units;  // multiprocessors
};

// embedding.cu. ids outside 0 .. V-1 write zeros and set *fault to 1 + the id (any one of them; fault is never NULL). places may be NULL.
cudaError_t embedding_forward(const Launch& on, int64_t T, int64_t d, int64_t V, const bf16* table, const int32_t* ids, const bf16* places,
                              const int32_t* positions, bf16* out, int64_t ldo, int32_t* fault);
// out [R, d] = x[rows]
cudaError_t gather_rows(const Launch& on, int64_t R, int64_t d, const bf16* x, int64_t ldx, const int32_t* rows, bf16* out, int64_t ldo);
// out [T, d] = 0, then out[rows] = x. Rows that occur twice must carry the same values.
cudaError_t scatter_rows(const Launch& on, int64_t R, int64_t T, int64_t d, const bf16* x, int64_t ldx, const int32_t* rows, bf16* out,
                         int64_t ldo);

// rmsnorm.cu
cudaError_t rmsnorm_forward(const Launch& on, int64_t T, int64_t d, float eps, const bf16* x, const float* weight, bf16* y, int64_t ldy,
                            float* rstd);
cudaError_t rmsnorm_backward(const Launch& on, int64_t T, int64_t d, const bf16* x, const float* weight, const float* rstd,
                             const bf16* dy, int64_t lddy, bf16* dx, int64_t lddx);

// layernorm.cu. stats [T, 2] = mean and 1 / deviation. Backward: dx (and with it dy) or y may be NULL.
cudaError_t layernorm_forward(const Launch& on, int64_t T, int64_t d, float eps, const bf16* x, const float* weight, const float* bias, bf16* y,
                              int64_t ldy, float* stats);
cudaError_t layernorm_backward(const Launch& on, int64_t T, int64_t d, const bf16* x, const float* weight, const float* bias,
                               const float* stats, const bf16* dy, int64_t lddy, bf16* dx, int64_t lddx, bf16* y, int64_t ldy);

// rope.cu: in place on x [T, heads * D].
cudaError_t rope(const Launch& on, int64_t T, int64_t heads, int64_t D, bf16* x, int64_t ldx, const float* cos, const float* sin,
                 const int32_t* positions, bool inverse);

// swiglu.cu: gate_up and dgate_up [T, 2f], rows ldg apart.
cudaError_t swiglu_forward(const Launch& on, int64_t T, int64_t f, const bf16* gate_up, int64_t ldg, bf16* y, int64_t ldy);
cudaError_t swiglu_backward(const Launch& on, int64_t T, int64_t f, const bf16* gate_up, int64_t ldg, const bf16* dy, int64_t lddy,
                            bf16* dgate_up, bf16* y);

// relu.cu: in place on y [T, f].
cudaError_t relu_forward(const Launch& on, int64_t T, int64_t f, bf16* y, int64_t ldy);
cudaError_t relu_backward(const Launch& on, int64_t T, int64_t f, bf16* y, int64_t ldy, const bf16* dy, int64_t lddy);

// attention.cu, attention_hopper.cu. Rows of q, k, v are ldqkv apart, of dq, dk, dv lddqkv. T bounds cu_seqlens[S]; rows of
// out, dq, dk, dv behind cu_seqlens[S] are set to zero (lse there to 0). kv_lens may be NULL; cos NULL: dq and dk are not rotated back.
cudaError_t attention_forward(const Launch& on, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                              int64_t H, int64_t K, int64_t D, float scale, const bf16* q, const bf16* k, const bf16* v, int64_t ldqkv,
                              bf16* out, int64_t ldo, float* lse);
cudaError_t attention_backward(const Launch& on, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                               int64_t H, int64_t K, int64_t D, float scale, const bf16* q, const bf16* k, const bf16* v, int64_t ldqkv,
                               const bf16* out, int64_t ldo, const float* lse, const bf16* dout, int64_t lddout, bf16* dq, bf16* dk,
                               bf16* dv, int64_t lddqkv, float* work, const float* cos, const float* sin, const int32_t* positions);

// cross_entropy.cu: one chunk of rows. logits f32 [R, V] become, in place in the same memory, dlogits bf16 [R, V] with rows
// 2 V elements apart (each row overwrites the first half of its own logits) = seeds_r (softmax - onehot) when `backward`.
cudaError_t cross_entropy(const Launch& on, int64_t R, int64_t V, float* logits, const int32_t* labels, const float* seeds, float* losses,
                          int32_t* argmax, bool backward);

// activation_gradients.cu: swiglu_backward in place and the adapter gradients beside it, where swiglu_gradients_fits; rows of no segment
// become zero.
bool swiglu_gradients_fits(int64_t f, const bf16* gate_up, int64_t ldg, const bf16* dy, int64_t lddy, const NarrowSide& y,
                           const NarrowSide& gate, const NarrowSide& up);
cudaError_t swiglu_gradients(const Launch& on, int64_t T, int64_t f, bf16* gate_up, int64_t ldg, const bf16* dy, int64_t lddy, int64_t S,
                             const int32_t* cu, const NarrowSide& y, const NarrowSide& gate, const NarrowSide& up, float beta,
                             int64_t out_stride);

// Also activation_gradients.cu: relu_backward and the adapter gradients beside it, of the layer behind (made of y) and of the one before.
bool relu_gradients_fits(int64_t f, const bf16* y, int64_t ldy, const bf16* dy, int64_t lddy, const NarrowSide& behind,
                         const NarrowSide& before);
cudaError_t relu_gradients(const Launch& on, int64_t T, int64_t f, bf16* y, int64_t ldy, const bf16* dy, int64_t lddy, int64_t S,
                           const int32_t* cu, const NarrowSide& behind, const NarrowSide& before, float beta, int64_t out_stride);

// segment.cu: a list of at most MOST_OUTERS outer products over the same segments, in one launch; in two on Hopper where some of them lie off
// the 16-byte grid.
constexpr int MOST_OUTERS = 1 + MOST_GROUPS;
cudaError_t segment_outers(const Launch& on, int64_t S, const int32_t* cu, const OuterProduct* products, int count, float beta,
                           int64_t out_stride);
cudaError_t segment_mean(const Launch& on, int64_t S, const int32_t* cu, int64_t q, const bf16* a, int64_t lda, float* out, int64_t ld_out);
cudaError_t segment_sum(const Launch& on, int64_t S, const int32_t* row_offsets, const float* values, double* out);

// skinny.cu. c [M, N] = a [M, K] b, with b [K, N] (rows_are_k) or [N, K]^T, N a multiple of 8 up to 256; only where skinny_fits.
cudaError_t skinny_product(const Launch& on, int64_t M, int64_t N, int64_t K, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                           bool rows_are_k, bf16* c, int64_t ldc);
bool skinny_fits(const Launch& on, int64_t M, int64_t N, int64_t K, const bf16* a, int64_t lda, const bf16* b, int64_t ldb, bool rows_are_k,
                 const bf16* c, int64_t ldc);

// vector.cu, rows in pieces (kernels/types.h). b: rows ldb apart, one row for all where ldb is 0, or NULL for the rows themselves. `parts`
// is scratch: at least row_dots_parts() doubles. combine: without y the first row of x takes the sum.
int64_t row_dots_parts(int64_t n, const Piece* pieces, int count);
cudaError_t row_dots(const Launch& on, int64_t n, const Piece* pieces, int count, const float* b, int64_t ldb, double* out, double* parts);
cudaError_t combine(const Launch& on, int64_t n, const Piece* pieces, int count, const float* weights, float beta, float* y);

// adam.cu, the gradient of adam() a row in pieces: rounds like lib/optim/adam.ts does in JavaScript (no contraction into fused multiply-adds).
cudaError_t adam_precondition(const Launch& on, int64_t P, const float* g, const float* v, double bias2, double eps, float* out);
cudaError_t adam(const Launch& on, const Piece* g, int count, float* theta, float* m, float* v, double lr, double b1, double b2, double eps,
                 double weight_decay, double bias1, double bias2, double grad_scale);

// convert.cu: dst [rows, cols] = src, rows ld apart; types are ML_F32, ML_BF16 or (source only) ML_F16.
cudaError_t convert_2d(const Launch& on, int64_t rows, int64_t cols, const void* src, int32_t src_dtype, int64_t ld_src, void* dst,
                       int32_t dst_dtype, int64_t ld_dst);
// Also convert.cu: rows of `bytes` bytes, an even number, `pitch` bytes apart; source and destination do not overlap.
cudaError_t copy_2d(const Launch& on, int64_t rows, int64_t bytes, const void* src, int64_t pitch_src, void* dst, int64_t pitch_dst);
// checksum.cu: *sum, in device memory, from the bits of x [rows, cols], elements of `size` bytes (2 or 4).
cudaError_t checksum(const Launch& on, int64_t rows, int64_t cols, const void* x, int64_t ld, int size, unsigned long long* sum);

// bias.cu: out [T, N] = x + row [N]; either may be NULL, x may be out.
cudaError_t add_row(const Launch& on, int64_t T, int64_t N, const bf16* x, int64_t ldx, const bf16* row, bf16* out, int64_t ldo);
// lora.cu: theta of every layer (all A, then all B) into a_cast [Q, lda] (NULL: not wanted) and columns d_in .. d_in+Q-1 of W.
cudaError_t lora_refresh(const Launch& on, const LoraLayer* layers, int count);

}  // namespace cuda
}  // namespace metalora
