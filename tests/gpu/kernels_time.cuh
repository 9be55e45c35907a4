// kernels_time.cuh: microseconds and GB/s of the kernels at the sizes that fine-tuning runs.
//
// Each operator is captured into a graph of launches that go round several sets of buffers, more than the second-level cache
// holds together; GB/s counts every operand read or written once.
#pragma once
#include "harness.cuh"

namespace timing {

using namespace harness;
using metalora::cuda::Launch;
namespace ops = metalora::cuda;

static const size_t ARENA = 12ull << 30, APART = 512ull << 20;  // bytes in all; bytes that the sets of one operator cover

struct Clock {
  Launch on;
  char* base;
  size_t used;
  cudaEvent_t begin, end;
  const char* only;  // times the operators with this in their names
};

__global__ void fill(int64_t count, uint32_t* words, bool f32) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
    uint32_t h = (uint32_t)i * 2654435761u;
    h ^= h >> 15, h *= 2246822519u, h ^= h >> 13;
    // Two bf16 of either sign or one positive float, between 0.25 and 0.5 in magnitude.
    words[i] = f32 ? 0x3e800000u | (h & 0x00ffffffu) : 0x3e803e80u | (h & 0x80ff80ffu);
  }
}

template <typename T>
T* take(Clock& clock, int64_t count) {
  char* at = clock.base + clock.used;
  clock.used += (size_t)(count * (int64_t)sizeof(T) + 255) / 256 * 256;
  if (clock.used > ARENA) {
    printf("Cannot time: %zu bytes do not fit in the arena\n", clock.used);
    exit(1);
  }
  fill<<<1024, 256, 0, clock.on.stream>>>((int64_t)(count * sizeof(T) / 4), (uint32_t*)at, sizeof(T) == 4);
  return (T*)at;
}

