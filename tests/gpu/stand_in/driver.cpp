// driver.cpp: a libcuda.so.1 that answers what a test wants, so that the CUDA runtime inside libmetalora_cuda.so can be shown a
// driver that is too old or sees no GPU on a machine without one.
//
//   STAND_IN_DRIVER=12020    version, 13000 when omitted
//   STAND_IN_INIT=100        what cuInit answers (100: no device), 100 when omitted
//
// The runtime of CUDA 13 gets everything through cuGetProcAddress. It asks for the version first; then it initialises, and
// beyond that it wants tables with a layout of NVIDIA's own: runtime.cpp takes over there.
#include <stdlib.h>
#include <string.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int SUCCESS = 0, NO_DEVICE = 100, NOT_FOUND = 500;

int number(const char* name, int otherwise) {
  const char* value = getenv(name);
  return value ? atoi(value) : otherwise;
}

int unavailable() { return NOT_FOUND; }

}  // namespace

EXPORT int cuDriverGetVersion(int* version) {
  *version = number("STAND_IN_DRIVER", 13000);
  return SUCCESS;
}

EXPORT int cuInit(unsigned) { return number("STAND_IN_INIT", NO_DEVICE); }

EXPORT int cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return NOT_FOUND;
}

EXPORT int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
  const struct {
    const char* name;
    void* function;
  } known[] = {
      {"cuDriverGetVersion", (void*)cuDriverGetVersion},
      {"cuInit", (void*)cuInit},
      {"cuGetExportTable", (void*)cuGetExportTable},
      {"cuGetProcAddress", (void*)cuGetProcAddress_v2},
  };
  if (status) *status = 0;
  *function = (void*)unavailable;
  for (const auto& each : known)
    if (strcmp(name, each.name) == 0) *function = each.function;
  return SUCCESS;
}
