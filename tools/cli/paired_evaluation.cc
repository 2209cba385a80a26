#include "tools/cli/paired_evaluation.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "text/text_assets.h"
#include "tools/cli/answer_journal.h"
#include "tools/cli/answered_text.h"
#include "tools/cli/calibrate_records.h"
#include "tools/cli/find_files.h"
#include "tools/cli/progress_bar.h"
#include "tools/quality/scoring_model.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

constexpr const char* kTestTasks[] = {"classify", "extract", "moderate", "compute", "rewrite", "lookup"};
constexpr char kProbeTask[] = "probe";

// The models that a probe's prompts have to suit.
StatusOr<std::vector<ModelFiles>> ProbedModels(const EvaluateOptions& options) {
  std::vector<ModelTarget> targets = {options.target};
  if (!options.baseline.empty()) targets.push_back(options.target.Other(options.baseline));
  std::vector<ModelFiles> models;
  for (const ModelTarget& target : targets) {
    if (!target.is_in_process())
      return InvalidArgument("--probe: needs a model in this process (--model PATH)");
    ASSIGN_OR_RETURN(ModelFiles files, OpenModel(target.model));
    models.push_back(std::move(files));
  }
  return models;
}

StatusOr<std::vector<ProbePrompt>> MakeProbe(const EvaluateOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<ModelFiles> models, ProbedModels(options));
  uint32_t longest = UINT32_MAX;
  for (const ModelFiles& model : models) longest = std::min(longest, model.config.context_length);
  longest -= std::min(longest, options.max_tokens);  // room for the answer
  const CountTokens count = [&](const std::string& prompt) -> StatusOr<size_t> {
    size_t most = 0;
    for (const ModelFiles& model : models) {
      ASSIGN_OR_RETURN(const auto tokens, model.text->EncodeChat({{.role = "user", .content = prompt}}));
      most = std::max(most, tokens.size());
    }
    return most;
  };
  auto probe =
      MakeLookupProbe({.longest = std::min(longest, options.probe_tokens), .repeats = options.probe}, count);
  if (!probe.ok()) return Annotate(probe.status(), "--probe");
  return probe;
}

TaskRow RowOf(const ProbePrompt& prompt, size_t number) {
  TaskRow row;
  row.id = Concat(kProbeTask, "-", number);
  row.task = kProbeTask;
  row.expected = prompt.expected;
  v1::ChatMessage& message = *row.chat.add_messages();
  message.set_role("user");
  message.set_content(prompt.prompt);
  return row;
}

JournalHead HeadOf(const ModelTarget& target, const std::optional<ModelFacts>& facts,
                   const std::vector<TaskRow>& scored_rows, uint32_t max_tokens) {
  JournalHead head{.model = target.name(),
                   .scored_rows_digest = TaskSetDigest(scored_rows).Hex(),
                   .max_tokens = max_tokens};
  if (!facts.has_value()) return head;
  head.model_digest = facts->model_digest;
  head.text_digest = facts->text_digest;
  head.runtime = facts->runtime();
  head.build = facts->build;
  return head;
}

// The prompt and the answer that is expected; a text without a prompt as the beginning of one.
StatusOr<std::vector<TokenId>> TokensOf(const TextAssets& text, const TaskRow& row) {
  if (row.chat.messages().empty()) return text.EncodePrompt(row.expected);
  ASSIGN_OR_RETURN(AnsweredText answered, EncodeAnswered(text, MessagesOf(row.chat), row.expected));
  return std::move(answered.tokens);
}

StatusOr<std::unique_ptr<ScoringModel>> OpenScoring(const ModelTarget& target, size_t max_tokens,
                                                    const CommandContext& context) {
  return ScoringModel::Open({.model = target.model,
                             .threads = target.threads,
                             .max_tokens = static_cast<uint32_t>(max_tokens),
                             .compute = target.compute == "fp8" ? "auto" : target.compute,  // on CPUs
                             .kv_dtype = target.kv_dtype,
                             .is_cancelled = [&context] { return context.shutdown.IsPending(); }});
}

// What is scored has to be what has answered.
Status CheckUnchanged(const std::string& model, const ModelFiles& files,
                      const std::optional<ModelFacts>& facts) {
  if (facts.has_value() && files.digest.Hex() == facts->model_digest &&
      Digest(*files.text).Hex() == facts->text_digest)
    return {};
  return FailedPrecondition(model, ": has changed while it was evaluated");
}

