// cap_logits.h on a GPU: logits[i] = cap * tanh(logits[i] / cap), NaN for what is not finite.
#pragma once

#include <cstdint>

namespace terrace {

struct GpuCapLogitsArgs {
  float* logits = nullptr;  // [count], aligned to 16 bytes: rows, and what pads them
  uint64_t count = 0;       // a multiple of 4
  float cap = 0;            // above 0
};

}  // namespace terrace
