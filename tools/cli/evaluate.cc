#include "tools/cli/evaluate.h"

#include "base/json.h"
#include "tools/cli/paired_evaluation.h"
#include "tools/cli/perplexity.h"

namespace terrace {
namespace {

Json ToJson(const EvaluationRows& rows, const EvaluationResult& result) {
  Json json = EvaluationToJson(result);
  if (!rows.probe.empty()) json["probe"] = ProbeToJson(rows.probe, result);
  return json;
}

std::string Format(const EvaluationRows& rows, const EvaluationResult& result,
                   const EvaluationResult* compared) {
  const std::string text = FormatEvaluation(result, compared);
  return rows.probe.empty() ? text : Concat(text, "\n", FormatProbe(rows.probe, result));
}

Status ShowComparison(const EvaluateOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const PairedEvaluation paired, EvaluatePaired(options, context));
  if (options.json) {
    Json json = ToJson(paired.rows, paired.candidate);
    json["baseline"] = ToJson(paired.rows, paired.baseline);
    json["comparison"] = ComparisonToJson(paired.comparison);
    context.out << json.dump(2) << "\n";
  } else {
    context.out << Format(paired.rows, paired.candidate, nullptr) << "\n"
                << FormatComparison(paired.comparison, paired.baseline.model);
  }
  return {};
}

Status Evaluate(const EvaluateOptions& options, const CommandContext& context) {
  if (options.has_baseline()) return ShowComparison(options, context);
  const ComparisonOptions usual;
  if (options.comparison.margin != usual.margin || options.comparison.level != usual.level ||
      !options.divergence)
    return InvalidArgument("--margin, --level and --no-divergence need --baseline or --baseline-records");
  if (!options.perplexity.empty()) return RunPerplexity(options, context);
  ASSIGN_OR_RETURN(const EvaluationRows rows, LoadEvaluationRows(options, context.argv0));
  ASSIGN_OR_RETURN(const EvaluationResult result,
                   EvaluateTarget(options.target, rows.rows, options, options.records, context));
  if (options.compare.empty()) {
    context.out << (options.json ? ToJson(rows, result).dump(2) + "\n" : Format(rows, result, nullptr));
    return Status();
  }
  ASSIGN_OR_RETURN(const EvaluationResult compared,
                   EvaluateTarget(options.target.Other(options.compare), rows.rows, options, "", context));
  if (options.json) {
    Json json = ToJson(rows, result);
    json["compared"] = ToJson(rows, compared);
    if (compared.All().cost > 0) json["relative_cost"] = result.All().cost / compared.All().cost;
    context.out << json.dump(2) << "\n";
  } else {
    context.out << Format(rows, result, &compared);
  }
  return Status();
}

}  // namespace

Status ExplainedByRecords(const Status& status, const EvaluateOptions& options) {
  if (status.code() != StatusCode::kCancelled || !options.perplexity.empty()) return status;
  if (options.records.empty() && options.baseline_records.empty())
    return Cancelled(Message(status), "; no answers were kept: with --save-records the same command goes on");
  return Cancelled(Message(status), "; the same command goes on with the answers that were kept");
}

Status RunEvaluate(const EvaluateOptions& options, const CommandContext& context) {
  return ExplainedByRecords(Evaluate(options, context), options);
}

}  // namespace terrace
