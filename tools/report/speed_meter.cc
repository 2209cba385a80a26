#include "tools/report/speed_meter.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/median.h"
#include "text/text_assets.h"
#include "tools/report/round_meter.h"
#include "worker/formats/weight_source.h"
#include "worker/kv/kv_pool.h"

namespace terrace {
namespace {

StatusOr<uint64_t> KvBytesPerToken(const ModelConfig& config, const std::string& kv_dtype) {
  ASSIGN_OR_RETURN(const KvDType dtype, ParseKvDType(kv_dtype));
  const KvShape shape{.layers = config.layers,
                      .kv_heads = config.kv_heads,
                      .head_dim = config.head_dim,
                      .block_tokens = 1,
                      .dtype = dtype};
  return shape.BlockBytes();
}

class SpeedMeter {
 public:
  explicit SpeedMeter(const SpeedOptions& options) : options_(options) {}

  StatusOr<TechniqueRow> Measure() {
    RETURN_IF_ERROR(Check());
    RETURN_IF_ERROR(Open());
    ASSIGN_OR_RETURN(TechniqueRow row,
                     DescribeEngine(opened_, options_.engine.model, options_.engine.speculation.model));
    for (const uint32_t batch : options_.batches) {
      ASSIGN_OR_RETURN(row.speeds.emplace_back(), OfBatch(batch));
    }
    return row;
  }

 private:
  Status Check() const {
    if (options_.batches.empty()) return InvalidArgument("no batch is to be measured");
    for (const uint32_t batch : options_.batches) {
      if (batch < 1 || batch > kMaxSpeedBatch)
        return InvalidArgument("a batch of ", batch, " is not in [1, ", kMaxSpeedBatch, "]");
    }
    if (options_.answer_tokens < kMinSpeedTokens)
      return InvalidArgument("answers of ", options_.answer_tokens, " tokens: at least ", kMinSpeedTokens);
    return options_.prompts.empty() ? InvalidArgument("no prompt is to be measured with") : Status();
  }

  Status Open() {
    OpenEngineOptions engine = options_.engine;
    engine.prefix_cache = false;
    engine.max_sequences = *std::ranges::max_element(options_.batches);
    engine.inbox = std::max(engine.inbox, engine.max_sequences + 1);
    engine.on_step = [this](const StepObservation&) { meter_.OnStep(); };
    ASSIGN_OR_RETURN(opened_, OpenEngine(engine));
    for (const std::vector<TokenId>& prompt : options_.prompts) {
      if (prompt.size() + options_.answer_tokens > opened_.context_length)
        return InvalidArgument("a prompt of ", prompt.size(), " tokens and an answer of ",
                               options_.answer_tokens, " are more than the context of ",
                               opened_.context_length);
    }
    return {};
  }

  StatusOr<BatchSpeed> OfBatch(uint32_t batch) {
    RETURN_IF_ERROR(Round(batch).status());  // warms up
    const SpeculationStats before = opened_.engine->Stats().speculation;
    std::vector<double> prefill, decode;
    const MonoTime start = RealClock().Now();
    while (prefill.size() < options_.least_rounds ||
           Seconds(RealClock().Now() - start) < options_.least_seconds) {
      ASSIGN_OR_RETURN(const BatchSpeed round, Round(batch));
      prefill.push_back(round.prefill_tokens_per_second);
      decode.push_back(round.decode_tokens_per_second);
    }
    BatchSpeed speed{.batch = batch,
                     .prefill_tokens_per_second = Median(std::move(prefill)),
                     .decode_tokens_per_second = Median(std::move(decode))};
    const SpeculationStats drafted = opened_.engine->Stats().speculation.Since(before);
    const uint64_t verified = SpeculationStats::Sum(drafted.verified);
    if (verified > 0)
      speed.acceptance =
          static_cast<double>(SpeculationStats::Sum(drafted.accepted)) / static_cast<double>(verified);
    return speed;
  }

  StatusOr<BatchSpeed> Round(uint32_t batch) {
    std::vector<std::vector<TokenId>> prompts;
    uint64_t prompt_tokens = 0;
    for (uint32_t i = 0; i < batch; ++i) {
      prompts.push_back(options_.prompts[next_prompt_++ % options_.prompts.size()]);
      prompt_tokens += prompts.back().size();
    }
    ASSIGN_OR_RETURN(const RoundTimes times,
                     meter_.Run(*opened_.engine, std::move(prompts), options_.answer_tokens,
                                options_.engine.is_cancelled));
    if (times.decode_tokens == 0) {
      return FailedPrecondition("answers of ", options_.answer_tokens, " tokens end before the last of ",
                                batch, " prompts is read: longer ones are needed");
    }
    return BatchSpeed{
        .batch = batch,
        .prefill_tokens_per_second = static_cast<double>(prompt_tokens) / times.prefill_seconds,
        .decode_tokens_per_second = static_cast<double>(times.decode_tokens) / times.decode_seconds};
  }

  const SpeedOptions& options_;
  RoundMeter meter_;  // outlives the engine
  OpenedEngine opened_;
  size_t next_prompt_ = 0;
};

}  // namespace

StatusOr<TechniqueRow> DescribeEngine(const OpenedEngine& engine, const std::string& model,
                                      const std::string& draft_model) {
  TechniqueRow row;
  row.model = model;
  row.model_digest = engine.files->digest.Hex();
  row.text_digest = Digest(*engine.files->text).Hex();
  row.device = engine.device;
  row.compute = engine.compute;
  row.weight_dtype = engine.weight_dtype;
  row.kv_dtype = engine.kv_dtype;
  row.drafter = engine.drafter;
  row.weight_bytes = engine.weight_memory_bytes;
  ASSIGN_OR_RETURN(row.kv_bytes_per_token, KvBytesPerToken(engine.files->config, engine.kv_dtype));
  if (engine.draft_files == nullptr) return row;
  row.draft_model = draft_model;
  row.draft_model_digest = engine.draft_files->digest.Hex();
  ASSIGN_OR_RETURN(const uint64_t drafter, KvBytesPerToken(engine.draft_files->config, engine.kv_dtype));
  row.kv_bytes_per_token += drafter;
  return row;
}

StatusOr<TechniqueRow> MeasureSpeed(const SpeedOptions& options) { return SpeedMeter(options).Measure(); }

std::vector<BatchSpeed> MedianSpeeds(std::span<const std::vector<BatchSpeed>> measured) {
  std::vector<BatchSpeed> medians = measured.front();
  for (size_t i = 0; i < medians.size(); ++i) {
    std::vector<double> prefill, decode, acceptance;
    for (const std::vector<BatchSpeed>& each : measured) {
      prefill.push_back(each[i].prefill_tokens_per_second);
      decode.push_back(each[i].decode_tokens_per_second);
      if (each[i].acceptance.has_value()) acceptance.push_back(*each[i].acceptance);
    }
    medians[i].prefill_tokens_per_second = Median(std::move(prefill));
    medians[i].decode_tokens_per_second = Median(std::move(decode));
    if (!acceptance.empty()) medians[i].acceptance = Median(std::move(acceptance));
  }
  return medians;
}

}  // namespace terrace
