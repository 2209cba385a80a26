#include "tools/plan/tier_on_ranks.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "worker/kv/kv_pool.h"

namespace terrace {
namespace {

// What the sums cost where most of the time goes, by the numbers.
std::string SumsAgainst(const StepCost& alone, const StepCost& on_ranks, uint32_t ranks,
                        uint32_t max_sequences) {
  const StepWork decodes{.decode_tokens = max_sequences};
  const double before = alone.Seconds(decodes), after = on_ranks.Seconds(decodes);
  return Concat("a step of ", max_sequences, max_sequences == 1 ? " decode" : " decodes", " takes ",
                FormatMillis(after), " with what ", ranks, " ranks tell each other, ", FormatMillis(before),
                " in one process");
}

}  // namespace

Status CheckRanks(const ProbedEngine& alone, const ModelShape& shape, uint32_t ranks) {
  if (alone.engine.device.starts_with("cuda"))
    return Unimplemented("a group of ranks is planned on CPUs, and the model was measured on ",
                         alone.engine.device);
  return SplitModel(shape, {.tensor = ranks}).status();
}

StatusOr<TierOnRanks> PutOnRanks(const ProbedEngine& alone, const ModelShape& shape, uint32_t ranks,
                                 const LinkCost& link, uint32_t max_sequences) {
  RETURN_IF_ERROR(CheckRanks(alone, shape, ranks));
  ASSIGN_OR_RETURN(const ModelSplit whole, SplitModel(shape, {}));
  ASSIGN_OR_RETURN(const ModelSplit split, SplitModel(shape, {.tensor = ranks}));
  ASSIGN_OR_RETURN(const KvDType kv_dtype, ParseKvDType(alone.engine.kv_dtype));
  // The embedding stays in the mapped file: what takes memory are the matrices.
  const auto matrices = [](const RankShare& share) {
    return static_cast<double>(share.layer_bytes + share.output_bytes);
  };
  double most = 0;
  TierOnRanks out{.cost = CostOnRanks(alone.cost, split, shape.config, link, max_sequences)};
  for (const RankShare& share : split.ranks) {
    most = std::max(most, matrices(share));
    out.kv_bytes_per_token = std::max(out.kv_bytes_per_token, KvBytesPerToken(share, shape.config, kv_dtype));
  }
  const double bytes = static_cast<double>(alone.engine.weight_bytes) * most / matrices(whole.ranks.front());
  out.weight_bytes = static_cast<uint64_t>(std::ceil(bytes));
  if (ranks == 1) return out;
  out.reasons_against.push_back(SumsAgainst(alone.cost, out.cost, ranks, max_sequences));
  out.reasons_against.push_back(Concat("its ", ranks, " processes share the cores of one machine"));
  out.reasons_against.push_back(
      "not verified: ranks wait for the slowest of them in every layer, so where they share cores with each "
      "other or with other work, they may be slower than this");
  return out;
}

}  // namespace terrace