// The answers of a tier whose model was replaced while it was asked are of both.
Status CheckServesStill(const RecordedTier& tier, const EvaluateOptions& options, const std::string& records,
                        const CommandContext& context) {
  const StatusOr<RecordedTier> now = AskServedTier(options.router_ops, tier.name);
  if (!now.ok())
    context.err << tier.name << ": whether it is still the same model is not known: " << Message(now.status())
                << "\n";
  if (!now.ok() || *now == tier) return {};
  return FailedPrecondition(tier.name, ": has changed while it was evaluated, and ", records,
                            " may have answers of both models: remove it");
}

}  // namespace

StatusOr<EvaluationRows> LoadEvaluationRows(const EvaluateOptions& options, const std::string& argv0) {
  std::vector<std::string> files = options.tasks;
  if (files.empty()) {
    for (const char* task : kTestTasks) {
      ASSIGN_OR_RETURN(std::string file, FindProjectFile(Concat("models/eval/", task, ".jsonl"), argv0));
      files.push_back(std::move(file));
    }
  }
  EvaluationRows out;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::vector<TaskRow> more, LoadTaskFile(file));
    if (options.limit > 0 && more.size() > options.limit) more.resize(options.limit);
    std::move(more.begin(), more.end(), std::back_inserter(out.rows));
  }
  if (options.probe == 0) return out;
  const auto named = std::ranges::find(out.rows, kProbeTask, &TaskRow::task);
  if (named != out.rows.end())
    return InvalidArgument("--probe: row ", named->id, " is of a task named ", kProbeTask, " too");
  ASSIGN_OR_RETURN(out.probe, MakeProbe(options));
  for (size_t i = 0; i < out.probe.size(); ++i) out.rows.push_back(RowOf(out.probe[i], i));
  return out;
}

StatusOr<EvaluationResult> EvaluateTarget(ModelTarget target, const std::vector<TaskRow>& rows,
                                          const EvaluateOptions& options, const std::string& records,
                                          const CommandContext& context) {
  target.max_sequences = options.concurrency;
  ASSIGN_OR_RETURN(const std::unique_ptr<Answerer> answerer, OpenTarget(target, context));
  ProgressBar bar(context, target.name().empty() ? "evaluate" : target.name());
  EvaluationOptions run;
  run.model = target.served_name();
  run.concurrency = options.concurrency;
  run.max_tokens = options.max_tokens;
  run.on_progress = [&bar](size_t done, size_t total) { bar.Show(done, total); };
  StatusOr<RecordedTier> served = NotFound("nobody was asked");  // of a router, where records are kept
  std::optional<AnswerJournal> journal;
  if (!records.empty()) {
    const std::vector<TaskRow> scored = ScoredRows(rows);
    JournalHead head = HeadOf(target, answerer->Facts(), scored, options.max_tokens);
    if (!answerer->Facts().has_value()) {
      served = AskServedTier(options.router_ops, target.model);
      if (served.ok()) {
        head.model_digest = served->model_digest;
        head.text_digest = served->text_digest;
      } else {
        context.err << records << ": is tied to the name \"" << target.name()
                    << "\" and to no weights: " << Message(served.status()) << "\n";
      }
    }
    ASSIGN_OR_RETURN(journal, AnswerJournal::Open(records, head, scored));
    run.known = journal->known();
    run.on_outcome = [&journal](size_t place, const RowOutcome& outcome) {
      return journal->Add(place, outcome);
    };
  }
  ASSIGN_OR_RETURN(EvaluationResult result, RunEvaluation(*answerer, rows, run, context.shutdown));
  if (served.ok()) RETURN_IF_ERROR(CheckServesStill(*served, options, records, context));
  result.model = target.name().empty() ? "default model" : target.name();
  return result;
}

Status CheckDistinct(const std::vector<TaskRow>& scored_rows) {
  std::map<std::string, const TaskRow*> seen;  // by messages
  for (const TaskRow& row : scored_rows) {
    const auto [found, is_new] = seen.emplace(row.chat.SerializeAsString(), &row);
    if (!is_new) return InvalidArgument("row ", row.id, " asks the same as row ", found->second->id);
  }
  return {};
}

