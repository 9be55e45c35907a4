// cuda_library.cpp: finding cuBLAS at run time.
#include "cuda_library.h"

#include <dlfcn.h>
#include <glob.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace metalora {

namespace {

// Tried in this order: a folder that the user names; the loader's own search path (a distribution's package, LD_LIBRARY_PATH);
// a CUDA toolkit in its usual place; the wheels that PyTorch brings.
const char* const PLACES[] = {
    "",
    "/usr/local/cuda/lib64/",
    "/usr/local/cuda-13*/lib64/",
    "/usr/local/cuda-12*/lib64/",
    "/usr/lib/x86_64-linux-gnu/",
    "/opt/cuda/lib64/",
    "/usr/lib/python3*/site-packages/nvidia/*/lib/",
    "/usr/local/lib/python3*/*-packages/nvidia/*/lib/",
    "/opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib/",
};
// Newest first: both have the functions below.
const char* const NAMES[] = {"libcublas.so.13", "libcublas.so.12"};

void note(Found* found, const char* path) {
  const size_t used = strlen(found->tried);
  snprintf(found->tried + used, sizeof found->tried - used, "%s%s", used ? ", " : "", path);
}

// cuBLAS loads cublasLt by name: when both lie outside the loader's path, cublasLt must be there first.
void* open_with_lt(const char* path) {
  const char* slash = strrchr(path, '/');
  if (slash) {
    char lt[1024];
    const char* version = strstr(slash, ".so");
    snprintf(lt, sizeof lt, "%.*s/libcublasLt%s", (int)(slash - path), path, version ? version : ".so");
    dlopen(lt, RTLD_NOW | RTLD_GLOBAL);
  }
  return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

void* open_library(Found* found) {
  const char* directory = getenv("METALORA_CUDA_DIR");
  char named[512];
  if (directory && *directory) snprintf(named, sizeof named, "%s/", directory);
  for (int p = directory && *directory ? -1 : 0; p < (int)(sizeof PLACES / sizeof *PLACES); p++) {
    for (const char* name : NAMES) {
      char pattern[768];
      snprintf(pattern, sizeof pattern, "%s%s", p < 0 ? named : PLACES[p], name);
      if (!strchr(pattern, '/')) {
        void* library = dlopen(pattern, RTLD_NOW | RTLD_LOCAL);
        if (library) return snprintf(found->path, sizeof found->path, "%s", pattern), library;
        note(found, pattern);
        continue;
      }
      glob_t matches;
      if (glob(pattern, 0, nullptr, &matches) == 0) {
        for (size_t i = 0; i < matches.gl_pathc; i++) {
          void* library = open_with_lt(matches.gl_pathv[i]);
          if (library) {
            snprintf(found->path, sizeof found->path, "%s", matches.gl_pathv[i]);
            globfree(&matches);
            return library;
          }
        }
      }
      globfree(&matches);
      note(found, pattern);
    }
  }
  return nullptr;
}

Cublas cublas;
Found cublas_found;
bool cublas_loaded = false;

void load_once() {
  void* library = open_library(&cublas_found);
  if (!library) return;
  const struct {
    const char* name;
    void** to;
  } functions[] = {
      {"cublasCreate_v2", (void**)&cublas.create},           {"cublasDestroy_v2", (void**)&cublas.destroy},
      {"cublasSetStream_v2", (void**)&cublas.set_stream},     {"cublasSetWorkspace_v2", (void**)&cublas.set_workspace},
      {"cublasGetProperty", (void**)&cublas.get_property},    {"cublasGemmEx", (void**)&cublas.gemm},
  };
  for (const auto& function : functions) {
    *function.to = dlsym(library, function.name);
    if (!*function.to) {
      snprintf(cublas_found.tried, sizeof cublas_found.tried, "%s, which has no %s", cublas_found.path, function.name);
      return;
    }
  }
  cublas_loaded = true;
  // cublasLt is a library that cuBLAS itself links: its functions are found through it.
  const struct {
    const char* name;
    void** to;
  } lt[] = {
      {"cublasLtMatmulDescCreate", (void**)&cublas.lt.create_operation},
      {"cublasLtMatmulDescDestroy", (void**)&cublas.lt.destroy_operation},
      {"cublasLtMatmulDescSetAttribute", (void**)&cublas.lt.set_operation},
      {"cublasLtMatrixLayoutCreate", (void**)&cublas.lt.create_layout},
      {"cublasLtMatrixLayoutDestroy", (void**)&cublas.lt.destroy_layout},
      {"cublasLtMatmulPreferenceCreate", (void**)&cublas.lt.create_preference},
      {"cublasLtMatmulPreferenceDestroy", (void**)&cublas.lt.destroy_preference},
      {"cublasLtMatmulPreferenceSetAttribute", (void**)&cublas.lt.set_preference},
      {"cublasLtMatmulAlgoGetHeuristic", (void**)&cublas.lt.propose},
      {"cublasLtMatmulAlgoCheck", (void**)&cublas.lt.check},
      {"cublasLtMatmul", (void**)&cublas.lt.matmul},
  };
  bool complete = true;
  for (const auto& function : lt) complete = (*function.to = dlsym(library, function.name)) && complete;
  if (!complete) cublas.lt.matmul = nullptr;
}

}  // namespace

const Cublas* load_cublas(Found* found) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, load_once);
  *found = cublas_found;
  return cublas_loaded ? &cublas : nullptr;
}

const char* cublas_status(int status) {
  switch (status) {
    case 1: return "not initialised";
    case 3: return "out of memory";
    case 7: return "invalid value";
    case 8: return "unsupported chip";
    case 11: return "mapping error";
    case 13: return "execution failed";
    case 14: return "internal error";
    case 15: return "not supported";
    default: return "unknown status";
  }
}

}  // namespace metalora
