#include "tools/cli/plan_table.h"

#include <vector>

#include "tools/cli/format.h"
#include "tools/cli/verdict.h"

namespace terrace {
namespace {

using Row = std::vector<std::string>;

std::string BothLatencies(const LatencyHistogram& latency) {
  return Concat(FormatSeconds(latency.Percentile(50)), " / ", FormatSeconds(latency.Percentile(99)));
}

Row RowOf(const PlanCandidate& candidate, const PlannedServing& plan) {
  const ServingPrediction& out = plan.prediction;
  const std::string accuracy =
      candidate.accuracy.has_value() ? FormatFixed(candidate.accuracy->value, 3) : "to be measured";
  std::string machines;  // "1 + 2", of a cascade
  for (const ServingTier& tier : plan.tiers) machines += Concat(machines.empty() ? "" : " + ", tier.workers);
  Row row = {candidate.name, plan.keeps_all() ? "yes" : "no", machines, FormatBytes(plan.most_memory())};
  if (plan.can_run()) {
    row.insert(row.end(), {BothLatencies(out.first_token), BothLatencies(out.inter_token),
                           FormatFixed(out.OutputTokensPerSecond(), 1),
                           Concat("$", FormatSignificant(plan.usd_per_million_tokens))});
  } else {
    row.insert(row.end(), 4, "-");
  }
  row.push_back(accuracy);
  return row;
}

std::string Lines(const char* mark, const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += Concat("  ", mark, " ", text, "\n");
  return out;
}

Row Compared(const char* what, double predicted, double measured, const std::string& predicted_text,
             const std::string& measured_text) {
  const std::string error = measured > 0 ? Concat(predicted > measured ? "+" : "",
                                                  FormatFixed(100 * (predicted / measured - 1), 1), "%")
                                         : "-";
  return {what, predicted_text, measured_text, error};
}

}  // namespace

std::string FormatPlans(std::span<const PlanCandidate> candidates, std::span<const PlannedServing> plans) {
  std::vector<Row> rows = {{"plan", "keeps all", "machines", "memory each", "first token p50 / p99",
                            "inter-token p50 / p99", "output tok/s", "a million tokens", "accuracy"}};
  std::string reasons;
  for (const PlannedServing& plan : plans) {
    const PlanCandidate& candidate = candidates[plan.candidate];
    rows.push_back(RowOf(candidate, plan));
    reasons += Concat(candidate.name, "\n", Lines("breaks:", plan.broken), Lines("for:", plan.reasons_for),
                      Lines("against:", plan.reasons_against));
    for (const ServingTier& tier : plan.tiers) {
      if (tier.settings.drafts.length > 0)
        reasons += Concat("  drafts of ", tier.settings.drafts.length, " tokens, accepted with probability ",
                          tier.settings.drafts.acceptance, "\n");
    }
  }
  return Concat(FormatTable(rows, 1), "\n", reasons);
}

std::string FormatVerification(const ServingPrediction& predicted, const ServingCosts& predicted_costs,
                               const LevelResult& measured, const ServingCosts& measured_costs) {
  std::vector<Row> rows = {{"in this process", "predicted", "measured", "error"}};
  const double rate = predicted.OutputTokensPerSecond(), measured_rate = measured.output_tokens_per_second();
  rows.push_back(
      Compared("output tok/s", rate, measured_rate, FormatFixed(rate, 1), FormatFixed(measured_rate, 1)));
  const struct {
    const char* name;
    const LatencyHistogram &predicted, &measured;
  } latencies[] = {{"first token", predicted.first_token, measured.first_token},
                   {"inter-token", predicted.inter_token, measured.inter_token}};
  for (const auto& each : latencies) {
    for (const double percent : {50.0, 99.0}) {
      const double ours = each.predicted.Percentile(percent), theirs = each.measured.Percentile(percent);
      const std::string name = Concat(each.name, " p", percent);
      rows.push_back(Compared(name.c_str(), ours, theirs, FormatSeconds(ours), FormatSeconds(theirs)));
    }
  }
  const double memory = static_cast<double>(predicted_costs.memory_bytes),
               measured_memory = static_cast<double>(measured_costs.memory_bytes);
  rows.push_back(Compared("weights and KV pool", memory, measured_memory,
                          FormatBytes(predicted_costs.memory_bytes),
                          FormatBytes(measured_costs.memory_bytes)));
  if (measured_costs.resident_bytes.has_value()) {
    rows.push_back(Compared("resident memory", memory, static_cast<double>(*measured_costs.resident_bytes),
                            FormatBytes(predicted_costs.memory_bytes),
                            FormatBytes(*measured_costs.resident_bytes)));
  }
  const double price = predicted_costs.usd_per_million_tokens,
               measured_price = measured_costs.usd_per_million_tokens;
  rows.push_back(Compared("a million tokens", price, measured_price, Concat("$", FormatSignificant(price)),
                          Concat("$", FormatSignificant(measured_price))));
  return FormatTable(rows, 1);
}

std::string FormatDrafts(double planned, const SpeculationFigures& measured) {
  const auto share = AcceptedShare(measured.verified, measured.accepted);
  if (!share.has_value()) return "";
  return Concat("drafts: planned with ", FormatFixed(planned, 2), " of them accepted; ",
                FormatFixed(*share, 2), " of ", FormatCount(measured.verified, "drafted token"), " were\n");
}

Status MeasuredVerdict(const std::vector<std::string>& broken, const std::string& out) {
  if (broken.empty()) return {};
  return AnswerIsNo("--verify: what was measured breaks ", FormatCount(broken.size(), "limit"),
                    out.empty() ? "" : Concat("; ", out, " was written before"));
}

Status NotVerified(const std::string& text) { return WithReason(Unavailable(text), "not_verified"); }

std::string FormatMeasuredConstraints(const std::vector<std::string>& broken) {
  std::string out = broken.empty() ? "as measured, it keeps to its limits\n" : "";
  for (const std::string& each : broken) out += Concat("as measured, it breaks: ", each, "\n");
  return out +
         "predicted 99th percentiles come out too low where steps of one size differ, as beside other work\n";
}

}  // namespace terrace
