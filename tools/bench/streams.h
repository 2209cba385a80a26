// The random streams of a benchmark (base/rng.h): each thing that is drawn has its own, so that asking for
// longer answers changes neither the prompts nor their arrival.
#pragma once

#include <cstdint>

namespace terrace {

enum BenchStream : uint64_t {
  kArrivalStream = 1,
  kPromptLengthStream,
  kOutputLengthStream,
  kPrefixGroupStream,
  kPrefixTokenStream,
  kSuffixTokenStream,
  kCancelStream,
  kSamplingSeedStream,
};

}  // namespace terrace
