#include "tools/cli/report.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/clock.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/mapped_file.h"
#include "base/version.h"
#include "text/text_assets.h"
#include "tools/cli/format.h"
#include "tools/cli/local_model.h"
#include "tools/cli/new_file.h"
#include "tools/cli/paired_evaluation.h"
#include "tools/cli/report_table.h"
#include "tools/cli/report_variants.h"
#include "tools/cli/rewrite_command.h"
#include "tools/report/pricing.h"
#include "tools/report/processor.h"
#include "tools/report/quality_plot.h"
#include "tools/report/report.h"
#include "tools/report/speed_meter.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSpeedPrompts = 64;
constexpr size_t kStemDigits = 12;  // of a digest, in file names

struct Digests {
  std::string model = {}, text = {};  // as a worker tells them
};

StatusOr<Digests> DigestsOf(const std::string& model) {
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(model));
  return Digests{.model = files.digest.Hex(), .text = Digest(*files.text).Hex()};
}

// A file name for what follows from `job` alone.
std::string Stem(const std::string& name, const Json& job) {
  return Concat(name, "-", HashBytes(ToJsonText(job)).Hex().substr(0, kStemDigits));
}

void AddQuality(const EvaluationResult& answers, TechniqueRow& row) {
  for (const auto& [task, score] : answers.tasks)
    row.tasks.push_back({.name = task, .rows = score.rows, .right = score.right});
}

PairedQuality QualityOf(const PairedComparison& all) {
  return {.difference = all.counts.difference(),
          .low = all.interval.low,
          .high = all.interval.high,
          .gained = all.counts.gained,
          .lost = all.counts.lost};
}

std::vector<TierAnswer> TierAnswersOf(const EvaluationResult& answers) {
  std::vector<TierAnswer> out;
  for (const RowOutcome& outcome : answers.outcomes) {
    out.push_back({.prompt_tokens = outcome.score.prompt_tokens,
                   .completion_tokens = outcome.score.completion_tokens,
                   .mean_logprob = outcome.mean_logprob});
  }
  return out;
}

class ReportRun {
 public:
  ReportRun(const ReportOptions& options, const CommandContext& context)
      : options_(options), context_(context), processor_(ThisProcessor()) {}

  StatusOr<TechniqueReport> Run() {
    RETURN_IF_ERROR(Prepare());
    RETURN_IF_ERROR(MeasureAll());
    for (uint32_t pass = 2; pass <= options_.speed_passes; ++pass) RETURN_IF_ERROR(MeasureSpeeds(pass));
    for (Measured& measured : measured_) {
      measured.row.speeds = MedianSpeeds(measured.speeds);
      measured.row.price = PriceOf(measured);
    }
    TechniqueReport report = Describe();
    for (const Measured& measured : measured_) report.rows.push_back(measured.row);
    for (const ReportCascade& cascade : options_.cascades) {
      for (const double threshold : cascade.thresholds) report.rows.push_back(RowOf(cascade, threshold));
    }
    for (const size_t row : Frontier(report.rows)) report.rows[row].is_on_frontier = true;
    return report;
  }

 private:
  // Where a measurement is kept: each follows from all that its file is named after.
  struct Files {
    std::string answers = {}, row = {};

    std::string OfPass(uint32_t pass) const { return Concat(row, ".pass-", pass); }
  };

  // A model, run in one way, and what came of it.
  struct Measured {
    ModelTarget target = {};
    Files files = {};
    TechniqueRow row = {};
    std::vector<std::vector<BatchSpeed>> speeds = {};  // of each pass
    EvaluationResult answers = {};
  };

  Status Prepare() {
    RETURN_IF_ERROR(CheckNames(options_.techniques, options_.variants, options_.cascades, "row"));
    RETURN_IF_ERROR(CheckVariants(options_.techniques, options_.variants, options_.calibration));
    RETURN_IF_ERROR(CheckTargets(options_.techniques, options_.evaluate.target.model, options_.mixed_bytes));
    ASSIGN_OR_RETURN(rows_, LoadEvaluationRows(options_.evaluate, context_.argv0));
    scored_ = ScoredRows(rows_.rows);
    if (scored_.empty()) return InvalidArgument("--tasks: no row has a checker");
    RETURN_IF_ERROR(CheckDistinct(scored_));
    constexpr const char* kFolders[] = {"answers", "rows", "models"};
    ASSIGN_OR_RETURN(work_, OpenWorkFolder(options_.work, kFolders));
    return {};
  }

