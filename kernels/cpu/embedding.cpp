// embedding.cpp: rows of a table by token id.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// out[t, :] = table[ids[t], :]; table [V, d] f32 or bf16, out [T, ldo] f32.
void embedding_forward(Pool& pool, int64_t T, int64_t d, const void* table, int wdtype, const int32_t* ids, float* out,
                       int64_t ldo) {
  const int64_t rows = 32;  // a task
  parallel(pool, ceil_div(T, rows), [&](int64_t task, int) {
    for (int64_t t = task * rows; t < min64(T, (task + 1) * rows); t++) {
      float* to = out + t * ldo;
      if (wdtype == 0) {
        memcpy(to, (const float*)table + ids[t] * d, (size_t)d * 4);
        continue;
      }
      const uint16_t* from = (const uint16_t*)table + ids[t] * d;
      int64_t j = 0;
      for (; j + VL <= d; j += VL) store(to + j, load_bf16(from + j));
      for (; j < d; j++) to[j] = from_bf16(from[j]);
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