StatusOr<EvaluationResult> ResultFromRecords(const std::string& path, const std::vector<TaskRow>& rows,
                                             uint32_t max_tokens) {
  const std::vector<TaskRow> scored = ScoredRows(rows);
  ASSIGN_OR_RETURN(RecordedAnswers answers, ReadAnswers(path, scored, max_tokens));
  if (answers.outcomes.size() < scored.size()) {
    return FailedPrecondition(path, ": has ", answers.outcomes.size(), " of ", scored.size(),
                              " answers: name the model with --baseline to ask it the rest");
  }
  std::vector<RowOutcome> outcomes;
  for (auto& [place, outcome] : answers.outcomes) outcomes.push_back(std::move(outcome));
  EvaluationResult result = Summarize(scored, std::move(outcomes));
  result.model = answers.head.model;
  result.unscored_rows = rows.size() - scored.size();
  return result;
}

Status MeasureDivergence(std::span<const TaskRow> rows, const ScoredModel& candidate,
                         const ScoredModel& baseline, const CommandContext& context,
                         ModelComparison& comparison) {
  ASSIGN_OR_RETURN(const TextAssets text, OpenText(baseline.target.model));
  std::vector<std::vector<TokenId>> texts;
  size_t longest = 1;
  for (const TaskRow& row : rows) {
    ASSIGN_OR_RETURN(texts.emplace_back(), TokensOf(text, row));
    longest = std::max(longest, texts.back().size());
  }
  ASSIGN_OR_RETURN(const auto ours, OpenScoring(candidate.target, longest, context));
  ASSIGN_OR_RETURN(const auto theirs, OpenScoring(baseline.target, longest, context));
  RETURN_IF_ERROR(CheckUnchanged(candidate.target.model, ours->files(), candidate.facts));
  RETURN_IF_ERROR(CheckUnchanged(baseline.target.model, theirs->files(), baseline.facts));
  if (TokenizerDigest(*ours->files().text) != TokenizerDigest(*theirs->files().text) ||
      ours->files().config.vocab_size != theirs->files().config.vocab_size) {
    comparison.divergence_note = "the two models have different tokens";
    return {};
  }
  ProgressBar bar(context, "distributions");
  DivergenceMeter meter;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (context.shutdown.WaitFor(0) != 0) return Cancelled("interrupted");
    RETURN_IF_ERROR(Annotate(AddDivergence(*ours, *theirs, texts[i], meter), rows[i].id));
    bar.Show(i + 1, texts.size());
  }
  comparison.divergence = meter.Finish();
  return {};
}

StatusOr<PairedEvaluation> EvaluatePaired(const EvaluateOptions& options, const CommandContext& context) {
  PairedEvaluation out;
  ASSIGN_OR_RETURN(out.rows, LoadEvaluationRows(options, context.argv0));
  const std::vector<TaskRow>& rows = out.rows.rows;
  RETURN_IF_ERROR(CheckDistinct(ScoredRows(rows)));
  const bool is_asked = !options.baseline.empty();
  // First: a file that cannot be used is told before anything is asked.
  auto baseline = is_asked ? EvaluateTarget(options.target.Other(options.baseline), rows, options,
                                            options.baseline_records, context)
                           : ResultFromRecords(options.baseline_records, rows, options.max_tokens);
  if (!baseline.ok()) return Annotate(baseline.status(), "baseline");
  out.baseline = *std::move(baseline);
  ASSIGN_OR_RETURN(out.candidate, EvaluateTarget(options.target, rows, options, options.records, context));
  out.comparison = CompareResults(ScoredRows(rows), out.candidate, out.baseline, options.comparison);
  if (!options.divergence) {
    out.comparison.divergence_note = "it was not asked for";
  } else if (is_asked && options.target.is_in_process()) {
    const auto of_files = std::span(rows).first(rows.size() - out.rows.probe.size());
    RETURN_IF_ERROR(MeasureDivergence(of_files, {options.target, out.candidate.facts},
                                      {options.target.Other(options.baseline), out.baseline.facts}, context,
                                      out.comparison));
  } else {
    out.comparison.divergence_note = "that needs both models in this process";
  }
  return out;
}

}  // namespace terrace