  Status MeasureAll() {
    const ModelTarget& target = options_.evaluate.target;
    RETURN_IF_ERROR(Measure({.name = kBaseline, .model = target.model}));
    const MakeOptions make = {.baseline = target.model,
                              .baseline_digest = measured_.front().row.model_digest,
                              .baseline_text_digest = measured_.front().row.text_digest,
                              .folder = options_.work + "/models",
                              .calibration = options_.calibration,
                              .mixed_bytes = options_.mixed_bytes,
                              .threads = target.threads};
    for (const std::string& name : options_.techniques) {
      ASSIGN_OR_RETURN(const ReportVariant variant, MakeVariant(*FindTechnique(name), make, context_));
      RETURN_IF_ERROR(Measure(variant));
    }
    for (const ReportVariant& variant : options_.variants) RETURN_IF_ERROR(Measure(variant));
    return {};
  }

  StatusOr<Files> FilesOf(const std::string& name, const ModelTarget& target) {
    ASSIGN_OR_RETURN(const Digests digests, DigestsOf(target.model));
    Json job = {{"version", kVersion},
                {"build", BuildFor(target.device)},  // another one may be faster, or answer otherwise
                {"model", digests.model},
                {"text", digests.text},
                {"device", target.device},
                {"compute", target.compute},
                {"kv_dtype", target.kv_dtype},
                {"tasks", TaskSetDigest(rows_.rows).Hex()},
                {"max_tokens", options_.evaluate.max_tokens}};
    Files files{.answers = Concat(options_.work, "/answers/", Stem(name, job), ".jsonl")};
    job["drafter"] = target.drafter;
    if (!target.draft_model.empty()) {
      ASSIGN_OR_RETURN(const Digests draft, DigestsOf(target.draft_model));
      job["draft_model"] = draft.model;
    }
    job["processor"] = processor_;
    job["cores"] = Cores();
    job["batches"] = options_.batches;
    job["speed_tokens"] = options_.speed_tokens;
    job["speed_seconds"] = options_.speed_seconds;
    job["level"] = options_.evaluate.comparison.level;
    job["divergence"] = options_.evaluate.divergence;
    if (measured_.empty()) {
      baseline_job_ = job;
    } else {
      job["baseline"] = baseline_job_;
    }
    files.row = Concat(options_.work, "/rows/", Stem(name, job), ".json");
    return files;
  }

  Status Measure(const ReportVariant& variant) {
    const MonoTime start = RealClock().Now();
    Measured measured{.target = TargetOf(options_.evaluate.target, variant)};
    measured.target.drafter = variant.drafter;
    measured.target.draft_model = variant.draft_model;
    auto files = FilesOf(variant.name, measured.target);
    if (!files.ok()) return Annotate(files.status(), variant.name);
    measured.files = *std::move(files);
    const bool is_kept = ReadKept(measured).ok();
    if (!is_kept) RETURN_IF_ERROR(Annotate(MeasureAnew(variant, measured), variant.name));
    measured.speeds = {measured.row.speeds};
    context_.err << variant.name << ": "
                 << (is_kept ? "kept from an earlier run" : FormatSeconds(Seconds(RealClock().Now() - start)))
                 << "\n";
    measured_.push_back(std::move(measured));
    return {};
  }

  // The speeds of all rows once more: what else the machine does for a while is in one pass of some rows, not
  // in all passes of one.
  Status MeasureSpeeds(uint32_t pass) {
    const MonoTime start = RealClock().Now();
    for (Measured& measured : measured_) {
      auto speeds = SpeedsOfPass(measured, pass);
      if (!speeds.ok()) return Annotate(speeds.status(), measured.row.name);
      measured.speeds.push_back(*std::move(speeds));
    }
    context_.err << "speeds, pass " << pass << " of " << options_.speed_passes << ": "
                 << FormatSeconds(Seconds(RealClock().Now() - start)) << "\n";
    return {};
  }

  StatusOr<std::vector<BatchSpeed>> SpeedsOfPass(const Measured& measured, uint32_t pass) const {
    const std::string file = measured.files.OfPass(pass);
    if (const auto kept = RowOfFile(file); kept.ok()) return kept->speeds;
    ASSIGN_OR_RETURN(const TechniqueRow fresh, SpeedOf(measured.target));
    if (fresh.model_digest != measured.row.model_digest)
      return FailedPrecondition(measured.target.model, ": has changed while it was measured");
    TechniqueRow row = measured.row;
    row.speeds = fresh.speeds;
    RETURN_IF_ERROR(ReplaceFile(file, RowToJson(row).dump(2) + "\n"));
    return row.speeds;
  }