inline int32_t* take_ints(Clock& clock, const std::vector<int32_t>& values) {
  int32_t* at = take<int32_t>(clock, (int64_t)values.size());
  CUDA_OK(cudaStreamSynchronize(clock.on.stream));
  CUDA_OK(cudaMemcpy(at, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  return at;
}

// Microseconds of one launch when a graph of `launches`, `rounds` times over, is replayed: the best of three.
inline double replay(Clock& clock, const std::vector<std::function<cudaError_t()>>& launches, int rounds) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CUDA_OK(cudaStreamSynchronize(clock.on.stream));
  CUDA_OK(cudaStreamBeginCapture(clock.on.stream, cudaStreamCaptureModeThreadLocal));
  for (int round = 0; round < rounds; round++)
    for (auto& launch : launches) CUDA_OK(launch());
  CUDA_OK(cudaStreamEndCapture(clock.on.stream, &graph));
  CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
  float best = 1e30f;
  for (int i = 0; i < 4; i++) {
    CUDA_OK(cudaEventRecord(clock.begin, clock.on.stream));
    CUDA_OK(cudaGraphLaunch(executable, clock.on.stream));
    CUDA_OK(cudaEventRecord(clock.end, clock.on.stream));
    CUDA_OK(cudaEventSynchronize(clock.end));
    float ms;
    CUDA_OK(cudaEventElapsedTime(&ms, clock.begin, clock.end));
    if (i > 0 && ms < best) best = ms;
  }
  CUDA_OK(cudaGraphExecDestroy(executable));
  CUDA_OK(cudaGraphDestroy(graph));
  return best * 1e3 / (rounds * (double)launches.size());
}

// make() takes one set of buffers and returns the launch over them. The second time is that of one set over and over, where it
// fits in the second-level cache.
inline void measure(Clock& clock, const char* name, double bytes, const std::function<std::function<cudaError_t()>()>& make) {
  if (!strstr(name, clock.only)) return;
  clock.used = 0;
  const int sets = (int)fmin(24, floor((double)APART / bytes) + 1);
  std::vector<std::function<cudaError_t()>> launches;
  for (int i = 0; i < sets; i++) launches.push_back(make());
  const double us = replay(clock, launches, sets < 8 ? 16 / sets + 1 : 2);
  printf("%-62s %9.1f us %7.0f GB/s", name, us, bytes / us * 1e-3);
  if (bytes < 32e6) printf("   cached %7.1f us", replay(clock, {launches[0]}, 32));
  printf("\n");
}

inline void time_rows(Clock& clock, int64_t T) {
  const int64_t d = 4096, f = 11008, V = 32000, H = 40, D = 128, pad = 96;
  char name[100];
  const auto title = [&](const char* op) { return snprintf(name, sizeof name, "%s T=%ld", op, (long)T), name; };
  const Launch& on = clock.on;
  std::vector<int32_t> ids(T), positions(T), rows(T / 2);
  for (int64_t t = 0; t < T; t++) ids[t] = (int32_t)((uint64_t)t * 7919 % (uint64_t)V), positions[t] = (int32_t)(t % 400);
  for (int64_t r = 0; r < T / 2; r++) rows[r] = (int32_t)(2 * r);
  measure(clock, title("embedding_forward d=4096"), (double)T * d * 4, [&]() -> std::function<cudaError_t()> {
    bf16 *table = take<bf16>(clock, V * d), *out = take<bf16>(clock, T * d);
    int32_t *at = take_ints(clock, ids), *fault = take_ints(clock, {0});
    return [=, &on] { return ops::embedding_forward(on, T, d, V, table, at, nullptr, nullptr, out, d, fault); };
  });
  measure(clock, title("gather_rows half of d=4096"), (double)T * d * 2, [&]() -> std::function<cudaError_t()> {
    bf16 *x = take<bf16>(clock, T * d), *out = take<bf16>(clock, T / 2 * d);
    int32_t* at = take_ints(clock, rows);
    return [=, &on] { return ops::gather_rows(on, T / 2, d, x, d, at, out, d); };
  });
  measure(clock, title("scatter_rows half of d=4096"), (double)T * d * 4, [&]() -> std::function<cudaError_t()> {
    bf16 *out = take<bf16>(clock, T * d), *x = take<bf16>(clock, T / 2 * d);
    int32_t* at = take_ints(clock, rows);
    return [=, &on] { return ops::scatter_rows(on, T / 2, T, d, x, d, at, out, d); };
  });
  for (int64_t width : {576, 2048, 4096, 8192}) {
    snprintf(name, sizeof name, "rmsnorm_forward d=%ld T=%ld", (long)width, (long)T);
    measure(clock, name, (double)T * width * 4, [&]() -> std::function<cudaError_t()> {
      bf16 *x = take<bf16>(clock, T * width), *y = take<bf16>(clock, T * (width + pad));
      float *w = take<float>(clock, width), *rstd = take<float>(clock, T);
      return [=, &on] { return ops::rmsnorm_forward(on, T, width, 1e-5f, x, w, y, width + pad, rstd); };
    });
    snprintf(name, sizeof name, "rmsnorm_backward d=%ld T=%ld", (long)width, (long)T);
    measure(clock, name, (double)T * width * 8, [&]() -> std::function<cudaError_t()> {
      bf16 *x = take<bf16>(clock, T * width), *dx = take<bf16>(clock, T * width), *dy = take<bf16>(clock, T * (width + pad));
      float *w = take<float>(clock, width), *rstd = take<float>(clock, T);
      return [=, &on] { return ops::rmsnorm_backward(on, T, width, x, w, rstd, dy, width + pad, dx, width); };
    });
  }
  for (int64_t width : {768, 2048, 4096}) {
    snprintf(name, sizeof name, "layernorm_forward d=%ld T=%ld", (long)width, (long)T);
    measure(clock, name, (double)T * width * 4, [&]() -> std::function<cudaError_t()> {
      bf16 *x = take<bf16>(clock, T * width), *y = take<bf16>(clock, T * (width + pad));
      float *w = take<float>(clock, width), *b = take<float>(clock, width), *stats = take<float>(clock, 2 * T);
      return [=, &on] { return ops::layernorm_forward(on, T, width, 1e-5f, x, w, b, y, width + pad, stats); };
    });
    snprintf(name, sizeof name, "layernorm_backward with y d=%ld T=%ld", (long)width, (long)T);
    measure(clock, name, (double)T * width * 10, [&]() -> std::function<cudaError_t()> {
      bf16 *x = take<bf16>(clock, T * width), *dx = take<bf16>(clock, T * width), *dy = take<bf16>(clock, T * (width + pad));
      bf16* y = take<bf16>(clock, T * (width + pad));
      float *w = take<float>(clock, width), *b = take<float>(clock, width), *stats = take<float>(clock, 2 * T);
      return [=, &on] {
        return ops::layernorm_backward(on, T, width, x, w, b, stats, dy, width + pad, dx, width, y, width + pad);
      };
    });
  }
  measure(clock, title("relu_backward f=8192"), (double)T * 8192 * 6, [&]() -> std::function<cudaError_t()> {
    bf16 *y = take<bf16>(clock, T * (8192 + 64)), *dy = take<bf16>(clock, T * (8192 + 64));
    return [=, &on] { return ops::relu_backward(on, T, 8192, y, 8192 + 64, dy, 8192 + 64); };
  });
  measure(clock, title("rope 40 heads of 128"), (double)T * H * D * 4, [&]() -> std::function<cudaError_t()> {
    bf16* x = take<bf16>(clock, T * (H + 8) * D);
    float *c = take<float>(clock, 400 * D / 2), *s = take<float>(clock, 400 * D / 2);
    int32_t* at = take_ints(clock, positions);
    return [=, &on] { return ops::rope(on, T, H, D, x, (H + 8) * D, c, s, at, false); };
  });
  measure(clock, title("swiglu_forward f=11008"), (double)T * f * 6, [&]() -> std::function<cudaError_t()> {
    bf16 *x = take<bf16>(clock, T * 2 * f), *y = take<bf16>(clock, T * (f + 32));
    return [=, &on] { return ops::swiglu_forward(on, T, f, x, 2 * f, y, f + 32); };
  });
  measure(clock, title("swiglu_backward in place f=11008"), (double)T * f * 10, [&]() -> std::function<cudaError_t()> {
    bf16 *x = take<bf16>(clock, T * 2 * f), *y = take<bf16>(clock, T * (f + 32));
    return [=, &on] { return ops::swiglu_backward(on, T, f, x, 2 * f, y, f + 32, x, nullptr); };
  });
}

inline void time_cross_entropy(Clock& clock, int64_t R, int64_t V, int arch) {
  static Launch on;
  on = clock.on;
  on.arch = arch;
  char name[100];
  snprintf(name, sizeof name, "cross_entropy with gradient R=%ld V=%ld%s", (long)R, (long)V, arch == 90 ? "" : " (without clusters)");
  std::vector<int32_t> labels(R);
  for (int64_t r = 0; r < R; r++) labels[r] = (int32_t)(r * 31 % V);
  measure(clock, name, (double)R * V * 6, [&]() -> std::function<cudaError_t()> {
    float *z = take<float>(clock, R * V), *seeds = take<float>(clock, R), *losses = take<float>(clock, R);
    int32_t *at = take_ints(clock, labels), *argmax = take<int32_t>(clock, R);
    return [=] { return ops::cross_entropy(on, R, V, z, at, seeds, losses, argmax, true); };
  });
}

// S segments of T rows in all; the i-th is i + 1 times as long as the first, about.
inline void time_outer(Clock& clock, int64_t S, int64_t T, int64_t p, int64_t q, int arch) {
  static Launch on;
  on = clock.on;
  on.arch = arch;
  std::vector<int32_t> cu(S + 1);
  for (int64_t i = 0; i <= S; i++) cu[i] = (int32_t)(T * (i * (i + 1)) / (S * (S + 1)));
  const int64_t stride = p * q;
  char name[100];
  snprintf(name, sizeof name, "segment_outer S=%ld T=%ld [%ld, %ld]%s", (long)S, (long)T, (long)p, (long)q,
           arch == 90 ? "" : " (without clusters)");
  measure(clock, name, (double)T * (p + q) * 2 + (double)S * p * q * 4, [&]() -> std::function<cudaError_t()> {
    const int64_t lda = p < q ? q + 96 : p, ldb = q < p ? p + 96 : q + 96;
    bf16 *a = take<bf16>(clock, T * lda), *b = take<bf16>(clock, T * ldb);
    float* out = take<float>(clock, S * stride);
    int32_t* at = take_ints(clock, cu);
    const metalora::OuterProduct one = {p, q, a, lda, b, ldb, {}, 1, out};
    return [=] { return ops::segment_outers(on, S, at, &one, 1, 0.0f, stride); };
  });
}

// The gradients of a linear layer's adapters of rank 32 as the model forms them: A of the input (NULL where it is formed elsewhere) with a
// norm's factors, and B of each of G outputs.
inline void time_layer(Clock& clock, const char* layer, int64_t T, int64_t d_in, std::vector<int64_t> outputs, bool x, bool norm, bool dy) {
  const Launch& on = clock.on;
  const int64_t r = 32, G = (int64_t)outputs.size(), Q = G * r;
  int64_t N = 0;
  for (int64_t n : outputs) N += n;
  char name[100];
  snprintf(name, sizeof name, "linear_gradients %s T=%ld", layer, (long)T);
  const double bytes = (double)T * 2 * ((x ? d_in + Q : 0) + (dy ? N + Q : 0)) + 4.0 * ((x ? Q * d_in : 0) + (dy ? N * r : 0));
  measure(clock, name, bytes, [&]() -> std::function<cudaError_t()> {
    const int64_t ld = d_in + 128, lddy = N + 128;
    bf16 *xs = take<bf16>(clock, T * ld), *gh = take<bf16>(clock, T * ld), *ys = take<bf16>(clock, T * lddy), *h = take<bf16>(clock, T * Q);
    float *out = take<float>(clock, Q * d_in + N * r), *rstd = take<float>(clock, T), *weight = take<float>(clock, d_in);
    int32_t* at = take_ints(clock, {0, (int32_t)T});
    std::vector<metalora::OuterProduct> list;
    if (x) {
      metalora::OuterProduct a = {Q, d_in, gh + d_in, ld, xs, ld, {}, 1, out};
      if (norm) a.scales = {rstd, weight};
      list.push_back(a);
    }
    int64_t n = 0;
    for (int64_t g = 0; dy && g < G; g++) {
      list.push_back({outputs[g], r, ys + n, lddy, h + g * r, Q, {}, 1, out + Q * d_in + n * r});
      n += outputs[g];
    }
    return [=, &on] { return ops::segment_outers(on, 1, at, list.data(), (int)list.size(), 0.0f, Q * d_in + N * r); };
  });
}

inline void time_layers(Clock& clock, int64_t T, int64_t d, int64_t kv, int64_t f) {
  time_layer(clock, (std::to_string(d) + " qkv").c_str(), T, d, {d, kv, kv}, true, true, true);
  time_layer(clock, (std::to_string(d) + " o").c_str(), T, d, {d}, true, false, true);
  time_layer(clock, (std::to_string(d) + " gate_up").c_str(), T, d, {f, f}, true, true, false);
  time_layer(clock, (std::to_string(d) + " down").c_str(), T, f, {d}, false, false, true);
}

// Of rank 32, as in a LoRA of that rank on gate, up and down.
inline void time_swiglu_gradients(Clock& clock, int64_t S, int64_t T, int64_t f) {
  const Launch& on = clock.on;
  const int64_t r = 32, ldg = 2 * f + 64, lddy = f + 64;
  std::vector<int32_t> cu(S + 1);
  for (int64_t i = 0; i <= S; i++) cu[i] = (int32_t)(T * i / S);
  char name[100];
  snprintf(name, sizeof name, "swiglu_gradients S=%ld T=%ld f=%ld", (long)S, (long)T, (long)f);
  measure(clock, name, (double)T * f * 10 + (double)S * f * r * 12, [&]() -> std::function<cudaError_t()> {
    bf16 *gate_up = take<bf16>(clock, T * ldg), *dy = take<bf16>(clock, T * lddy), *h = take<bf16>(clock, T * 2 * r);
    float* out = take<float>(clock, S * 3 * f * r);
    int32_t* at = take_ints(clock, cu);
    const metalora::NarrowSide y = {r, dy + f, lddy, out, 1}, gate = {r, h, 2 * r, out + f * r, 1}, up = {r, h + r, 2 * r, out + 2 * f * r, 1};
    return [=, &on] { return ops::swiglu_gradients(on, T, f, gate_up, ldg, dy, lddy, S, at, y, gate, up, 0.0f, 3 * f * r); };
  });
}

inline void time_relu_gradients(Clock& clock, int64_t S, int64_t T, int64_t f) {
  const Launch& on = clock.on;
  const int64_t r = 32, ld = f + 64;
  std::vector<int32_t> cu(S + 1);
  for (int64_t i = 0; i <= S; i++) cu[i] = (int32_t)(T * i / S);
  char name[100];
  snprintf(name, sizeof name, "relu_gradients S=%ld T=%ld f=%ld", (long)S, (long)T, (long)f);
  measure(clock, name, (double)T * f * 6 + (double)S * f * r * 8, [&]() -> std::function<cudaError_t()> {
    bf16 *y = take<bf16>(clock, T * ld), *dy = take<bf16>(clock, T * ld), *h = take<bf16>(clock, T * r);
    float* out = take<float>(clock, S * 2 * f * r);
    int32_t* at = take_ints(clock, cu);
    const metalora::NarrowSide behind = {r, dy + f, ld, out, 1}, before = {r, h, r, out + f * r, 1};
    return [=, &on] { return ops::relu_gradients(on, T, f, y, ld, dy, ld, S, at, behind, before, 0.0f, 2 * f * r); };
  });
}

inline void time_vectors(Clock& clock, int64_t n, int64_t P) {
  const Launch& on = clock.on;
  char name[100];
  snprintf(name, sizeof name, "row_dots shared n=%ld P=%.0e", (long)n, (double)P);
  measure(clock, name, (double)(n + 1) * P * 4, [&]() -> std::function<cudaError_t()> {
    float *a = take<float>(clock, n * P), *b = take<float>(clock, P);
    const metalora::Piece whole = {a, P, 0, P};
    double *parts = take<double>(clock, ops::row_dots_parts(n, &whole, 1)), *out = take<double>(clock, n);
    return [=, &on] { return ops::row_dots(on, n, &whole, 1, b, 0, out, parts); };
  });
  snprintf(name, sizeof name, "row_dots with itself n=%ld P=%.0e", (long)n, (double)P);
  measure(clock, name, (double)n * P * 4, [&]() -> std::function<cudaError_t()> {
    float* a = take<float>(clock, n * P);
    const metalora::Piece whole = {a, P, 0, P};
    double *parts = take<double>(clock, ops::row_dots_parts(n, &whole, 1)), *out = take<double>(clock, n);
    return [=, &on] { return ops::row_dots(on, n, &whole, 1, nullptr, 0, out, parts); };
  });
  snprintf(name, sizeof name, "combine n=%ld P=%.0e", (long)n, (double)P);
  measure(clock, name, (double)(n + 1) * P * 4, [&]() -> std::function<cudaError_t()> {
    float *x = take<float>(clock, n * P), *y = take<float>(clock, P), *w = take<float>(clock, n);
    const metalora::Piece whole = {x, P, 0, P};
    return [=, &on] { return ops::combine(on, n, &whole, 1, w, 0.0f, y); };
  });
}

}  // namespace timing

