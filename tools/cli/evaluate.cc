#include "tools/cli/evaluate.h"

#include "base/clock.h"
#include "tools/cli/evaluation.h"
#include "tools/cli/find_files.h"
#include "tools/cli/progress_bar.h"
#include "tools/cli/task_file.h"

namespace terrace {
namespace {

constexpr const char* kTestTasks[] = {"classify", "extract", "moderate", "compute", "rewrite", "lookup"};

StatusOr<std::vector<TaskRow>> LoadRows(const EvaluateOptions& options, const std::string& argv0) {
  std::vector<std::string> files = options.tasks;
  if (files.empty()) {
    for (const char* task : kTestTasks) {
      ASSIGN_OR_RETURN(std::string file, FindProjectFile(Concat("models/eval/", task, ".jsonl"), argv0));
      files.push_back(std::move(file));
    }
  }
  std::vector<TaskRow> rows;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::vector<TaskRow> more, LoadTaskFile(file));
    if (options.limit > 0 && more.size() > options.limit) more.resize(options.limit);
    std::move(more.begin(), more.end(), std::back_inserter(rows));
  }
  return rows;
}

StatusOr<EvaluationResult> EvaluateTarget(ModelTarget target, const std::vector<TaskRow>& rows,
                                          const EvaluateOptions& options, const CommandContext& context) {
  target.max_sequences = options.concurrency;
  ASSIGN_OR_RETURN(const std::unique_ptr<Answerer> answerer, OpenTarget(target, context.shutdown));
  ProgressBar bar(context, target.model.empty() ? "evaluate" : target.model);
  EvaluationOptions run;
  run.model = target.served_name();
  run.concurrency = options.concurrency;
  run.max_tokens = options.max_tokens;
  run.on_progress = [&bar](size_t done, size_t total) { bar.Show(done, total); };
  ASSIGN_OR_RETURN(EvaluationResult result, RunEvaluation(*answerer, rows, run, context.shutdown));
  result.model = target.model.empty() ? "default model" : target.model;
  return result;
}

}  // namespace

Status RunEvaluate(const EvaluateOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const std::vector<TaskRow> rows, LoadRows(options, context.argv0));
  ASSIGN_OR_RETURN(const EvaluationResult result, EvaluateTarget(options.target, rows, options, context));
  if (options.compare.empty()) {
    context.out << (options.json ? EvaluationToJson(result).dump(2) + "\n"
                                 : FormatEvaluation(result, nullptr));
    return Status();
  }
  ModelTarget other = options.target;
  other.model = options.compare;
  ASSIGN_OR_RETURN(const EvaluationResult compared, EvaluateTarget(other, rows, options, context));
  if (options.json) {
    Json json = EvaluationToJson(result);
    json["compared"] = EvaluationToJson(compared);
    if (compared.All().cost > 0) json["relative_cost"] = result.All().cost / compared.All().cost;
    context.out << json.dump(2) << "\n";
  } else {
    context.out << FormatEvaluation(result, &compared);
  }
  return Status();
}

}  // namespace terrace
