#include "worker/parallel/collective_probe.h"

#include <algorithm>

#include "base/clock.h"
#include "worker/parallel/on_each_rank.h"
#include "worker/parallel/socket_group.h"

namespace terrace {
namespace {

constexpr Duration kTimeout = std::chrono::seconds(30);  // of a sum, on a machine however busy
constexpr uint32_t kWarmUps = 5;                         // rounds that do not count

// The rounds of one size, as `rank` has them.
Status RunRounds(Communicator& communicator, size_t count, uint32_t rounds, std::vector<double>& seconds) {
  std::vector<float> values(count);
  for (uint32_t round = 0; round < kWarmUps + rounds; ++round) {
    const MonoTime begin = RealClock().Now();
    RETURN_IF_ERROR(communicator.AllReduceSum(values));
    if (round >= kWarmUps) seconds.push_back(Seconds(RealClock().Now() - begin));
  }
  return Status();
}

}  // namespace

StatusOr<std::vector<SumSample>> MeasureSums(std::span<const std::unique_ptr<Communicator>> group,
                                             const SumProbeOptions& options) {
  CHECK(!group.empty() && options.rounds > 0);
  const auto ranks = static_cast<uint32_t>(group.size());
  std::vector<SumSample> samples;
  for (const size_t bytes : options.bytes) {
    if (options.is_cancelled && options.is_cancelled()) return Cancelled("interrupted");
    std::vector<std::vector<double>> seconds(ranks);
    std::vector<Status> errors(ranks);
    OnEachRank(ranks, [&](uint32_t rank) {
      errors[rank] = RunRounds(*group[rank], bytes / sizeof(float), options.rounds, seconds[rank]);
    });
    for (const Status& error : errors) RETURN_IF_ERROR(error);
    std::vector<double>& rounds = seconds[0];
    const auto middle = rounds.begin() + static_cast<std::ptrdiff_t>(rounds.size() / 2);
    std::ranges::nth_element(rounds, middle);
    samples.push_back({.bytes = bytes, .seconds = *middle});
  }
  return samples;
}

StatusOr<std::vector<SumSample>> MeasureSumsHere(uint32_t ranks, const SumProbeOptions& options) {
  CHECK(ranks > 1, ranks, " ranks");
  ASSIGN_OR_RETURN(const auto group, MakeSocketGroup(ranks, kTimeout));
  return MeasureSums(group, options);
}

}  // namespace terrace
