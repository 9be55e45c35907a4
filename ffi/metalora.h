/* metalora.h: the whole contract between TypeScript and the native libraries.
 *
 * libmetalora_cpu.so and libmetalora_cuda.so export exactly these symbols. Flat C: scalars, pointers and host buffers
 * only, no struct by value, no callbacks. Every call that can fail returns an int32 status, 0 for success (ML_WRONG,
 * ML_FAULT, ML_LOST); the message of the last failure is kept in the context (ml_last_error) and names the operation, the shapes and the
 * value found.
 *
 * The same letters mean the same thing in every file:
 *   T  rows (tokens) of the packed stream      S  segments (samples) in it     R  rows that carry a label
 *   d  model width     f  MLP width            H  query heads   K  key/value heads   D  head dimension
 *   V  vocabulary      L  layers               r  LoRA rank     n  staged training samples   P  adapter parameters
 *
 * A batch is one packed stream [T, ...] of S segments: segment i owns the rows cu_seqlens[i] .. cu_seqlens[i+1]-1.
 * cu_seqlens, kv_lens, row_offsets, ids, positions, rows, labels and weights live in device memory, so that a captured CUDA
 * graph can be replayed on the next batch.
 *
 * Dimensions are int32 (a 64-bit argument would cost a BigInt on every call); products of dimensions are formed in 64 bits.
 * Memory: `ml_ptr` arguments are addresses from ml_alloc (plus an offset); "host" arguments are ordinary host memory,
 * read or written before the call returns. All leading dimensions (ld*) count elements, not bytes.
 *
 * A linear layer is a group of G adapted matrices that read the same input (q/k/v; gate/up; or one alone):
 *   groups  host int32 [G, 2]  = (d_out_g, r_g); r_g = 0 means no adapter on that matrix
 *   scales  host float [G]     = s_g = alpha / r_g
 *   N = sum d_out_g, Q = sum r_g
 *   W      [N, ldw], ldw >= d_in + Q: frozen weight in the first d_in columns, s_g * B_g of group g in its own r_g
 *          columns behind them (zeros in the columns of the other groups)
 *   theta  one contiguous f32 block: A_0 [r_0, d_in], A_1, ..., then B_0 [d_out_0, r_0], B_1, ... (PEFT's orientation)
 *   xh     [T, ldx], ldx >= d_in + Q: the input x in the first d_in columns, h = x A^T behind it (written by forward)
 *   gh     [T, ldgh]: g_h = dL/dh = s dY B
 */
#ifndef METALORA_H
#define METALORA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ML_ABI_VERSION 7

typedef struct ml_ctx ml_ctx;
typedef void* ml_ptr;

/* Element types. Activations are f32 on the CPU and bf16 on CUDA; everything trained is f32 on both. */
#define ML_F32 0
#define ML_BF16 1
#define ML_F16 2 /* as a source of ml_upload_2d only */

/* What a call returns when it fails: its arguments are wrong, and nothing was done; or the device could not do it (its memory is
 * taken, a kernel cannot be started, it cannot be opened), which no caller could have known; or work that was under way failed: the
 * context is of no use any more, and unless METALORA_SYNCHRONOUS=1 had every operator waited for, one before this call may be to
 * blame. */
#define ML_WRONG 1
#define ML_FAULT 2
#define ML_LOST 3

/* ---- context -------------------------------------------------------------------------------------------------- */

uint32_t ml_abi_version(void);
/* Opens a device: on CUDA the GPU of that number; on the CPU 0, or the number of an instruction set whose kernels are wanted
 * instead of the best (1 generic, 2 avx2, 3 avx512, 4 avx512bf16). threads <= 0 means all cores this process may use. The
 * context pointer goes to out (8 bytes). */
int32_t ml_create(int32_t device, int32_t threads, void* out);
/* Of a lost context (ML_LOST) it resets the GPU for this process, so that the memory is there for others: whatever else the process
 * holds on that GPU is lost, too. */
