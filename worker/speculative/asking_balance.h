// What drafting has cost and saved, as it was measured: the last resort where what is believed of drafts is
// wrong. A drafter has a credit; what it saves goes to it, what it takes is taken from it, and a share of the
// time of all steps comes to it. Once the credit is spent it is not asked until its debt is paid. So in the
// long run it costs that share of the time at most. Owned by the DraftController; one thread.
//
// - A call's result is settled over many steps: a model that reads a long prompt is paid back by the answer.
// - What drafts are worth depends on how many sequences share a step, so steps of 1, of 2 to 3, of 4 to 7,
// ...
//   sequences have a balance each.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace terrace {

class AskingBalance {
 public:
  // Worth of so many steps; a call counts as no more than that: one stall is not what asking takes.
  static constexpr double kCreditSteps = 8;
  // In so many weighed steps all but 1/e of a call's result is settled.
  static constexpr double kSettleSteps = 64;

  explicit AskingBalance(double share) : share_(share) {}

  bool may_ask(uint32_t decodes) const { return entries_[Index(decodes)].may_ask; }

  // After a step that took `seconds`, and takes `plain_seconds` without drafts and prompts.
  void Earn(uint32_t decodes, double seconds, double plain_seconds) {
    Entry& entry = entries_[Index(decodes)];
    entry.credit = kCreditSteps * plain_seconds;
    Change(entry, share_ * seconds);
  }
  // Of a step that the drafter was asked in, after Earn: seconds that this gained, or lost.
  void Settle(uint32_t decodes, double gained) {
    Entry& entry = entries_[Index(decodes)];
    entry.unsettled += std::clamp(gained, -entry.credit, entry.credit);
    const double part = entry.unsettled / kSettleSteps;
    entry.unsettled -= part;
    Change(entry, part);
  }

 private:
  struct Entry {
    double credit = 0;     // seconds, like the next two
    double seconds = 0;    // that it has; as many as the credit at most
    double unsettled = 0;  // of calls
    bool may_ask = true;
  };

  static size_t Index(uint32_t decodes) { return static_cast<size_t>(std::bit_width(decodes)); }

  static void Change(Entry& entry, double seconds) {
    entry.seconds = std::min(entry.seconds + seconds, entry.credit);
    if (entry.seconds < -entry.credit) entry.may_ask = false;
    if (entry.seconds >= 0) entry.may_ask = true;
  }

  const double share_;
  std::array<Entry, std::numeric_limits<uint32_t>::digits + 1> entries_;
};

}  // namespace terrace
