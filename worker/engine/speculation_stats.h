// What was drafted and verified, as it is counted: a value.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string_view>

namespace terrace {

// Since the start of an engine, or since an earlier moment (Since).
struct SpeculationStats {
  // Positions in a draft.
  static constexpr std::array kPositionNames = {"1", "2", "3", "4", "5-8", "9+"};
  static constexpr size_t kPositions = kPositionNames.size();
  static constexpr size_t PositionOf(uint32_t index) { return index < 4 ? index : index < 8 ? 4 : 5; }
  using Tokens = std::array<uint64_t, kPositions>;  // by position

  std::string_view drafter = "";  // its name, a literal; "": there is none
  // That the drafter gave, of those that it was asked for; that were verified; that the answers have.
  Tokens proposed{}, verified{}, accepted{};
  // The same of second guesses beside the drafts.
  uint64_t branch_proposed = 0, branch_verified = 0, branch_accepted = 0;
  // Of a sequence through the model with a draft: each gives one token more than it accepts, of the draft or
  // of its branch, but where the answer ends.
  uint64_t passes = 0;
  uint64_t failures = 0;  // of the drafter: after the first one there is none
  double drafting_seconds = 0;
  double saved_seconds = 0;  // as the cost curves have it; less than 0: lost

  static uint64_t Sum(const Tokens& tokens) {
    return std::accumulate(tokens.begin(), tokens.end(), uint64_t{0});
  }
  // Of the passes that `passes` counts; 1 where there were none.
  double tokens_per_pass() const {
    const auto gained = static_cast<double>(Sum(accepted) + branch_accepted);
    return passes == 0 ? 1 : 1 + gained / static_cast<double>(passes);
  }
  // What came since `before`, of the same engine.
  SpeculationStats Since(const SpeculationStats& before) const {
    SpeculationStats out = *this;
    for (size_t i = 0; i < kPositions; ++i) {
      out.proposed[i] -= before.proposed[i];
      out.verified[i] -= before.verified[i];
      out.accepted[i] -= before.accepted[i];
    }
    out.branch_proposed -= before.branch_proposed;
    out.branch_verified -= before.branch_verified;
    out.branch_accepted -= before.branch_accepted;
    out.passes -= before.passes;
    out.failures -= before.failures;
    out.drafting_seconds -= before.drafting_seconds;
    out.saved_seconds -= before.saved_seconds;
    return out;
  }
};

}  // namespace terrace
