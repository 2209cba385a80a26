#include "tools/cli/calibrate.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <utility>

#include "base/hash.h"
#include "base/mapped_file.h"
#include "base/version.h"
#include "tools/cli/calibrate_table.h"
#include "tools/cli/find_files.h"
#include "tools/cli/format.h"
#include "tools/cli/new_file.h"

namespace terrace {
namespace {

constexpr char kValidation[] = "models/eval/validation.jsonl";

StatusOr<std::vector<TaskRow>> LoadRows(const CalibrateOptions& options, const std::string& argv0) {
  std::vector<std::string> files = options.tasks;
  if (files.empty()) {
    ASSIGN_OR_RETURN(std::string file, FindProjectFile(kValidation, argv0));
    files.push_back(std::move(file));
  }
  std::vector<TaskRow> rows;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::vector<TaskRow> more, LoadTaskFile(file));
    if (options.limit > 0 && more.size() > options.limit) more.resize(options.limit);
    std::move(more.begin(), more.end(), std::back_inserter(rows));
  }
  return rows;
}

// The text of the records. Where they are saved, what a run has had is kept beside them until they are whole.
StatusOr<std::string> AskForRecords(const std::vector<TaskRow>& rows, const CalibrateOptions& options,
                                    const CommandContext& context) {
  AskTiersOptions ask = options.ask;
  const std::string& path = options.save_records;
  if (!path.empty()) {
    std::vector<std::pair<const char*, std::string>> inputs = {{"--report", options.calibration.report}};
    for (const std::string& file : options.tasks) inputs.emplace_back("--tasks", file);
    RETURN_IF_ERROR(CheckIsNoInput("--save-records", path, inputs));
    RETURN_IF_ERROR(CheckCanReplace(path));
    ask.journal = path + ".journal";
  }
  ASSIGN_OR_RETURN(const Records records, AskTiers(rows, ask, context));
  std::string text = RecordsText(records);
  if (path.empty()) return text;
  RETURN_IF_ERROR(ReplaceFile(path, text));
  std::error_code error;
  if (!std::filesystem::remove(ask.journal, error) && error)
    return Unavailable(ask.journal, ": ", error.message());
  return text;
}

StatusOr<Records> ParseRecordsFile(const std::string& text, const std::string& path) {
  StatusOr<Records> records = ParseRecords(text);
  if (!records.ok()) return Annotate(records.status(), path.empty() ? "records" : path);
  return records;
}

Status Report(const Calibration& calibration, const std::string& path, const CommandContext& context) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(const Records records, ParseRecordsFile(text, path));
  const StatusOr<Tally> tally = ApplyCalibration(calibration, records);
  if (!tally.ok()) return Annotate(tally.status(), path);
  context.out << "\n" << FormatReport(*tally, records);
  return {};
}

struct Group {
  const char* name;
  std::vector<FeatureSource> sources;
};

const std::vector<Group>& Groups() {
  static const auto* const groups = new std::vector<Group>{
      {"signals", {FeatureSource::kFirstToken, FeatureSource::kAnswer}},
      {"prompt", {FeatureSource::kPrompt}},
      {"first_token", {FeatureSource::kFirstToken}},
      {"derived", {FeatureSource::kDerived}},
      {"agreement", {FeatureSource::kAgreement}},
  };
  return *groups;
}

// The features of a group, or the one of that name.
StatusOr<std::vector<const Feature*>> FeaturesNamed(const std::string& name) {
  const auto group =
      std::find_if(Groups().begin(), Groups().end(), [&](const Group& each) { return each.name == name; });
  if (group == Groups().end()) {
    ASSIGN_OR_RETURN(const Feature* const feature, FindFeature(name));
    return std::vector<const Feature*>{feature};
  }
  std::vector<const Feature*> features;
  for (const Feature& feature : AllFeatures()) {
    const auto& sources = group->sources;
    if (std::find(sources.begin(), sources.end(), feature.source) != sources.end())
      features.push_back(&feature);
  }
  return features;
}

}  // namespace