  static StatusOr<TechniqueRow> RowOfFile(const std::string& file) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
    ASSIGN_OR_RETURN(const Json json, ParseJson(text));
    ASSIGN_OR_RETURN(TechniqueRow row, RowFromJson(json, "row"));
    if (row.speeds.empty()) return DataLoss(file, ": has no speeds");
    if (row.drafter == "model" && row.draft_model_digest.empty())  // of an earlier version
      return DataLoss(file, ": has no digest of the drafter's model");
    return row;
  }

  // What is not there whole is measured again.
  Status ReadKept(Measured& out) const {
    ASSIGN_OR_RETURN(out.row, RowOfFile(out.files.row));
    ASSIGN_OR_RETURN(out.answers,
                     ResultFromRecords(out.files.answers, rows_.rows, options_.evaluate.max_tokens));
    out.answers.facts = ModelFacts{.model_digest = out.row.model_digest, .text_digest = out.row.text_digest};
    return {};
  }

  Status MeasureAnew(const ReportVariant& variant, Measured& out) {
    ASSIGN_OR_RETURN(out.answers,
                     EvaluateTarget(out.target, rows_.rows, options_.evaluate, out.files.answers, context_));
    ASSIGN_OR_RETURN(out.row, SpeedOf(out.target));
    CHECK(out.answers.facts.has_value(), "the model is in this process");
    if (out.row.model_digest != out.answers.facts->model_digest)
      return FailedPrecondition(variant.model, ": has changed while it was measured");
    out.row.name = variant.name;
    const Score all = out.answers.All();
    out.row.prompt_tokens = all.prompt_tokens;
    out.row.completion_tokens = all.completion_tokens;
    AddQuality(out.answers, out.row);
    if (!measured_.empty()) RETURN_IF_ERROR(CompareWithBaseline(out));
    return ReplaceFile(out.files.row, RowToJson(out.row).dump(2) + "\n");
  }

  StatusOr<TechniqueRow> SpeedOf(const ModelTarget& target) const {
    SpeedOptions speed;
    speed.engine = EngineOptionsOf(target, context_.shutdown);
    ASSIGN_OR_RETURN(speed.prompts, SpeedPrompts(target.model));
    speed.batches = options_.batches;
    speed.answer_tokens = options_.speed_tokens;
    speed.least_seconds = options_.speed_seconds;
    return MeasureSpeed(speed);
  }

  // Of rows from all over the tasks, those that leave room for what is generated behind them.
  StatusOr<std::vector<std::vector<TokenId>>> SpeedPrompts(const std::string& model) const {
    ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(model));
    const size_t step = std::max<size_t>(1, scored_.size() / kSpeedPrompts);
    std::vector<std::vector<TokenId>> prompts;
    for (size_t i = 0; i < scored_.size() && prompts.size() < kSpeedPrompts; i += step) {
      ASSIGN_OR_RETURN(std::vector<TokenId> prompt, files.text->EncodeChat(MessagesOf(scored_[i].chat)));
      if (prompt.size() + options_.speed_tokens <= files.config.context_length)
        prompts.push_back(std::move(prompt));
    }
    if (!prompts.empty()) return prompts;
    return InvalidArgument("no row's prompt leaves room for --speed-tokens ", options_.speed_tokens,
                           " in the context of ", files.config.context_length);
  }

  // The same weights in the same arithmetic have the same distributions, whatever drafts for them.
  bool IsShiftWanted(const Measured& measured) const {
    const TechniqueRow &ours = measured.row, &theirs = measured_.front().row;
    return options_.evaluate.divergence &&
           (ours.model_digest != theirs.model_digest || ours.compute != theirs.compute ||
            ours.kv_dtype != theirs.kv_dtype);
  }

  Status CompareWithBaseline(Measured& measured) const {
    const Measured& baseline = measured_.front();
    ModelComparison comparison =
        CompareResults(scored_, measured.answers, baseline.answers, options_.evaluate.comparison);
    measured.row.against_baseline = QualityOf(comparison.all);
    if (!IsShiftWanted(measured)) return {};
    RETURN_IF_ERROR(MeasureDivergence(rows_.rows, {measured.target, measured.answers.facts},
                                      {baseline.target, baseline.answers.facts}, context_, comparison));
    if (comparison.divergence.has_value()) {
      measured.row.shift = DistributionShift{.positions = comparison.divergence->positions,
                                             .mean_kl = comparison.divergence->mean_kl,
                                             .flip_rate = comparison.divergence->flip_rate};
    }
    return {};
  }

  AnswersPrice PriceOf(const Measured& measured) const {
    const std::vector<TierAnswer> answers = TierAnswersOf(measured.answers);
    const CascadeTier tier{.price = PriceOfTokens(options_.usd_per_hour, measured.row.speeds),
                           .answers = answers};
    return CombineAnswers({&tier, 1}, /*min_mean_logprob=*/0).price;
  }

  const Measured& Find(const std::string& name) const {
    return *std::ranges::find_if(measured_, [&](const Measured& each) { return each.row.name == name; });
  }

  // From the answers that its tiers have given.
  TechniqueRow RowOf(const ReportCascade& cascade, double threshold) const {
    TechniqueRow row{.name = cascade.RowName(threshold), .is_cascade = true};
    row.model = Concat("mean log-probability above ", threshold);
    std::vector<std::vector<TierAnswer>> answers;
    std::vector<CascadeTier> tiers;
    for (const std::string& name : cascade.tiers) {
      const Measured& tier = Find(name);
      row.weight_bytes += tier.row.weight_bytes;
      row.kv_bytes_per_token += tier.row.kv_bytes_per_token;
      answers.push_back(TierAnswersOf(tier.answers));
      tiers.push_back({.price = tier.row.price.tokens});
    }
    for (size_t i = 0; i < tiers.size(); ++i) tiers[i].answers = answers[i];
    const PricedAnswers priced = CombineAnswers(tiers, threshold);
    row.price = priced.price;
    row.prompt_tokens = priced.prompt_tokens;
    row.completion_tokens = priced.completion_tokens;
    row.first_tier_share = static_cast<double>(std::ranges::count(priced.tiers, size_t{0})) /
                           static_cast<double>(priced.tiers.size());
    std::vector<RowOutcome> outcomes;
    for (size_t i = 0; i < priced.tiers.size(); ++i)
      outcomes.push_back(Find(cascade.tiers[priced.tiers[i]]).answers.outcomes[i]);
    const EvaluationResult combined = Summarize(scored_, std::move(outcomes));
    AddQuality(combined, row);
    row.against_baseline = QualityOf(
        CompareResults(scored_, combined, measured_.front().answers, options_.evaluate.comparison).all);
    return row;
  }

  uint32_t Cores() const {
    const uint32_t threads = options_.evaluate.target.threads;
    return threads > 0 ? threads : UsableCores();
  }

  TechniqueReport Describe() const {
    TechniqueReport report{.tool = Concat("terrace ", kVersion),
                           .created = UtcNow("%Y-%m-%dT%H:%M:%SZ"),
                           .processor = processor_,
                           .cores = Cores(),
                           .usd_per_hour = options_.usd_per_hour,
                           .task_set_digest = TaskSetDigest(scored_).Hex(),
                           .limit = options_.evaluate.limit,
                           .max_tokens = options_.evaluate.max_tokens,
                           .speed_tokens = options_.speed_tokens,
                           .level = options_.evaluate.comparison.level};
    for (const std::string& file : options_.evaluate.tasks)
      report.task_files.push_back(fs::path(file).filename().string());
    if (report.task_files.empty()) report.task_files = {"the test files of models/eval"};
    return report;
  }

  const ReportOptions& options_;
  const CommandContext& context_;
  Descriptor work_;  // locked
  const std::string processor_;
  EvaluationRows rows_;
  std::vector<TaskRow> scored_;
  Json baseline_job_;
  std::vector<Measured> measured_;  // the baseline first
};

