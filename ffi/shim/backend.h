// backend.h: what a device must be able to do. cpu_*.cpp and cuda_*.cpp implement these functions, one set a library.
// Arguments arrive checked, in the order of metalora.h; a failure is told to the call.
#pragma once
#include "../../kernels/types.h"
#include "context.h"

struct ml_ctx;

namespace metalora {

inline const int32_t* ints(ml_ptr p) { return (const int32_t*)p; }

// The ml_ctx behind the ABI's pointer as the base that checks read.
Context* base(ml_ctx* ctx);

namespace backend {

// ---- memory ----
// NULL with a reason in `call` when there is none left. Zero-filled.
char* allocate(Call& call, ml_ctx& ctx, uint64_t bytes, bool host);
void release(ml_ctx& ctx, char* data, uint64_t bytes);
void upload(Call& call, ml_ctx& ctx, void* dst, const void* src, uint64_t bytes);
void download(Call& call, ml_ctx& ctx, void* dst, const void* src, uint64_t bytes);
void copy(Call& call, ml_ctx& ctx, void* dst, const void* src, uint64_t bytes);
void zero(Call& call, ml_ctx& ctx, void* dst, uint64_t bytes);
void upload_2d(Call& call, ml_ctx& ctx, int64_t rows, int64_t cols, const void* src, int32_t src_dtype, void* dst, int32_t dst_dtype,
               int64_t ld_dst);
void copy_2d(Call& call, ml_ctx& ctx, int64_t rows, int64_t cols, int64_t size, const void* src, int64_t ld_src, void* dst, int64_t ld_dst);
void synchronize(Call& call, ml_ctx& ctx);

// ---- operators ----
void gemm(Call& call, ml_ctx& ctx, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta, void* c, int32_t c_dtype,
          int64_t ldc);
// places NULL: no positions.
void embedding_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, int64_t V, const void* table, int32_t wdtype, const int32_t* ids,
                       const void* places, const int32_t* positions, void* out, int64_t ldo);
void gather_rows(Call& call, ml_ctx& ctx, int64_t R, int64_t d, const void* x, int64_t ldx, const int32_t* rows, void* out, int64_t ldo);
void scatter_rows(Call& call, ml_ctx& ctx, int64_t R, int64_t T, int64_t d, const void* x, int64_t ldx, const int32_t* rows, void* out,
                  int64_t ldo);
void rmsnorm_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, float eps, const void* x, const void* weight, void* y,
                     int64_t ldy, void* rstd);
void rmsnorm_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, const void* x, const void* weight, const void* rstd, const void* dy,
                      int64_t lddy, void* dx, int64_t lddx);
void layernorm_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, float eps, const void* x, const void* weight, const void* bias, void* y,
                       int64_t ldy, void* stats);
void layernorm_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t d, const void* x, const void* weight, const void* bias, const void* stats,
                        const void* dy, int64_t lddy, void* dx, int64_t lddx, void* y, int64_t ldy);
void lora_refresh(Call& call, ml_ctx& ctx, const LoraLayer* layers, int count, int32_t wdtype);
void linear_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t d_in, int32_t G, const Group* groups, void* xh, int64_t ldx, const void* A, int64_t lda,
                    const void* W, int32_t wdtype, int64_t ldw, const void* bias, bool relu, const void* add, int64_t ldadd, void* y, int64_t ldy);
void linear_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t d_in, int32_t G, const Group* groups, const void* dy, int64_t lddy,
                     const void* A, int64_t lda, const void* W, int32_t wdtype, int64_t ldw, void* dx, int64_t lddx, void* gh, int64_t ldgh);
void segment_outers(Call& call, ml_ctx& ctx, int64_t S, const int32_t* cu, const OuterProduct* products, int count, float beta,
                    int64_t out_stride);
void segment_mean(Call& call, ml_ctx& ctx, int64_t S, const int32_t* cu, int64_t q, const void* a, int64_t lda, void* out, int64_t ld_out);
void segment_sum(Call& call, ml_ctx& ctx, int64_t S, const int32_t* row_offsets, const void* values, void* out);
void rope(Call& call, ml_ctx& ctx, int64_t T, int64_t heads, int64_t D, void* x, int64_t ldx, const void* cos, const void* sin,
          const int32_t* positions, bool inverse);
void attention_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                       int64_t H, int64_t K, int64_t D, float scale, const void* q, const void* k, const void* v, int64_t ldqkv, void* out,
                       int64_t ldo, void* lse);
void attention_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                        int64_t H, int64_t K, int64_t D, float scale, const void* q, const void* k, const void* v, int64_t ldqkv,
                        const void* out, int64_t ldo, const void* lse, const void* dout, int64_t lddout, void* dq, void* dk, void* dv,
                        int64_t lddqkv, void* work, const void* cos, const void* sin, const int32_t* positions);
void swiglu_forward(Call& call, ml_ctx& ctx, int64_t T, int64_t f, const void* gate_up, int64_t ldg, void* y, int64_t ldy);
void swiglu_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t f, const void* gate_up, int64_t ldg, const void* dy, int64_t lddy, void* dgate_up, void* y);
void relu_backward(Call& call, ml_ctx& ctx, int64_t T, int64_t f, void* y, int64_t ldy, const void* dy, int64_t lddy);
// All of ml_swiglu_gradients in one kernel; false, and nothing done, where there is none for these shapes.
bool swiglu_gradients(Call& call, ml_ctx& ctx, int64_t T, int64_t f, void* gate_up, int64_t ldg, const void* dy, int64_t lddy, int64_t S,
                      const int32_t* cu, const NarrowSide& y, const NarrowSide& gate, const NarrowSide& up, float beta, int64_t out_stride);
// The same of ml_relu_gradients.
bool relu_gradients(Call& call, ml_ctx& ctx, int64_t T, int64_t f, void* y, int64_t ldy, const void* dy, int64_t lddy, int64_t S,
                    const int32_t* cu, const NarrowSide& behind, const NarrowSide& before, float beta, int64_t out_stride);
// chunk_rows rows at a time; work holds their logits, f32 [chunk_rows, V].
void head_cross_entropy(Call& call, ml_ctx& ctx, int64_t R, int64_t d, int64_t V, const void* x, const void* W, int32_t wdtype, int64_t ldw,
                        const int32_t* labels, const void* seeds, void* losses, int32_t* argmax, void* dx, void* work, int64_t chunk_rows);
void row_dots(Call& call, ml_ctx& ctx, int64_t n, const Piece* pieces, int count, const void* b, int64_t ldb, void* out);
void combine(Call& call, ml_ctx& ctx, int64_t n, const Piece* pieces, int count, const void* weights, float beta, void* y);
void adam_precondition(Call& call, ml_ctx& ctx, int64_t P, const void* g, const void* v, double bias2, double eps, void* out);
void adam(Call& call, ml_ctx& ctx, const Piece* g, int count, void* theta, void* m, void* v, double lr, double b1, double b2, double eps,
          double weight_decay, double bias1, double bias2, double grad_scale);

// ---- time and graphs ----
void mark(Call& call, ml_ctx& ctx, int32_t slot);
void elapsed(Call& call, ml_ctx& ctx, int32_t from, int32_t to, double* milliseconds);
void graph_begin(Call& call, ml_ctx& ctx);
void* graph_end(Call& call, ml_ctx& ctx);
void graph_launch(Call& call, ml_ctx& ctx, void* graph);
void graph_free(Call& call, ml_ctx& ctx, void* graph);
void memory_info(Call& call, ml_ctx& ctx, uint64_t* free_bytes, uint64_t* total_bytes);

}  // namespace backend
}  // namespace metalora