StatusOr<std::string> ReadRecords(const std::vector<std::string>& paths) {
  std::string all;
  std::vector<RecordedTier> tiers;
  for (const std::string& path : paths) {
    if (std::count(paths.begin(), paths.end(), path) > 1) return InvalidArgument(path, ": is there twice");
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    ASSIGN_OR_RETURN(const Records records, ParseRecordsFile(text, path));
    if (all.empty()) {
      tiers = records.tiers;
      all = text;
      continue;
    }
    if (records.tiers != tiers)
      return InvalidArgument(path, ": is of other tiers, or models, than ", paths[0]);
    if (!all.ends_with('\n')) all += '\n';
    all += text.substr(text.find('\n') + 1);  // behind the head
  }
  return all;
}

StatusOr<std::vector<const Feature*>> ChooseFeatures(const std::vector<std::string>& names,
                                                     CalibrationKind kind) {
  if (names.empty()) {
    const bool is_cascade = kind == CalibrationKind::kCascade;
    return ChooseFeatures(
        is_cascade ? std::vector<std::string>{"signals", "prompt"} : std::vector<std::string>{"prompt"},
        kind);
  }
  std::vector<const Feature*> chosen;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const std::vector<const Feature*> features, FeaturesNamed(name));
    for (const Feature* feature : features) {
      if (std::find(chosen.begin(), chosen.end(), feature) != chosen.end())
        return InvalidArgument("--features: ", feature->name, " is there twice");
      chosen.push_back(feature);
    }
  }
  return chosen;
}

Status CheckFlags(const CalibrationFlags& flags, CalibrationKind kind,
                  const std::vector<std::string>& records) {
  std::vector<std::pair<const char*, std::string>> inputs = {{"--report", flags.report}};
  for (const std::string& file : records) inputs.emplace_back("--records", file);
  RETURN_IF_ERROR(CheckIsNoInput("--out", flags.out, inputs));
  ASSIGN_OR_RETURN(const std::vector<const Feature*> features, ChooseFeatures(flags.features, kind));
  for (const Feature* feature : features) {
    if (kind == CalibrationKind::kClassifier && !IsKnownEarly(*feature)) {
      return InvalidArgument("--features: ", feature->name,
                             " is of an answer, which a classifier does not wait for");
    }
    if (!flags.out.empty() && !IsReadByGates(*feature))
      return InvalidArgument("--features: ", Message(NotReadByGates(*feature)), ": leave it out, or --out");
  }
  return {};
}

Status RunCalibrator(const std::string& records_text, CalibrationKind kind, const CalibrationFlags& flags,
                     const CommandContext& context) {
  CalibratorOptions options = {.kind = kind,
                               .policy = flags.policy,
                               .limit = flags.limit,
                               .target = flags.target,
                               .fit_share = flags.fit_share,
                               .seed = flags.seed,
                               .data_digest = HashBytes(records_text).Hex(),
                               .date = UtcNow("%Y-%m-%d"),
                               .version = kVersion};
  ASSIGN_OR_RETURN(options.features, ChooseFeatures(flags.features, kind));
  ASSIGN_OR_RETURN(const Records records, ParseRecordsFile(records_text, ""));
  ASSIGN_OR_RETURN(const CalibratorResult result, Calibrate(records, options));
  context.out << FormatScorers(result) << "\n" << FormatCandidates(result);
  if (!flags.report.empty()) RETURN_IF_ERROR(Report(result.calibration, flags.report, context));
  if (flags.out.empty()) return {};
  RETURN_IF_ERROR(ReplaceFile(flags.out, CalibrationText(result.calibration)));
  context.out << "\nwrote " << flags.out << "\n";
  return {};
}

Status RunCalibrate(const CalibrateOptions& options, const CommandContext& context) {
  RETURN_IF_ERROR(CheckFlags(options.calibration, CalibrationKind::kCascade, options.records));
  if (!options.records.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadRecords(options.records));
    return RunCalibrator(text, CalibrationKind::kCascade, options.calibration, context);
  }
  ASSIGN_OR_RETURN(const std::vector<TaskRow> rows, LoadRows(options, context.argv0));
  ASSIGN_OR_RETURN(const std::string text, AskForRecords(rows, options, context));
  if (options.records_only) {
    context.out << FormatCount(ScoredRows(rows).size(), "record") << " in " << options.save_records << "\n";
    return {};
  }
  return RunCalibrator(text, CalibrationKind::kCascade, options.calibration, context);
}

}  // namespace terrace