void ml_destroy(ml_ctx* ctx);
/* Copies the last message (UTF-8, NUL-terminated) into host text; ctx NULL gives the last failure of ml_create. Returns its length. */
int32_t ml_last_error(ml_ctx* ctx, void* text, int32_t capacity);
/* One line about the device, such as "AMD EPYC, avx2, 2 threads". Returns its length. */
int32_t ml_device_name(ml_ctx* ctx, void* text, int32_t capacity);
/* Number of worker threads (CPU) or multiprocessors (CUDA). */
int32_t ml_device_units(ml_ctx* ctx);
/* The element type activations must have on this device: ML_F32 or ML_BF16. */
int32_t ml_activation_dtype(ml_ctx* ctx);
/* Waits for everything enqueued so far; an asynchronous failure surfaces here at the latest. */
int32_t ml_synchronize(ml_ctx* ctx);
/* What this library finds on this machine, as JSON, without opening a device: processor, or driver, GPUs and the libraries
 * that were found or tried. Returns the length of the whole text. */
int32_t ml_report(void* text, int32_t capacity);

/* ---- time ------------------------------------------------------------------------------------------------------- */

#define ML_MARKS 64
/* Remembers the time at which the device reaches this point of its work, in slot 0 .. ML_MARKS - 1. */
int32_t ml_mark(ml_ctx* ctx, int32_t slot);
/* Milliseconds of device time between two marks, f64 to out. Waits for the second. */
int32_t ml_elapsed(ml_ctx* ctx, int32_t from, int32_t to, void* out);

/* ---- graphs: CUDA only ------------------------------------------------------------------------------------------- */

/* Operators called between begin and end are recorded, not run; uploads, downloads and allocations are refused meanwhile.
 * The graph replays them on the same addresses: what differs from batch to batch must lie in device memory. */
int32_t ml_graph_begin(ml_ctx* ctx);
/* The handle goes to out (8 bytes); free it before the context. */
int32_t ml_graph_end(ml_ctx* ctx, void* out);
int32_t ml_graph_launch(ml_ctx* ctx, ml_ptr graph);
int32_t ml_graph_free(ml_ctx* ctx, ml_ptr graph);

/* ---- memory --------------------------------------------------------------------------------------------------- */

/* Zero-filled memory, aligned to 256 bytes; the address goes to out (8 bytes). host = 1 takes it from the host's memory, where
 * operators reach it over the bus: for what is large and little read, such as an embedding. On the CPU both are the same. */
int32_t ml_alloc(ml_ctx* ctx, uint64_t bytes, int32_t host, void* out);
int32_t ml_free(ml_ctx* ctx, ml_ptr p);
/* Bytes held through ml_alloc right now. */
uint64_t ml_allocated_bytes(ml_ctx* ctx);
/* u64 [2] to out: free and total bytes of the device as its driver (or the operating system) reports them now. */
int32_t ml_memory_info(ml_ctx* ctx, void* out);
int32_t ml_upload(ml_ctx* ctx, ml_ptr dst, const void* src_host, uint64_t bytes);
int32_t ml_download(ml_ctx* ctx, void* dst_host, ml_ptr src, uint64_t bytes);
int32_t ml_copy(ml_ctx* ctx, ml_ptr dst, ml_ptr src, uint64_t bytes);
int32_t ml_zero(ml_ctx* ctx, ml_ptr dst, uint64_t bytes);
/* dst[i, j] = convert(src[i, j]), i < rows, j < cols; src dense in host memory, dst rows ld_dst apart. */
int32_t ml_upload_2d(ml_ctx* ctx, int32_t rows, int32_t cols, const void* src_host, int32_t src_dtype, ml_ptr dst,
                     int32_t dst_dtype, int32_t ld_dst);
/* dst[i, j] = src[i, j]: strided device copy within one dtype. */
int32_t ml_copy_2d(ml_ctx* ctx, int32_t rows, int32_t cols, int32_t dtype, ml_ptr src, int32_t ld_src, ml_ptr dst,
                   int32_t ld_dst);

/* ---- matrix product: tests, benchmarks and whatever has no operator of its own ---------------------------------- */

