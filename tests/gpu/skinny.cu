// skinny.cu: checks the narrow products against references in double, then times them beside cuBLAS.
//
//   nvcc -O2 -std=c++17 -gencode arch=compute_90a,code=sm_90a -o build/gpu-skinny tests/gpu/skinny.cu ffi/shim/cuda_library.cpp
//   build/gpu-skinny [check | time | sweep]
//
// It includes the kernels, so that it can run every way of sharing out the work: `check` checks them all, `sweep` times them all.
#include "../../ffi/shim/cuda_library.h"
#include "../../kernels/cuda/skinny.cu"
#include "harness.cuh"

using namespace harness;
using namespace metalora::cuda;

// want [M, N] and sizes [M, N], the sum of the terms' magnitudes: one thread a number.
static __global__ void reference_kernel(int64_t M, int64_t N, int64_t K, const bf16* a, int64_t lda, const bf16* b, int64_t along_n,
                                        int64_t along_k, double* want, double* sizes) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= M * N) return;
  double sum = 0, size = 0;
  for (int64_t k = 0; k < K; k++) {
    const double term = (double)__bfloat162float(a[i / N * lda + k]) * (double)__bfloat162float(b[i % N * along_n + k * along_k]);
    sum += term, size += fabs(term);
  }
  want[i] = sum, sizes[i] = size;
}

struct Shape {
  int64_t M, N, K;
  bool rows_are_k;
};

static std::string name_of(const Shape& s) {
  char text[96];
  snprintf(text, sizeof text, "(%ld, %ld, %ld) b %s", (long)s.M, (long)s.N, (long)s.K, s.rows_are_k ? "[K, N]" : "[N, K]");
  return text;
}

static cudaError_t run_planned(const Launch& on, const Shape& s, const Operands& o, const Plan& plan) {
  return s.rows_are_k ? choose_columns<true>(on, o, plan) : choose_columns<false>(on, o, plan);
}

// The product as it is called, then in every way of sharing it out: close to the reference, the same bits each time, nothing written
// where nothing belongs. Paddings of the operands hold NaN.
static void check_shape(const Launch& on, const Shape& s, bool all_plans) {
  if (!turn()) return;
  Random random(s.M * 7 + s.N * 3 + s.K);
  Matrix<bf16> a(s.M, s.K, s.K + 128), b(s.rows_are_k ? s.K : s.N, s.rows_are_k ? s.N : s.K, (s.rows_are_k ? s.N : s.K) + 96);
  Matrix<bf16> c(s.M, s.N, s.N + 32);
  Matrix<double> want(s.M, s.N), sizes(s.M, s.N);
  a.random(random).put();
  b.random(random).put();
  reference_kernel<<<(unsigned)ceil_div(s.M * s.N, 256), 256, 0, on.stream>>>(
      s.M, s.N, s.K, a.device, a.ld, b.device, s.rows_are_k ? 1 : b.ld, s.rows_are_k ? b.ld : 1, want.device, sizes.device);
  CUDA_OK(cudaStreamSynchronize(on.stream));
  want.get();
  sizes.get();
  const Operands o = {s.M, s.N, s.K, a.device, a.ld, b.device, b.ld, c.device, c.ld};
  const auto check = [&](const std::string& what, const std::function<cudaError_t()>& run) {
    run_repeatedly(
        c, [&] { c.poison(), c.put(); }, run, what);
    expect_close(
        c, [&](int64_t i, int64_t j) { return want.at(i, j); },
        [&](int64_t i, int64_t j) { return fabs(want.at(i, j)) * ROUNDING + sizes.at(i, j) / (1 << 20); }, what);
  };
  expect(skinny_fits(on, s.M, s.N, s.K, a.device, a.ld, b.device, b.ld, s.rows_are_k, c.device, c.ld) == (s.K >= SHORTEST && s.K >= s.M),
         name_of(s) + ": the wrong answer to whether it fits");
  check(name_of(s), [&] { return skinny_product(on, s.M, s.N, s.K, a.device, a.ld, b.device, b.ld, s.rows_are_k, c.device, c.ld); });
  if (!all_plans) return;
  for (int rows : {64, 128})
    for (int split = 1; split <= MOST_SPLIT; split++)
      for (bool alone : {false, true}) {
        char text[64];
        snprintf(text, sizeof text, ": %d rows, split %d%s", rows, split, alone ? ", alone" : "");
        check(name_of(s) + text, [&] { return run_planned(on, s, o, {rows, split, alone}); });
      }
}

