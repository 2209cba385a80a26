// What a turn of the engine takes where nobody drafts: from the end of one step to the end of the next, with
// all that is done between them. What drafts really save is seen only beside it: a drafter has costs that no
// clock around it shows (it takes the caches of the model that answers; longer answers of a step take longer
// to hand out). So now and then the drafter is left alone for a window of some turns in a row. What is missed
// there is paid for by what was saved up (ProbeSavings). Owned by the DraftController; one thread.
//
// Turns of 1, of 2 to 3, of 4 to 7, ... sequences are measured apart.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "worker/speculative/probe_savings.h"
#include "worker/speculative/step_costs.h"

namespace terrace {

class PlainTurns {
 public:
  // The drafter's last call is felt in so many turns after it; then come those of a window that count.
  // Together they are few, so that a draft model has little to catch up with.
  static constexpr uint32_t kSettling = 2, kMeasured = 11, kWindow = kSettling + kMeasured;
  // Turns with the drafter before the first window, and between two of them, at least.
  static constexpr uint32_t kFirst = 32, kApart = 128;

  // `share` of the time of all turns may be lost to windows.
  explicit PlainTurns(double share) : savings_(share) {}

  // The drafter is not to be asked now.
  bool is_window() const { return window_ > 0; }
  // Nothing of the drafter is in the turn last counted.
  bool is_plain() const { return since_asked_ > kSettling; }

  // Of a turn with `decodes` sequences and no prompts; 0 while it is not known. `costs`: as believed by size.
  double Seconds(uint32_t decodes, const StepCosts& costs) const {
    const Entry& entry = entries_[Index(decodes)];
    if (entry.turns < kMeasured) return 0;
    const double mean = costs.Seconds(entry.decodes), own = costs.Seconds(decodes);
    return mean > 0 && own > 0 ? entry.seconds * own / mean : entry.seconds;
  }

  // After every turn: whether the drafter was asked in it.
  void Count(bool was_asked) {
    since_asked_ = was_asked ? 0 : std::min(since_asked_ + 1, kSettling + 1);
    if (!was_asked && window_ > 0) --window_;
  }
  // After Count, of a turn of `decodes` sequences alone, whose step is believed to take so long.
  void Learn(uint32_t decodes, double seconds, double believed) {
    savings_.Earn(seconds);
    if (!is_plain() || !(believed > 0)) return;
    Entry& entry = entries_[Index(decodes)];
    const double most = kMostSurprise * (entry.turns == 0 ? believed : entry.seconds);
    const double weight = std::max(kPlainWeight, 1.0 / static_cast<double>(++entry.turns));
    entry.seconds += weight * (std::min(seconds, most) - entry.seconds);
    entry.decodes += weight * (decodes - entry.decodes);
  }
  // Of a turn in which the drafter was asked: what a plain one takes, and the share of the tokens' time
  // without the drafter that it saved (less than 0: it lost). May begin a window.
  void LearnGain(uint32_t decodes, double plain, double share) {
    Entry& entry = entries_[Index(decodes)];
    entry.gain += kGainWeight * (share - entry.gain);
    if (++entry.asked < (entry.turns < kMeasured ? kFirst : kApart) || window_ > 0) return;
    if (!savings_.Pay(kWindow * plain * std::clamp(entry.gain, 0.0, 1.0))) return;
    entry.asked = 0;
    window_ = kWindow;
  }

 private:
  // A gain differs from turn to turn with the tokens that are right: a mean over all between two windows.
  static constexpr double kPlainWeight = 1.0 / 16, kGainWeight = 1.0 / kApart;
  static constexpr double kMostSurprise = 2;  // a turn that took so many times what it should was a stall

  struct Entry {
    double seconds = 0, decodes = 0;  // means of plain turns
    uint64_t turns = 0;               // that were plain
    double gain = 0;                  // of turns with the drafter, lately
    uint32_t asked = 0;               // turns with the drafter since the last window
  };

  static size_t Index(uint32_t decodes) { return static_cast<size_t>(std::bit_width(decodes)); }

  ProbeSavings savings_;
  uint32_t window_ = 0;  // turns that are left of it
  uint32_t since_asked_ = kSettling + 1;
  std::array<Entry, std::numeric_limits<uint32_t>::digits + 1> entries_;
};

}  // namespace terrace
