// cublas.cpp: a libcublas.so.13 that multiplies nothing and answers what a test wants. Compiled with -DINCOMPLETE it lacks
// cublasGemmEx. It has no cublasLt.
//
//   STAND_IN_CUBLAS=create:3    what a function answers (create, gemm): 3 is CUBLAS_STATUS_ALLOC_FAILED; everything else 0
#include <stdlib.h>
#include <string.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

int answer(const char* function) {
  const char* wanted = getenv("STAND_IN_CUBLAS");
  const size_t length = strlen(function);
  return wanted && strncmp(wanted, function, length) == 0 && wanted[length] == ':' ? atoi(wanted + length + 1) : 0;
}

char handle;

}  // namespace

EXPORT int cublasCreate_v2(void** out) {
  *out = &handle;
  return answer("create");
}
EXPORT int cublasDestroy_v2(void*) { return 0; }
EXPORT int cublasSetStream_v2(void*, void*) { return 0; }
EXPORT int cublasSetWorkspace_v2(void*, void*, size_t) { return 0; }
EXPORT int cublasGetProperty(int part, int* value) {
  *value = part == 0 ? 13 : 0;
  return 0;
}
#ifndef INCOMPLETE
EXPORT int cublasGemmEx(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int, int,
                        int, int) {
  return answer("gemm");
}
#endif
