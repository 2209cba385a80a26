#include "tools/cli/certify.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "base/hash.h"
#include "base/mapped_file.h"
#include "base/signature.h"
#include "base/version.h"
#include "router/manifest/manifest.h"
#include "text/text_assets.h"
#include "tools/cli/format.h"
#include "tools/cli/new_file.h"
#include "tools/cli/verdict.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

Status MakeKey(const std::string& name, const CommandContext& context) {
  const PrivateKey key = PrivateKey::Make();
  const std::string secret = name + ".private.pem", open = name + ".public.pem";
  RETURN_IF_ERROR(WriteNewFile(secret, key.Pem(), /*is_secret=*/true));
  if (const Status written = WriteNewFile(open, key.public_key().Pem(), /*is_secret=*/false); !written.ok()) {
    std::error_code ignored;
    std::filesystem::remove(secret, ignored);  // half a pair is of no use
    return written;
  }
  context.out << "wrote " << secret << " (signs; keep it secret) and " << open
              << " (for manifest_keys)\nkey id  " << key.public_key().id() << "\n";
  return {};
}

StatusOr<PrivateKey> ReadPrivateKey(const std::string& file) {
  ASSIGN_OR_RETURN(const std::string pem, ReadFile(file, kMaxKeyFileBytes));
  auto key = PrivateKey::Parse(pem);
  if (!key.ok()) return Annotate(key.status(), file);
  return key;
}

// What is wrong with the models before hours are spent on them: one that is not there, a baseline that is the
// candidate, which shows nothing, and tokens that are not the same, with which distributions cannot be
// compared and the verdict could only be "failed".
Status CheckModels(const EvaluateOptions& evaluate) {
  std::vector<Hash128> digests, models, texts;
  for (const std::string& name : {evaluate.target.model, evaluate.baseline}) {
    ASSIGN_OR_RETURN(const ModelFiles model, OpenModel(name));
    digests.push_back(TokenizerDigest(*model.text));
    models.push_back(model.digest);
    texts.push_back(Digest(*model.text));
  }
  if (models[0] == models[1] && texts[0] == texts[1]) {
    return WithReason(InvalidArgument("--baseline ", evaluate.baseline, " is the model itself (digest ",
                                      models[0].Hex(), "): certify compares a model with another one"),
                      "same_model");
  }
  if (!evaluate.divergence || digests[0] == digests[1]) return {};
  return WithReason(InvalidArgument(evaluate.target.model, " has the tokenizer ", digests[0].Hex(), ", ",
                                    evaluate.baseline, " ", digests[1].Hex(),
                                    ": their distributions cannot be compared (--no-divergence: only tasks)"),
                    "tokenizer_mismatch");
}

Status CheckOut(const CertifyOptions& options) {
  const EvaluateOptions& evaluate = options.evaluate;
  std::vector<std::pair<const char*, std::string>> inputs = {
      {"--key", options.key},
      {"--model", evaluate.target.model},
      {"--baseline", evaluate.baseline},
      {"--save-records", evaluate.records},
      {"--baseline-records", evaluate.baseline_records}};
  for (const std::string& file : evaluate.tasks) inputs.emplace_back("--tasks", file);
  RETURN_IF_ERROR(CheckIsNoInput("--out", options.out, inputs));
  return CheckCanReplace(options.out);
}

// The manifest's text, which is read back: what no gate could read is not written.
StatusOr<std::string> CheckedText(const Manifest& manifest, const PrivateKey& key) {
  std::string text = ManifestText(manifest, key);
  const auto read = ParseManifest(text);
  if (!read.ok()) return Annotate(read.status(), "what would be written");
  const PublicKey signer = key.public_key();
  RETURN_IF_ERROR(CheckSigner(*read, {&signer, 1}));
  return text;
}

CertifiedModel CertifiedOf(const EvaluationResult& result) {
  CHECK(result.facts.has_value(), "the model is in this process");
  return {.name = result.facts->name,
          .model_digest = result.facts->model_digest,
          .text_digest = result.facts->text_digest};
}

