// What the engine itself takes of the host for each step of decode: all that its loop thread does between the
// end of one Run of the executor and the begin of the next (committing, telling sinks, taking new sequences,
// scheduling). The executor answers at once, so what a device's runner does for a step is not in it.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "tests/bench/timings.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/engine.h"

namespace terrace {
namespace {

constexpr uint32_t kPrompt = 1024, kSteps = 2000, kVocab = 128'256, kBlockTokens = 16;

// The executor's are the loop thread's until the engine has stopped.
struct Measured {
  std::optional<Duration> left;  // thread time when Run last returned, of a step that only decoded
  Timings between;
};

class AnsweringExecutor : public Executor {
 public:
  AnsweringExecutor(uint32_t batch, Measured& measured) : batch_(batch), measured_(measured) {}

  StepResult Run(const StepPlan& plan) override {
    if (measured_.left.has_value()) measured_.between.Add(ThreadTime() - *measured_.left);
    StepResult result;
    result.outputs.resize(plan.sequences.size());
    bool is_decode = plan.sequences.size() == batch_;
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      const PlannedSequence& part = plan.sequences[i];
      is_decode = is_decode && part.is_decode;
      if (part.sample) result.outputs[i].tokens.emplace_back().token = static_cast<int32_t>(i % kVocab);
    }
    measured_.left = is_decode ? std::optional(ThreadTime()) : std::nullopt;
    return result;
  }

 private:
  const uint32_t batch_;
  Measured& measured_;
};

void Measure(uint32_t batch, bool prefix_cache) {
  Measured measured;
  Engine::Options options;
  options.scheduler = {.max_sequences = batch,
                       .max_step_tokens = 8192,
                       .context_length = 8192,
                       .vocab_size = kVocab,
                       .block_tokens = kBlockTokens,
                       .blocks = batch * ((kPrompt + kSteps) / kBlockTokens + 2),
                       .prefix_cache = prefix_cache};
  options.inbox = batch;
  Engine engine(options, std::make_unique<AnsweringExecutor>(batch, measured));
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint32_t s = 0; s < batch; ++s) {
    SequenceSpec spec;
    spec.request_id = std::to_string(s);
    for (uint32_t i = 0; i < kPrompt; ++i) {
      spec.prompt.push_back(static_cast<int32_t>((s * kPrompt + i) * 997 % kVocab));
    }
    spec.max_tokens = kSteps;
    spec.ignore_eos = true;
    spec.sampling.temperature = 0;
    const auto sink = sinks.emplace_back(std::make_shared<CollectingSink>());
    const Status status = engine.Submit(std::move(spec), sink);
    CHECK(status.ok(), std::string(status.message()));
  }
  for (const auto& sink : sinks) {
    const Status error = sink->Wait().result.error;
    CHECK(error.ok(), std::string(error.message()));
  }
  engine.Stop();
  const std::string name = std::to_string(batch) + " sequences" + (prefix_cache ? "" : ", no prefix cache");
  measured.between.Print(name.c_str());
}

}  // namespace
}  // namespace terrace

int main() {
  terrace::Timings::PrintHeader();
  for (const uint32_t batch : {1u, 8u, 32u, 64u, 256u}) {
    for (const bool prefix_cache : {true, false}) terrace::Measure(batch, prefix_cache);
  }
}
