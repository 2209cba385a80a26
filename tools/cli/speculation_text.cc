#include "tools/cli/speculation_text.h"

#include <cmath>

#include "base/status.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {

std::string Percent(uint64_t verified, uint64_t accepted, int decimals) {
  const std::optional<double> share = AcceptedShare(verified, accepted);
  return share.has_value() ? FormatFixed(100 * *share, decimals) + "%" : "-";
}

std::string DescribeEngine(const SpeculationStats& stats) {
  std::string out =
      Concat("; ", FormatCount(SpeculationStats::Sum(stats.proposed) + stats.branch_proposed), " proposed");
  if (stats.passes > 0) {
    out += "; by place";
    for (size_t i = 0; i < SpeculationStats::kPositions; ++i) {
      out += Concat(i == 0 ? " " : ", ", SpeculationStats::kPositionNames[i], ": ",
                    Percent(stats.verified[i], stats.accepted[i], 0));
    }
    if (stats.branch_verified > 0)
      out += Concat("; second guesses: ", Percent(stats.branch_verified, stats.branch_accepted, 0));
    out += Concat("; ", FormatFixed(stats.tokens_per_pass(), 2), " tokens a pass");
  }
  out +=
      Concat("; ", FormatSeconds(std::abs(stats.saved_seconds)), stats.saved_seconds < 0 ? " lost" : " saved",
             ", drafting took ", FormatSeconds(stats.drafting_seconds));
  return stats.failures > 0 ? out + "; the drafter failed" : out;
}

}  // namespace

std::string DescribeSpeculation(const SpeculationFigures& figures) {
  if (figures.empty()) return "";
  const bool is_named = figures.engine.has_value();
  std::string out = Concat("drafts", is_named ? Concat(" (", figures.engine->drafter, ")") : "", ": ",
                           FormatCount(figures.verified), " tokens verified, ", FormatCount(figures.accepted),
                           " accepted (", Percent(figures.verified, figures.accepted, 1), ")");
  return is_named ? out + DescribeEngine(*figures.engine) : out;
}

}  // namespace terrace