Status ShowHistory(const ReportOptions& options, const CommandContext& context) {
  std::vector<TechniqueReport> reports;
  for (const std::string& file : options.history) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
    auto report = ParseReport(text);
    if (!report.ok()) return Annotate(report.status(), file);
    reports.push_back(*std::move(report));
  }
  std::ranges::stable_sort(reports, {}, &TechniqueReport::created);
  ASSIGN_OR_RETURN(const auto history, HistoryOf(reports, options.levels));
  context.out << FormatHistory(reports, history);
  return {};
}

}  // namespace

Status RunReport(const ReportOptions& options, const CommandContext& context) {
  if (!options.history.empty()) return ShowHistory(options, context);
  ReportOptions chosen = options;
  std::string notes;
  ASSIGN_OR_RETURN(chosen.techniques, ExpandTechniques(options.techniques, options.evaluate.target.model,
                                                       options.calibration, options.mixed_bytes, notes));
  context.out << notes;
  const StatusOr<TechniqueReport> run = ReportRun(chosen, context).Run();
  if (!run.ok()) return Explained(run.status());
  const TechniqueReport& report = *run;
  const std::string markdown = FormatReport(report), stem = options.work + "/report";
  const std::string title = Concat("Accuracy against price, ", report.rows.front().rows(), " tasks");
  RETURN_IF_ERROR(ReplaceFile(stem + ".json", ReportToJson(report).dump(2) + "\n"));
  RETURN_IF_ERROR(ReplaceFile(stem + ".md", markdown));
  RETURN_IF_ERROR(ReplaceFile(stem + ".svg", QualityPlot(title, report.rows, Frontier(report.rows))));
  context.out << markdown << "\nwrote " << stem << ".json, .md and .svg\n";
  return {};
}

}  // namespace terrace
