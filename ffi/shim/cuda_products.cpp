// cuda_products.cpp: which of cuBLAS's algorithms multiplies.
//
// Its own choice is up to 15 % slower than its best one, in no pattern (H200, tests/bench/gemm_cuda.ts: [8192,4096] by [4096,22016] in
// 1.93 ms, with 64 columns more in 2.17). So the first product of a size tries what cublasLt proposes beside cuBLAS's own choice.
// A run must repeat itself bit for bit although times differ: only algorithms that give the bits of a standard are taken, compared on the
// data at hand, for every number of rows anew. Then it does not matter which one won. The standard is cuBLAS's own choice, or, where a bias,
// ReLU or another matrix comes in, what cublasLt proposes first.
#include "cuda_products.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace metalora {

namespace {

constexpr int R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, OP_N = 0, OP_T = 1;  // cudaDataType, cublasComputeType_t, cublasOperation_t
constexpr int DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7, DESC_BIAS = 8, EPILOGUE_RELU = 2, EPILOGUE_BIAS = 4, PREFERENCE_WORKSPACE = 1, PREFERENCE_REDUCTION = 3, PREFERENCE_ALIGNMENT = 5;
constexpr uint32_t SUMS_IN_COMPUTE_TYPE = 2, SUMS_IN_OUTPUT_TYPE = 4;

constexpr int PROPOSALS = 16, REPEATS = 4;
constexpr float WORTHWHILE = 0.98f;  // of the time of the best so far: noise shall not choose
// Smaller products are not worth trying: launches take as long as they do.
constexpr int64_t LEAST_WORK = (int64_t)1 << 29;
// Narrower results are left to cuBLAS: g_h = s dY B is all zeros while B is, and zeros are the same in every order of sums.
constexpr int64_t LEAST_WIDTH = 257;
// Rows of one size class: an algorithm that is best at 1,600 rows is taken for 1,537 .. 2,048.
constexpr int64_t CLASS_ROWS = 512;

constexpr int MAPPING_ERROR = 11, EXECUTION_FAILED = 13, INTERNAL_ERROR = 14;  // of cublas_status
constexpr unsigned long long SCANTY_MIB = 128;  // less may be too little for a kernel of cuBLAS

// What the choice of an algorithm depends on.
struct Shape {
  int64_t M, N, K, lda, ldb, ldc, ld_add;
  int32_t flags;      // trans_a, trans_b, epilogue, c_dtype
  int32_t alignment;  // of all matrices, in bytes, at most 256
  bool operator==(const Shape& other) const { return memcmp(this, &other, sizeof other) == 0; }
};

// What is done to the sums on their way to memory.
uint32_t epilogue_of(const Product& p) { return (p.bias ? EPILOGUE_BIAS : 0) | (p.relu ? EPILOGUE_RELU : 0); }

Shape shape_of(const Product& p) {
  const uintptr_t all = (uintptr_t)p.a | (uintptr_t)p.b | (uintptr_t)p.c | (uintptr_t)p.add | 256;
  const int32_t flags = (int32_t)p.trans_a | (int32_t)p.trans_b << 1 | (int32_t)epilogue_of(p) << 2 | p.c_dtype << 5;
  return {p.M, p.N, p.K, p.lda, p.ldb, p.ldc, p.add ? p.ld_add : 0, flags, (int32_t)(all & -all)};
}

// Everything but the exact number of rows.
Shape class_of(const Shape& shape) {
  Shape general = shape;
  general.M = (shape.M + CLASS_ROWS - 1) / CLASS_ROWS;
  return general;
}

struct Plan {
  Shape shape;
  CublasLt::Operation operation;
  CublasLt::Layout a, b, c, d;  // c: what is added
  CublasLt::Algorithm algorithm;
  CublasLt::Algorithm first;  // what cublasLt proposes first: the standard of products that cuBLAS itself does not know
  bool own;                   // cuBLAS's own choice is the best
};

struct Choice {
  Shape general;
  CublasLt::Algorithm algorithm;
  bool own;
};

template <class T>
struct List {
  T* items = nullptr;
  int64_t count = 0, capacity = 0;
  T* add(const T& item) {
    if (count == capacity) {
      const int64_t wanted = capacity ? 2 * capacity : 64;
      T* grown = (T*)realloc((void*)items, (size_t)wanted * sizeof(T));
      if (!grown) return nullptr;
      items = grown;
      capacity = wanted;
    }
    items[count] = item;
    return &items[count++];
  }
};

}  // namespace

