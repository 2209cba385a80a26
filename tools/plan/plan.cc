#include "tools/plan/plan.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

#include "base/format.h"

namespace terrace {
namespace {

constexpr uint32_t kDraftLengths[] = {1, 2, 4, 8};
constexpr double kTelling = 0.02;  // of a ratio, that is worth a reason

std::string Mebibytes(uint64_t bytes) {
  const double value = static_cast<double>(bytes) / (1 << 20);
  return (value < 100 ? FormatSignificant(value) : FormatFixed(value, 1)) + " MiB";
}

std::string PoolText(const PlannedServing& plan, size_t tier) {
  const ServingSettings& settings = plan.tiers[tier].settings;
  return Concat("its KV pool of ", settings.kv_tokens / settings.block_tokens, " blocks holds ",
                plan.fitting_sequences[tier], " of the longest requests at once");
}

// Plans one candidate.
class Planner {
 public:
  Planner(const PlanCandidate& candidate, const PlanSettings& settings)
      : candidate_(candidate), settings_(settings), constraints_(settings.constraints) {}

  StatusOr<PlannedServing> Plan() {
    ASSIGN_OR_RETURN(PlannedServing plan, WithOneWorkerEach());
    while (plan.can_run() && !BrokenLoad(plan).empty() && plan.machines() < settings_.max_machines) {
      const std::vector<double>& sequences = plan.prediction.sequences;
      const auto busiest = static_cast<size_t>(std::ranges::max_element(sequences) - sequences.begin());
      if (plan.tiers[busiest].workers >= MostWorkers()) break;  // more have nothing to do
      ++plan.tiers[busiest].workers;
      RETURN_IF_ERROR(Simulate(plan));
    }
    if (plan.can_run()) plan.broken = BrokenLoad(plan);
    CheckRest(plan);
    CheckPools(plan);
    return plan;
  }

 private:
  StatusOr<PlannedServing> WithOneWorkerEach() const {
    PlannedServing plan;
    for (const PlanTier& tier : candidate_.tiers) {
      ServingTier& worker = plan.tiers.emplace_back();
      worker.cost = tier.cost;
      worker.context_length = tier.context_length;
      worker.kept = tier.kept;
      worker.settings = {.max_sequences = settings_.max_sequences,
                         .max_step_tokens = tier.max_step_tokens,
                         .kv_tokens = KvTokens(tier),
                         .block_tokens = settings_.block_tokens};
      plan.memory_bytes.push_back(WeightBytes(tier) + worker.settings.kv_tokens * KvBytes(tier));
      const uint64_t fitting = worker.settings.kv_tokens / settings_.block_tokens / LongestBlocks(tier);
      plan.fitting_sequences.push_back(
          static_cast<uint32_t>(std::min<uint64_t>(fitting, settings_.max_sequences)));
    }
    RETURN_IF_ERROR(Simulate(plan));
    return plan;
  }

  static uint64_t WeightBytes(const PlanTier& tier) {
    return tier.weight_bytes + (tier.drafter.has_value() ? tier.drafter->weight_bytes : 0);
  }
  static uint64_t KvBytes(const PlanTier& tier) {
    return tier.kv_bytes_per_token + (tier.drafter.has_value() ? tier.drafter->kv_bytes_per_token : 0);
  }

  // KV blocks of the longest request.
  uint64_t LongestBlocks(const PlanTier& tier) const {
    const uint64_t longest = std::min<uint64_t>(settings_.traffic.longest(), tier.context_length);
    return std::max<uint64_t>(1, (longest + settings_.block_tokens - 1) / settings_.block_tokens);
  }

  // What the longest requests need in every place of the batch, or what the memory leaves for it; one whole
  // context at least, without which no worker starts.
  uint64_t KvTokens(const PlanTier& tier) const {
    const uint64_t block = settings_.block_tokens;
    uint64_t blocks = settings_.max_sequences * LongestBlocks(tier);
    if (constraints_.memory_bytes.has_value()) {
      const uint64_t left =
          *constraints_.memory_bytes - std::min(*constraints_.memory_bytes, WeightBytes(tier));
      blocks = std::min(blocks, left / std::max<uint64_t>(1, block * KvBytes(tier)));
    }
    return std::max(blocks, (tier.context_length + block - 1) / block) * block;
  }

