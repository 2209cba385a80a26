// Records of a made-up population for tests: three tiers of rising ability and price, prompts of hardness 0
// to 1 whose digits tell some of it, answers whose signals tell, with noise, whether they are right.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "base/rng.h"
#include "base/status.h"
#include "router/tier/records.h"

namespace terrace {

inline Records DrawRecords(size_t rows, uint64_t seed) {
  constexpr double kAbilities[] = {0.5, 0.75, 0.95};
  Records records{
      .tiers = {{"nano", "m0", "t0", 1000}, {"small", "m1", "t1", 3000}, {"base", "m2", "t2", 10000}}};
  uint64_t draw = 0;
  const auto uniform = [&] { return RandomUniform(seed, draw++); };
  for (size_t row = 0; row < rows; ++row) {
    const double hardness = uniform();
    Record record{.id = Concat("row-", row), .task = "made-up"};
    record.prompt = {.bytes = 100, .digits = static_cast<uint32_t>(80 * hardness + 20 * uniform())};
    for (const double ability : kAbilities) {
      const double sureness = ability - hardness + 0.3 * (uniform() - 0.5);
      RecordedAnswer answer{.is_right = uniform() < 0.02 || ability - hardness + 0.2 * (uniform() - 0.5) > 0,
                            .prompt_tokens = 40,
                            .draft_agreement = uniform()};
      answer.signals = {.tokens = 5 + static_cast<uint32_t>(10 * uniform()),
                        .mean_logprob = -0.1 * std::exp(-3 * sureness),
                        .min_logprob = -0.5 * std::exp(-3 * sureness),
                        .mean_margin = 5 + 2 * sureness,
                        .min_margin = 2 + 2 * sureness,
                        .mean_entropy = 0.2 * std::exp(-2 * sureness),
                        .first_logprob = -0.1 * uniform(),
                        .first_margin = 4 * uniform(),
                        .first_entropy = uniform()};
      record.answers.push_back(answer);
    }
    records.rows.push_back(std::move(record));
  }
  return records;
}

}  // namespace terrace
