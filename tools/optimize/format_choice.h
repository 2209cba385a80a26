// Which format each part of a model gets when all of them together may take so many bytes. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"

namespace terrace {

// A part in one of its formats. Losses of parts add up; they are finite and not below 0.
struct FormatOption {
  uint64_t bytes = 0;
  double loss = 0;
};

struct FormatChoice {
  std::vector<size_t> chosen = {};  // of each part, the place of its option
  uint64_t bytes = 0;               // of all
  double loss = 0;
  bool is_optimal = true;  // no choice of at most `bytes` loses less
  // Of the option that would have paid most for its bytes and did not fit: no choice of at most `limit` loses
  // less than `loss` by more than this. 0: there was none.
  double passed_over = 0;
};

// The multiple-choice knapsack problem, by steps along the lower convex hull of each part's options (loss
// over bytes): from the smallest option of each, the step that saves most loss a byte is taken next, and one
// that does not fit is passed over with those behind it. That is the Lagrangian solution, and the best for
// the bytes that it takes, until the first step that does not fit (Sinha and Zoltners, "The Multiple-Choice
// Knapsack Problem", Operations Research 27, 1979). Of equal steps the earlier part's comes first.
// `parts` have an option each at least (CHECK). INVALID_ARGUMENT when the smallest options are past `limit`.
StatusOr<FormatChoice> ChooseFormats(const std::vector<std::vector<FormatOption>>& parts, uint64_t limit);

// The bytes of the smallest options of all parts.
uint64_t SmallestBytes(const std::vector<std::vector<FormatOption>>& parts);

}  // namespace terrace