static void check_refusals(const Launch& on) {
  bf16* at = nullptr;
  CUDA_OK(cudaMalloc((void**)&at, 1 << 20));
  const auto fits = [&](const Launch& where, int64_t N, int64_t K, const bf16* a, int64_t lda, int64_t ldc) {
    return skinny_fits(where, 64, N, K, a, lda, at, K, false, at, ldc);
  };
  expect(fits(on, 32, 2048, at, 2048, 32), "an aligned product does not fit");
  expect(!fits(on, 32, 2044, at, 2048, 32), "K = 2044 fits");
  expect(!fits(on, 32, 1024, at, 2048, 32), "K = 1024 fits");
  expect(!fits(on, 36, 2048, at, 2048, 36), "N = 36 fits");
  expect(!fits(on, 264, 2048, at, 2048, 264), "N = 264 fits");
  expect(!fits(on, 32, 2048, at + 1, 2048, 32), "an odd address fits");
  expect(!fits(on, 32, 2048, at, 2052, 32), "rows off the grid fit");
  expect(!fits(on, 32, 2048, at, 2048, 34), "rows of c off the grid fit");
  expect(!fits({on.stream, 80, on.units}, 32, 2048, at, 2048, 32), "a chip without clusters fits");
  cudaFree(at);
}

static void check_all(const Launch& on) {
  check_refusals(on);
  for (bool rows_are_k : {false, true}) {
    for (int64_t N : {8, 32, 40, 64, 96, 128, 160, 256}) check_shape(on, {200, N, 2632, rows_are_k}, true);
    for (int64_t M : {1, 17, 1599}) check_shape(on, {M, 32, 4096, rows_are_k}, false), check_shape(on, {M, 96, 200, rows_are_k}, false);
    check_shape(on, {1600, 96, 4096, rows_are_k}, false);
    check_shape(on, {4096, 64, 576, rows_are_k}, false);
    check_shape(on, {8192, 32, 1536, rows_are_k}, false);
    check_shape(on, {65, 16, 8, rows_are_k}, false);
  }
  printf("%d checks, %d failed\n", checks, failures);
}

// ---- times ---------------------------------------------------------------------------------------------------------------------

static const size_t APART = 512ull << 20, ARENA = 3ull << 30;  // bytes that the sets of cold operands cover at least; of all memory

static __global__ void fill_kernel(int64_t count, uint32_t* words) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
    uint32_t h = (uint32_t)i * 2654435761u;
    h ^= h >> 15, h *= 2246822519u, h ^= h >> 13;
    words[i] = 0x3e803e80u | (h & 0x80ff80ffu);  // two bf16 of either sign between 0.25 and 0.5 in magnitude
  }
}

struct Clock {
  Launch on;
  char* arena;
  cudaEvent_t begin, end;
};

