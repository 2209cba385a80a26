#include "tools/optimize/format_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace terrace {
namespace {

struct Step {
  size_t part = 0, option = 0;  // what is chosen after it
  uint64_t bytes = 0;           // more than before it
  double saved = 0;             // of the loss

  double rate() const { return saved / static_cast<double>(bytes); }
};

Step Between(const std::vector<FormatOption>& options, size_t part, size_t from, size_t to) {
  return {part, to, options[to].bytes - options[from].bytes, options[from].loss - options[to].loss};
}

// The options on the lower convex hull, the smallest first: each loses less than the one before it, and each
// step saves less a byte than the one before it.
std::vector<size_t> Hull(const std::vector<FormatOption>& options) {
  std::vector<size_t> order(options.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) {
    return options[a].bytes != options[b].bytes ? options[a].bytes < options[b].bytes
                                                : options[a].loss < options[b].loss;
  });
  std::vector<size_t> hull;
  for (const size_t option : order) {
    if (!hull.empty() && options[option].loss >= options[hull.back()].loss) continue;
    while (hull.size() > 1 && Between(options, 0, hull[hull.size() - 2], hull.back()).rate() <=
                                  Between(options, 0, hull.back(), option).rate())
      hull.pop_back();
    hull.push_back(option);
  }
  return hull;
}

}  // namespace

uint64_t SmallestBytes(const std::vector<std::vector<FormatOption>>& parts) {
  uint64_t bytes = 0;
  for (const std::vector<FormatOption>& options : parts)
    bytes += std::ranges::min(options, {}, &FormatOption::bytes).bytes;
  return bytes;
}

StatusOr<FormatChoice> ChooseFormats(const std::vector<std::vector<FormatOption>>& parts, uint64_t limit) {
  FormatChoice choice;
  std::vector<Step> steps;
  for (size_t part = 0; part < parts.size(); ++part) {
    CHECK(!parts[part].empty(), "part ", part, " has no format");
    for (const FormatOption& option : parts[part])
      CHECK(std::isfinite(option.loss) && option.loss >= 0, "a loss of ", option.loss);
    const std::vector<size_t> hull = Hull(parts[part]);
    choice.chosen.push_back(hull[0]);
    choice.bytes += parts[part][hull[0]].bytes;
    for (size_t i = 1; i < hull.size(); ++i)
      steps.push_back(Between(parts[part], part, hull[i - 1], hull[i]));
  }
  if (choice.bytes > limit)
    return InvalidArgument("the smallest formats take ", choice.bytes, " bytes, more than ", limit);

  std::ranges::stable_sort(steps, [](const Step& a, const Step& b) { return a.rate() > b.rate(); });
  std::vector<bool> is_closed(parts.size());
  for (const Step& step : steps) {
    if (is_closed[step.part]) continue;
    if (step.bytes > limit - choice.bytes) {
      is_closed[step.part] = true;
      if (choice.passed_over == 0) choice.passed_over = step.saved;
      continue;
    }
    if (choice.passed_over > 0) choice.is_optimal = false;
    choice.bytes += step.bytes;
    choice.chosen[step.part] = step.option;
  }
  for (size_t part = 0; part < parts.size(); ++part) choice.loss += parts[part][choice.chosen[part]].loss;
  return choice;
}

}  // namespace terrace