Json ReportOf(const CertifyOptions& options, const PairedEvaluation& paired) {
  const EvaluateOptions& evaluate = options.evaluate;
  Json files = Json::array();
  for (const std::string& file : evaluate.tasks)
    files.push_back(std::filesystem::path(file).filename().string());
  Json report = {{"settings",
                  {{"tasks", std::move(files)},  // none: the test files of models/eval
                   {"limit", evaluate.limit},
                   {"max_tokens", evaluate.max_tokens},
                   {"probe", evaluate.probe}}},
                 {"thresholds",
                  {{"margin", evaluate.comparison.margin},
                   {"level", evaluate.comparison.level},
                   {"max_mean_kl", options.thresholds.max_mean_kl},
                   {"max_flip_rate", options.thresholds.max_flip_rate}}},
                 {"comparison", ComparisonToJson(paired.comparison)},
                 {"candidate", EvaluationToJson(paired.candidate)},
                 {"baseline", EvaluationToJson(paired.baseline)}};
  if (!paired.rows.probe.empty()) {
    report["probe"] = {{"candidate", ProbeToJson(paired.rows.probe, paired.candidate)},
                       {"baseline", ProbeToJson(paired.rows.probe, paired.baseline)}};
  }
  return report;
}

std::string Describe(const PairedComparison& task) {
  return Concat(task.name, ": ", ComparisonVerdictName(task.verdict), ": ", task.counts.gained, " gained, ",
                task.counts.lost, " lost of ", task.counts.rows(), " rows, Holm's p ",
                FormatFixed(task.adjusted_p, 4));
}

}  // namespace

std::vector<std::string> FindFailures(const ModelComparison& comparison, const CertifyThresholds& thresholds,
                                      bool needs_divergence) {
  std::vector<std::string> failures;
  if (comparison.tasks.empty() && !needs_divergence)  // nothing at all is shown
    failures.push_back("tasks: no row has a checker");
  for (const PairedComparison& task : comparison.tasks) {
    if (task.verdict != ComparisonVerdict::kNonInferior) failures.push_back(Describe(task));
  }
  if (!needs_divergence) return failures;
  if (!comparison.divergence.has_value()) {
    failures.push_back(Concat("distributions: not compared: ", comparison.divergence_note));
    return failures;
  }
  const Divergence& divergence = *comparison.divergence;
  if (divergence.positions == 0) failures.push_back("distributions: there was no position to compare");
  const struct {
    const char* name;
    double value, limit;
  } limits[] = {{"mean KL", divergence.mean_kl, thresholds.max_mean_kl},
                {"flip rate", divergence.flip_rate, thresholds.max_flip_rate}};
  for (const auto& each : limits) {
    if (!(each.value <= each.limit))  // nor where it is no number
      failures.push_back(
          Concat("distributions: ", each.name, " ", FormatFixed(each.value, 4), ", limit ", each.limit));
  }
  return failures;
}

Status RunCertify(const CertifyOptions& options, const CommandContext& context) {
  if (!options.make_key.empty()) return MakeKey(options.make_key, context);
  ASSIGN_OR_RETURN(const PrivateKey key, ReadPrivateKey(options.key));
  RETURN_IF_ERROR(CheckOut(options));
  RETURN_IF_ERROR(CheckModels(options.evaluate));
  StatusOr<PairedEvaluation> evaluated = EvaluatePaired(options.evaluate, context);
  if (!evaluated.ok()) return ExplainedByRecords(evaluated.status(), options.evaluate);
  const PairedEvaluation& paired = *evaluated;
  const Manifest manifest = {
      .tool = Concat("terrace ", kVersion),
      .created = UtcNow("%Y-%m-%dT%H:%M:%SZ"),
      .candidate = CertifiedOf(paired.candidate),
      .baseline = CertifiedOf(paired.baseline),
      .task_set_digest = TaskSetDigest(paired.rows.rows).Hex(),
      .failures = FindFailures(paired.comparison, options.thresholds, options.evaluate.divergence),
      .report = ReportOf(options, paired)};
  ASSIGN_OR_RETURN(const std::string text, CheckedText(manifest, key));
  RETURN_IF_ERROR(ReplaceFile(options.out, text));
  context.out << FormatComparison(paired.comparison, options.evaluate.baseline);
  if (!paired.rows.probe.empty()) context.out << "\n" << FormatProbe(paired.rows.probe, paired.candidate);
  if (paired.comparison.tasks.empty())
    context.out << "no row has a checker: no answer was checked, the verdict rests on distributions alone\n";
  for (const std::string& failure : manifest.failures) context.out << "failed: " << failure << "\n";
  context.out << "wrote " << options.out << ": " << (manifest.passed() ? "passed" : "failed") << "\n";
  if (const Status limits = CheckLimits(manifest, {}); manifest.passed() && !limits.ok())
    context.out << "a tier takes it only with manifest_limits of its own: " << Message(limits) << "\n";
  if (manifest.passed()) return {};
  return AnswerIsNo(options.evaluate.target.model, ": is not shown to be as good as ",
                    options.evaluate.baseline);
}

}  // namespace terrace
