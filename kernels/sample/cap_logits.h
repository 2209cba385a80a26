// Caps logits in place (Gemma Team, "Gemma 2", 2024): logits[i] = cap * tanh(logits[i] / cap). What is not
// finite becomes NaN, which the sampler reports: an overflow would pass for a likely token.
#pragma once

#include <cstddef>

namespace terrace {

class ThreadPool;

struct CapLogitsArgs {
  float* logits = nullptr;  // [count]: rows of a vocabulary, or of a part of it
  size_t count = 0;
  float cap = 0;  // above 0
};

void CapLogitsRef(const CapLogitsArgs& args, ThreadPool& pool);

}  // namespace terrace