/* c [M, N] (f32 on the CPU; f32 or bf16 on CUDA, whose operands are bf16) = alpha * op(a) op(b) + beta * c. trans_a: a is [K, M]; trans_b: b is [N, K]. */
int32_t ml_gemm(ml_ctx* ctx, int32_t trans_a, int32_t trans_b, int32_t M, int32_t N, int32_t K, float alpha, ml_ptr a,
                int32_t a_dtype, int32_t lda, ml_ptr b, int32_t b_dtype, int32_t ldb, float beta, ml_ptr c,
                int32_t c_dtype, int32_t ldc);

/* ---- model operators: T rows of activations of type `dtype` ----------------------------------------------------- */

/* out [T, ldo] = table[ids] + places[positions]; table [V, d] and places [n_positions, d] of type wdtype, ids and positions
 * int32 [T]; places NULL: out = table[ids]. Ids outside 0..V-1 are an error (on CUDA one that ml_synchronize or ml_download
 * tells). */
int32_t ml_embedding_forward(ml_ctx* ctx, int32_t T, int32_t d, int32_t V, ml_ptr table, int32_t wdtype, ml_ptr ids,
                             ml_ptr places, ml_ptr positions, int32_t n_positions, ml_ptr out, int32_t ldo, int32_t dtype);

/* y = x / rms(x) * weight; rstd f32 [T] = 1 / rms. x dense [T, d]; y [T, ldy]; weight f32 [d]. */
int32_t ml_rmsnorm_forward(ml_ctx* ctx, int32_t T, int32_t d, float eps, ml_ptr x, ml_ptr weight, ml_ptr y, int32_t ldy,
                           ml_ptr rstd, int32_t dtype);
/* dx += d rmsnorm(x) / dx applied to dy; x dense [T, d], dx [T, lddx], dy [T, lddy]. */
int32_t ml_rmsnorm_backward(ml_ctx* ctx, int32_t T, int32_t d, ml_ptr x, ml_ptr weight, ml_ptr rstd, ml_ptr dy,
                            int32_t lddy, ml_ptr dx, int32_t lddx, int32_t dtype);

/* y = (x - mean) / deviation * weight + bias, with deviation = sqrt(variance + eps); stats f32 [T, 2] = (mean, 1 / deviation) of each
 * row. x dense [T, d]; y [T, ldy]; weight and bias f32 [d]. */
int32_t ml_layernorm_forward(ml_ctx* ctx, int32_t T, int32_t d, float eps, ml_ptr x, ml_ptr weight, ml_ptr bias, ml_ptr y, int32_t ldy,
                             ml_ptr stats, int32_t dtype);
/* dx += d layernorm(x) / dx applied to dy, and y [T, ldy] = layernorm(x) once more, which adapter gradients read; either may be
 * NULL (dx NULL: dy is not read). x dense [T, d], dx [T, lddx], dy [T, lddy]. */
int32_t ml_layernorm_backward(ml_ctx* ctx, int32_t T, int32_t d, ml_ptr x, ml_ptr weight, ml_ptr bias, ml_ptr stats, ml_ptr dy,
                              int32_t lddy, ml_ptr dx, int32_t lddx, ml_ptr y, int32_t ldy, int32_t dtype);

/* theta (f32) of m linear layers -> what the GEMMs read: s_g B_g into the columns of W behind d_in, and A into a_cast [Q, lda] of type
 * dtype (a_cast 0 where activations are f32: A is then read from theta itself). a_cast may lie directly below W: then it is W's rows
 * N .. N+Q-1, lda = ldw. layers host int64 [m, 7] = (d_in, G, theta, W, ldw, a_cast, lda); groups and scales of all layers in order. */
int32_t ml_lora_refresh(ml_ctx* ctx, int32_t m, const int64_t* layers_host, const int32_t* groups_host, const float* scales_host,
                        int32_t wdtype, int32_t dtype);
/* h = x A^T behind x; y [T, ldy] = x W^T + sum_g s_g h_g B_g^T + bias + add, or with relu = 1 max(x W^T + ... + bias, 0). A [Q, lda]
 * and bias [N] (or NULL) of type dtype; add [T, ldadd] (or NULL; NULL with relu), such as the residual stream, may be y itself. */
