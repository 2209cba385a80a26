#include "tools/cli/evaluation.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/clock.h"
#include "base/json.h"
#include "tools/cli/ask_rows.h"
#include "tools/cli/format.h"
#include "tools/cli/speculation_text.h"

namespace terrace {
namespace {

RowOutcome OutcomeOf(const Answer& answer, const std::map<std::string, uint64_t>& parameters) {
  RowOutcome outcome{.text = answer.text, .tier = answer.finished.tier()};
  const auto& attempts = answer.finished.attempts();
  if (!attempts.empty()) outcome.mean_logprob = attempts.rbegin()->mean_logprob();
  Score& score = outcome.score;
  score.price_usd = answer.finished.price_usd();
  score.total_seconds = answer.finished.total_seconds();
  for (const v1::TierAttempt& attempt : attempts) {
    const uint64_t tokens = attempt.usage().prompt_tokens() + attempt.usage().completion_tokens();
    score.prompt_tokens += attempt.usage().prompt_tokens();
    score.completion_tokens += attempt.usage().completion_tokens();
    score.speculated_tokens += attempt.usage().speculated_tokens();
    score.accepted_speculated_tokens += attempt.usage().accepted_speculated_tokens();
    const auto known = parameters.find(attempt.tier());
    if (known != parameters.end())
      score.cost += static_cast<double>(known->second) * static_cast<double>(tokens);
  }
  return outcome;
}

Score& ScoreOfTask(EvaluationResult& result, const std::string& task) {
  const auto found = std::find_if(result.tasks.begin(), result.tasks.end(),
                                  [&](const auto& entry) { return entry.first == task; });
  return found != result.tasks.end() ? found->second : result.tasks.emplace_back(task, Score()).second;
}

// The table: one row for each task and one for all. Columns about prices are left out where nothing has one.
class Table {
 public:
  Table(const EvaluationResult& result, const EvaluationResult* compared)
      : compared_(compared),
        has_prices_(result.All().price_usd > 0 || (compared != nullptr && compared->All().price_usd > 0)) {
    AddRow({"task", "rows", "accuracy", "prompt tokens", "completion", "price", "mean latency"},
           compared == nullptr ? "" : compared->model + " accuracy",
           compared == nullptr ? "" : compared->model + " price", "relative cost");
  }

  void Add(const std::string& name, const Score& score, const Score& compared) {
    AddRow(
        {name, std::to_string(score.rows), FormatFixed(score.accuracy(), 3), FormatCount(score.prompt_tokens),
         FormatCount(score.completion_tokens), FormatUsd(score.price_usd),
         FormatSeconds(score.rows == 0 ? 0 : score.total_seconds / static_cast<double>(score.rows))},
        FormatFixed(compared.accuracy(), 3), FormatUsd(compared.price_usd),
        compared.cost > 0 ? FormatFixed(score.cost / compared.cost, 3) : "-");
  }

  std::string Format() const { return FormatTable(rows_, 1); }

 private:
  // `cells`: name, rows, accuracy, prompt tokens, completion tokens, price, latency.
  void AddRow(const std::array<std::string, 7>& cells, const std::string& compared_accuracy,
              const std::string& compared_price, const std::string& relative_cost) {
    std::vector<std::string> row = {cells[0], cells[1], cells[2]};
    if (compared_ != nullptr) row.push_back(compared_accuracy);
    row.insert(row.end(), {cells[3], cells[4]});
    if (has_prices_) row.push_back(cells[5]);
    if (has_prices_ && compared_ != nullptr) row.push_back(compared_price);
    if (compared_ != nullptr) row.push_back(relative_cost);
    row.push_back(cells[6]);
    rows_.push_back(std::move(row));
  }

