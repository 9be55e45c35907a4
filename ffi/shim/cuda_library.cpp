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

// Tried in this order: the loader's own search path (a distribution's package, LD_LIBRARY_PATH); a CUDA toolkit in its usual place;
// the wheels that PyTorch brings. A folder that the user names is the only place then: a library from elsewhere in its stead would
// be a surprise.
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

template <class... Values>
void add(Found* found, const char* format, Values... values) {
  const size_t used = strlen(found->problem);
  snprintf(found->problem + used, sizeof found->problem - used, format, values...);
}

// A library that is there and cannot be loaded: the loader's reason, once.
void keep_reason(Found* found, const char* path) {
  const char* reason = dlerror();
  if (!reason || *found->problem) return;
  const bool named = strncmp(reason, path, strlen(path)) == 0;
  add(found, "cuBLAS cannot be loaded: %.300s%s%.400s", named ? "" : path, named ? "" : ": ", reason);
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

// The first library of a place that can be loaded.
void* open_in(const char* place, Found* found) {
  for (const char* name : NAMES) {
    char pattern[768];
    snprintf(pattern, sizeof pattern, "%s%s", place, name);
    if (!*place) {
      void* library = dlopen(pattern, RTLD_NOW | RTLD_LOCAL);
      if (library) return snprintf(found->path, sizeof found->path, "%s", pattern), library;
      continue;  // nearly always because there is none
    }
    glob_t matches;
    void* library = nullptr;
    if (glob(pattern, 0, nullptr, &matches) == 0) {
      for (size_t i = 0; i < matches.gl_pathc && !library; i++) {
        library = open_with_lt(matches.gl_pathv[i]);
        if (library)
          snprintf(found->path, sizeof found->path, "%s", matches.gl_pathv[i]);
        else
          keep_reason(found, matches.gl_pathv[i]);
      }
    }
    globfree(&matches);
    if (library) return library;
  }
  return nullptr;
}

void* open_library(Found* found) {
  const char* directory = getenv("METALORA_CUDA_DIR");
  if (directory && *directory) {
    char place[512];
    snprintf(place, sizeof place, "%s/", directory);
    void* library = open_in(place, found);
    if (!library && !*found->problem)
      add(found, "cuBLAS was not found: METALORA_CUDA_DIR names %.400s, which has neither %s nor %s", directory, NAMES[0], NAMES[1]);
    return library;
  }
  for (const char* place : PLACES)
    if (void* library = open_in(place, found)) return library;
  if (*found->problem) return nullptr;
  add(found, "cuBLAS was not found: neither %s nor %s is in the loader's path", NAMES[0], NAMES[1]);
  for (const char* place : PLACES)
    if (*place) add(found, ", %.*s", (int)strlen(place) - 1, place);
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
      *cublas_found.problem = 0;
      add(&cublas_found, "cuBLAS cannot be used: %.500s has no %s", cublas_found.path, function.name);
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
