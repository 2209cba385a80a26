// Something that answers a benchmark's requests: a router, a worker, a model in this process, a simulation in
// tests.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "text/tokenizer.h"
#include "worker/engine/speculation_stats.h"

namespace terrace {

// What is known about a target; "" and 0 where the target does not say.
struct TargetDescription {
  std::string kind = {};  // "router", "worker" or "model"
  std::string name = {};  // its address or path
  std::string model = {}, version = {}, device = {}, weight_dtype = {}, compute = {}, kv_dtype = {};
  uint64_t parameters = 0;
  uint32_t context_length = 0;
  uint32_t max_sequences = 0;  // batched at once
  uint32_t threads = 0;
  uint64_t memory_bytes = 0;  // of a model in this process: weights and KV pools, a drafter's too
};

struct BenchRequest {
  std::string id;  // for logs
  std::vector<TokenId> prompt;
  uint32_t output_tokens = 0;  // exactly: end tokens do not end the answer
  float temperature = 0;
  uint64_t sampling_seed = 0;
  int32_t priority = 0;
  std::string cache_salt;  // cached prefixes are shared only within one
  std::optional<MonoTime> deadline;
};

struct BenchEnd {
  Status status;                                         // OK: the answer is complete
  std::optional<uint32_t> prompt_tokens, cached_tokens;  // as the target counted them
  std::optional<double> queue_seconds;
  // That the worker drafted of the answer itself: verified, and of those in it.
  std::optional<uint32_t> speculated_tokens, accepted_speculated_tokens;
};

// Who asked. Called in order and never twice at a time, on any thread; must not block. Shared by the target
// and the run.
class BenchObserver {
 public:
  virtual ~BenchObserver() = default;
  // That many more tokens are here. False: nobody wants the rest, and the target cancels.
  virtual bool OnTokens(uint32_t count) = 0;
  virtual void OnEnd(const BenchEnd& end) = 0;  // once, last
};

// One request in progress. Dropping it does not cancel. Used by one thread.
class BenchCall {
 public:
  virtual ~BenchCall() = default;
  virtual void Cancel() = 0;  // OnEnd comes soon, unless it came before
};

// Start may be called from one thread; it must not block.
class BenchTarget {
 public:
  virtual ~BenchTarget() = default;
  virtual const TargetDescription& description() const = 0;
  virtual const std::vector<TokenId>& vocabulary() const = 0;  // ids that prompts may hold
  virtual std::unique_ptr<BenchCall> Start(const BenchRequest& request,
                                           std::shared_ptr<BenchObserver> observer) = 0;
  // What its engine has drafted since its start, perhaps without its last step; may block. Absent where it
  // has no drafter, or does not tell.
  virtual std::optional<SpeculationStats> Speculation() const { return std::nullopt; }
};

}  // namespace terrace
