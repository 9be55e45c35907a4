// cross_entropy.cpp: LM head and cross-entropy in one, a chunk of rows at a time, so that logits [R, V] never exist.
//
//   loss_r = log sum_v exp(z_v) - z_label          z = x W^T
//   dL/dz_v = seed_r (softmax(z)_v - [v = label])  dx = dL/dz W
//
// The softmax is stable (z - max z); a NaN or an infinity among the logits makes the loss NaN or infinite.
#include "math.h"
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// The first index of the largest of z [V]; *largest is that value. NaNs lose every comparison (all NaN: index 0, -inf).
static int64_t first_maximum(const float* z, int64_t V, float* largest) {
  vf best[4];
  for (int i = 0; i < 4; i++) best[i] = set1(-INFINITY);
  int64_t v = 0;
  for (; v + 4 * VL <= V; v += 4 * VL)
    for (int i = 0; i < 4; i++) best[i] = vmax(load(z + v + i * VL), best[i]);
  float max = hmax(vmax(vmax(best[0], best[1]), vmax(best[2], best[3])));
  for (; v < V; v++) max = z[v] > max ? z[v] : max;
  *largest = max;
  for (v = 0; v + 4 * VL <= V; v += 4 * VL) {
    vi equal = {};
    for (int i = 0; i < 4; i++) equal |= (vi)(load(z + v + i * VL) == max);
    if (hmax((vf)(equal & (vi)set1(1.0f))) > 0) break;
  }
  for (; v < V; v++)
    if (z[v] == max) return v;
  return 0;
}

// z [V] becomes exp(z - max); returns the sum, in double over pieces that float sums well.
static double exponentials(float* z, int64_t V, float max) {
  const int64_t piece = 64 * VL;
  double total = 0;
  for (int64_t start = 0; start < V; start += piece) {
    const int64_t end = min64(V, start + piece);
    vf sums[2] = {};
    int64_t v = start;
    for (; v + 2 * VL <= end; v += 2 * VL)
      for (int i = 0; i < 2; i++) {
        const vf e = vexp_negative(load(z + v + i * VL) - max);
        store(z + v + i * VL, e);
        sums[i] += e;
      }
    for (; v < end; v += VL) {
      const int64_t n = min64(VL, end - v);
      store_part(z + v, vexp_negative(load_part(z + v, n) - max), n);
      sums[0] += load_part(z + v, n);
    }
    total += hsum(sums[0] + sums[1]);
  }
  return total;
}

// x dense [R, d]; W [V, ldw]; work holds chunk_rows * V floats; argmax and dx (dense [R, d]) may be NULL.
void head_cross_entropy(Pool& pool, int64_t R, int64_t d, int64_t V, const float* x, const void* W, int wdtype, int64_t ldw,
                        const int32_t* labels, const float* seeds, float* losses, int32_t* argmax, float* dx, float* work,
                        int64_t chunk_rows) {
  for (int64_t start = 0; start < R; start += chunk_rows) {
    const int64_t rows = min64(chunk_rows, R - start);
    const Operand xs = {x + start * d, d, 0, false, d, 0};
    const Operand Wt = {W, ldw, wdtype, true, d, 0};
    gemm(pool, rows, V, d, 1.0f, xs, Wt, 0.0f, work, V);  // logits [rows, V]

    parallel(pool, rows, [&](int64_t row, int) {
      float* z = work + row * V;
      const int64_t r = start + row;
      const int32_t label = labels[r];
      const float z_label = z[label];
      float max;
      const int64_t first = first_maximum(z, V, &max);
      if (argmax) argmax[r] = (int32_t)first;
      const double sum = exponentials(z, V, max);
      losses[r] = (float)(log(sum) + ((double)max - (double)z_label));
      if (!dx) return;
      const float scale = (float)((double)seeds[r] / sum);
      int64_t v = 0;
      for (; v + VL <= V; v += VL) store(z + v, load(z + v) * scale);
      for (; v < V; v++) z[v] *= scale;
      z[label] -= seeds[r];
    });

    if (dx) {
      const Operand dz = {work, V, 0, false, V, 0};
      const Operand Ws = {W, ldw, wdtype, false, V, 0};
      gemm(pool, rows, d, V, 1.0f, dz, Ws, 0.0f, dx + start * d, d);
    }
  }
}

}  // namespace ML_ISA
}  // namespace metalora
