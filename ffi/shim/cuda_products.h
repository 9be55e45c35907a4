// cuda_products.h: matrix products through cuBLAS, with the algorithm chosen by measurement.
#pragma once
#include "cuda_device.h"

namespace metalora {

// c [M, N] = alpha op(a) op(b) + beta c, row-major, bf16 operands, f32 accumulation, c bf16 or f32. With `add` [M, N] or `bias` [N], both
// bf16 like c, beta is 0 and they are added, too; add may be c itself. `relu`:
// negative results become 0.
struct Product {
  int64_t M, N, K;
  const void* a;
  int64_t lda;
  bool trans_a;
  const void* b;
  int64_t ldb;
  bool trans_b;
  float alpha, beta;
  void* c;
  int32_t c_dtype;
  int64_t ldc;
  const void* add = nullptr;
  int64_t ld_add = 0;
  const void* bias = nullptr;
  bool relu = false;
};

void product(Call& call, ml_ctx& ctx, const Product& product);
// Frees what was learnt about a context's products.
void forget_products(ml_ctx& ctx);

}  // namespace metalora