int32_t ml_linear_forward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr xh,
                          int32_t ldx, ml_ptr A, int32_t lda, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr bias,
                          int32_t relu, ml_ptr add, int32_t ldadd, ml_ptr y, int32_t ldy, int32_t dtype);
/* gh [T, ldgh] = g_h = s dY B (NULL where Q = 0) and dx [T, lddx] = dY W + g_h A (or NULL). dy [T, lddy]. On CUDA, with A below W and gh
 * in the columns behind dy, dx is one product over K = N + Q; on the CPU, where one matrix stands alone, with gh behind dx both are. */
int32_t ml_linear_backward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr dy,
                           int32_t lddy, ml_ptr A, int32_t lda, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr dx, int32_t lddx,
                           ml_ptr gh, int32_t ldgh, int32_t dtype);
/* out_i [p, q] (f32) = beta * out_i + alpha * a_i^T b_i over the rows of segment i; out_i starts out_stride elements
 * after out_{i-1}. Per-sample adapter gradients: grad_A = outer(g_h, x), grad_B = s * outer(dY, h); core: outer(g_h, h).
 * row_scale f32 [T] and column_scale f32 [q], or NULL: a term of row t counts row_scale[t] times, column j of the product
 * column_scale[j] times; with 1 / rms and the weights of a norm, b is read where outer(g_h, norm(b)) is meant.
 * cu_seqlens int32 [S + 1]. */
int32_t ml_segment_outer(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t p, int32_t q, ml_ptr a,
                         int32_t lda, ml_ptr b, int32_t ldb, ml_ptr row_scale, ml_ptr column_scale, int32_t dtype,
                         float alpha, float beta, ml_ptr out, int32_t out_stride);
/* The gradients of a linear layer's adapters, one of each segment, as ml_segment_outer forms them; out (f32) is laid out as theta,
 * out_stride elements from segment to segment:
 *   A [Q, d_in]      = beta * A + outer(gh, x), with row_scale and column_scale of x     x NULL: left alone
 *   B_g [d_out_g, r_g] = beta * B_g + s_g * outer(dy_g, h_g)                             dy NULL: left alone
 * x [T, ldx], gh and h [T, Q], dy [T, N]; what is left alone needs no h. */
int32_t ml_linear_gradients(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t d_in, int32_t G, const int32_t* groups_host,
                            const float* scales_host, ml_ptr x, int32_t ldx, ml_ptr row_scale, ml_ptr column_scale, ml_ptr gh,
                            int32_t ldgh, ml_ptr h, int32_t ldh, ml_ptr dy, int32_t lddy, float beta, ml_ptr out,
                            int32_t out_stride, int32_t dtype);
/* out [S, q] (f32), rows ld_out apart = mean of the rows of each segment of a [T, lda], first q columns. */
int32_t ml_segment_mean(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t q, ml_ptr a, int32_t lda,
                        int32_t dtype, ml_ptr out, int32_t ld_out);

/* In place on x [T, ldx]: rotates `heads` consecutive heads of D. Halves are paired as in Hugging Face Llama
 * (x_j with x_{j + D/2}). cos, sin f32 [positions, D/2]; positions int32 [T]. inverse = 1 rotates back (the backward). */
int32_t ml_rope(ml_ctx* ctx, int32_t T, int32_t heads, int32_t D, ml_ptr x, int32_t ldx, ml_ptr cos, ml_ptr sin,
                ml_ptr positions, int32_t n_positions, int32_t inverse, int32_t dtype);

/* Causal attention within each segment; query head i reads key/value head i / (H / K). Rows of q [T, H*D], k and v
 * [T, K*D] are ldqkv apart (three parts of one buffer). out [T, ldo]; lse f32 [T, H] = log-sum-exp of the scaled scores.
 * Rows cu_seqlens[S] .. T-1 belong to no segment: they are set to zero. max_length bounds the longest segment. kv_lens int32 [S] or NULL: only the first kv_lens[i] rows of segment i serve as keys (right padding). */
