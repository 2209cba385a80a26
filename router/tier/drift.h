// Whether the answers of a policy's smaller tiers still agree with its last tier's, as pairs of answers to
// the same requests tell it. Values; pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

namespace terrace {

// Of `shadow` in config.proto.
struct ShadowOptions {
  double share = 0.01;          // of the requests that a smaller tier answered; with records of all
  uint32_t max_in_flight = 4;   // at once
  double min_agreement = 1;     // from which on a pair agrees
  double max_disagreement = 0;  // 1: drift is not judged
  uint32_t window = 200;        // pairs
  double delta = 0.001;
  std::string records_file = {};  // "": none are written
  uint32_t max_records = 10'000;

  bool judges_drift() const { return max_disagreement < 1; }
};

// Of two answers' texts and tokens: 1 for the same text, else the share of `compared` tokens, from the first
// one on, that both have.
double Agreement(bool is_same_text, size_t equal_leading_tokens, size_t compared);

// The last `window` pairs. One thread at a time.
class DriftWindow {
 public:
  explicit DriftWindow(const ShadowOptions& options) : options_(options) {}

  // Whether the pair agrees.
  bool Add(double agreement);
  // So many disagree that a true rate of max_disagreement would give as many with a probability of at most
  // delta: the exact bound on the rate (Clopper and Pearson) is above max_disagreement.
  bool has_drifted() const;
  size_t pairs() const { return agrees_.size(); }
  size_t disagreements() const { return disagreements_; }
  double agreement() const;  // share of the pairs; 1 of none

 private:
  const ShadowOptions options_;
  std::deque<bool> agrees_;
  size_t disagreements_ = 0;
};

}  // namespace terrace