static void time_kernels(const metalora::cuda::Launch& on, const char* only) {
  using namespace timing;
  Clock clock = {on, nullptr, 0, nullptr, nullptr, only};
  CUDA_OK(cudaMalloc((void**)&clock.base, ARENA));
  CUDA_OK(cudaEventCreate(&clock.begin));
  CUDA_OK(cudaEventCreate(&clock.end));
  for (int64_t T : {1600, 8192}) time_rows(clock, T);
  for (int64_t V : {32000, 50257, 125696, 152064}) time_cross_entropy(clock, 1600, V, on.arch);
  time_cross_entropy(clock, 256, 125696, on.arch);
  for (int64_t V : {32000, 125696}) time_cross_entropy(clock, 1600, V, 80);
  const int64_t outers[][4] = {{1, 1600, 32, 4096},  {1, 8192, 32, 4096},  {4, 1600, 32, 4096},  {16, 8192, 32, 4096}, {4, 1600, 32, 11008},
                               {4, 1600, 11008, 32}, {4, 1600, 22016, 32}, {1, 1600, 4096, 32},  {16, 8192, 4096, 32}, {4, 1600, 8, 4096},
                               {4, 1600, 16, 4096},  {4, 1600, 64, 4096},  {4, 1600, 96, 4096},  {4, 1600, 128, 4096}, {4, 8192, 96, 14336},
                               {4, 1600, 32, 32},    {16, 8192, 32, 32},   {4, 1600, 32, 576},
                               {1, 8192, 8, 4096},   {8, 8192, 16, 14336}, {1, 8192, 64, 4096},  {1, 8192, 96, 4096},  {1, 8192, 4096, 32},
                               {1, 1600, 64, 4096},  {1, 1600, 96, 4096},  {1, 4096, 32, 576},   {1, 4096, 96, 576},   {1, 4096, 576, 32}};
  for (const auto& o : outers) time_outer(clock, o[0], o[1], o[2], o[3], on.arch);
  for (int64_t S : {1, 4}) time_outer(clock, S, 1600, 32, 4096, 80);
  for (int64_t T : {1600, 8192}) time_layers(clock, T, 4096, 4096, 11008);
  time_layers(clock, 4096, 576, 192, 1536);
  for (int64_t S : {1, 4})
    for (int64_t T : {1600, 8192}) time_swiglu_gradients(clock, S, T, 11008);
  time_swiglu_gradients(clock, 1, 4096, 1536);
  for (int64_t S : {1, 4}) time_relu_gradients(clock, S, 8192, 8192);
  measure(clock, "segment_mean S=4 T=1600 q=4096", 1600.0 * 4096 * 2, [&]() -> std::function<cudaError_t()> {
    bf16* a = take<bf16>(clock, 1600 * 4192);
    float* out = take<float>(clock, 4 * 4096);
    int32_t* cu = take_ints(clock, {0, 100, 500, 900, 1600});
    return [=, &on] { return ops::segment_mean(on, 4, cu, 4096, a, 4192, out, 4096); };
  });
  time_vectors(clock, 16, 80000000);
  time_vectors(clock, 4, 5000000);
  const int64_t P = 80000000;
  measure(clock, "adam P=8e7", (double)P * 28, [&]() -> std::function<cudaError_t()> {
    float *theta = take<float>(clock, P), *g = take<float>(clock, P), *m = take<float>(clock, P), *v = take<float>(clock, P);
    const metalora::Piece whole = {g, P, 0, P};
    return [=, &on] { return ops::adam(on, &whole, 1, theta, m, v, 5e-4, 0.9, 0.95, 1e-8, 0.01, 0.1, 0.05, 0.5); };
  });
  measure(clock, "adam_precondition P=8e7", (double)P * 12, [&]() -> std::function<cudaError_t()> {
    float *g = take<float>(clock, P), *v = take<float>(clock, P), *out = take<float>(clock, P);
    return [=, &on] { return ops::adam_precondition(on, P, g, v, 0.05, 1e-8, out); };
  });
  measure(clock, "convert_2d f32 to bf16, 4096 x 4096 into rows of 4192", 4096.0 * 4096 * 6, [&]() -> std::function<cudaError_t()> {
    float* src = take<float>(clock, 4096 * 4096);
    bf16* dst = take<bf16>(clock, 4096 * 4192);
    return [=, &on] { return ops::convert_2d(on, 4096, 4096, src, 0, 4096, dst, 1, 4192); };
  });
  measure(clock, "lora_refresh 4096 to 2 x 11008, rank 32", 22016.0 * (32 * 4 + 64 * 2) + 64 * 4096 * 6.0, [&]() -> std::function<cudaError_t()> {
    float* theta = take<float>(clock, 64 * 4096 + 22016 * 32);
    bf16* W = take<bf16>(clock, 22080 * 4160);
    return [=, &on] {
      const metalora::Group groups[2] = {{11008, 32}, {11008, 32}};
      const float scales[2] = {2.0f, 2.0f};
      const metalora::LoraLayer layer = {4096, 2, groups, scales, theta, W, 4160, W + 22016 * 4160, 4160};
      return ops::lora_refresh(on, &layer, 1);
    };
  });
  CUDA_OK(cudaFree(clock.base));
}
