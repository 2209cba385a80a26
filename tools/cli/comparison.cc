#include "tools/cli/comparison.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "base/json.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {

using Rows = std::vector<std::vector<std::string>>;

constexpr char kJsonRows[] = "JSON where it is wanted", kRefusedRows[] = "refuses what it should",
               kAnsweredRows[] = "answers what it should";

PairedCounts& CountsOf(std::vector<NamedCounts>& all, const std::string& name) {
  for (NamedCounts& each : all) {
    if (each.name == name) return each.counts;
  }
  return all.emplace_back(NamedCounts{.name = name}).counts;
}

// What begins a refusal: whatever a row of the set takes for one, and the demo family's.
std::vector<std::string> RefusalOpenings(const std::vector<TaskRow>& rows) {
  std::set<std::string> openings = {std::string(kRefusalOpening)};
  for (const TaskRow& row : rows) openings.insert(row.openings.begin(), row.openings.end());
  return {openings.begin(), openings.end()};
}

void CountBehaviour(const TaskRow& row, const std::string& candidate, const std::string& baseline,
                    const std::vector<std::string>& openings, std::vector<NamedCounts>& behaviours) {
  const auto refuses = [&openings](const std::string& answer) { return BeginsWithOneOf(answer, openings); };
  if (row.checker == Checker::kJsonEqual) {
    CountsOf(behaviours, kJsonRows).Add(IsJson(candidate), IsJson(baseline));
  } else if (row.checker == Checker::kRefusal && row.refuses) {
    CountsOf(behaviours, kRefusedRows).Add(refuses(candidate), refuses(baseline));
  } else if (row.checker == Checker::kRefusal) {
    CountsOf(behaviours, kAnsweredRows).Add(!refuses(candidate), !refuses(baseline));
  }
}

std::string Signed(double value) { return (value > 0 ? "+" : "") + FormatFixed(value, 3); }

std::string IntervalText(const Interval& interval) {
  return Concat(Signed(interval.low), " to ", Signed(interval.high));
}

// Small ones by their order of magnitude.
std::string FormatP(double p) { return p < 0.001 ? "< 0.001" : FormatFixed(p, 3); }

std::vector<std::string> RowOf(const PairedComparison& each, bool has_verdict) {
  std::vector<std::string> row = {each.name,
                                  std::to_string(each.counts.rows()),
                                  FormatFixed(each.counts.candidate_rate(), 3),
                                  FormatFixed(each.counts.baseline_rate(), 3),
                                  std::to_string(each.counts.gained),
                                  std::to_string(each.counts.lost),
                                  Signed(each.counts.difference()),
                                  IntervalText(each.interval),
                                  FormatP(each.mcnemar_p)};
  if (has_verdict) row.insert(row.end(), {FormatP(each.adjusted_p), ComparisonVerdictName(each.verdict)});
  return row;
}

Json ToJson(const PairedComparison& each) {
  return {{"rows", each.counts.rows()},
          {"candidate", each.counts.candidate_rate()},
          {"baseline", each.counts.baseline_rate()},
          {"gained", each.counts.gained},
          {"lost", each.counts.lost},
          {"difference", each.counts.difference()},
          {"interval", {each.interval.low, each.interval.high}},
          {"mcnemar_p", each.mcnemar_p}};
}

std::string FormatDivergence(const ModelComparison& comparison) {
  if (!comparison.divergence.has_value()) {
    return comparison.divergence_note.empty()
               ? ""
               : Concat("distributions: not compared: ", comparison.divergence_note, "\n");
  }
  const Divergence& divergence = *comparison.divergence;
  return Concat("distributions at ", FormatCount(divergence.positions), " positions: KL mean ",
                FormatFixed(divergence.mean_kl, 5), ", p99 ", FormatFixed(divergence.p99_kl, 4), ", max ",
                FormatFixed(divergence.max_kl, 3), " nats; likeliest token differs at ",
                FormatFixed(100 * divergence.flip_rate, 2), "%; perplexity ",
                FormatFixed(divergence.candidate_perplexity, 4), ", baseline ",
                FormatFixed(divergence.baseline_perplexity, 4), "\n");
}

// Right answers and rows of each length (quarters of the longest) and depth.
using ProbeTable = std::array<std::array<std::pair<uint64_t, uint64_t>, kProbeDepths>, kProbeLengths>;

ProbeTable TableOf(const std::vector<ProbePrompt>& probe, const EvaluationResult& result) {
  CHECK(probe.size() <= result.outcomes.size());
  const size_t begin = result.outcomes.size() - probe.size();
  ProbeTable table = {};
  for (size_t i = 0; i < probe.size(); ++i) {
    auto& [right, rows] = table[probe[i].quarters - 1][probe[i].depth];
    right += result.outcomes[begin + i].score.right;
    ++rows;
  }
  return table;
}

}  // namespace

