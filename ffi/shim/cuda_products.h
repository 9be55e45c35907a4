// cuda_products.h: matrix products through cuBLAS, with the algorithm chosen by measurement.
#pragma once
#include "cuda_device.h"

namespace metalora {

// c [M, N] = op(a) op(b) + beta c, row-major, bf16 operands, f32 accumulation, c bf16 or f32.
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
};

void product(Call& call, ml_ctx& ctx, const Product& product);
// Frees what was learnt about a context's products.
void forget_products(ml_ctx& ctx);

}  // namespace metalora
