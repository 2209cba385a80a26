#include "tools/cli/calibrate_table.h"

#include <utility>
#include <vector>

#include "base/status.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {

using Rows = std::vector<std::vector<std::string>>;

constexpr double kLogprobThresholds[] = {-0.2, -0.1, -0.05, -0.02, -0.01, -0.005, -0.002, -0.001};

std::string AnsweredBy(const Tally& tally) {
  std::string out;
  for (const uint64_t rows : tally.answered_by) out += Concat(out.empty() ? "" : " / ", rows);
  return out;
}

std::vector<std::string> ReportRow(const std::string& name, const Tally& tally) {
  return {name, FormatFixed(tally.accuracy(), 3), FormatFixed(tally.relative_cost(), 3),
          std::to_string(tally.losses), AnsweredBy(tally)};
}

// One tier, asked alone.
std::vector<std::string> TierRow(const Records& records, size_t tier) {
  double cost = 0, last_cost = 0;
  uint64_t right = 0, losses = 0;
  for (const Record& record : records.rows) {
    cost += records.Cost(record, tier);
    last_cost += records.Cost(record, records.tiers.size() - 1);
    right += record.answers[tier].is_right;
    losses += record.answers.back().is_right && !record.answers[tier].is_right;
  }
  const double rows = static_cast<double>(records.rows.size());
  return {records.tiers[tier].name + " only", FormatFixed(static_cast<double>(right) / rows, 3),
          FormatFixed(last_cost > 0 ? cost / last_cost : 0, 3), std::to_string(losses), ""};
}

}  // namespace

std::string FormatScorers(const CalibratorResult& result) {
  const Calibration& calibration = result.calibration;
  Rows rows = {{"scorer", "AUC", "log loss", "Brier", "penalty"}};
  for (size_t i = 0; i < result.scorers.size(); ++i) {
    const ScoreReport& report = result.scorers[i];
    rows.push_back({calibration.steps[i].tier, FormatFixed(report.auc, 3), FormatFixed(report.log_loss, 3),
                    FormatFixed(report.brier, 3), Concat(result.penalties[i])});
  }
  std::string out = Concat("scorers, each of ", calibration.evidence.fit_rows,
                           " rows by one that had not seen it\n", FormatTable(rows, 1));
  for (size_t i = 0; i < result.scorers.size(); ++i) {
    Rows bins = {{calibration.steps[i].tier, "probability", "mean", "right", "rows"}};
    for (const ScoreReport::Bin& bin : result.scorers[i].bins) {
      bins.push_back({"", Concat(FormatFixed(bin.least, 3), " to ", FormatFixed(bin.most, 3)),
                      FormatFixed(bin.mean, 3), FormatFixed(bin.right, 3), std::to_string(bin.rows)});
    }
    out += "\n" + FormatTable(bins, 1);
  }
  return out;
}

std::string FormatCandidates(const CalibratorResult& result) {
  const Calibration& calibration = result.calibration;
  const CalibrationEvidence& evidence = calibration.evidence;
  std::vector<std::string> head = {""};
  for (size_t i = 0; i + 1 < calibration.steps.size(); ++i)
    head.push_back(calibration.steps[i].tier + " above");
  for (const char* name : {"accuracy", "cost", "losses", "bound", "answered by"}) head.push_back(name);
  Rows rows = {head};
  for (size_t i = 0; i < result.candidates.size(); ++i) {
    const TestedThresholds& candidate = result.candidates[i];
    std::vector<std::string> row = {i == result.chosen ? "chosen" : candidate.is_safe ? "safe" : ""};
    for (const double threshold : candidate.thresholds) row.push_back(FormatFixed(threshold, 4));
    const Tally& tally = candidate.tally;
    row.insert(row.end(),
               {FormatFixed(tally.accuracy(), 3), FormatFixed(tally.relative_cost(), 3),
                std::to_string(tally.losses), FormatFixed(candidate.loss_bound, 4), AnsweredBy(tally)});
    rows.push_back(std::move(row));
  }
  const std::string& last = calibration.steps.back().tier;
  return Concat("thresholds, tested on ", evidence.rows, " other rows; ", last, " alone has accuracy ",
                FormatFixed(evidence.last_tier_accuracy, 3), " at cost 1\n", FormatTable(rows, 1),
                "chosen: wrong where ", last, " would be right in at most ",
                FormatFixed(evidence.epsilon * 100, 1), "% of requests, with ",
                FormatFixed((1 - evidence.delta) * 100, 1), "% confidence\n");
}

std::string FormatReport(const Tally& tally, const Records& records) {
  Rows rows = {{"report", "accuracy", "cost", "losses", "answered by"}};
  rows.push_back(ReportRow("calibrated", tally));
  for (const double threshold : kLogprobThresholds) {
    rows.push_back(
        ReportRow(Concat("mean_logprob above ", threshold), ApplyLogprobThreshold(threshold, records)));
  }
  for (size_t tier = 0; tier < records.tiers.size(); ++tier) rows.push_back(TierRow(records, tier));
  rows.push_back(ReportRow("oracle", ApplyOracle(records)));
  return Concat("report on ", records.rows.size(), " rows that nothing above has seen\n",
                FormatTable(rows, 1));
}

}  // namespace terrace