int32_t ml_attention_forward(ml_ctx* ctx, int32_t T, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int32_t H,
                             int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv,
                             ml_ptr out, int32_t ldo, ml_ptr lse, int32_t dtype);
/* dq, dk, dv overwrite three parts of one buffer with rows lddqkv apart. work f32 [T, H] is scratch. Where q and k came out of
 * ml_rope, its tables and positions give dq and dk of what went into it: rotated back, as by ml_rope with inverse = 1, but before
 * they are rounded. cos NULL: dq and dk of q and k themselves. */
int32_t ml_attention_backward(ml_ctx* ctx, int32_t T, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr kv_lens, int32_t H,
                              int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv,
                              ml_ptr out, int32_t ldo, ml_ptr lse, ml_ptr dout, int32_t lddout, ml_ptr dq, ml_ptr dk,
                              ml_ptr dv, int32_t lddqkv, ml_ptr work, ml_ptr cos, ml_ptr sin, ml_ptr positions,
                              int32_t n_positions, int32_t dtype);

/* y [T, ldy] = silu(gate) * up; gate_up [T, 2f] with rows ldg apart, gate first. */
int32_t ml_swiglu_forward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr y, int32_t ldy,
                          int32_t dtype);
/* dgate_up [T, 2f] with rows ldg apart like gate_up's, may be gate_up itself; dy [T, lddy]. y [T, lddy] or NULL: the forward
 * result once more, may be dy itself. */
int32_t ml_swiglu_backward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr dy, int32_t lddy,
                           ml_ptr dgate_up, ml_ptr y, int32_t dtype);
/* ml_swiglu_backward in place on gate_up, and on its way the adapter gradients that are made of what it has in hand, one of
 * each kind a segment, as ml_segment_outer forms them:
 *   out_y [r_y, f]               = beta * out_y + outer(gh, y)                     gh [T, r_y], rows ldgh apart
 *   out_gate [f, r_gate], then
 *   out_up [f, r_up] behind it   = beta * out + s * outer(dgate or dup, h)         h [T, r_gate + r_up], rows ldh apart
 * Outputs start out_stride elements after those of the segment before. A rank of 0 leaves its gradient out (pointers may be
 * NULL). dy [T, lddy] is scratch afterwards, and dgate_up of rows of no segment is zero or of no use. */
int32_t ml_swiglu_gradients(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr dy, int32_t lddy, int32_t S,
                            ml_ptr cu_seqlens, int32_t r_y, ml_ptr gh, int32_t ldgh, ml_ptr out_y, int32_t r_gate, int32_t r_up,
                            ml_ptr h, int32_t ldh, float s_gate, float s_up, ml_ptr out_gate, float beta, int32_t out_stride,
                            int32_t dtype);

/* In place of what a linear layer with ReLU made, the gradient in front of ReLU: y = dy where y > 0, else 0; y [T, ldy], dy [T, lddy].
 * What ReLU and its slope make of a NaN is the device's affair: cublasLt rectifies on a GPU. */
int32_t ml_relu_backward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr y, int32_t ldy, ml_ptr dy, int32_t lddy, int32_t dtype);
/* ml_relu_backward, and on its way the adapter gradients that are made of y and of what takes its place, dx, one of each kind a
 * segment, as ml_segment_outer forms them:
 *   out_y [r_y, f] = beta * out_y + outer(gh, y)         gh [T, r_y], rows ldgh apart
 *   out_x [f, r_x] = beta * out_x + s * outer(dx, h)     h [T, r_x], rows ldh apart
 * Outputs start out_stride elements after those of the segment before. A rank of 0 leaves its gradient out (pointers may be
 * NULL). dx of rows of no segment is zero or of no use. */
int32_t ml_relu_gradients(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr y, int32_t ldy, ml_ptr dy, int32_t lddy, int32_t S,
                          ml_ptr cu_seqlens, int32_t r_y, ml_ptr gh, int32_t ldgh, ml_ptr out_y, int32_t r_x, ml_ptr h, int32_t ldh,
                          float s, ml_ptr out_x, float beta, int32_t out_stride, int32_t dtype);