  const EvaluationResult* const compared_;  // lives as long as this
  const bool has_prices_;
  std::vector<std::vector<std::string>> rows_;
};

Json ScoreToJson(const Score& score) {
  return {{"rows", score.rows},
          {"right", score.right},
          {"accuracy", score.accuracy()},
          {"prompt_tokens", score.prompt_tokens},
          {"completion_tokens", score.completion_tokens},
          {"speculated_tokens", score.speculated_tokens},
          {"accepted_speculated_tokens", score.accepted_speculated_tokens},
          {"price_usd", score.price_usd},
          {"cost", score.cost},
          {"mean_seconds", score.rows == 0 ? 0 : score.total_seconds / static_cast<double>(score.rows)}};
}

Json ToJson(const ModelFacts& facts) {
  if (!facts.is_in_process)
    return {{"model_digest", facts.model_digest},
            {"text_digest", facts.text_digest},
            {"device", facts.device},
            {"kv_dtype", facts.kv_dtype},
            {"weight_dtype", facts.weight_dtype},
            {"parameters", facts.parameters}};
  return {{"model_digest", facts.model_digest},
          {"text_digest", facts.text_digest},
          {"device", facts.device},
          {"compute", facts.compute},
          {"kv_dtype", facts.kv_dtype},
          {"weight_dtype", facts.weight_dtype},
          {"parameters", facts.parameters},
          {"weight_bytes", facts.weight_bytes},
          {"kv_bytes", facts.kv_bytes}};
}

std::string DraftsLine(const EvaluationResult& result, const std::string& whose) {
  const std::string text = DescribeSpeculation(result.Speculation());
  return text.empty() ? "" : Concat(whose, text, "\n");
}

}  // namespace

void Score::Add(const Score& other) {
  rows += other.rows;
  right += other.right;
  prompt_tokens += other.prompt_tokens;
  completion_tokens += other.completion_tokens;
  speculated_tokens += other.speculated_tokens;
  accepted_speculated_tokens += other.accepted_speculated_tokens;
  price_usd += other.price_usd;
  cost += other.cost;
  total_seconds += other.total_seconds;
}

Score EvaluationResult::All() const {
  Score all;
  for (const auto& [task, score] : tasks) all.Add(score);
  return all;
}

SpeculationFigures EvaluationResult::Speculation() const {
  const Score all = All();
  return {.verified = all.speculated_tokens,
          .accepted = all.accepted_speculated_tokens,
          .engine = engine_speculation};
}

double EvaluationResult::LatencyQuantile(double share) const {
  if (outcomes.empty()) return 0;
  std::vector<double> seconds;
  for (const RowOutcome& outcome : outcomes) seconds.push_back(outcome.score.total_seconds);
  std::ranges::sort(seconds);
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(seconds.size())));
  return seconds[std::max<size_t>(rank, 1) - 1];
}

EvaluationResult Summarize(const std::vector<TaskRow>& scored_rows, std::vector<RowOutcome> outcomes) {
  CHECK(outcomes.size() == scored_rows.size(), outcomes.size(), " outcomes of ", scored_rows.size(), " rows");
  EvaluationResult result;
  std::map<std::string, uint64_t> answered_by;  // rows, by tier
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const TaskRow& row = scored_rows[i];
    Score& score = outcomes[i].score;
    score.rows = 1;
    score.right = IsRight(row, outcomes[i].text) ? 1 : 0;
    ScoreOfTask(result, row.task).Add(score);
    if (row.difficulty != 0) result.difficulties[row.difficulty].Add(score);
    ++answered_by[outcomes[i].tier];
  }
  result.answered_by.assign(answered_by.begin(), answered_by.end());
  result.outcomes = std::move(outcomes);
  return result;
}