struct Products {
  List<Plan> plans;
  List<Choice> choices;
};

namespace {

void destroy(const CublasLt& lt, Plan& plan) {
  if (plan.a) lt.destroy_layout(plan.a);
  if (plan.b) lt.destroy_layout(plan.b);
  if (plan.c) lt.destroy_layout(plan.c);
  if (plan.d) lt.destroy_layout(plan.d);
  if (plan.operation) lt.destroy_operation(plan.operation);
}

// Whether more is asked than cuBLAS itself can do.
bool beyond(const Product& p) { return p.add || p.bias || p.relu; }

// Descriptors of a product. cuBLAS thinks in columns: it computes c^T = op(b)^T op(a)^T, so our b is its first operand.
bool describe(const CublasLt& lt, const Product& p, Plan& plan) {
  plan = {};
  plan.own = true;
  plan.shape = shape_of(p);
  const int first = p.trans_b ? OP_T : OP_N, second = p.trans_a ? OP_T : OP_N, c_type = p.c_dtype == ML_F32 ? R_32F : R_16BF;
  const uint32_t epilogue = epilogue_of(p);
  return lt.create_operation(&plan.operation, COMPUTE_32F, R_32F) == 0 &&
         lt.set_operation(plan.operation, DESC_TRANSA, &first, sizeof first) == 0 &&
         lt.set_operation(plan.operation, DESC_TRANSB, &second, sizeof second) == 0 &&
         (epilogue == 0 || lt.set_operation(plan.operation, DESC_EPILOGUE, &epilogue, sizeof epilogue) == 0) &&
         (!p.bias || lt.set_operation(plan.operation, DESC_BIAS, &p.bias, sizeof p.bias) == 0) &&
         lt.create_layout(&plan.a, R_16BF, (uint64_t)(p.trans_b ? p.K : p.N), (uint64_t)(p.trans_b ? p.N : p.K), p.ldb) == 0 &&
         lt.create_layout(&plan.b, R_16BF, (uint64_t)(p.trans_a ? p.M : p.K), (uint64_t)(p.trans_a ? p.K : p.M), p.lda) == 0 &&
         lt.create_layout(&plan.c, c_type, (uint64_t)p.N, (uint64_t)p.M, p.add ? p.ld_add : p.ldc) == 0 &&
         lt.create_layout(&plan.d, c_type, (uint64_t)p.N, (uint64_t)p.M, p.ldc) == 0;
}

int run(ml_ctx& ctx, const Product& p, const Plan& plan, const CublasLt::Algorithm& algorithm) {
  const CublasLt& lt = ctx.cublas->lt;
  const float beta = p.add ? 1 : p.beta;
  if (p.bias && lt.set_operation(plan.operation, DESC_BIAS, &p.bias, sizeof p.bias) != 0) return -1;  // every layer has its own
  return lt.matmul((CublasLt::Handle)ctx.handle, plan.operation, &p.alpha, p.b, plan.a, p.a, plan.b, &beta, p.add ? p.add : p.c, plan.c, p.c,
                   plan.d, &algorithm, ctx.workspace, WORKSPACE_BYTES, ctx.stream);
}

// What cublasLt proposes. Sums in place are left out: their order changes from run to run.
int propose(ml_ctx& ctx, const Plan& plan, CublasLt::Proposal (&proposals)[PROPOSALS]) {
  const CublasLt& lt = ctx.cublas->lt;
  CublasLt::Preference preference = nullptr;
  if (lt.create_preference(&preference) != 0) return 0;
  const uint64_t bytes = WORKSPACE_BYTES;
  const uint32_t schemes = SUMS_IN_COMPUTE_TYPE | SUMS_IN_OUTPUT_TYPE, alignment = (uint32_t)plan.shape.alignment;
  lt.set_preference(preference, PREFERENCE_WORKSPACE, &bytes, sizeof bytes);
  lt.set_preference(preference, PREFERENCE_REDUCTION, &schemes, sizeof schemes);
  for (int operand = 0; operand < 4; operand++) lt.set_preference(preference, PREFERENCE_ALIGNMENT + operand, &alignment, sizeof alignment);
  int found = 0;
  const int status = lt.propose((CublasLt::Handle)ctx.handle, plan.operation, plan.a, plan.b, plan.c, plan.d, preference, PROPOSALS, proposals,
                                &found);
  lt.destroy_preference(preference);
  return status == 0 ? found : 0;
}

// Bits of c as one number.
bool checksum_of(ml_ctx& ctx, const Product& p, unsigned long long* sum) {
  unsigned long long* there = (unsigned long long*)ctx.scratch;
  return cuda::checksum(ctx.on, p.M, p.N, p.c, p.ldc, (int)dtype_size(p.c_dtype), there) == cudaSuccess &&
         cudaMemcpyAsync(sum, there, sizeof *sum, cudaMemcpyDeviceToHost, ctx.stream) == cudaSuccess &&
         cudaStreamSynchronize(ctx.stream) == cudaSuccess;
}

// cuBLAS's own choice, in place where something is added.
int run_own(ml_ctx& ctx, const Product& p) {
  constexpr int DEFAULT = -1;
  return ctx.cublas->gemm(ctx.handle, p.trans_b, p.trans_a, (int)p.N, (int)p.M, (int)p.K, &p.alpha, p.b, R_16BF, (int)p.ldb, p.a, R_16BF,
                          (int)p.lda, &p.beta, p.c, p.c_dtype == ML_F32 ? R_32F : R_16BF, (int)p.ldc, COMPUTE_32F, DEFAULT);
}

// The shortest of some runs in milliseconds, or less than 0.
template <class Run>
float shortest(ml_ctx& ctx, cudaEvent_t from, cudaEvent_t to, const Run& run) {
  float best = -1;
  for (int k = 0; k < REPEATS; k++) {
    float ms = 0;
    cudaEventRecord(from, ctx.stream);
    if (run() != 0) return -1;
    cudaEventRecord(to, ctx.stream);
    if (cudaEventSynchronize(to) != cudaSuccess || cudaEventElapsedTime(&ms, from, to) != cudaSuccess) return -1;
    if (best < 0 || ms < best) best = ms;
  }
  return best;
}

// The standard whose bits every algorithm must give.
int run_standard(ml_ctx& ctx, const Product& p, const Plan& plan) { return beyond(p) ? run(ctx, p, plan, plan.first) : run_own(ctx, p); }

// Tries the proposals on the product at hand; the plan gets the fastest of those that give the bits of the standard. c is left as the
// last of them made it: the product is still to run.
void choose(ml_ctx& ctx, const Product& p, Plan& plan, const CublasLt::Proposal* proposals, int count) {
  unsigned long long expected = 0, sum = 0;
  cudaEvent_t from = nullptr, to = nullptr;
  if (cudaEventCreate(&from) == cudaSuccess && cudaEventCreate(&to) == cudaSuccess && run_standard(ctx, p, plan) == 0 &&
      checksum_of(ctx, p, &expected)) {
    float best = shortest(ctx, from, to, [&] { return run_standard(ctx, p, plan); });
    for (int i = 0; i < count; i++) {
      if (proposals[i].state != 0 || run(ctx, p, plan, proposals[i].algorithm) != 0) continue;
      if (!checksum_of(ctx, p, &sum) || sum != expected) continue;
      const float ms = shortest(ctx, from, to, [&] { return run(ctx, p, plan, proposals[i].algorithm); });
      if (ms < 0 || (best >= 0 && ms > best * WORTHWHILE)) continue;
      best = ms;
      plan.algorithm = proposals[i].algorithm;
      plan.own = false;
    }
  }
  if (from) cudaEventDestroy(from);
  if (to) cudaEventDestroy(to);
}

// Whether an algorithm gives the bits of the standard on the product at hand.
bool agrees(ml_ctx& ctx, const Product& p, const Plan& plan, const CublasLt::Algorithm& algorithm) {
  CublasLt::Proposal checked;
  if (ctx.cublas->lt.check((CublasLt::Handle)ctx.handle, plan.operation, plan.a, plan.b, plan.c, plan.d, &algorithm, &checked) != 0 ||
      checked.workspace > WORKSPACE_BYTES)
    return false;
  unsigned long long expected = 0, sum = 0;
  const bool same = run(ctx, p, plan, algorithm) == 0 && checksum_of(ctx, p, &sum);
  return run_standard(ctx, p, plan) == 0 && checksum_of(ctx, p, &expected) && same && sum == expected;
}

// Fills in the algorithm of a plan whose descriptors are there.
void decide(ml_ctx& ctx, Products& known, const Product& p, Plan& plan) {
  const bool trying = ctx.tuning && !ctx.capturing;
  const Shape general = class_of(plan.shape);
  const Choice* choice = nullptr;
  for (int64_t i = 0; i < known.choices.count && !choice; i++)
    if (known.choices.items[i].general == general) choice = &known.choices.items[i];
  CublasLt::Proposal proposals[PROPOSALS];
  const int count = beyond(p) || (trying && !choice) ? propose(ctx, plan, proposals) : 0;
  if (beyond(p)) {
    int i = 0;
    while (i < count && proposals[i].state != 0) i++;
    if (i == count) return;
    plan.first = plan.algorithm = proposals[i].algorithm;
    plan.own = false;
  }
  if (!trying) return;
  if (!choice) {
    choose(ctx, p, plan, proposals, count);
    known.choices.add({general, plan.algorithm, plan.own});
  } else if (!choice->own && agrees(ctx, p, plan, choice->algorithm)) {
    plan.algorithm = choice->algorithm;
    plan.own = false;
  }
}

// The plan of a product, made when its shape is seen first. NULL: cuBLAS's own choice is taken, with what it cannot do done beside it.
const Plan* plan_of(ml_ctx& ctx, const Product& p) {
  if (!ctx.products) ctx.products = (Products*)calloc(1, sizeof(Products));
  if (!ctx.products) return nullptr;
  Products& known = *ctx.products;
  const Shape shape = shape_of(p);
  for (int64_t i = 0; i < known.plans.count; i++)
    if (known.plans.items[i].shape == shape) return known.plans.items[i].own ? nullptr : &known.plans.items[i];
  Plan plan;
  if (describe(ctx.cublas->lt, p, plan)) decide(ctx, known, p, plan);
  const Plan* kept = known.plans.add(plan);
  if (!kept) destroy(ctx.cublas->lt, plan);
  return kept && !kept->own ? kept : nullptr;
}

}  // namespace