/* out [R, d] = x[rows], out rows ldo apart; x [.., ldx]. */
int32_t ml_gather_rows(ml_ctx* ctx, int32_t R, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr out, int32_t ldo,
                       int32_t dtype);
/* out [T, ldo] = 0, then out[rows] = x; x [R, ldx]. */
int32_t ml_scatter_rows(ml_ctx* ctx, int32_t R, int32_t T, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr out,
                        int32_t ldo, int32_t dtype);

/* LM head and cross-entropy in one, over chunks that fit in `work`; whole logits are never stored.
 * x dense [R, d]; W [V, ldw]; labels int32 [R]; seeds f32 [R] = dL/d(loss of the row), 1/n_i of its sample for unit seeds.
 * losses f32 [R] = -log softmax(x W^T)[label]; argmax int32 [R] or NULL; dx dense [R, d], may be x itself, or NULL (no backward).
 * Errors when work cannot hold one chunk; ml_head_work_bytes tells what `rows` rows a chunk need. */
int32_t ml_head_cross_entropy(ml_ctx* ctx, int32_t R, int32_t d, int32_t V, ml_ptr x, ml_ptr W, int32_t wdtype,
                              int32_t ldw, ml_ptr labels, ml_ptr seeds, ml_ptr losses, ml_ptr argmax, ml_ptr dx,
                              ml_ptr work, uint64_t work_bytes, int32_t dtype);
uint64_t ml_head_work_bytes(ml_ctx* ctx, int32_t rows, int32_t V, int32_t dtype);
/* out f64 [S] = sums of values f32 over row_offsets int32 [S + 1] (per-sample losses from per-row losses). */
int32_t ml_segment_sum(ml_ctx* ctx, int32_t S, ml_ptr row_offsets, ml_ptr values, ml_ptr out);

/* ---- flat vectors of adapter parameters, all f32 ----------------------------------------------------------------- */

/* n rows of P numbers that may lie in m pieces: pieces host int32 [m, 3] = (o, ld, length), of which row i lies 256 o bytes + i ld
 * elements behind a (or x). The lengths, in order, add up to P. */

/* out f64 [n], out[i] = sum_j a_i[j] * b[i * ldb + j], j < P; ldb = 0 shares one b (similarity to V), b NULL gives squared norms.
 * Accumulated in double, in an order that does not depend on the number of threads. */
int32_t ml_row_dots(ml_ctx* ctx, int32_t n, int32_t m, const int32_t* pieces_host, ml_ptr a, ml_ptr b, int32_t ldb, ml_ptr out);
/* y [P] = beta * y + sum_i weights[i] * x_i; weights f32 [n]. Weighted combine, accumulation, EMA. y NULL: the first row of x itself
 * takes the sum; beta must be 0 then. */
int32_t ml_combine(ml_ctx* ctx, int32_t n, int32_t m, const int32_t* pieces_host, ml_ptr weights, ml_ptr x, float beta, ml_ptr y);
/* out = g / (sqrt(v / bias2) + eps): the Adam preconditioner of similarity exact-adam (algorithms 5.1). */
int32_t ml_adam_precondition(ml_ctx* ctx, int32_t P, ml_ptr g, ml_ptr v, double bias2, double eps, ml_ptr out);
/* g' = grad_scale * g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2; theta -= lr * wd * theta;
 * theta -= lr * (m / bias1) / (sqrt(v / bias2) + eps). AdamW, decoupled decay; bias_k = 1 - b_k^t, from the caller. g is one row in
 * n_pieces pieces, whose lengths add up to P. */
int32_t ml_adam(ml_ctx* ctx, int32_t P, ml_ptr theta, int32_t n_pieces, const int32_t* pieces_host, ml_ptr g, ml_ptr m, ml_ptr v, double lr,
                double b1, double b2, double eps, double weight_decay, double bias1, double bias2, double grad_scale);

#ifdef __cplusplus
}
#endif
#endif
