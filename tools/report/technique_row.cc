#include "tools/report/technique_row.h"

#include <algorithm>

#include "base/binomial.h"
#include "base/strict_fields.h"

namespace terrace {
namespace {

constexpr size_t kMaxName = 64;
constexpr double kOneSide = 0.025;  // of a 95% interval

Json ToJson(const BatchSpeed& speed) {
  Json json = {{"batch", speed.batch},
               {"prefill_tokens_per_second", speed.prefill_tokens_per_second},
               {"decode_tokens_per_second", speed.decode_tokens_per_second}};
  if (speed.acceptance.has_value()) json["acceptance"] = *speed.acceptance;
  return json;
}

Json ToJson(const TaskQuality& task) {
  const EstimatedRate rate = AccuracyOf(task.right, task.rows);
  return {{"name", task.name},
          {"rows", task.rows},
          {"right", task.right},
          {"accuracy", rate.value},
          {"interval", {rate.low, rate.high}}};
}

StatusOr<BatchSpeed> SpeedFromJson(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  BatchSpeed speed;
  speed.batch = fields.SmallCount("batch");
  speed.prefill_tokens_per_second = fields.Number("prefill_tokens_per_second");
  speed.decode_tokens_per_second = fields.Number("decode_tokens_per_second");
  if (json.contains("acceptance")) speed.acceptance = fields.Number("acceptance");
  RETURN_IF_ERROR(fields.Finish());
  if (speed.batch > 0 && speed.prefill_tokens_per_second > 0 && speed.decode_tokens_per_second > 0)
    return speed;
  return InvalidArgument(place, ": batch and speeds must be above 0");
}

// The rate and its interval follow from the counts.
StatusOr<TaskQuality> TaskFromJson(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  TaskQuality task{.name = fields.Text("name"), .rows = fields.Count("rows"), .right = fields.Count("right")};
  fields.Number("accuracy");
  fields.List("interval");
  RETURN_IF_ERROR(fields.Finish());
  if (task.right > task.rows)
    return InvalidArgument(place, ": ", task.right, " right answers of ", task.rows, " rows");
  return task;
}

StatusOr<PairedQuality> PairedFromJson(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  const PairedQuality paired{.difference = fields.Number("difference"),
                             .low = fields.Number("low"),
                             .high = fields.Number("high"),
                             .gained = fields.Count("gained"),
                             .lost = fields.Count("lost")};
  RETURN_IF_ERROR(fields.Finish());
  return paired;
}

StatusOr<DistributionShift> ShiftFromJson(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  const DistributionShift shift{.positions = fields.Count("positions"),
                                .mean_kl = fields.Number("mean_kl"),
                                .flip_rate = fields.Number("flip_rate")};
  RETURN_IF_ERROR(fields.Finish());
  return shift;
}

StatusOr<AnswersPrice> PriceFromJson(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  AnswersPrice price;
  price.tokens.usd_per_million_prompt_tokens = fields.Number("usd_per_million_prompt_tokens");
  price.tokens.usd_per_million_completion_tokens = fields.Number("usd_per_million_completion_tokens");
  price.usd_per_million_tokens = fields.Number("usd_per_million_tokens");
  price.usd_per_thousand_answers = fields.Number("usd_per_thousand_answers");
  RETURN_IF_ERROR(fields.Finish());
  return price;
}

}  // namespace

EstimatedRate AccuracyOf(uint64_t right, uint64_t rows) {
  if (rows == 0) return {};
  return {.value = static_cast<double>(right) / static_cast<double>(rows),
          .low = LowerRateBound(right, rows, kOneSide),
          .high = UpperRateBound(right, rows, kOneSide)};
}

uint64_t TechniqueRow::rows() const {
  uint64_t sum = 0;
  for (const TaskQuality& task : tasks) sum += task.rows;
  return sum;
}

EstimatedRate TechniqueRow::accuracy() const {
  uint64_t right = 0;
  for (const TaskQuality& task : tasks) right += task.right;
  return AccuracyOf(right, rows());
}

bool IsTechniqueName(std::string_view name) {
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._+@-").find(c) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= kMaxName && std::ranges::all_of(name, is_allowed);
}

Json RowToJson(const TechniqueRow& row) {
  const EstimatedRate accuracy = row.accuracy();
  Json json = {{"name", row.name},
               {"is_cascade", row.is_cascade},
               {"model", row.model},
               {"model_digest", row.model_digest},
               {"text_digest", row.text_digest},
               {"device", row.device},
               {"compute", row.compute},
               {"weight_dtype", row.weight_dtype},
               {"kv_dtype", row.kv_dtype},
               {"drafter", row.drafter},
               {"draft_model", row.draft_model},
               {"draft_model_digest", row.draft_model_digest},
               {"weight_bytes", row.weight_bytes},
               {"kv_bytes_per_token", row.kv_bytes_per_token},
               {"speeds", Json::array()},
               {"prompt_tokens", row.prompt_tokens},
               {"completion_tokens", row.completion_tokens},
               {"first_tier_share", row.first_tier_share},
               {"accuracy", accuracy.value},
               {"interval", {accuracy.low, accuracy.high}},
               {"tasks", Json::array()},
               {"price",
                {{"usd_per_million_prompt_tokens", row.price.tokens.usd_per_million_prompt_tokens},
                 {"usd_per_million_completion_tokens", row.price.tokens.usd_per_million_completion_tokens},
                 {"usd_per_million_tokens", row.price.usd_per_million_tokens},
                 {"usd_per_thousand_answers", row.price.usd_per_thousand_answers}}},
               {"is_on_frontier", row.is_on_frontier}};
  for (const BatchSpeed& speed : row.speeds) json["speeds"].push_back(ToJson(speed));
  for (const TaskQuality& task : row.tasks) json["tasks"].push_back(ToJson(task));
  if (row.against_baseline.has_value()) {
    const PairedQuality& paired = *row.against_baseline;
    json["against_baseline"] = {{"difference", paired.difference},
                                {"low", paired.low},
                                {"high", paired.high},
                                {"gained", paired.gained},
                                {"lost", paired.lost}};
  }
  if (row.shift.has_value()) {
    json["shift"] = {{"positions", row.shift->positions},
                     {"mean_kl", row.shift->mean_kl},
                     {"flip_rate", row.shift->flip_rate}};
  }
  return json;
}

StatusOr<TechniqueRow> RowFromJson(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  TechniqueRow row;
  row.name = fields.Text("name");
  row.is_cascade = fields.Flag("is_cascade");
  const struct {
    const char* name;
    std::string& text;
  } texts[] = {
      {"model", row.model},       {"model_digest", row.model_digest}, {"text_digest", row.text_digest},
      {"device", row.device},     {"compute", row.compute},           {"weight_dtype", row.weight_dtype},
      {"kv_dtype", row.kv_dtype}, {"drafter", row.drafter},           {"draft_model", row.draft_model}};
  for (const auto& each : texts) each.text = fields.Text(each.name);
  if (json.contains("draft_model_digest")) row.draft_model_digest = fields.Text("draft_model_digest");
  row.weight_bytes = fields.Count("weight_bytes");
  row.kv_bytes_per_token = fields.Count("kv_bytes_per_token");
  row.prompt_tokens = fields.Count("prompt_tokens");
  row.completion_tokens = fields.Count("completion_tokens");
  row.first_tier_share = fields.Number("first_tier_share");
  fields.Number("accuracy");  // follow from the tasks
  fields.List("interval");
  row.is_on_frontier = fields.Flag("is_on_frontier");
  const Json &speeds = fields.List("speeds"), &tasks = fields.List("tasks"), &price = fields.Object("price");
  const bool is_compared = json.contains("against_baseline"), has_shift = json.contains("shift");
  const Json* const against = is_compared ? &fields.Object("against_baseline") : nullptr;
  const Json* const shift = has_shift ? &fields.Object("shift") : nullptr;
  RETURN_IF_ERROR(fields.Finish());
  if (!IsTechniqueName(row.name)) return InvalidArgument(place, ": \"", row.name, "\" is no name of a row");
  for (const Json& speed : speeds) {
    ASSIGN_OR_RETURN(row.speeds.emplace_back(), SpeedFromJson(speed, Concat(place, ".speeds")));
  }
  for (const Json& task : tasks) {
    ASSIGN_OR_RETURN(row.tasks.emplace_back(), TaskFromJson(task, Concat(place, ".tasks")));
  }
  ASSIGN_OR_RETURN(row.price, PriceFromJson(price, Concat(place, ".price")));
  if (against != nullptr) {
    ASSIGN_OR_RETURN(row.against_baseline, PairedFromJson(*against, Concat(place, ".against_baseline")));
  }
  if (shift != nullptr) {
    ASSIGN_OR_RETURN(row.shift, ShiftFromJson(*shift, Concat(place, ".shift")));
  }
  return row;
}

}  // namespace terrace
