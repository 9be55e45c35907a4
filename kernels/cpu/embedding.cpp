// embedding.cpp: rows of a table by token id, and of a second one by position.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// to[j] = row `index` of a table [.., d] f32 or bf16, or with `add` that much more.
ML_INLINE void read_row(int64_t d, const void* table, int wdtype, int64_t index, bool add, float* to) {
  const float* wide = (const float*)table + index * d;
  const uint16_t* narrow = (const uint16_t*)table + index * d;
  int64_t j = 0;
  for (; j + VL <= d; j += VL) {
    const vf v = wdtype == 0 ? load(wide + j) : load_bf16(narrow + j);
    store(to + j, add ? load(to + j) + v : v);
  }
  for (; j < d; j++) {
    const float v = wdtype == 0 ? wide[j] : from_bf16(narrow[j]);
    to[j] = add ? to[j] + v : v;
  }
}

// out[t, :] = table[ids[t], :] + places[positions[t], :]; table [V, d] and places f32 or bf16, out [T, ldo] f32. places may be NULL.
void embedding_forward(Pool& pool, int64_t T, int64_t d, const void* table, int wdtype, const int32_t* ids, const void* places,
                       const int32_t* positions, float* out, int64_t ldo) {
  const int64_t rows = 32;  // a task
  parallel(pool, ceil_div(T, rows), [&](int64_t task, int) {
    for (int64_t t = task * rows; t < min64(T, (task + 1) * rows); t++) {
      float* to = out + t * ldo;
      read_row(d, table, wdtype, ids[t], false, to);
      if (places) read_row(d, places, wdtype, positions[t], true, to);
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
