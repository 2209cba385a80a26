#include "tools/cli/evaluation.h"

#include <algorithm>
#include <array>

#include "base/clock.h"
#include "tools/cli/ask_rows.h"
#include "tools/cli/format.h"
#include "tools/cli/speculation_text.h"

namespace terrace {
namespace {

Score ScoreOf(const TaskRow& row, const Answer& answer, const std::map<std::string, uint64_t>& parameters) {
  Score score;
  score.rows = 1;
  score.right = IsRight(row.checker, answer.text, row.expected) ? 1 : 0;
  score.price_usd = answer.finished.price_usd();
  score.total_seconds = answer.finished.total_seconds();
  for (const v1::TierAttempt& attempt : answer.finished.attempts()) {
    const uint64_t tokens = attempt.usage().prompt_tokens() + attempt.usage().completion_tokens();
    score.prompt_tokens += attempt.usage().prompt_tokens();
    score.completion_tokens += attempt.usage().completion_tokens();
    score.speculated_tokens += attempt.usage().speculated_tokens();
    score.accepted_speculated_tokens += attempt.usage().accepted_speculated_tokens();
    const auto known = parameters.find(attempt.tier());
    if (known != parameters.end())
      score.cost += static_cast<double>(known->second) * static_cast<double>(tokens);
  }
  return score;
}

// Adds one answer to every sum it belongs to.
void Count(const TaskRow& row, const Answer& answer, const std::map<std::string, uint64_t>& parameters,
           EvaluationResult& result, std::map<std::string, uint64_t>& answered_by) {
  const Score score = ScoreOf(row, answer, parameters);
  const auto task = std::find_if(result.tasks.begin(), result.tasks.end(),
                                 [&](const auto& entry) { return entry.first == row.task; });
  task->second.Add(score);
  result.difficulties[row.difficulty].Add(score);
  ++answered_by[answer.finished.tier()];
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

StatusOr<EvaluationResult> RunEvaluation(Answerer& answerer, const std::vector<TaskRow>& rows,
                                         const EvaluationOptions& options, ShutdownSignal& shutdown) {
  ASSIGN_OR_RETURN(const v1::ListModelsResponse models, answerer.ListModels());
  std::map<std::string, uint64_t> parameters;
  for (const v1::Model& model : models.models()) parameters[model.id()] = model.parameters();

  EvaluationResult result;
  result.model = options.model;
  std::vector<TaskRow> scored;
  for (const TaskRow& row : rows) {
    if (row.checker == Checker::kNone) {
      ++result.unscored_rows;
      continue;
    }
    scored.push_back(row);
    const bool is_new = std::none_of(result.tasks.begin(), result.tasks.end(),
                                     [&](const auto& entry) { return entry.first == row.task; });
    if (is_new) result.tasks.emplace_back(row.task, Score());
  }

  std::map<std::string, uint64_t> answered_by;  // rows, by tier
  size_t done = 0;
  const std::optional<SpeculationStats> drafted_before = answerer.Speculation();
  const MonoTime start = RealClock().Now();
  const auto on_answer = [&](size_t row, const Answer& answer) -> Status {
    Count(scored[row], answer, parameters, result, answered_by);
    options.on_progress(++done, scored.size());
    return {};
  };
  RETURN_IF_ERROR(
      AskRows(answerer, scored,
              {.model = options.model, .concurrency = options.concurrency, .max_tokens = options.max_tokens},
              shutdown, on_answer));
  result.wall_seconds = Seconds(RealClock().Now() - start);
  if (drafted_before.has_value())
    result.engine_speculation = answerer.Speculation().value_or(*drafted_before).Since(*drafted_before);
  result.answered_by.assign(answered_by.begin(), answered_by.end());
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
  out += Concat("\n", all.rows, " rows in ", FormatSeconds(result.wall_seconds));
  if (result.unscored_rows > 0)
    out += Concat(", ", result.unscored_rows, " rows have no checker and were not asked");
  out += "\n" + DraftsLine(result, "");
  return compared == nullptr ? out : out + DraftsLine(*compared, compared->model + ", ");
}

Json EvaluationToJson(const EvaluationResult& result) {
  Json json = {{"model", result.model},
               {"all", ScoreToJson(result.All())},
               {"answered_by", Json::object()},
               {"unscored_rows", result.unscored_rows},
               {"wall_seconds", result.wall_seconds},
               {"speculation", SpeculationToJson(result.Speculation())},
               {"tasks", Json::object()},
               {"difficulties", Json::object()}};
  for (const auto& [tier, count] : result.answered_by) json["answered_by"][tier] = count;
  for (const auto& [task, score] : result.tasks) json["tasks"][task] = ScoreToJson(score);
  for (const auto& [difficulty, score] : result.difficulties) {
    json["difficulties"][std::to_string(difficulty)] = ScoreToJson(score);
  }
  return json;
}

}  // namespace terrace
