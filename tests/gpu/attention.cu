// attention.cu: checks the CUDA attention against doubles on the CPU, and times it. Needs a GPU; no part of any library.
//
//   nvcc -O3 -std=c++17 -Ikernels/cuda -Xcompiler -fopenmp-simd,-mavx2,-mfma,-pthread -gencode arch=compute_90a,code=sm_90a
//     -o attention tests/gpu/attention.cu kernels/cuda/attention.cu kernels/cuda/attention_hopper.cu     (one line; or another chip)
//   ./attention check [PART PARTS [once]] | all | time [80 | 90 [SHAPE]]
//
// What must not be read holds NaN: columns between the parts and behind them, rows behind the segments, keys and values that kv_lens
// cuts off. What must not be written holds a pattern that is looked for afterwards. Every case runs twice (or once), the second time
// from a captured graph, and must give the same bits; and it runs on the kernels for sm_80 as well as on those for the chip, as it is and with
// dq and dk rotated back. Exits with 1 when a case fails.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "attention_reference.h"
#include "kernels.h"

using namespace metalora::cuda;

static void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  printf("Cannot %s: %s\n", what, cudaGetErrorString(status));
  exit(1);
}

// Device memory filled with one byte.
template <typename T>
struct Buffer {
  T* at = nullptr;
  size_t n;
  explicit Buffer(size_t n, int fill = 0xff) : n(n) {
    check(cudaMalloc(&at, n * sizeof(T) + 16), "allocate");
    check(cudaMemset(at, fill, n * sizeof(T)), "fill");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(at); }
  void put(const std::vector<T>& x) { check(cudaMemcpy(at, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice), "upload"); }
  std::vector<T> get() const {
    std::vector<T> x(n);
    check(cudaMemcpy(x.data(), at, n * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return x;
  }
};

constexpr uint16_t NONE = 0xffff;  // a NaN, and the pattern of memory that nobody wrote
static uint16_t to_bits(double x) {
  const __nv_bfloat16 b = __float2bfloat16((float)x);
  uint16_t bits;
  memcpy(&bits, &b, 2);
  return bits;
}
static double from_bits(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

// A table of angles for positions 0 .. longest-1, any numbers; and a row behind the table that nobody may read.
static std::vector<float> angles(const Shape& shape, bool sine) {
  const int half = shape.D / 2;
  std::mt19937 random(shape.D);
  std::uniform_real_distribution<float> turn(-3.2f, 3.2f);
  std::vector<float> table((shape.longest() + 1) * half, NAN);
  for (int i = 0; i < shape.longest() * half; i++) {
    const float angle = turn(random);
    table[i] = sine ? std::sin(angle) : std::cos(angle);
  }
  return table;
}

// A batch on the device: T rows of which shape.rows() belong to segments, and GUARD rows behind that no kernel may touch.
struct Batch {
  static constexpr int GUARD = 3;
  Shape shape;
  int T, gap, bound;  // of the longest segment
  int64_t ldqkv, ldo;
  bool rotated;    // dq and dk are rotated back, by positions that start at 0 in every segment
  int shift;       // of the tables: an odd `gap` takes them off the grid that lets two angles be read at once
  Buffer<int32_t> cu, kv_lens, positions;
  Buffer<float> cos, sin;
  Buffer<uint16_t> qkv, dout, out, dqkv;
  Buffer<float> lse, work;

  Batch(const Shape& s, int behind, int gap, bool rotated)
      : shape(s), T(s.rows() + behind), gap(gap), bound(s.longest() + behind / 2), ldqkv((s.H + 2 * s.K) * s.D + 3 * gap),
        ldo(s.H * s.D + gap), rotated(rotated), shift(gap % 2), cu(s.lengths.size() + 1), kv_lens(s.lengths.size() + 1), positions(T),
        cos((s.longest() + 1) * (s.D / 2) + 1), sin((s.longest() + 1) * (s.D / 2) + 1), qkv((T + GUARD) * ldqkv),
        dout((T + GUARD) * ldo), out((T + GUARD) * ldo), dqkv((T + GUARD) * ldqkv), lse((T + GUARD) * s.H), work((T + GUARD) * s.H) {
    std::vector<int32_t> offsets(1, 0);
    for (int n : s.lengths) offsets.push_back(offsets.back() + n);
    cu.put(offsets);
    if (!s.kv_lens.empty()) kv_lens.put(s.kv_lens);
    std::vector<int32_t> at;
    for (int n : s.lengths)
      for (int i = 0; i < n; i++) at.push_back(i);
    at.resize(T, 1 << 30);  // rows of no segment: far outside the tables
    positions.put(at);
    check(cudaMemcpy(cos.at + shift, angles(s, false).data(), (cos.n - 1) * 4, cudaMemcpyHostToDevice), "upload");
    check(cudaMemcpy(sin.at + shift, angles(s, true).data(), (sin.n - 1) * 4, cudaMemcpyHostToDevice), "upload");
  }
  int64_t at_k() const { return shape.H * shape.D + gap; }
  int64_t at_v() const { return at_k() + shape.K * shape.D + gap; }

  cudaError_t forward(const Launch& on) const {
    const bf16* x = (const bf16*)qkv.at;
    return attention_forward(on, T, shape.lengths.size(), bound, cu.at, shape.kv_lens.empty() ? nullptr : kv_lens.at, shape.H,
                             shape.K, shape.D, shape.scale, x, x + at_k(), x + at_v(), ldqkv, (bf16*)out.at, ldo, lse.at);
  }
  cudaError_t backward(const Launch& on) const {
    const bf16* x = (const bf16*)qkv.at;
    bf16* d = (bf16*)dqkv.at;
    return attention_backward(on, T, shape.lengths.size(), bound, cu.at, shape.kv_lens.empty() ? nullptr : kv_lens.at, shape.H,
                              shape.K, shape.D, shape.scale, x, x + at_k(), x + at_v(), ldqkv, (const bf16*)out.at, ldo, lse.at,
                              (const bf16*)dout.at, ldo, d, d + at_k(), d + at_v(), ldqkv, work.at,
                              rotated ? cos.at + shift : nullptr, sin.at + shift, positions.at);
  }
};

// ---- correctness -------------------------------------------------------------------------------------------------------

// Rounds `dense` [rows, cols] to bf16 and writes it into columns from..from+cols-1 of x.
static void place(std::vector<uint16_t>& x, int64_t ld, int64_t from, std::vector<double>& dense, int64_t cols) {
  for (size_t i = 0; i < dense.size(); i++) {
    const uint16_t bits = to_bits(dense[i]);
    dense[i] = from_bits(bits);
    x[i / cols * ld + from + i % cols] = bits;
  }
}

// x [rows, heads, D] rotated back by the positions of its rows: what the definition says of dq and dk.
static std::vector<double> rotated_back(const Shape& shape, int heads, const std::vector<double>& x) {
  const std::vector<float> cos = angles(shape, false), sin = angles(shape, true);
  const int half = shape.D / 2;
  std::vector<double> y(x.size());
  size_t at = 0;
  for (int n : shape.lengths)
    for (int i = 0; i < n; i++)
      for (int h = 0; h < heads; h++, at += shape.D)
        for (int j = 0; j < half; j++) {
          const double c = cos[i * half + j], s = sin[i * half + j];
          y[at + j] = x[at + j] * c + x[at + half + j] * s;
          y[at + half + j] = x[at + half + j] * c - x[at + j] * s;
        }
  return y;
}

struct Verdict {
  double norm = 0, row = 0;  // error over norm: of the whole tensor; of the worst row of a head, against its norm + the mean norm
  bool wrong = false;        // unwritten or NaN results, or rows behind the segments that are not zero
};

// Compares columns from .. from+heads*D-1 of x [T, ld] with ref [rows, heads * D].
static Verdict compare(const std::vector<uint16_t>& x, int64_t ld, int64_t from, int T, int rows, int heads, int D,
                       const std::vector<double>& ref) {
  Verdict verdict;
  double error = 0, norm = 0;
  for (double r : ref) norm += r * r;
  const double mean = std::sqrt(norm / std::max<size_t>(1, ref.size() / D));
  for (int t = 0; t < T; t++)
    for (int h = 0; h < heads; h++) {
      double e2 = 0, r2 = 0;
      for (int d = 0; d < D; d++) {
        const uint16_t bits = x[t * ld + from + h * D + d];
        const double value = from_bits(bits), r = t < rows ? ref[((size_t)t * heads + h) * D + d] : 0;
        if (!std::isfinite(value) || (t >= rows && bits != 0)) verdict.wrong = true;
        e2 += (value - r) * (value - r);
        r2 += r * r;
      }
      error += e2;
      verdict.row = std::max(verdict.row, std::sqrt(e2) / (std::sqrt(r2) + mean + 1e-30));
    }
  verdict.norm = std::sqrt(error / (norm + 1e-30));
  return verdict;
}

// Forward and backward from a captured graph, five times over poisoned results and scratch. Kernels overlap in the backward: what one of
// them read too early would show.
static void replay(const Batch& batch, int arch, int units) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamCreate(&stream), "create a stream");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin the capture");
  const Launch on = {stream, arch, units};
  check(cudaMemsetAsync(batch.work.at, 0xff, batch.work.n * 4, stream), "poison work");
  check(cudaMemsetAsync(batch.dqkv.at, 0xff, batch.dqkv.n * 2, stream), "poison dq, dk, dv");
  check(cudaMemsetAsync(batch.out.at, 0xff, batch.out.n * 2, stream), "poison out");
  check(batch.forward(on), "launch the forward in a capture");
  check(batch.backward(on), "launch the backward in a capture");
  check(cudaStreamEndCapture(stream, &graph), "end the capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate the graph");
  for (int i = 0; i < 5; i++) check(cudaGraphLaunch(exec, stream), "replay");
  check(cudaStreamSynchronize(stream), "replay");
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// Every element of x [rows, ld] outside the given column ranges, and in the guard rows, must still be the pattern.
static bool untouched(const std::vector<uint16_t>& x, int64_t ld, int T, std::vector<std::pair<int64_t, int64_t>> written) {
  for (size_t i = 0; i < x.size(); i++) {
    const int64_t col = i % ld;
    bool inside = false;
    for (auto [from, to] : written) inside |= (int64_t)(i / ld) < T && col >= from && col < to;
    if (!inside && x[i] != NONE) return false;
  }
  return true;
}

static int failures = 0;
static int part = 0, parts = 1, turns = 0;  // every `parts`-th case alone, from number `part` on
static int runs = 2;                        // once under racecheck, which is slow

static void run_case(const char* name, const Shape& shape, int gap, double sharpness, int chip, int units) {
  if (turns++ % parts != part) return;
  const int H = shape.H, K = shape.K, D = shape.D, rows = shape.rows();
  Tensors t;
  std::mt19937 random(rows * 31 + D * 7 + H);
  std::normal_distribution<float> normal;
  const auto draw = [&](std::vector<double>& x, int64_t n, double size) {
    x.resize(n);
    for (double& value : x) value = normal(random) * size;
  };
  draw(t.q, (int64_t)rows * H * D, sharpness);
  draw(t.k, (int64_t)rows * K * D, 1);
  draw(t.v, (int64_t)rows * K * D, 1);
  draw(t.dout, (int64_t)rows * H * D, 1);

  Batch probe(shape, 70, gap, false);
  std::vector<uint16_t> qkv(probe.qkv.n, NONE), dout(probe.dout.n, NONE);
  place(qkv, probe.ldqkv, 0, t.q, H * D);
  place(qkv, probe.ldqkv, probe.at_k(), t.k, K * D);
  place(qkv, probe.ldqkv, probe.at_v(), t.v, K * D);
  place(dout, probe.ldo, 0, t.dout, H * D);
  int start = 0;
  for (size_t i = 0; i < shape.lengths.size(); start += shape.lengths[i++])
    for (int j = shape.keys(i); j < shape.lengths[i]; j++)
      for (int64_t c = probe.at_k(); c < probe.ldqkv; c++) qkv[(start + j) * probe.ldqkv + c] = NONE;
  reference(shape, t);
  const std::vector<double> plain[2] = {t.dq, t.dk}, turned[2] = {rotated_back(shape, H, t.dq), rotated_back(shape, K, t.dk)};

  const bool hopper = chip == 90 && (D == 64 || D == 128) && gap % 8 == 0;
  for (int i = 0; i < 4; i++) {
    const int arch = i < 2 ? 80 : 90;
    const bool rotated = i % 2;
    if (arch == 90 && !hopper) continue;
    std::vector<uint16_t> first[2];
    std::vector<float> first_lse;
    bool same = true, clean = true;
    Verdict out, dq, dk, dv;
    double lse_error = 0;
    for (int run = 0; run < runs; run++) {
      Batch batch(shape, 70, gap, rotated);
      batch.qkv.put(qkv);
      batch.dout.put(dout);
      if (run == 0) {
        const Launch on = {nullptr, arch, units};
        check(batch.forward(on), "launch the forward");
        check(batch.backward(on), "launch the backward");
        check(cudaDeviceSynchronize(), name);
      } else {
        replay(batch, arch, units);
      }
      const auto y = batch.out.get(), dx = batch.dqkv.get();
      const auto lse = batch.lse.get();
      if (run == 1) {
        same = y == first[0] && dx == first[1] && memcmp(lse.data(), first_lse.data(), (size_t)batch.T * H * 4) == 0;
        break;
      }
      first[0] = y;
      first[1] = dx;
      first_lse = lse;
      out = compare(y, batch.ldo, 0, batch.T, rows, H, D, t.out);
      dq = compare(dx, batch.ldqkv, 0, batch.T, rows, H, D, (rotated ? turned : plain)[0]);
      dk = compare(dx, batch.ldqkv, batch.at_k(), batch.T, rows, K, D, (rotated ? turned : plain)[1]);
      dv = compare(dx, batch.ldqkv, batch.at_v(), batch.T, rows, K, D, t.dv);
      const int64_t k0 = batch.at_k(), v0 = batch.at_v();
      clean = untouched(y, batch.ldo, batch.T, {{0, H * D}}) &&
              untouched(dx, batch.ldqkv, batch.T, {{0, H * D}, {k0, k0 + K * D}, {v0, v0 + K * D}});
      for (int64_t i = 0; i < (int64_t)(batch.T + Batch::GUARD) * H; i++) {
        uint32_t bits;
        memcpy(&bits, &lse[i], 4);
        if (i >= (int64_t)batch.T * H) {
          clean &= bits == ~0u;
        } else if (i >= (int64_t)rows * H) {
          clean &= bits == 0;
        } else if (t.lse[i] == -INFINITY) {
          clean &= lse[i] == -INFINITY;
        } else {
          const double error = std::fabs(lse[i] - t.lse[i]) / (1 + std::fabs(t.lse[i]));
          lse_error = error <= 1e30 ? std::max(lse_error, error) : 1e30;
        }
      }
    }
    // bf16 probabilities and results: relative rounding 2^-9 each, about 2e-3 in norm; sums in f32 add nothing to speak of. Single rows
    // of dq are worse where dout v^T and delta, which knows out in bf16, nearly cancel: up to 3e-2 seen, with both sets of kernels.
    bool good = same && clean && lse_error < 1e-5;
    for (const Verdict& v : {out, dq, dk, dv}) good &= !v.wrong && v.norm < 6e-3 && v.row < 5e-2;
    failures += !good;
    printf("%s  %-28s sm_%d%s H %2d K %d D %3d | out %.1e %.1e  dq %.1e %.1e  dk %.1e %.1e  dv %.1e %.1e  lse %.0e%s%s%s\n",
           good ? "pass" : "FAIL", name, arch, rotated ? " rotated" : "        ", H, K, D, out.norm, out.row, dq.norm, dq.row, dk.norm, dk.row, dv.norm, dv.row, lse_error,
           same ? "" : "  two runs differ", clean ? "" : "  wrote outside or left rows behind",
           out.wrong || dq.wrong || dk.wrong || dv.wrong ? "  NaN" : "");
    fflush(stdout);
  }
}

static void run_cases(int chip, int units) {
  const std::vector<int> mix = {1, 2, 63, 64, 65, 127, 128, 129, 200}, large = {400, 777, 1, 130};
  const auto shape = [](std::vector<int> lengths, int H, int K, int D, std::vector<int> kv_lens = {}) {
    return Shape{lengths, kv_lens, H, K, D, 1.0f / std::sqrt((float)D)};
  };
  for (int D : {8, 16, 48, 64, 80, 96, 128, 256}) {
    run_case("mixed lengths", shape(mix, 3, 3, D), 8, 1, chip, units);
    run_case("3 query heads a key head", shape(mix, 6, 2, D), 16, 1, chip, units);
  }
  run_case("half of 36", shape(mix, 4, 2, 72), 8, 1, chip, units);
  run_case("half of 80", shape(mix, 4, 2, 160), 8, 1, chip, units);
  run_case("one pair", shape(mix, 4, 2, 2), 2, 1, chip, units);
  run_case("half of 5", shape(mix, 4, 2, 10), 2, 1, chip, units);
  run_case("odd leading dimension", shape(mix, 4, 2, 10), 1, 1, chip, units);
  run_case("4-byte rows", shape(mix, 4, 2, 64), 2, 1, chip, units);
  run_case("odd leading dimension", shape(mix, 4, 2, 128), 1, 1, chip, units);
  for (int D : {64, 128}) {
    run_case("one head", shape({128}, 1, 1, D), 0, 1, chip, units);
    run_case("long segments", shape(large, 4, 1, D), 8, 1, chip, units);
    run_case("8 query heads a key head", shape({300, 64, 257}, 8, 1, D), 8, 1, chip, units);
    run_case("sharp softmax", shape({513, 40}, 4, 2, D), 8, 6, chip, units);
    run_case("kv_lens", shape({1, 64, 129, 300, 300, 200, 128}, 4, 2, D, {0, 64, 100, 0, 129, 1000, 1}), 8, 1, chip, units);
    run_case("2048", shape({2048, 3}, 2, 2, D), 0, 1, chip, units);
    run_case("long beside short", shape({1100, 1, 193, 64, 0, 700}, 4, 2, D, {1100, 1, 190, 0, 0, 650}), 8, 1, chip, units);
    run_case("24 segments", shape(std::vector<int>(24, 61), 6, 2, D), 8, 1, chip, units);
    run_case("empty segments", shape({0, 70, 0, 0, 200, 0}, 4, 4, D), 8, 1, chip, units);
  }
  for (int D : {8, 96, 256})
    run_case("kv_lens", shape({1, 64, 129, 300, 300, 200, 128}, 4, 2, D, {0, 64, 100, 0, 129, 1000, 1}), 8, 1, chip, units);
}

// ---- time --------------------------------------------------------------------------------------------------------------

constexpr int LAYERS = 32;

// Milliseconds of LAYERS launches, replayed from a CUDA graph: the median of 7.
template <typename F>
static double time_layers(cudaStream_t stream, F launch) {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin the capture");
  for (int i = 0; i < LAYERS; i++) check(launch(i), "launch in a capture");
  check(cudaStreamEndCapture(stream, &graph), "end the capture");
  check(cudaGraphInstantiate(&replay, graph, 0), "instantiate the graph");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int run = 0; run < 9; run++) {
    cudaEventRecord(begin, stream);
    check(cudaGraphLaunch(replay, stream), "replay");
    cudaEventRecord(end, stream);
    check(cudaEventSynchronize(end), "replay");
    float ms;
    cudaEventElapsedTime(&ms, begin, end);
    if (run >= 2) times.push_back(ms);
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

static void time_shape(const Shape& shape, int arch, int units) {
  const double bytes = (double)shape.rows() * (shape.H + 2 * shape.K) * shape.D * 2;
  const int sets = std::max(1, std::min(8, (int)(400e6 / bytes)));  // so that no layer finds its inputs in L2
  std::vector<std::unique_ptr<Batch>> batches;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> noise(1 << 20);
  for (auto& x : noise) x = to_bits(normal(random));
  const auto fill = [&](Buffer<uint16_t>& b) {
    for (size_t i = 0; i < b.n; i += noise.size())
      check(cudaMemcpy(b.at + i, noise.data(), std::min(noise.size(), b.n - i) * 2, cudaMemcpyHostToDevice), "upload");
  };
  for (int i = 0; i < sets; i++) {
    batches.emplace_back(new Batch(shape, 0, 0, false));
    fill(batches[i]->qkv);
    fill(batches[i]->dout);
  }
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "create a stream");
  const Launch on = {stream, arch, units};
  const double forward = time_layers(stream, [&](int i) { return batches[i % sets]->forward(on); });
  const double backward = time_layers(stream, [&](int i) { return batches[i % sets]->backward(on); });
  for (auto& batch : batches) batch->rotated = true;
  const double rotating = time_layers(stream, [&](int i) { return batches[i % sets]->backward(on); });
  cudaStreamDestroy(stream);
  double pairs = 0;
  for (double n : shape.lengths) pairs += n * (n + 1) / 2;
  const double work = 4 * pairs * shape.H * shape.D * LAYERS / 1e9;  // FLOP / 1e9 of the forward: / ms = TFLOP/s
  printf("sm_%d  %2d x %-4d  H %2d  K %2d  D %3d | forward %7.2f ms %4.0f TFLOP/s | backward %7.2f ms %4.0f TFLOP/s, rotating %7.2f ms | "
         "both %7.2f ms\n",
         arch, (int)shape.lengths.size(), shape.longest(), shape.H, shape.K, shape.D, forward, work / forward, backward,
         2.5 * work / backward, rotating, forward + rotating);
  fflush(stdout);
}

static void run_times(int chip, int units, int only_arch, int only_shape) {
  printf("\n%d layers; TFLOP/s count the visible scores alone, the backward as 2.5 forwards\n", LAYERS);
  const auto shape = [](int S, int n, int H, int K, int D) {
    return Shape{std::vector<int>(S, n), {}, H, K, D, 1.0f / std::sqrt((float)D)};
  };
  const Shape shapes[] = {shape(4, 2048, 32, 32, 128), shape(4, 2048, 32, 8, 128), shape(4, 400, 32, 32, 128),
                          shape(4, 2048, 32, 32, 64), shape(8, 512, 9, 3, 64)};
  for (int arch : {80, 90})
    for (int i = 0; i < 5; i++)
      if (arch <= chip && (!only_arch || arch == only_arch) && (only_shape < 0 || i == only_shape)) time_shape(shapes[i], arch, units);
}

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "all";
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "find a GPU");
  const int chip = device.major * 10 + device.minor;
  printf("%s, sm_%d, %d multiprocessors\n", device.name, chip, device.multiProcessorCount);
  if (what == "check" && count > 3) part = atoi(arguments[2]), parts = atoi(arguments[3]);
  if (what == "check" && count > 4 && std::string(arguments[4]) == "once") runs = 1;
  if (what == "check" || what == "all") run_cases(chip, device.multiProcessorCount);
  if (what == "time" || what == "all")
    run_times(chip, device.multiProcessorCount, count > 2 ? atoi(arguments[2]) : 0, count > 3 ? atoi(arguments[3]) : -1);
  if (what != "time") printf("%d cases failed\n", failures);
  return failures ? 1 : 0;
}