ModelComparison CompareResults(const std::vector<TaskRow>& scored_rows, const EvaluationResult& candidate,
                               const EvaluationResult& baseline, const ComparisonOptions& options) {
  CHECK(candidate.outcomes.size() == scored_rows.size() && baseline.outcomes.size() == scored_rows.size());
  std::vector<NamedCounts> tasks, behaviours;
  NamedCounts all{.name = "all"};
  const std::vector<std::string> openings = RefusalOpenings(scored_rows);
  for (size_t i = 0; i < scored_rows.size(); ++i) {
    const RowOutcome &ours = candidate.outcomes[i], &theirs = baseline.outcomes[i];
    const bool is_ours_right = ours.score.right > 0, is_theirs_right = theirs.score.right > 0;
    CountsOf(tasks, scored_rows[i].task).Add(is_ours_right, is_theirs_right);
    all.counts.Add(is_ours_right, is_theirs_right);
    CountBehaviour(scored_rows[i], ours.text, theirs.text, openings, behaviours);
  }
  return {.options = options,
          .tasks = ComparePaired(tasks, options),
          .all = ComparePaired({&all, 1}, options).front(),
          .behaviours = ComparePaired(behaviours, options)};
}

std::string FormatComparison(const ModelComparison& comparison, const std::string& baseline) {
  const ComparisonOptions& options = comparison.options;
  const std::string interval = Concat(FormatFixed(100 * (1 - 2 * options.level), 0), "% interval");
  Rows rows = {{"task", "rows", "candidate", "baseline", "gained", "lost", "difference", interval, "McNemar",
                "Holm", "verdict"}};
  for (const PairedComparison& task : comparison.tasks) rows.push_back(RowOf(task, true));
  rows.push_back(RowOf(comparison.all, false));
  for (const PairedComparison& each : comparison.behaviours) rows.push_back(RowOf(each, false));
  for (std::vector<std::string>& row : rows) row.resize(rows.front().size());
  return Concat(
      "against ", baseline, ": non-inferior is what is not worse by ", FormatFixed(100 * options.margin, 1),
      "% of the rows, all at level ", FormatFixed(options.level, 3), " (",
      LeastRows(options.margin,
                options.level / static_cast<double>(std::max<size_t>(comparison.tasks.size(), 1))),
      " rows of each task show it, if none differs)\n", FormatTable(rows, 1), FormatDivergence(comparison));
}

Json ComparisonToJson(const ModelComparison& comparison) {
  Json json = {{"margin", comparison.options.margin},
               {"level", comparison.options.level},
               {"correction", "holm"},
               {"all", ToJson(comparison.all)},
               {"tasks", Json::object()},
               {"behaviours", Json::object()},
               {"divergence", Json()}};
  for (const PairedComparison& task : comparison.tasks) {
    Json& to = json["tasks"][task.name] = ToJson(task);
    to["p_value"] = task.p_value;
    to["adjusted_p"] = task.adjusted_p;
    to["verdict"] = ComparisonVerdictName(task.verdict);
  }
  for (const PairedComparison& each : comparison.behaviours) json["behaviours"][each.name] = ToJson(each);
  if (!comparison.divergence_note.empty()) json["divergence_note"] = comparison.divergence_note;
  if (!comparison.divergence.has_value()) return json;
  const Divergence& divergence = *comparison.divergence;
  json["divergence"] = {{"positions", divergence.positions},
                        {"mean_kl", divergence.mean_kl},
                        {"p99_kl", divergence.p99_kl},
                        {"max_kl", divergence.max_kl},
                        {"flip_rate", divergence.flip_rate},
                        {"candidate_perplexity", divergence.candidate_perplexity},
                        {"baseline_perplexity", divergence.baseline_perplexity}};
  return json;
}

std::string FormatProbe(const std::vector<ProbePrompt>& probe, const EvaluationResult& result) {
  const ProbeTable table = TableOf(probe, result);
  Rows rows = {{"probe: length"}};
  for (uint32_t depth = 0; depth < kProbeDepths; ++depth)
    rows[0].push_back(Concat("depth ", 100 * depth / (kProbeDepths - 1), "%"));
  for (uint32_t length = 0; length < kProbeLengths; ++length) {
    std::vector<std::string>& row = rows.emplace_back();
    row.push_back(Concat(100 * (length + 1) / kProbeLengths, "%"));
    for (const auto& [right, count] : table[length]) row.push_back(Concat(right, "/", count));
  }
  return FormatTable(rows, 1);
}

Json ProbeToJson(const std::vector<ProbePrompt>& probe, const EvaluationResult& result) {
  Json lengths = Json::array();
  for (const auto& length : TableOf(probe, result)) {
    Json depths = Json::array();
    for (const auto& [right, rows] : length) depths.push_back({{"right", right}, {"rows", rows}});
    lengths.push_back(std::move(depths));
  }
  return lengths;
}

}  // namespace terrace
