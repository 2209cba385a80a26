// A row of the report: one way to serve a model family, as it was measured. Values, and their JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"

namespace terrace {

// So many sequences at once, all of them together.
struct BatchSpeed {
  uint32_t batch = 1;
  double prefill_tokens_per_second = 0;   // until the last of them has its first token
  double decode_tokens_per_second = 0;    // from then on, until the first of them ends
  std::optional<double> acceptance = {};  // share of the drafted tokens; absent: nothing was drafted
};

struct TaskQuality {
  std::string name = {};
  uint64_t rows = 0, right = 0;
};

// Row by row against the baseline.
struct PairedQuality {
  double difference = 0;     // of the two shares of right answers: this one's less the baseline's
  double low = 0, high = 0;  // its interval, at confidence 1 - 2 level
  uint64_t gained = 0, lost = 0;
};

// Of the next-token distributions from the baseline's, on the rows' prompts and expected answers.
struct DistributionShift {
  uint64_t positions = 0;
  double mean_kl = 0;    // nats
  double flip_rate = 0;  // share of the positions whose likeliest token is another one
};

struct TokenPrice {
  double usd_per_million_prompt_tokens = 0;
  double usd_per_million_completion_tokens = 0;
};

// Of the answers to the rows.
struct AnswersPrice {
  TokenPrice tokens = {};             // 0 of a cascade, whose tiers have theirs
  double usd_per_million_tokens = 0;  // of prompts and completions that were given, as they are mixed
  double usd_per_thousand_answers = 0;
};

struct EstimatedRate {
  double value = 0, low = 0, high = 1;
};
// The share of `right` in `rows` and its exact 95% interval (base/binomial.h). Of no rows 0, 0 to 1.
EstimatedRate AccuracyOf(uint64_t right, uint64_t rows);

struct TechniqueRow {
  std::string name = {};
  bool is_cascade = false;
  std::string model = {};  // as it was named; of a cascade its rule
  // "" of a cascade, as is what follows; digests as a worker tells them.
  std::string model_digest = {}, text_digest = {}, device = {}, compute = {}, weight_dtype = {},
              kv_dtype = {}, drafter = {}, draft_model = {};
  std::string draft_model_digest = {};  // of drafter: model; reports of before do not have it: ""
  // Of a drafter too, and of all tiers of a cascade.
  uint64_t weight_bytes = 0, kv_bytes_per_token = 0;
  std::vector<BatchSpeed> speeds = {};                // none of a cascade
  uint64_t prompt_tokens = 0, completion_tokens = 0;  // of the answers that were given
  double first_tier_share = 1;                        // of the rows, whose first answer was kept
  std::vector<TaskQuality> tasks = {};
  std::optional<PairedQuality> against_baseline = {};  // absent of the baseline itself
  std::optional<DistributionShift> shift = {};         // absent where it was not measured
  AnswersPrice price = {};
  bool is_on_frontier = false;  // nothing cheaper is as good

  uint64_t rows() const;
  EstimatedRate accuracy() const;
};

// A name is [A-Za-z0-9._+@-], 1 to 64 characters.
bool IsTechniqueName(std::string_view name);

Json RowToJson(const TechniqueRow& row);
// What RowToJson wrote. INVALID_ARGUMENT, beginning with `place`, for anything else.
StatusOr<TechniqueRow> RowFromJson(const Json& json, const std::string& place);

}  // namespace terrace