StatusOr<EvaluationResult> RunEvaluation(Answerer& answerer, const std::vector<TaskRow>& rows,
                                         const EvaluationOptions& options, ShutdownSignal& shutdown) {
  ASSIGN_OR_RETURN(const v1::ListModelsResponse models, answerer.ListModels());
  std::map<std::string, uint64_t> parameters;
  for (const v1::Model& model : models.models()) parameters[model.id()] = model.parameters();

  const std::vector<TaskRow> scored = ScoredRows(rows);
  std::vector<RowOutcome> outcomes(scored.size());
  std::vector<TaskRow> asked;
  std::vector<size_t> places;  // of those, among the scored rows
  for (size_t i = 0; i < scored.size(); ++i) {
    const auto known = options.known.find(i);
    if (known != options.known.end()) {
      outcomes[i] = known->second;
    } else {
      asked.push_back(scored[i]);
      places.push_back(i);
    }
  }
  size_t done = scored.size() - asked.size();
  const std::optional<SpeculationStats> drafted_before = answerer.Speculation();
  const MonoTime start = RealClock().Now();
  const auto on_answer = [&](size_t row, const Answer& answer) -> Status {
    RowOutcome& outcome = outcomes[places[row]];
    outcome = OutcomeOf(answer, parameters);
    options.on_progress(++done, scored.size());
    return options.on_outcome(places[row], outcome);
  };
  RETURN_IF_ERROR(
      AskRows(answerer, asked,
              {.model = options.model, .concurrency = options.concurrency, .max_tokens = options.max_tokens},
              shutdown, on_answer));
  EvaluationResult result = Summarize(scored, std::move(outcomes));
  result.model = options.model;
  result.unscored_rows = rows.size() - scored.size();
  result.wall_seconds = Seconds(RealClock().Now() - start);
  if (drafted_before.has_value())
    result.engine_speculation = answerer.Speculation().value_or(*drafted_before).Since(*drafted_before);
  result.facts = answerer.Facts();
  std::stable_sort(result.answered_by.begin(), result.answered_by.end(),
                   [&](const auto& a, const auto& b) { return parameters[a.first] < parameters[b.first]; });
  return result;
}

std::string FormatEvaluation(const EvaluationResult& result, const EvaluationResult* compared) {
  Table table(result, compared);
  for (size_t i = 0; i < result.tasks.size(); ++i) {
    const auto& [task, score] = result.tasks[i];
    table.Add(task, score, compared == nullptr ? Score() : compared->tasks[i].second);
  }
  const Score all = result.All();
  const Score compared_all = compared == nullptr ? Score() : compared->All();
  table.Add("all", all, compared_all);

  std::string out = Concat(result.model, "\n", table.Format());
  out += "answered by:";
  for (const auto& [tier, count] : result.answered_by) out += Concat(" ", tier, " ", count);
  out += "\naccuracy by difficulty:";
  for (const auto& [difficulty, score] : result.difficulties) {
    out += Concat(" ", difficulty, ": ", FormatFixed(score.accuracy(), 2));
  }
  out +=
      Concat("\ncost (parameters x tokens of all tiers asked): ", FormatFixed(all.cost / 1e9, 2), " x 10^9");
  if (compared != nullptr && compared_all.cost > 0) {
    out += Concat(", ", FormatFixed(all.cost / compared_all.cost, 3), " of ", compared->model, "'s");
  }
  out += Concat("\n", FormatCount(all.rows, "row"), " in ", FormatSeconds(result.wall_seconds),
                ", latency p50 ", FormatSeconds(result.LatencyQuantile(0.5)), ", p95 ",
                FormatSeconds(result.LatencyQuantile(0.95)));
  if (result.unscored_rows > 0)
    out += Concat(", ", FormatCount(result.unscored_rows, "row"), " without a checker not asked");
  if (result.facts.has_value() && result.facts->is_in_process) {
    out += Concat("\nmemory: weights ", FormatBytes(result.facts->weight_bytes), ", KV pool ",
                  FormatBytes(result.facts->kv_bytes));
  }
  out += "\n" + DraftsLine(result, "");
  return compared == nullptr ? out : out + DraftsLine(*compared, compared->model + ", ");
}

Json EvaluationToJson(const EvaluationResult& result) {
  Json json = {
      {"model", result.model},
      {"all", ScoreToJson(result.All())},
      {"answered_by", Json::object()},
      {"unscored_rows", result.unscored_rows},
      {"wall_seconds", result.wall_seconds},
      {"latency",
       {{"p50_seconds", result.LatencyQuantile(0.5)}, {"p95_seconds", result.LatencyQuantile(0.95)}}},
      {"speculation", SpeculationToJson(result.Speculation())},
      {"tasks", Json::object()},
      {"difficulties", Json::object()}};
  for (const auto& [tier, count] : result.answered_by) json["answered_by"][tier] = count;
  for (const auto& [task, score] : result.tasks) json["tasks"][task] = ScoreToJson(score);
  for (const auto& [difficulty, score] : result.difficulties) {
    json["difficulties"][std::to_string(difficulty)] = ScoreToJson(score);
  }
  if (result.facts.has_value())
    json[result.facts->is_in_process ? "in_process" : "worker"] = ToJson(*result.facts);
  return json;
}

}  // namespace terrace
