/**
 * The first floor of the boundary: the table of native symbols, each under its C prototype.
 *
 * Addresses of device memory and the context are `pointer`; host arrays are `buffer` (typed arrays, never a pointer to a
 * temporary). A test compares this table with `metalora.h` and with what the libraries export.
 */

// deno-fmt-ignore
export const symbols = {
  // uint32_t ml_abi_version(void)
  ml_abi_version: { parameters: [], result: "u32" },
  // int32_t ml_create(int32_t device, int32_t threads, void* out)
  ml_create: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  // void ml_destroy(ml_ctx* ctx)
  ml_destroy: { parameters: ["pointer"], result: "void" },
  // int32_t ml_last_error(ml_ctx* ctx, void* text, int32_t capacity)
  ml_last_error: { parameters: ["pointer", "buffer", "i32"], result: "i32" },
  // int32_t ml_device_name(ml_ctx* ctx, void* text, int32_t capacity)
  ml_device_name: { parameters: ["pointer", "buffer", "i32"], result: "i32" },
  // int32_t ml_device_units(ml_ctx* ctx)
  ml_device_units: { parameters: ["pointer"], result: "i32" },
  // int32_t ml_activation_dtype(ml_ctx* ctx)
  ml_activation_dtype: { parameters: ["pointer"], result: "i32" },
  // int32_t ml_synchronize(ml_ctx* ctx)
  ml_synchronize: { parameters: ["pointer"], result: "i32" },
  // int32_t ml_report(void* text, int32_t capacity)
  ml_report: { parameters: ["buffer", "i32"], result: "i32" },
  // int32_t ml_mark(ml_ctx* ctx, int32_t slot)
  ml_mark: { parameters: ["pointer", "i32"], result: "i32" },
  // int32_t ml_elapsed(ml_ctx* ctx, int32_t from, int32_t to, void* out)
  ml_elapsed: { parameters: ["pointer", "i32", "i32", "buffer"], result: "i32" },
  // int32_t ml_graph_begin(ml_ctx* ctx)
  ml_graph_begin: { parameters: ["pointer"], result: "i32" },
  // int32_t ml_graph_end(ml_ctx* ctx, void* out)
  ml_graph_end: { parameters: ["pointer", "buffer"], result: "i32" },
  // int32_t ml_graph_launch(ml_ctx* ctx, ml_ptr graph)
  ml_graph_launch: { parameters: ["pointer", "pointer"], result: "i32" },
  // int32_t ml_graph_free(ml_ctx* ctx, ml_ptr graph)
  ml_graph_free: { parameters: ["pointer", "pointer"], result: "i32" },
  // int32_t ml_alloc(ml_ctx* ctx, uint64_t bytes, int32_t host, void* out)
  ml_alloc: { parameters: ["pointer", "u64", "i32", "buffer"], result: "i32" },
  // int32_t ml_free(ml_ctx* ctx, ml_ptr p)
  ml_free: { parameters: ["pointer", "pointer"], result: "i32" },
  // uint64_t ml_allocated_bytes(ml_ctx* ctx)
  ml_allocated_bytes: { parameters: ["pointer"], result: "u64" },
  // int32_t ml_memory_info(ml_ctx* ctx, void* out)
  ml_memory_info: { parameters: ["pointer", "buffer"], result: "i32" },
  // int32_t ml_upload(ml_ctx* ctx, ml_ptr dst, const void* src_host, uint64_t bytes)
  ml_upload: { parameters: ["pointer", "pointer", "buffer", "u64"], result: "i32" },
  // int32_t ml_download(ml_ctx* ctx, void* dst_host, ml_ptr src, uint64_t bytes)
  ml_download: { parameters: ["pointer", "buffer", "pointer", "u64"], result: "i32" },
  // int32_t ml_copy(ml_ctx* ctx, ml_ptr dst, ml_ptr src, uint64_t bytes)
  ml_copy: { parameters: ["pointer", "pointer", "pointer", "u64"], result: "i32" },
  // int32_t ml_zero(ml_ctx* ctx, ml_ptr dst, uint64_t bytes)
  ml_zero: { parameters: ["pointer", "pointer", "u64"], result: "i32" },
  // int32_t ml_upload_2d(ml_ctx* ctx, int32_t rows, int32_t cols, const void* src_host, int32_t src_dtype, ml_ptr
  //   dst, int32_t dst_dtype, int32_t ld_dst)
  ml_upload_2d: { parameters: ["pointer", "i32", "i32", "buffer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_copy_2d(ml_ctx* ctx, int32_t rows, int32_t cols, int32_t dtype, ml_ptr src, int32_t ld_src, ml_ptr
  //   dst, int32_t ld_dst)
  ml_copy_2d: { parameters: ["pointer", "i32", "i32", "i32", "pointer", "i32", "pointer", "i32"], result: "i32" },
  // int32_t ml_gemm(ml_ctx* ctx, int32_t trans_a, int32_t trans_b, int32_t M, int32_t N, int32_t K, float alpha,
  //   ml_ptr a, int32_t a_dtype, int32_t lda, ml_ptr b, int32_t b_dtype, int32_t ldb, float beta, ml_ptr c, int32_t
  //   c_dtype, int32_t ldc)
  ml_gemm: { parameters: ["pointer", "i32", "i32", "i32", "i32", "i32", "f32", "pointer", "i32", "i32", "pointer", "i32", "i32", "f32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_embedding_forward(ml_ctx* ctx, int32_t T, int32_t d, int32_t V, ml_ptr table, int32_t wdtype, ml_ptr
  //   ids, ml_ptr places, ml_ptr positions, int32_t n_positions, ml_ptr out, int32_t ldo, int32_t dtype)
  ml_embedding_forward: { parameters: ["pointer", "i32", "i32", "i32", "pointer", "i32", "pointer", "pointer", "pointer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_rmsnorm_forward(ml_ctx* ctx, int32_t T, int32_t d, float eps, ml_ptr x, ml_ptr weight, ml_ptr y,
  //   int32_t ldy, ml_ptr rstd, int32_t dtype)
  ml_rmsnorm_forward: { parameters: ["pointer", "i32", "i32", "f32", "pointer", "pointer", "pointer", "i32", "pointer", "i32"], result: "i32" },
  // int32_t ml_rmsnorm_backward(ml_ctx* ctx, int32_t T, int32_t d, ml_ptr x, ml_ptr weight, ml_ptr rstd, ml_ptr dy,
  //   int32_t lddy, ml_ptr dx, int32_t lddx, int32_t dtype)
  ml_rmsnorm_backward: { parameters: ["pointer", "i32", "i32", "pointer", "pointer", "pointer", "pointer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_layernorm_forward(ml_ctx* ctx, int32_t T, int32_t d, float eps, ml_ptr x, ml_ptr weight, ml_ptr bias,
  //   ml_ptr y, int32_t ldy, ml_ptr stats, int32_t dtype)
  ml_layernorm_forward: { parameters: ["pointer", "i32", "i32", "f32", "pointer", "pointer", "pointer", "pointer", "i32", "pointer", "i32"], result: "i32" },
  // int32_t ml_layernorm_backward(ml_ctx* ctx, int32_t T, int32_t d, ml_ptr x, ml_ptr weight, ml_ptr bias, ml_ptr
  //   stats, ml_ptr dy, int32_t lddy, ml_ptr dx, int32_t lddx, ml_ptr y, int32_t ldy, int32_t dtype)
  ml_layernorm_backward: { parameters: ["pointer", "i32", "i32", "pointer", "pointer", "pointer", "pointer", "pointer", "i32", "pointer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_lora_refresh(ml_ctx* ctx, int32_t m, const int64_t* layers_host, const int32_t* groups_host, const
  //   float* scales_host, int32_t wdtype, int32_t dtype)
  ml_lora_refresh: { parameters: ["pointer", "i32", "buffer", "buffer", "buffer", "i32", "i32"], result: "i32" },
  // int32_t ml_linear_forward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr
  //   xh, int32_t ldx, ml_ptr A, int32_t lda, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr bias, int32_t relu, ml_ptr
  //   add, int32_t ldadd, ml_ptr y, int32_t ldy, int32_t dtype)
  ml_linear_forward: { parameters: ["pointer", "i32", "i32", "i32", "buffer", "pointer", "i32", "pointer", "i32", "pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_linear_backward(ml_ctx* ctx, int32_t T, int32_t d_in, int32_t G, const int32_t* groups_host, ml_ptr
  //   dy, int32_t lddy, ml_ptr A, int32_t lda, ml_ptr W, int32_t wdtype, int32_t ldw, ml_ptr dx, int32_t lddx, ml_ptr
  //   gh, int32_t ldgh, int32_t dtype)
  ml_linear_backward: { parameters: ["pointer", "i32", "i32", "i32", "buffer", "pointer", "i32", "pointer", "i32", "pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_segment_outer(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t p, int32_t q, ml_ptr a, int32_t lda,
  //   ml_ptr b, int32_t ldb, ml_ptr row_scale, ml_ptr column_scale, int32_t dtype, float alpha, float beta, ml_ptr
  //   out, int32_t out_stride)
  ml_segment_outer: { parameters: ["pointer", "i32", "pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "pointer", "pointer", "i32", "f32", "f32", "pointer", "i32"], result: "i32" },
  // int32_t ml_linear_gradients(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t d_in, int32_t G, const int32_t*
  //   groups_host, const float* scales_host, ml_ptr x, int32_t ldx, ml_ptr row_scale, ml_ptr column_scale, ml_ptr gh,
  //   int32_t ldgh, ml_ptr h, int32_t ldh, ml_ptr dy, int32_t lddy, float beta, ml_ptr out, int32_t out_stride,
  //   int32_t dtype)
  ml_linear_gradients: { parameters: ["pointer", "i32", "pointer", "i32", "i32", "buffer", "buffer", "pointer", "i32", "pointer", "pointer", "pointer", "i32", "pointer", "i32", "pointer", "i32", "f32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_segment_mean(ml_ctx* ctx, int32_t S, ml_ptr cu_seqlens, int32_t q, ml_ptr a, int32_t lda, int32_t
  //   dtype, ml_ptr out, int32_t ld_out)
  ml_segment_mean: { parameters: ["pointer", "i32", "pointer", "i32", "pointer", "i32", "i32", "pointer", "i32"], result: "i32" },
  // int32_t ml_rope(ml_ctx* ctx, int32_t T, int32_t heads, int32_t D, ml_ptr x, int32_t ldx, ml_ptr cos, ml_ptr sin,
  //   ml_ptr positions, int32_t n_positions, int32_t inverse, int32_t dtype)
  ml_rope: { parameters: ["pointer", "i32", "i32", "i32", "pointer", "i32", "pointer", "pointer", "pointer", "i32", "i32", "i32"], result: "i32" },
  // int32_t ml_attention_forward(ml_ctx* ctx, int32_t T, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr
  //   kv_lens, int32_t H, int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv, ml_ptr out,
  //   int32_t ldo, ml_ptr lse, int32_t dtype)
  ml_attention_forward: { parameters: ["pointer", "i32", "i32", "i32", "pointer", "pointer", "i32", "i32", "i32", "f32", "pointer", "pointer", "pointer", "i32", "pointer", "i32", "pointer", "i32"], result: "i32" },
  // int32_t ml_attention_backward(ml_ctx* ctx, int32_t T, int32_t S, int32_t max_length, ml_ptr cu_seqlens, ml_ptr
  //   kv_lens, int32_t H, int32_t K, int32_t D, float scale, ml_ptr q, ml_ptr k, ml_ptr v, int32_t ldqkv, ml_ptr out,
  //   int32_t ldo, ml_ptr lse, ml_ptr dout, int32_t lddout, ml_ptr dq, ml_ptr dk, ml_ptr dv, int32_t lddqkv, ml_ptr
  //   work, ml_ptr cos, ml_ptr sin, ml_ptr positions, int32_t n_positions, int32_t dtype)
  ml_attention_backward: { parameters: ["pointer", "i32", "i32", "i32", "pointer", "pointer", "i32", "i32", "i32", "f32", "pointer", "pointer", "pointer", "i32", "pointer", "i32", "pointer", "pointer", "i32", "pointer", "pointer", "pointer", "i32", "pointer", "pointer", "pointer", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_swiglu_forward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr y, int32_t ldy,
  //   int32_t dtype)
  ml_swiglu_forward: { parameters: ["pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_swiglu_backward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr dy, int32_t
  //   lddy, ml_ptr dgate_up, ml_ptr y, int32_t dtype)
  ml_swiglu_backward: { parameters: ["pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "pointer", "pointer", "i32"], result: "i32" },
  // int32_t ml_swiglu_gradients(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr gate_up, int32_t ldg, ml_ptr dy, int32_t
  //   lddy, int32_t S, ml_ptr cu_seqlens, int32_t r_y, ml_ptr gh, int32_t ldgh, ml_ptr out_y, int32_t r_gate, int32_t
  //   r_up, ml_ptr h, int32_t ldh, float s_gate, float s_up, ml_ptr out_gate, float beta, int32_t out_stride, int32_t
  //   dtype)
  ml_swiglu_gradients: { parameters: ["pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "pointer", "i32", "i32", "pointer", "i32", "f32", "f32", "pointer", "f32", "i32", "i32"], result: "i32" },
  // int32_t ml_relu_backward(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr y, int32_t ldy, ml_ptr dy, int32_t lddy,
  //   int32_t dtype)
  ml_relu_backward: { parameters: ["pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_relu_gradients(ml_ctx* ctx, int32_t T, int32_t f, ml_ptr y, int32_t ldy, ml_ptr dy, int32_t lddy,
  //   int32_t S, ml_ptr cu_seqlens, int32_t r_y, ml_ptr gh, int32_t ldgh, ml_ptr out_y, int32_t r_x, ml_ptr h, int32_t
  //   ldh, float s, ml_ptr out_x, float beta, int32_t out_stride, int32_t dtype)
  ml_relu_gradients: { parameters: ["pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "i32", "pointer", "i32", "pointer", "i32", "pointer", "i32", "pointer", "i32", "f32", "pointer", "f32", "i32", "i32"], result: "i32" },
  // int32_t ml_gather_rows(ml_ctx* ctx, int32_t R, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr out,
  //   int32_t ldo, int32_t dtype)
  ml_gather_rows: { parameters: ["pointer", "i32", "i32", "pointer", "i32", "pointer", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_scatter_rows(ml_ctx* ctx, int32_t R, int32_t T, int32_t d, ml_ptr x, int32_t ldx, ml_ptr rows, ml_ptr
  //   out, int32_t ldo, int32_t dtype)
  ml_scatter_rows: { parameters: ["pointer", "i32", "i32", "i32", "pointer", "i32", "pointer", "pointer", "i32", "i32"], result: "i32" },
  // int32_t ml_head_cross_entropy(ml_ctx* ctx, int32_t R, int32_t d, int32_t V, ml_ptr x, ml_ptr W, int32_t wdtype,
  //   int32_t ldw, ml_ptr labels, ml_ptr seeds, ml_ptr losses, ml_ptr argmax, ml_ptr dx, ml_ptr work, uint64_t
  //   work_bytes, int32_t dtype)
  ml_head_cross_entropy: { parameters: ["pointer", "i32", "i32", "i32", "pointer", "pointer", "i32", "i32", "pointer", "pointer", "pointer", "pointer", "pointer", "pointer", "u64", "i32"], result: "i32" },
  // uint64_t ml_head_work_bytes(ml_ctx* ctx, int32_t rows, int32_t V, int32_t dtype)
  ml_head_work_bytes: { parameters: ["pointer", "i32", "i32", "i32"], result: "u64" },
  // int32_t ml_segment_sum(ml_ctx* ctx, int32_t S, ml_ptr row_offsets, ml_ptr values, ml_ptr out)
  ml_segment_sum: { parameters: ["pointer", "i32", "pointer", "pointer", "pointer"], result: "i32" },
  // int32_t ml_row_dots(ml_ctx* ctx, int32_t n, int32_t m, const int32_t* pieces_host, ml_ptr a, ml_ptr b, int32_t
  //   ldb, ml_ptr out)
  ml_row_dots: { parameters: ["pointer", "i32", "i32", "buffer", "pointer", "pointer", "i32", "pointer"], result: "i32" },
  // int32_t ml_combine(ml_ctx* ctx, int32_t n, int32_t m, const int32_t* pieces_host, ml_ptr weights, ml_ptr x, float
  //   beta, ml_ptr y)
  ml_combine: { parameters: ["pointer", "i32", "i32", "buffer", "pointer", "pointer", "f32", "pointer"], result: "i32" },
  // int32_t ml_adam_precondition(ml_ctx* ctx, int32_t P, ml_ptr g, ml_ptr v, double bias2, double eps, ml_ptr out)
  ml_adam_precondition: { parameters: ["pointer", "i32", "pointer", "pointer", "f64", "f64", "pointer"], result: "i32" },
  // int32_t ml_adam(ml_ctx* ctx, int32_t P, ml_ptr theta, int32_t n_pieces, const int32_t* pieces_host, ml_ptr g,
  //   ml_ptr m, ml_ptr v, double lr, double b1, double b2, double eps, double weight_decay, double bias1, double bias2,
  //   double grad_scale)
  ml_adam: { parameters: ["pointer", "i32", "pointer", "i32", "buffer", "pointer", "pointer", "pointer", "f64", "f64", "f64", "f64", "f64", "f64", "f64", "f64"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

/** The ABI version this table was written for; compared with `ml_abi_version()` when a library is loaded. */
export const ABI_VERSION = 7;
