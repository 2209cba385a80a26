// Bytes become operations on a Scheduler: arrivals, steps, closed and full sinks, deadlines, changed costs,
// CancelAll. What CheckedScheduler finds wrong, and what the Scheduler CHECKs itself, aborts.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "worker/engine/checked_scheduler.h"

namespace terrace {
namespace {

constexpr uint32_t kVocab = 8, kContext = 80;
constexpr size_t kMostSequences = 100;

// Reads of the input; zeros after its end.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : left_(data, size) {}
  bool empty() const { return left_.empty(); }
  uint32_t Next() {
    if (left_.empty()) return 0;
    const uint8_t byte = left_.front();
    left_ = left_.subspan(1);
    return byte;
  }
  uint32_t Next(uint32_t low, uint32_t high) { return low + Next() % (high - low + 1); }

 private:
  std::span<const uint8_t> left_;
};

CheckedScheduler::Options OptionsFrom(Bytes& bytes) {
  SchedulerOptions options{.context_length = kContext, .vocab_size = kVocab, .end_tokens = {7}};
  options.max_sequences = bytes.Next(1, 6);
  options.max_step_tokens = options.max_sequences + bytes.Next(0, 40);
  options.block_tokens = bytes.Next(1, 16);
  options.blocks = bytes.Next(1, 40);
  options.host_blocks = bytes.Next(0, 20);
  const uint32_t flags = bytes.Next();
  options.prefix_cache = (flags & 1) == 0;
  options.max_prefill_wait_seconds = (flags >> 1) % 4 * 0.01;
  return {.scheduler = options,
          .failing_seeds = (flags & 8) != 0 ? 7u : 0u,
          .draft_seed = (flags & 16) != 0 ? flags : 0u};
}

// Tokens of few kinds, so that beginnings are shared; or another sequence's tokens, cut.
std::vector<int32_t> PromptFrom(Bytes& bytes, const CheckedScheduler& checked) {
  std::vector<int32_t> prompt;
  const uint32_t kind = bytes.Next();
  if (checked.size() > 0 && kind % 2 == 1) {
    prompt = checked.TokensOf(bytes.Next() % checked.size());
    prompt.resize(std::min<size_t>(prompt.size(), bytes.Next()));
  }
  const uint32_t stride = 1 + kind / 2 % 3;
  for (uint32_t i = 0, count = bytes.Next(0, 60); i < count; ++i)
    prompt.push_back(static_cast<int32_t>(i * stride % kVocab));
  return prompt;
}

void AddFrom(Bytes& bytes, CheckedScheduler& checked) {
  SequenceSpec spec;
  spec.prompt = PromptFrom(bytes, checked);
  spec.max_tokens = bytes.Next(0, 20);
  spec.sampling.seed = bytes.Next();
  spec.priority = static_cast<int32_t>(bytes.Next(0, 2));
  const uint32_t flags = bytes.Next();
  spec.score_prompt = (flags & 7) == 1;
  spec.ignore_eos = (flags & 8) != 0;
  if ((flags & 48) == 48) spec.cache_salt = "other";
  if ((flags & 192) == 192) spec.deadline = checked.now() + std::chrono::milliseconds(bytes.Next(0, 30));
  for (uint32_t copies = 1 + (flags / 7 % 8 == 0) * 3; copies > 0; --copies) checked.Add(spec);
}

void Run(Bytes bytes) {
  CheckedScheduler checked(OptionsFrom(bytes));
  const auto any = [&] { return bytes.Next() % checked.size(); };
  while (!bytes.empty() && checked.violations().empty()) {
    const uint32_t operation = bytes.Next() % 16;
    if (operation < 4 || checked.size() == 0) {
      if (checked.size() < kMostSequences) AddFrom(bytes, checked);
    } else if (operation < 10) {
      for (uint32_t steps = operation - 3; steps > 0; --steps) checked.Step();
    } else if (operation == 10) {
      checked.Close(any());
    } else if (operation == 11) {
      checked.SetFull(any(), true);
    } else if (operation == 12) {
      checked.SetFull(any(), false);
    } else if (operation == 13) {
      checked.SetCosts({.swap_seconds_per_block = bytes.Next() % 2 * 1.0});
    } else if (operation == 14) {
      checked.Advance(std::chrono::milliseconds(bytes.Next()));
    } else if (bytes.Next() == 255) {
      checked.CancelAll();
    }
  }
  checked.Finish();
  for (const std::string& violation : checked.violations()) CHECK(false, violation);
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  terrace::Run({data, size});
  return 0;
}