  // With the lengths of drafts at which answers end soonest, which may be none; tier by tier.
  Status Simulate(PlannedServing& plan) const {
    for (ServingTier& tier : plan.tiers) tier.settings.drafts = {};
    RETURN_IF_ERROR(RunOnce(plan));
    for (size_t i = 0; i < plan.tiers.size() && plan.can_run(); ++i) {
      if (!candidate_.tiers[i].drafter.has_value()) continue;
      const PlanDrafter& drafter = *candidate_.tiers[i].drafter;
      for (const uint32_t length : kDraftLengths) {
        PlannedServing drafted = plan;
        DraftSteps& drafts = drafted.tiers[i].settings.drafts;
        drafts = {.acceptance = drafter.acceptance, .length = length};
        if (drafter.cost != nullptr)
          drafts.seconds = length * drafter.cost->Seconds({.decode_tokens = Together(plan.tiers[i])});
        RETURN_IF_ERROR(RunOnce(drafted));
        if (drafted.prediction.end_to_end.mean() < plan.prediction.end_to_end.mean()) plan = drafted;
      }
    }
    return {};
  }

  // Sequences that are likely in a step.
  uint32_t Together(const ServingTier& tier) const {
    const auto* const closed = std::get_if<ClosedLoop>(&settings_.traffic.load);
    if (closed == nullptr) return settings_.max_sequences;
    return std::min((closed->concurrency + tier.workers - 1) / tier.workers, settings_.max_sequences);
  }

  uint32_t MostWorkers() const {
    const auto* const closed = std::get_if<ClosedLoop>(&settings_.traffic.load);
    return closed == nullptr ? settings_.max_machines : closed->concurrency;
  }

  // What can never run is an answer too.
  Status RunOnce(PlannedServing& plan) const {
    auto run = SimulateServing(plan.tiers, settings_.traffic, settings_.is_cancelled);
    if (run.status().code() == StatusCode::kCancelled) return run.status();
    if (!run.ok()) {
      plan.broken = {Message(run.status())};
      return {};
    }
    plan.prediction = *std::move(run);
    const double usd_per_second = settings_.usd_per_hour / 3600 * plan.machines();
    plan.usd_per_million_tokens = usd_per_second / plan.prediction.TokensPerSecond() * 1e6;
    return {};
  }

  std::vector<std::string> BrokenLoad(const PlannedServing& plan) const {
    std::vector<std::string> broken;
    const ServingPrediction& out = plan.prediction;
    if (out.is_overloaded) broken.push_back("more requests come than are served");
    std::ranges::move(
        BrokenFigures(constraints_, out.first_token, out.inter_token, out.OutputTokensPerSecond()),
        std::back_inserter(broken));
    return broken;
  }

  void CheckRest(PlannedServing& plan) const {
    std::ranges::move(BrokenCosts(constraints_, plan.most_memory(), plan.usd_per_million_tokens),
                      std::back_inserter(plan.broken));
    if (!constraints_.min_accuracy.has_value()) return;
    if (!candidate_.accuracy.has_value()) {
      plan.broken.push_back("accuracy is to be measured (terrace report), and a least one is asked for");
    } else if (candidate_.accuracy->value < *constraints_.min_accuracy) {
      plan.broken.push_back(Concat("accuracy ", FormatFixed(candidate_.accuracy->value, 3), ", at least ",
                                   FormatFixed(*constraints_.min_accuracy, 3), " is asked for"));
    }
  }

