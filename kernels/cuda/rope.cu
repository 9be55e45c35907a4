// rope.cu: rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the pairing of Hugging Face Llama.
//
// Component j < D/2 of a head forms a pair with component j + D/2:
//   x_j' = x_j cos - x_{j+D/2} sin        x_{j+D/2}' = x_{j+D/2} cos + x_j sin
// The backward is the rotation by the opposite angle.
#include "math.cuh"

namespace metalora {
namespace cuda {

static const int THREADS = 256, HEADS = 4;  // HEADS a thread: they share one angle, and their loads are in flight together

// threadIdx.x runs over the pieces of half a head, then over `groups` heads; threadIdx.y over rows.
template <int W>
static __global__ void __launch_bounds__(THREADS) rotate(int64_t T, int heads, int half, int groups, bf16* x, int64_t ldx, const float* cos,
                                                         const float* sin, const int32_t* positions, float sign) {
  const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (t >= T) return;
  const int pieces = half / W;
  const int64_t at = (int64_t)positions[t] * half, D = 2 * (int64_t)half;
  for (int unit = threadIdx.x; unit < pieces * groups; unit += blockDim.x) {
    const int j = unit % pieces * W, first = unit / pieces;
    bf16* row = x + t * ldx + j;
    Bits<W> low[HEADS], high[HEADS];
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
      const int h = first + i * groups;
      if (h >= heads) continue;
      low[i] = load_bits<W>(row + h * D);
      high[i] = load_bits<W>(row + h * D + half);
    }
    float c[W], s[W];
    load<W>(cos + at + j, c);
    load<W>(sin + at + j, s);
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
      const int h = first + i * groups;
      if (h >= heads) continue;
      float a[W], b[W], p[W], q[W];
      unpack(low[i], a);
      unpack(high[i], b);
#pragma unroll
      for (int k = 0; k < W; k++) {
        const float angle = s[k] * sign;
        p[k] = a[k] * c[k] - b[k] * angle;
        q[k] = b[k] * c[k] + a[k] * angle;
      }
      store<W>(row + h * D, p);
      store<W>(row + h * D + half, q);
    }
  }
}

cudaError_t rope(const Launch& on, int64_t T, int64_t heads, int64_t D, bf16* x, int64_t ldx, const float* cos, const float* sin,
                 const int32_t* positions, bool inverse) {
  const int64_t half = D / 2;
  if (T == 0 || heads == 0 || half == 0) return cudaSuccess;
  const bool wide = half % 8 == 0 && aligned16(x, ldx) && aligned16(cos) && aligned16(sin);
  const int groups = (int)ceil_div(heads, HEADS);
  const int64_t units = half / (wide ? 8 : 1) * groups;
  const unsigned along = (unsigned)(units < THREADS ? units : THREADS), rows = THREADS / along;
  const dim3 block(along, rows);
  const unsigned grid = (unsigned)ceil_div(T, rows);
  const float sign = inverse ? -1.0f : 1.0f;
  if (wide)
    rotate<8><<<grid, block, 0, on.stream>>>(T, (int)heads, (int)half, groups, x, ldx, cos, sin, positions, sign);
  else
    rotate<1><<<grid, block, 0, on.stream>>>(T, (int)heads, (int)half, groups, x, ldx, cos, sin, positions, sign);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
