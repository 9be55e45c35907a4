// cpu_device.h: the CPU behind an ml_ctx.
#pragma once
#include "../../kernels/cpu/kernels.h"
#include "backend.h"

struct ml_ctx : metalora::Context {
  metalora::Pool pool;
  const metalora::Kernels* kernels;
  double marks[64] = {};  // ms, see ml_mark

  explicit ml_ctx(int threads) : Context("on the CPU", ML_F32, true, true), pool(threads) {}
};
