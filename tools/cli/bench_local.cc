#include <atomic>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/version.h"
#include "tools/cli/bench_targets.h"
#include "tools/cli/local_model.h"

namespace terrace {
namespace {

// From the engine's thread to the observer.
class ObserverSink : public TokenSink {
 public:
  explicit ObserverSink(std::shared_ptr<BenchObserver> observer) : observer_(std::move(observer)) {}

  void Close() { is_closed_ = true; }
  void End(const BenchEnd& end) { observer_->OnEnd(end); }

  void OnTokens(uint32_t, std::span<const SampledToken> tokens) override {
    if (!observer_->OnTokens(static_cast<uint32_t>(tokens.size()))) Close();
  }
  void OnPromptScores(uint32_t, std::span<const SampledToken>) override {}
  void OnFinish(const SequenceResult& result) override {
    BenchEnd end;
    const bool is_whole = result.reason == FinishReason::kStop || result.reason == FinishReason::kLength;
    end.status = is_whole ? Status() : result.error;
    end.prompt_tokens = result.stats.prompt_tokens;
    end.cached_tokens = result.stats.cached_tokens;
    end.queue_seconds = result.stats.queue_seconds;
    end.speculated_tokens = result.stats.speculated_tokens;
    end.accepted_speculated_tokens = result.stats.accepted_speculated_tokens;
    End(end);
  }
  bool is_closed() const override { return is_closed_; }

 private:
  const std::shared_ptr<BenchObserver> observer_;
  std::atomic<bool> is_closed_ = false;
};

class LocalCall : public BenchCall {
 public:
  explicit LocalCall(std::shared_ptr<ObserverSink> sink) : sink_(std::move(sink)) {}
  void Cancel() override { sink_->Close(); }

 private:
  const std::shared_ptr<ObserverSink> sink_;
};

class LocalTarget : public BenchTarget {
 public:
  LocalTarget(const std::string& path, OpenedEngine opened)
      : opened_(std::move(opened)),
        vocabulary_(TextTokens(*opened_.files->text->tokenizer, opened_.files->config.vocab_size)) {
    description_.kind = "model";
    description_.name = path;
    description_.model = opened_.files->config.name;
    description_.version = kVersion;
    description_.device = opened_.device;
    description_.weight_dtype = opened_.weight_dtype;
    description_.compute = opened_.compute;
    description_.kv_dtype = opened_.kv_dtype;
    description_.parameters = opened_.parameters;
    description_.context_length = opened_.context_length;
    description_.max_sequences = opened_.max_sequences;
    description_.threads = opened_.threads;
    description_.memory_bytes = opened_.weight_memory_bytes + opened_.kv_bytes + opened_.drafter_kv_bytes;
  }

  const TargetDescription& description() const override { return description_; }
  const std::vector<TokenId>& vocabulary() const override { return vocabulary_; }
  std::optional<SpeculationStats> Speculation() const override { return DraftedBy(*opened_.engine); }

  std::unique_ptr<BenchCall> Start(const BenchRequest& request,
                                   std::shared_ptr<BenchObserver> observer) override {
    SequenceSpec spec;
    spec.request_id = request.id;
    spec.prompt = request.prompt;
    spec.sampling.temperature = request.temperature;
    spec.sampling.seed = request.sampling_seed;
    spec.max_tokens = request.output_tokens;
    spec.ignore_eos = true;
    spec.priority = request.priority;
    spec.cache_salt = request.cache_salt;
    spec.deadline = request.deadline;
    const auto sink = std::make_shared<ObserverSink>(std::move(observer));
    BenchEnd refused;
    refused.status = opened_.engine->Submit(std::move(spec), sink);
    if (!refused.status.ok()) sink->End(refused);
    return std::make_unique<LocalCall>(sink);
  }

 private:
  const OpenedEngine opened_;
  const std::vector<TokenId> vocabulary_;
  TargetDescription description_;
};

}  // namespace

std::vector<TokenId> TextTokens(const Tokenizer& tokenizer, size_t model_vocabulary) {
  std::vector<TokenId> ids;
  const auto end = static_cast<TokenId>(std::min(tokenizer.vocab_size(), model_vocabulary));
  for (TokenId id = 0; id < end; ++id) {
    if (!tokenizer.IsControl(id) && !tokenizer.TokenBytes(id).empty()) ids.push_back(id);
  }
  return ids;
}

StatusOr<std::unique_ptr<BenchTarget>> OpenLocalBenchTarget(const OpenEngineOptions& options) {
  std::error_code error;
  if (!std::filesystem::exists(options.model, error)) {
    return NotFound("no model folder or file ", options.model,
                    " (to ask a router for a served model add --router)");
  }
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngine(options));
  return std::unique_ptr<BenchTarget>(std::make_unique<LocalTarget>(options.model, std::move(opened)));
}

}  // namespace terrace
