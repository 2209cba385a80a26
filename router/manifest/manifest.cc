#include "router/manifest/manifest.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <utility>

#include "base/strict_fields.h"

namespace terrace {
namespace {

constexpr char kFormat[] = "terrace-manifest-1";
constexpr size_t kMaxFailures = 1000, kShownFailures = 8;
constexpr size_t kKeyIdDigits = 64, kSentenceBytes = 256;

Json ToJson(const CertifiedModel& model) {
  return {{"model_digest", model.model_digest}, {"name", model.name}, {"text_digest", model.text_digest}};
}

Json ToJson(const Manifest& manifest) {
  return {{"baseline", ToJson(manifest.baseline)},
          {"candidate", ToJson(manifest.candidate)},
          {"created", manifest.created},
          {"failures", manifest.failures},
          {"format", kFormat},
          {"report", manifest.report},
          {"task_set_digest", manifest.task_set_digest},
          {"tool", manifest.tool},
          {"verdict", manifest.passed() ? "passed" : "failed"}};
}

std::string FileText(const Json& body, const std::string& key_id, const std::string& signature) {
  const Json document = {{"key", key_id}, {"manifest", body}, {"signature", ToBase64(signature)}};
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

StatusOr<CertifiedModel> ParseModel(const Json& json, const char* place) {
  StrictFields fields(json, place);
  CertifiedModel model{.name = fields.Text("name"),
                       .model_digest = fields.Text("model_digest"),
                       .text_digest = fields.Text("text_digest")};
  RETURN_IF_ERROR(fields.Finish());
  return model;
}

StatusOr<Manifest> ParseBody(const Json& json) {
  StrictFields fields(json, "manifest");
  Manifest manifest;
  const Json &baseline = fields.Object("baseline"), &candidate = fields.Object("candidate");
  manifest.created = fields.Text("created");
  const Json& failures = fields.List("failures");
  const std::string format = fields.Text("format");
  const Json& report = fields.Object("report");
  manifest.task_set_digest = fields.Text("task_set_digest");
  manifest.tool = fields.Text("tool");
  const std::string verdict = fields.Text("verdict");
  if (json.contains("format") && format != kFormat)
    return InvalidArgument("format \"", Shown(format), "\", this version reads ", kFormat);
  RETURN_IF_ERROR(fields.Finish());
  ASSIGN_OR_RETURN(manifest.baseline, ParseModel(baseline, "manifest.baseline"));
  ASSIGN_OR_RETURN(manifest.candidate, ParseModel(candidate, "manifest.candidate"));
  manifest.report = report;
  if (failures.size() > kMaxFailures)
    return InvalidArgument("manifest: ", failures.size(), " failures, limit ", kMaxFailures);
  for (const Json& failure : failures) {
    if (!failure.is_string()) return InvalidArgument("manifest: \"failures\" must be strings");
    manifest.failures.push_back(failure.get<std::string>());
  }
  if (verdict != (manifest.passed() ? "passed" : "failed")) {
    return InvalidArgument("manifest: verdict \"", Shown(verdict), "\" with ", manifest.failures.size(),
                           " failures");
  }
  return manifest;
}

bool IsKeyId(std::string_view text) {
  return text.size() == kKeyIdDigits && text.find_first_not_of("0123456789abcdef") == text.npos;
}

StatusOr<SignedManifest> ParseDocument(std::string_view text) {
  ASSIGN_OR_RETURN(const Json document, ParseJson(text, {.bytes = kMaxManifestBytes}));
  StrictFields fields(document, "");
  SignedManifest out;
  out.key_id = fields.Text("key");
  const Json& body = fields.Object("manifest");
  const std::optional<std::string> signature = ParseBase64(fields.Text("signature"));
  RETURN_IF_ERROR(fields.Finish());
  if (!IsKeyId(out.key_id))
    return InvalidArgument("\"key\" is not ", kKeyIdDigits, " lower-case hexadecimal digits");
  if (!signature.has_value() || signature->size() != kSignatureBytes)
    return InvalidArgument("\"signature\" is not the Base64 of ", kSignatureBytes, " bytes");
  out.signature = *signature;
  ASSIGN_OR_RETURN(out.manifest, ParseBody(body));
  if (FileText(body, out.key_id, out.signature) != text)
    return InvalidArgument("it is not written as `terrace certify` writes it");
  return out;
}

// Nothing where there is no such member.
const Json* MemberAt(const Json& json, std::initializer_list<const char*> path) {
  const Json* at = &json;
  for (const char* const name : path) {
    if (!at->is_object() || !at->contains(name)) return nullptr;
    at = &at->at(name);
  }
  return at;
}

std::optional<double> NumberAt(const Json& json, std::initializer_list<const char*> path) {
  const Json* const found = MemberAt(json, path);
  if (found == nullptr || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

template <typename... Text>
Status Refusal(std::string_view reason, const Text&... text) {
  return WithReason(FailedPrecondition(text...), reason);
}

}  // namespace

bool IsManifestReason(std::string_view reason) {
  return std::ranges::find(kManifestReasons, reason) != std::end(kManifestReasons);
}

std::string Shown(std::string_view text, size_t most) {
  size_t size = std::min(text.size(), most);
  while (size < text.size() && size > 0 && (text[size] & 0xC0) == 0x80) --size;  // whole characters
  std::string out(text.substr(0, size));
  for (size_t i = 0; i < out.size(); ++i) {
    const auto byte = static_cast<unsigned char>(out[i]);
    const bool is_c1 = byte == 0xC2 && i + 1 < out.size() && static_cast<unsigned char>(out[i + 1]) < 0xA0;
    if (byte < 0x20 || byte == 0x7F || is_c1) out[i] = '?';
    if (is_c1) out[++i] = '?';
  }
  return size < text.size() ? out + "..." : out;
}

ManifestTerms TermsOf(const Manifest& manifest) {
  const Json& report = manifest.report;
  ManifestTerms terms{.margin = NumberAt(report, {"thresholds", "margin"}),
                      .level = NumberAt(report, {"thresholds", "level"}),
                      .max_mean_kl = NumberAt(report, {"thresholds", "max_mean_kl"}),
                      .max_flip_rate = NumberAt(report, {"thresholds", "max_flip_rate"}),
                      .mean_kl = NumberAt(report, {"comparison", "divergence", "mean_kl"}),
                      .flip_rate = NumberAt(report, {"comparison", "divergence", "flip_rate"})};
  const Json* const divergence = MemberAt(report, {"comparison", "divergence"});
  terms.has_distributions = divergence != nullptr && divergence->is_object();
  const Json* const tasks = MemberAt(report, {"comparison", "tasks"});
  if (tasks == nullptr || !tasks->is_object()) return terms;
  for (const Json& task : *tasks) {
    const Json* const said = MemberAt(task, {"rows"});
    const int64_t rows = said != nullptr && said->is_number_integer() ? said->get<int64_t>() : 0;
    const uint64_t counted = static_cast<uint64_t>(std::max<int64_t>(rows, 0));
    terms.least_rows = terms.tasks == 0 ? counted : std::min(terms.least_rows, counted);
    ++terms.tasks;
  }
  return terms;
}

std::string SignedBytes(const Manifest& manifest) { return ToJsonText(ToJson(manifest)); }

std::string ManifestText(const Manifest& manifest, const PrivateKey& key) {
  return FileText(ToJson(manifest), key.public_key().id(), key.Sign(SignedBytes(manifest)));
}

StatusOr<SignedManifest> ParseManifest(std::string_view text) {
  StatusOr<SignedManifest> manifest = ParseDocument(text);
  if (!manifest.ok()) {
    return WithReason(DataLoss("not a manifest: ", Shown(Message(manifest.status()), kSentenceBytes)),
                      "manifest_malformed");
  }
  return manifest;
}

Status CheckSigner(const SignedManifest& manifest, std::span<const PublicKey> keys) {
  const auto key = std::ranges::find(keys, manifest.key_id, &PublicKey::id);
  if (key == keys.end())
    return Refusal("manifest_unknown_key", "it is signed with the key ", manifest.key_id,
                   ", which is none of those that are asked for");
  if (key->HasSigned(SignedBytes(manifest.manifest), manifest.signature)) return {};
  return Refusal("manifest_bad_signature", "its signature is not that of its content by the key ",
                 manifest.key_id);
}

Status CheckCandidate(const Manifest& manifest, std::string_view model_digest, std::string_view text_digest) {
  const CertifiedModel& model = manifest.candidate;
  if (model.model_digest != model_digest) {
    return Refusal("manifest_other_model", "it is of the model ", Shown(model.name), " (",
                   Shown(model.model_digest), "), not of ", model_digest);
  }
  if (model.text_digest == text_digest) return {};
  return Refusal("manifest_other_model", "it is of the tokenizer and chat template ",
                 Shown(model.text_digest), ", not of ", text_digest);
}

Status CheckArithmetic(const Manifest& manifest, const Arithmetic& served) {
  const auto measured = [&](const char* name) {
    const Json* const found = MemberAt(manifest.report, {"candidate", "in_process", name});
    return found != nullptr && found->is_string() ? found->get<std::string>() : std::string();
  };
  const std::string compute = measured("compute"), kv_dtype = measured("kv_dtype");
  const bool rounds_more = served.compute == "auto"  ? compute == "f32"
                           : served.compute == "fp8" ? compute != "fp8"
                                                     : false;
  const bool is_8_bits = served.kv_dtype == "int8" || served.kv_dtype == "fp8";
  std::string differences;
  if (rounds_more) differences = Concat("compute ", Shown(compute), ", the worker has ", served.compute);
  if (is_8_bits && kv_dtype != served.kv_dtype)
    differences += Concat(differences.empty() ? "" : "; with ", "keys and values in ", Shown(kv_dtype),
                          ", the worker has them in ", served.kv_dtype);
  if (differences.empty()) return {};
  return Refusal("manifest_other_arithmetic", "it is measured with ", differences);
}

Status CheckBaseline(const Manifest& manifest, std::string_view model_digest) {
  const CertifiedModel& model = manifest.baseline;
  const CertifiedModel& candidate = manifest.candidate;
  if (model.model_digest == candidate.model_digest && model.text_digest == candidate.text_digest)
    return Refusal("manifest_other_baseline", "it is measured against the model itself");
  if (model_digest.empty() || model.model_digest == model_digest) return {};
  return Refusal("manifest_other_baseline", "it is measured against the model ", Shown(model.name), " (",
                 Shown(model.model_digest), "), not against ", model_digest);
}

Status CheckVerdict(const Manifest& manifest) {
  if (manifest.passed()) return {};
  std::string failures;
  const size_t shown = std::min(manifest.failures.size(), kShownFailures);
  for (size_t i = 0; i < shown; ++i)
    failures += Concat(i == 0 ? "" : "; ", Shown(manifest.failures[i], kSentenceBytes));
  if (shown < manifest.failures.size())
    failures += Concat("; and ", manifest.failures.size() - shown, " more");
  return Refusal("manifest_failed", "its verdict is failed: ", failures);
}

Status CheckLimits(const Manifest& manifest, const ManifestLimits& limits) {
  constexpr std::string_view kReason = "manifest_outside_limits";
  const ManifestTerms terms = TermsOf(manifest);
  if (!limits.task_set.empty() && manifest.task_set_digest != limits.task_set) {
    return Refusal(kReason, "it is measured on the task set ", Shown(manifest.task_set_digest), ", not on ",
                   limits.task_set);
  }
  if (limits.require_distributions && !terms.has_distributions)
    return Refusal(kReason, "distributions were not compared, which is asked for");
  const struct {
    const char* name;
    std::optional<double> value;
    double limit;
    bool is_asked;
  } bounds[] = {{"margin", terms.margin, limits.max_margin, true},
                {"level", terms.level, limits.max_level, true},
                {"mean KL divergence", terms.mean_kl, limits.max_mean_kl, terms.has_distributions},
                {"flip rate", terms.flip_rate, limits.max_flip_rate, terms.has_distributions}};
  for (const auto& bound : bounds) {
    if (!bound.is_asked) continue;
    if (!bound.value.has_value()) return Refusal(kReason, "it does not say its ", bound.name);
    if (!(*bound.value <= bound.limit))  // nor where it is no number
      return Refusal(kReason, "its ", bound.name, " is ", *bound.value, ", limit ", bound.limit);
  }
  if (terms.least_rows >= limits.min_rows) return {};
  if (terms.tasks == 0)
    return Refusal(kReason, "it has no task, of which each has to have ", limits.min_rows, " rows");
  return Refusal(kReason, "its smallest task has ", terms.least_rows, " rows, at least ", limits.min_rows,
                 " are asked for");
}

}  // namespace terrace
