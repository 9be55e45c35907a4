// harness.cuh: what the GPU checks share: guarded device buffers, random numbers, comparison against references in double.
//
// Every buffer lies between guards full of NaN and may start off the 16-byte grid; matrices keep NaN in the padding of their
// rows, and end with the last column of the last row. So reading or writing where nothing belongs is found.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "../../kernels/cuda/kernels.h"

namespace harness {

using metalora::cuda::bf16;

inline int failures = 0, checks = 0;

// A part of the checks alone: every `parts`-th of them, from number `part` on.
inline int part = 0, parts = 1, turns = 0;
inline bool turn() { return turns++ % parts == part; }
// How often each is run, to find bits that differ; once under racecheck, which is slow.
inline int runs = 3;
// Reads them from the command line, "check [PART PARTS [once]]".
inline void read_part(int count, char** arguments) {
  if (count > 3) part = atoi(arguments[2]), parts = atoi(arguments[3]);
  if (count > 4 && strcmp(arguments[4], "once") == 0) runs = 1;
}

#define CUDA_OK(call)                                                                              \
  do {                                                                                             \
    const cudaError_t error_ = (call);                                                             \
    if (error_ != cudaSuccess) {                                                                   \
      printf("Cannot run %s (line %d): %s\n", #call, __LINE__, cudaGetErrorString(error_));        \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

// Counts a check; prints only what failed.
inline void expect(bool holds, const std::string& what) {
  checks++;
  if (holds) return;
  failures++;
  printf("FAILED: %s\n", what.c_str());
}

// Uniform in [-1, 1), the same sequence on every machine.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint32_t bits() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 32);
  }
  float next() { return (float)(int32_t)bits() / 2147483648.0f; }
  int below(int n) { return (int)(bits() % (uint32_t)n); }
};

inline double as_double(bf16 x) { return (double)__bfloat162float(x); }
inline double as_double(float x) { return (double)x; }
inline double as_double(double x) { return x; }
inline void assign(bf16& to, float x) { to = __float2bfloat16_rn(x); }
inline void assign(float& to, float x) { to = x; }

// rows x cols on the device, rows ld apart, starting `shift` elements off the grid; host holds a copy with the same padding.
template <typename T>
struct Matrix {
  static const int64_t GUARD = 128;
  int64_t rows, cols, ld, count;
  std::vector<T> host;
  T *base, *device;

  Matrix(int64_t rows, int64_t cols, int64_t ld = 0, int64_t shift = 0) : rows(rows), cols(cols), ld(ld ? ld : cols) {
    count = rows > 0 ? (rows - 1) * this->ld + cols : 0;
    host.resize(count);
    poison();
    CUDA_OK(cudaMalloc((void**)&base, (count + 2 * GUARD + shift) * sizeof(T)));
    CUDA_OK(cudaMemset(base, 0xff, (count + 2 * GUARD + shift) * sizeof(T)));
    device = base + GUARD + shift;
  }
  Matrix(const Matrix&) = delete;
  ~Matrix() { cudaFree(base); }
  T& at(int64_t i, int64_t j) { return host[i * ld + j]; }
  double value(int64_t i, int64_t j) { return as_double(at(i, j)); }
  void poison() { memset((void*)host.data(), 0xff, count * sizeof(T)); }
  Matrix& random(Random& r, float size = 1) {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < cols; j++) assign(at(i, j), r.next() * size);
    return *this;
  }
  void put() { CUDA_OK(cudaMemcpy(device, host.data(), count * sizeof(T), cudaMemcpyHostToDevice)); }
  void get() { CUDA_OK(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost)); }
  // Are the guards and the padding still as they were?
  bool intact() {
    std::vector<unsigned char> edge((GUARD + (device - base)) * sizeof(T));
    CUDA_OK(cudaMemcpy(edge.data(), base, (device - base) * sizeof(T), cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(edge.data() + (device - base) * sizeof(T), device + count, GUARD * sizeof(T), cudaMemcpyDeviceToHost));
    bool whole = true;
    for (unsigned char byte : edge) whole = whole && byte == 0xff;
    for (int64_t i = 0; i + 1 < rows; i++)
      for (int64_t j = cols; j < ld; j++) {
        const unsigned char* bytes = (const unsigned char*)&at(i, j);
        for (size_t k = 0; k < sizeof(T); k++) whole = whole && bytes[k] == 0xff;
      }
    return whole;
  }
};

// The columns of a matrix in `count` pieces of about the same length, on the grid of four numbers.
inline std::vector<metalora::Piece> in_pieces(const Matrix<float>& a, int count) {
  std::vector<metalora::Piece> pieces;
  const int64_t length = ((a.cols + count - 1) / count + 3) / 4 * 4;
  for (int64_t first = 0; first < a.cols; first += length)
    pieces.push_back({a.device + first, a.ld, first, a.cols - first < length ? a.cols - first : length});
  return pieces;
}

// A list of int32 on the device.
struct Ints {
  Matrix<int32_t> matrix;
  explicit Ints(const std::vector<int32_t>& values) : matrix(1, (int64_t)values.size()) {
    matrix.host = values;
    matrix.put();
  }
  operator const int32_t*() const { return matrix.device; }
};

// Fails unless |got - want| <= allowed(i, j) everywhere; a NaN where none is wanted fails.
template <typename T>
void expect_close(Matrix<T>& got, const std::function<double(int64_t, int64_t)>& want,
                  const std::function<double(int64_t, int64_t)>& allowed, const std::string& what) {
  for (int64_t i = 0; i < got.rows; i++)
    for (int64_t j = 0; j < got.cols; j++) {
      const double a = got.value(i, j), b = want(i, j);
      if ((isnan(a) && isnan(b)) || fabs(a - b) <= allowed(i, j)) continue;
      char text[160];
      snprintf(text, sizeof text, ": [%ld, %ld] is %.9g, not %.9g (allowed %.3g)", (long)i, (long)j, a, b, allowed(i, j));
      return expect(false, what + text);
    }
  expect(true, what);
}

// Runs `prepare` and `run` three times; the bits of `out` must come out the same. Leaves the result in out.host.
template <typename T>
void run_repeatedly(Matrix<T>& out, const std::function<void()>& prepare, const std::function<cudaError_t()>& run,
                    const std::string& what) {
  std::vector<T> first;
  for (int i = 0; i < runs; i++) {
    prepare();
    CUDA_OK(run());
    CUDA_OK(cudaDeviceSynchronize());
    out.get();
    if (i == 0)
      first = out.host;
    else
      expect(memcmp((const void*)first.data(), (const void*)out.host.data(), out.count * sizeof(T)) == 0,
             what + ": other bits in another run");
  }
  expect(out.intact(), what + ": padding or guards were written");
}

// Relative error of rounding to bf16, with a little for the arithmetic before it.
const double ROUNDING = 1.02 / 256;

}  // namespace harness