void product(Call& call, ml_ctx& ctx, const Product& p) {
  if (call.failed() || !enter(call, ctx)) return;
  // A narrow result, as LoRA's are, where our own kernel is the faster one.
  const cuda::bf16 *a = (const cuda::bf16*)p.a, *b = (const cuda::bf16*)p.b;
  cuda::bf16* c = (cuda::bf16*)p.c;
  if (!p.trans_a && p.alpha == 1 && p.beta == 0 && !beyond(p) && p.c_dtype == ML_BF16 &&
      cuda::skinny_fits(ctx.on, p.M, p.N, p.K, a, p.lda, b, p.ldb, !p.trans_b, c, p.ldc))
    return launched(call, ctx, cuda::skinny_product(ctx.on, p.M, p.N, p.K, a, p.lda, b, p.ldb, !p.trans_b, c, p.ldc));
  const bool large = p.beta == 0 && p.add != p.c && p.N >= LEAST_WIDTH && p.M * p.N * p.K >= LEAST_WORK;
  const Plan* plan = large && ctx.cublas->lt.matmul ? plan_of(ctx, p) : nullptr;
  int status;
  if (plan) {
    status = run(ctx, p, *plan, plan->algorithm);
  } else if (beyond(p)) {
    Product onto = p;
    if (p.add || p.bias) {
      onto.beta = 1;
      launched(call, ctx, cuda::add_row(ctx.on, p.M, p.N, (const cuda::bf16*)p.add, p.ld_add, (const cuda::bf16*)p.bias, c, p.ldc));
    }
    status = run_own(ctx, onto);
    if (status == 0 && p.relu) launched(call, ctx, cuda::relu_forward(ctx.on, p.M, p.N, c, p.ldc));
  } else {
    status = run_own(ctx, p);
  }
  if (status == 0) return launched(call, ctx, cudaSuccess);
  // cuBLAS loads its kernels when they are first needed, and has no word for a full GPU.
  const Left left;
  char answer[256];
  snprintf(answer, sizeof answer, "cuBLAS answers '%s' (%d) to a product [%lld,%lld] by [%lld,%lld]", cublas_status(status), status,
           (long long)p.M, (long long)p.K, (long long)p.K, (long long)p.N);
  if (left.total > 0 && left.free < SCANTY_MIB)
    call.fault("%s, with %llu of %llu MiB free", answer, left.free, left.total);
  else if (status == MAPPING_ERROR || status == EXECUTION_FAILED || status == INTERNAL_ERROR)  // what work under way may end in
    call.lost("%s", answer);
  else
    call.fault("%s", answer);
}

void forget_products(ml_ctx& ctx) {
  if (!ctx.products) return;
  for (int64_t i = 0; i < ctx.products->plans.count; i++) destroy(ctx.cublas->lt, ctx.products->plans.items[i]);
  free(ctx.products->plans.items);
  free(ctx.products->choices.items);
  free(ctx.products);
  ctx.products = nullptr;
}

}  // namespace metalora
