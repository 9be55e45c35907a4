// lora.cu: the adapters of a linear layer from their f32 masters into what the products read: A cast to bf16, s B behind the rows of
// W. One launch a layer: a model has hundreds of them, and each is small.
#include "kernels.h"

namespace metalora {
namespace cuda {

static constexpr int THREADS = 256, A_PER_BLOCK = THREADS * 8;

struct Groups {
  int count;
  int32_t d_out[LORA_GROUPS], r[LORA_GROUPS];
  float scale[LORA_GROUPS];
};

// Blocks 0 .. a_blocks-1 cast A [Q, d_in]; the others write columns d_in .. d_in+Q-1 of W, `rows` rows each.
static __global__ void __launch_bounds__(THREADS)
    refresh(int64_t d_in, int64_t Q, int64_t N, Groups groups, const float* __restrict__ theta, bf16* __restrict__ W, int64_t ldw,
            bf16* __restrict__ a_cast, int64_t a_blocks, int rows) {
  if (blockIdx.x < a_blocks) {
    const int64_t first = (int64_t)blockIdx.x * A_PER_BLOCK, end = min(first + A_PER_BLOCK, Q * d_in);
    for (int64_t j = first + threadIdx.x; j < end; j += THREADS) a_cast[j] = __float2bfloat16(theta[j]);
    return;
  }
  const int64_t first = (int64_t)(blockIdx.x - a_blocks) * rows;
  for (int64_t i = threadIdx.x; i < (int64_t)rows * Q; i += THREADS) {
    const int64_t n = first + i / Q;
    const int column = (int)(i % Q);
    if (n >= N) break;
    // The group of this row, the start of its rows, columns and B.
    int64_t row = 0, B = Q * d_in;
    int begin = 0, g = 0;
    for (; g < groups.count - 1 && n >= row + groups.d_out[g]; g++) {
      row += groups.d_out[g];
      begin += groups.r[g];
      B += (int64_t)groups.d_out[g] * groups.r[g];
    }
    const int j = column - begin;
    const bool own = j >= 0 && j < groups.r[g];
    W[n * ldw + d_in + column] = __float2bfloat16(own ? groups.scale[g] * theta[B + (n - row) * groups.r[g] + j] : 0.0f);
  }
}

cudaError_t lora_refresh(const Launch& on, int64_t d_in, int G, const Group* table, const float* scales, const float* theta, bf16* W,
                         int64_t ldw, bf16* a_cast) {
  if (G > LORA_GROUPS) return cudaErrorInvalidValue;
  Groups groups = {};
  groups.count = G;
  int64_t N = 0, Q = 0;
  for (int g = 0; g < G; g++) {
    groups.d_out[g] = table[g].d_out;
    groups.r[g] = table[g].r;
    groups.scale[g] = scales[g];
    N += table[g].d_out;
    Q += table[g].r;
  }
  if (Q == 0) return cudaSuccess;
  const int rows = Q >= 512 ? 4 : (int)(2048 / Q);  // about 2,048 numbers a block
  const int64_t a_blocks = a_cast ? (Q * d_in + A_PER_BLOCK - 1) / A_PER_BLOCK : 0;
  const unsigned grid = (unsigned)(a_blocks + (N + rows - 1) / rows);
  refresh<<<grid, THREADS, 0, on.stream>>>(d_in, Q, N, groups, theta, W, ldw, a_cast, a_blocks, rows);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
