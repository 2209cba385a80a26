// What the benchmark of speculation asks. Pure but for the files that are read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "text/text_assets.h"
#include "worker/engine/sequence.h"

namespace terrace {

struct PromptsWanted {
  // tasks    the demo models' task prompts (models/eval/validation.jsonl), to their end; greedy
  // stories  the beginnings of their stories (models/eval/calibration.jsonl); greedy
  // copy     a passage of random tokens, many times over; greedy, which goes on in circles
  // random   random tokens; drawn, with nothing to go by
  std::string kind = "random";
  uint32_t count = 1;
  uint32_t prompt_tokens = 64;  // of copy and random
  uint32_t output_tokens = 128;
  uint32_t vocab_size = 0;
  uint32_t seed = 1;
};

// Their sampling seeds are 1, 2, ...
StatusOr<std::vector<SequenceSpec>> MakePrompts(const PromptsWanted& wanted, const TextAssets& text);

}  // namespace terrace