  // Sequences that could be in a batch, but for the memory.
  void CheckPools(PlannedServing& plan) const {
    for (size_t i = 0; i < plan.tiers.size(); ++i) {
      const uint32_t together = Together(plan.tiers[i]);
      if (plan.fitting_sequences[i] >= together) continue;
      plan.is_memory_short = true;
      plan.reasons_against.push_back(
          Concat("the memory is short: ", PoolText(plan, i), ", and ", together, " may come"));
    }
  }

  const PlanCandidate& candidate_;
  const PlanSettings& settings_;
  const PlanConstraints& constraints_;
};

// "price 0.52 of baseline's" to the side that it speaks for; `name` is the first candidate's.
void Compare(const char* what, double value, double first, const std::string& name, PlannedServing& plan) {
  if (!(first > 0) || !(value > 0)) return;
  const double ratio = value / first;
  if (ratio > 1 - kTelling && ratio < 1 + kTelling) return;
  (ratio < 1 ? plan.reasons_for : plan.reasons_against)
      .push_back(Concat(what, " ", FormatFixed(ratio, 2), " of ", name, "'s"));
}

// What a smaller or a larger KV cache gives, where each has one tier.
void CompareKv(const PlanCandidate& candidate, const PlanCandidate& first_candidate,
               const PlannedServing& first, PlannedServing& plan) {
  if (candidate.tiers.size() != 1 || first_candidate.tiers.size() != 1) return;
  Compare("KV cache of a token", static_cast<double>(candidate.tiers[0].kv_bytes_per_token),
          static_cast<double>(first_candidate.tiers[0].kv_bytes_per_token), first_candidate.name, plan);
  const uint32_t ours = plan.fitting_sequences[0], theirs = first.fitting_sequences[0];
  if (ours == theirs) return;
  (ours > theirs ? plan.reasons_for : plan.reasons_against)
      .push_back(Concat(PoolText(plan, 0), ", ", first_candidate.name, "'s ", theirs));
}

// What is worse about its answers, as a report has measured it.
void AddQualityReasons(const PlanCandidate& candidate, const PlanCandidate& first_candidate,
                       const PlanConstraints& constraints, PlannedServing& plan) {
  if (!candidate.accuracy.has_value()) {
    plan.reasons_against.push_back("accuracy is to be measured");
  } else {
    if (constraints.min_accuracy.has_value() && candidate.accuracy->low < *constraints.min_accuracy)
      plan.reasons_against.push_back(
          Concat("its accuracy may be as low as ", FormatFixed(candidate.accuracy->low, 3)));
    if (first_candidate.accuracy.has_value() && candidate.accuracy->value < first_candidate.accuracy->value)
      plan.reasons_against.push_back(
          Concat("accuracy ", FormatFixed(candidate.accuracy->value - first_candidate.accuracy->value, 3)));
  }
  if (!candidate.shift.has_value()) return;
  plan.reasons_against.push_back(
      Concat("next tokens are not quite those of the report's baseline: KL ",
             FormatSignificant(candidate.shift->mean_kl), " nats, another likeliest one at ",
             FormatSignificant(100 * candidate.shift->flip_rate), "% of the positions"));
}

void AddReasons(const PlanCandidate& candidate, const PlanCandidate& first_candidate,
                const PlannedServing& first, const PlanConstraints& constraints, PlannedServing& plan) {
  if (plan.candidate != first.candidate) {
    const std::string& name = first_candidate.name;
    Compare("price", plan.usd_per_million_tokens, first.usd_per_million_tokens, name, plan);
    Compare("memory", static_cast<double>(plan.most_memory()), static_cast<double>(first.most_memory()), name,
            plan);
    Compare("time to the first token", plan.prediction.first_token.Percentile(99),
            first.prediction.first_token.Percentile(99), name, plan);
    Compare("time between tokens", plan.prediction.inter_token.mean(), first.prediction.inter_token.mean(),
            name, plan);
    CompareKv(candidate, first_candidate, first, plan);
  }
  plan.reasons_against.insert(plan.reasons_against.end(), candidate.reasons_against.begin(),
                              candidate.reasons_against.end());
  if (plan.machines() > 1) plan.reasons_against.push_back(Concat("takes ", plan.machines(), " machines"));
  AddQualityReasons(candidate, first_candidate, constraints, plan);
  for (size_t i = 0; i < plan.tiers.size(); ++i) {
    if (plan.tiers[i].settings.drafts.length == 0 && candidate.tiers[i].drafter.has_value())
      plan.reasons_against.push_back("drafts make nothing faster here");
  }
}

}  // namespace

uint32_t PlannedServing::machines() const {
  uint32_t sum = 0;
  for (const ServingTier& tier : tiers) sum += tier.workers;
  return sum;
}

uint64_t PlannedServing::most_memory() const {
  return memory_bytes.empty() ? 0 : std::ranges::max(memory_bytes);
}

double TierPrice(const PlannedServing& plan, size_t tier) {
  double asked = 1;  // share of the requests that reach it
  for (size_t i = 0; i < tier; ++i) asked *= 1 - plan.tiers[i].kept;
  if (plan.tiers.size() == 1 || asked <= 0) return plan.usd_per_million_tokens;
  return plan.usd_per_million_tokens * plan.tiers[tier].workers / plan.machines() / asked;
}

std::vector<std::string> BrokenFigures(const PlanConstraints& constraints,
                                       const LatencyHistogram& first_token,
                                       const LatencyHistogram& inter_token, double output_tokens_per_second) {
  std::vector<std::string> broken;
  const auto at_most = [&](const char* what, double value, const std::optional<double>& limit) {
    if (limit.has_value() && value > *limit)
      broken.push_back(Concat(what, " ", FormatMillis(value), ", limit ", FormatMillis(*limit)));
  };
  at_most("first token p99", first_token.Percentile(99), constraints.first_token_p99_seconds);
  at_most("inter-token p99", inter_token.Percentile(99), constraints.inter_token_p99_seconds);
  const auto& throughput = constraints.output_tokens_per_second;
  if (throughput.has_value() && output_tokens_per_second < *throughput)
    broken.push_back(Concat(FormatFixed(output_tokens_per_second, 1), " output tok/s, at least ",
                            FormatFixed(*throughput, 1), " are asked for"));
  return broken;
}

std::vector<std::string> BrokenCosts(const PlanConstraints& constraints, uint64_t memory_bytes,
                                     double usd_per_million_tokens) {
  std::vector<std::string> broken;
  const auto& memory = constraints.memory_bytes;
  if (memory.has_value() && memory_bytes > *memory)
    broken.push_back(Concat("memory ", Mebibytes(memory_bytes), ", limit ", Mebibytes(*memory)));
  const auto& price = constraints.max_usd_per_million_tokens;
  if (price.has_value() && usd_per_million_tokens > *price)
    broken.push_back(Concat("$", FormatSignificant(usd_per_million_tokens), " a million tokens, limit $",
                            FormatSignificant(*price)));
  return broken;
}

StatusOr<std::vector<PlannedServing>> RankPlans(std::span<const PlanCandidate> candidates,
                                                const PlanSettings& settings) {
  std::vector<PlannedServing> plans;
  for (size_t i = 0; i < candidates.size(); ++i) {
    ASSIGN_OR_RETURN(plans.emplace_back(), Planner(candidates[i], settings).Plan());
    plans.back().candidate = i;
  }
  if (plans.empty()) return plans;
  const PlannedServing first = plans.front();
  for (size_t i = 0; i < plans.size(); ++i)
    AddReasons(candidates[i], candidates.front(), first, settings.constraints, plans[i]);
  std::ranges::stable_sort(plans, [](const PlannedServing& a, const PlannedServing& b) {
    if (a.can_run() != b.can_run()) return a.can_run();
    if (a.broken.size() != b.broken.size()) return a.broken.size() < b.broken.size();
    return a.usd_per_million_tokens < b.usd_per_million_tokens;
  });
  return plans;
}

}  // namespace terrace