// Microseconds of a launch in a graph of launches that go round `sets`, the best of four replays; -1 where one cannot be launched.
static double replay(Clock& clock, const std::vector<Operands>& sets, const std::function<cudaError_t(const Operands&)>& run) {
  const int launches = sets.size() > 24 ? (int)sets.size() : 24;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  bool well = true;
  CUDA_OK(cudaStreamBeginCapture(clock.on.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches && well; i++) well = run(sets[i % sets.size()]) == cudaSuccess;
  const cudaError_t ended = cudaStreamEndCapture(clock.on.stream, &graph);
  if (!well || ended != cudaSuccess) return cudaGetLastError(), -1;
  CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
  float best = 1e9f;
  for (int i = 0; i < 4; i++) {
    float ms;
    CUDA_OK(cudaEventRecord(clock.begin, clock.on.stream));
    CUDA_OK(cudaGraphLaunch(executable, clock.on.stream));
    CUDA_OK(cudaEventRecord(clock.end, clock.on.stream));
    CUDA_OK(cudaEventSynchronize(clock.end));
    CUDA_OK(cudaEventElapsedTime(&ms, clock.begin, clock.end));
    if (i > 0 && ms < best) best = ms;
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return best * 1e3 / launches;
}

// Sets of operands laid out as a training step has them: a and c with rows 128 longer than they need, b a column range of wide rows.
static std::vector<Operands> sets_of(Clock& clock, const Shape& s, bool cold) {
  const int64_t lda = s.K + 128, ldb = s.rows_are_k ? 4192 : s.K, ldc = 4224;
  const size_t a = (size_t)(s.M * lda) * 2, b = (size_t)((s.rows_are_k ? s.K : s.N) * ldb) * 2, c = (size_t)(s.M * ldc) * 2;
  const size_t touched = (size_t)(s.M * s.K + s.N * s.K + s.M * s.N) * 2, whole = (a + b + c + 1023) / 256 * 256;
  const size_t wanted = cold ? APART / touched + 2 : 1, most = ARENA / whole;
  std::vector<Operands> sets;
  for (size_t i = 0; i < wanted && i < most && i < 48; i++) {
    char* at = clock.arena + i * whole;
    sets.push_back({s.M, s.N, s.K, (bf16*)at, lda, (bf16*)(at + (a + 255) / 256 * 256), ldb,
                    (bf16*)(at + (a + 255) / 256 * 256 + (b + 255) / 256 * 256), ldc});
  }
  return sets;
}

static std::vector<Shape> hot_shapes() {
  std::vector<Shape> shapes;
  for (int64_t M : {1600, 8192}) {
    for (int64_t N : {96, 32, 64}) shapes.push_back({M, N, 4096, false});
    shapes.push_back({M, 32, 11008, false});
    shapes.push_back({M, 96, 12288, true});
    shapes.push_back({M, 32, 4096, true});
    shapes.push_back({M, 64, 22016, true});
  }
  for (int64_t K : {576, 1536})
    for (int64_t N : {96, 64, 32}) shapes.push_back({4096, N, K, false});
  shapes.push_back({4096, 96, 960, true});
  shapes.push_back({4096, 64, 3072, true});
  shapes.push_back({4096, 32, 576, true});
  return shapes;
}

static void time_all(Clock& clock) {
  metalora::Found found;
  const metalora::Cublas* cublas = metalora::load_cublas(&found);
  metalora::Cublas::Handle handle = nullptr;
  void* workspace = nullptr;
  if (!cublas) printf("%s\n", found.problem);
  if (cublas && (cublas->create(&handle) || cublas->set_stream(handle, clock.on.stream))) cublas = nullptr;
  CUDA_OK(cudaMalloc(&workspace, 64 << 20));
  if (cublas) cublas->set_workspace(handle, workspace, 64 << 20);
  printf("%-34s %5s %5s", "microseconds a product (a: alone)", "rows", "split");
  for (const char* operands : {"cold", "warm"}) printf(" | %8s %7s %8s", operands, "TB/s", "cuBLAS");
  printf("\n");
  for (const Shape& s : hot_shapes()) {
    const Plan plan = plan_of(clock.on, s.M, s.N, s.K);
    printf("%-34s %5d %4d%c", name_of(s).c_str(), plan.rows, plan.split, plan.alone ? 'a' : ' ');
    for (bool cold : {true, false}) {
      const auto sets = sets_of(clock, s, cold);
      const double bytes = 2.0 * (s.M * s.K + s.N * s.K + s.M * s.N);
      const double ours = replay(clock, sets, [&](const Operands& o) {
        return skinny_product(clock.on, o.M, o.N, o.K, o.a, o.lda, o.b, o.ldb, s.rows_are_k, o.c, o.ldc);
      });
      const double theirs = !cublas ? -1 : replay(clock, sets, [&](const Operands& o) {
        const float one = 1, zero = 0;
        const int status = cublas->gemm(handle, s.rows_are_k ? 0 : 1, 0, (int)o.N, (int)o.M, (int)o.K, &one, o.b, 14, (int)o.ldb, o.a, 14,
                                        (int)o.lda, &zero, o.c, 14, (int)o.ldc, 68, -1);
        return status == 0 ? cudaGetLastError() : cudaErrorUnknown;
      });
      printf(" | %8.2f %7.2f %8.2f", ours, bytes / ours * 1e-6, theirs);
    }
    printf("\n");
    fflush(stdout);
  }
}

static void sweep(Clock& clock) {
  for (const Shape& s : hot_shapes())
    for (bool cold : {true, false}) {
      const auto sets = sets_of(clock, s, cold);
      printf("%s %s:", name_of(s).c_str(), cold ? "cold" : "warm");
      for (int rows : {64, 128})
        for (int split = 1; split <= MOST_SPLIT; split++) {
          const int64_t blocks = ceil_div(s.M, rows) * split, units = clock.on.units;
          if (blocks < units / 3 || (blocks > units * 2 && split > 1) || split > ceil_div(s.K, DEPTH)) continue;
          printf(" %dx%d", rows, split);
          for (bool alone : {false, true})
            printf(" %.2f", replay(clock, sets, [&](const Operands& o) {
                     return run_planned(clock.on, s, o, {rows, split, alone});
                   }));
        }
      printf("\n");
      fflush(stdout);
    }
}

int main(int count, char** arguments) {
  cudaDeviceProp device;
  CUDA_OK(cudaGetDeviceProperties(&device, 0));
  Clock clock = {};
  CUDA_OK(cudaStreamCreate(&clock.on.stream));
  clock.on.arch = device.major * 10 + device.minor;
  clock.on.units = device.multiProcessorCount;
  printf("%s, compute capability %d.%d, %d multiprocessors\n", device.name, device.major, device.minor, clock.on.units);
  if (clock.on.arch != 90) return printf("Cannot check the narrow products: they need compute capability 9.0\n"), 1;
  const std::string what = count > 1 ? arguments[1] : "";
  if (what == "check") read_part(count, arguments);
  if (what == "" || what == "check") check_all(clock.on);
  if (what != "check") {
    CUDA_OK(cudaMalloc((void**)&clock.arena, ARENA));
    fill_kernel<<<1024, 256, 0, clock.on.stream>>>((int64_t)(ARENA / 4), (uint32_t*)clock.arena);
    CUDA_OK(cudaEventCreate(&clock.begin));
    CUDA_OK(cudaEventCreate(&clock.end));
    if (what == "sweep")
      sweep(clock);
    else
      time_all(clock);
  }
  return failures > 0;
}
