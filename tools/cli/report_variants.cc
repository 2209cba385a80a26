#include "tools/cli/report_variants.h"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iterator>
#include <set>
#include <system_error>
#include <utility>

#include "base/hash.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/mapped_file.h"
#include "base/version.h"
#include "tools/optimize/quantize.h"
#include "tools/report/technique_row.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

constexpr char kVariantForm[] = "NAME=PATH[,kv=TYPE][,compute=TYPE][,draft=PATH]";
constexpr char kCascadeForm[] = "SMALL+LARGE@T[,T...]";

std::vector<std::string> Split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0;;) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    if (end == text.size()) return parts;
    begin = end + 1;
  }
}

Status SetPart(std::string_view part, ReportVariant& variant) {
  const size_t equals = part.find('=');
  const std::string_view key = part.substr(0, equals);
  const std::string value(equals == std::string_view::npos ? "" : part.substr(equals + 1));
  if (value.empty()) return InvalidArgument("\"", part, "\" is not KEY=VALUE (", kVariantForm, ")");
  if (key == "draft") {
    if (variant.drafter != "none") return InvalidArgument("draft is there twice");
    variant.drafter = value == "ngram" ? "ngram" : "model";
    if (value != "ngram") variant.draft_model = value;
    return {};
  }
  std::string* const to = key == "kv" ? &variant.kv_dtype : key == "compute" ? &variant.compute : nullptr;
  if (to == nullptr) return InvalidArgument("\"", key, "\" is none of kv, compute and draft");
  if (!to->empty()) return InvalidArgument(key, " is there twice");
  *to = value;
  return {};
}

StatusOr<double> ParseThreshold(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    return InvalidArgument("the threshold \"", text, "\" is not a number");
  if (value > 0)
    return InvalidArgument("the threshold ", text, " is above 0, which no mean log-probability is");
  return value;
}

template <typename Entry, size_t kCount>
Entry Named(const Entry (&entries)[kCount], std::string_view name) {
  const auto found = std::ranges::find(entries, name, &Entry::name);
  CHECK(found != std::end(entries), name);
  return *found;
}

Status CheckExists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error) ? Status() : NotFound(path, ": is not there");
}

template <typename Names, typename Name = std::identity>
std::string ListOf(const Names& entries, Name name = {}) {
  std::string list;
  for (const auto& entry : entries) list += Concat(list.empty() ? "" : ", ", std::invoke(name, entry));
  return list;
}

// "": of the baseline.
template <size_t kCount>
Status CheckType(const char* what, const std::string& type, const char* const (&types)[kCount]) {
  if (type.empty() || std::ranges::find(types, type) != std::end(types)) return {};
  return InvalidArgument(what, " \"", type, "\" is none of ", ListOf(types));
}

Status CheckVariant(const ReportVariant& variant) {
  RETURN_IF_ERROR(CheckType("kv", variant.kv_dtype, kKvDTypeNames));
  RETURN_IF_ERROR(CheckType("compute", variant.compute, kComputeNames));
  RETURN_IF_ERROR(CheckExists(variant.model));
  return variant.draft_model.empty() ? Status() : CheckExists(variant.draft_model);
}

// As Quantize's report has it.
Json BudgetJson(const QuantizeBudget& budget) {
  if (!budget.is_set()) return {};
  return {{"sensitivity_tokens", budget.tokens}, {"bytes", budget.bytes}};
}

// That what is there was made by Quantize of the same, and is what Quantize left.
Status CheckMade(const QuantizeRequest& request, const MakeOptions& options) {
  const std::string report_file = request.out + ".quantize.json";
  ASSIGN_OR_RETURN(const std::string text, ReadFile(report_file));
  const auto json = ParseJson(text);
  if (!json.ok()) return DataLoss(report_file, ": ", Message(json.status()));
  std::string text_digest;
  const CalibrationOptions& calibration = request.calibration;
  if (!calibration.path.empty()) {
    ASSIGN_OR_RETURN(const std::string rows, ReadFile(calibration.path));
    text_digest = HashBytes(rows).Hex();
  }
  const auto is = [&](const char* part, const char* key, const Json& want) {
    const Json object = part == nullptr ? *json : json->value(part, Json());
    return object.is_object() && object.contains(key) && object[key] == want;
  };
  const Json awq_revision =
      request.method.scales == QuantizeMethod::Scales::kAwq ? Json(kAwqRevision) : Json();
  const bool is_same = json->is_object() && is(nullptr, "version", kVersion) &&
                       is("model", "digest", options.baseline_digest) &&
                       is(nullptr, "text_digest", options.baseline_text_digest) &&
                       is(nullptr, "target", std::string(request.target.name)) &&
                       is(nullptr, "method", std::string(request.method.name)) &&
                       json->value("awq_revision", Json()) == awq_revision &&
                       json->value("budget", Json()) == BudgetJson(request.budget) &&
                       (calibration.path.empty() ? is(nullptr, "calibration", nullptr)
                                                 : is("calibration", "digest", text_digest) &&
                                                       is("calibration", "samples", calibration.samples) &&
                                                       is("calibration", "seed", calibration.seed));
  if (!is_same) {
    return FailedPrecondition(
        report_file,
        ": tells of another model, format, method, budget, calibration or version: name another --work");
  }
  const auto made = OpenModel(request.out);
  if (!made.ok()) return Annotate(made.status(), "--work");
  if (is("output", "digest", made->digest.Hex())) return {};
  return FailedPrecondition(request.out, ": is not the model that ", report_file,
                            " tells of: name another --work, or remove both");
}

}  // namespace

StatusOr<ReportVariant> ParseVariant(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) return InvalidArgument("\"", text, "\" is not ", kVariantForm);
  ReportVariant variant{.name = std::string(text.substr(0, equals))};
  if (!IsTechniqueName(variant.name) || variant.name.find_first_of("+@") != std::string::npos)
    return InvalidArgument("\"", variant.name, "\" is no name: 1 to 64 of A-Z a-z 0-9 . _ -");
  const std::vector<std::string> parts = Split(text.substr(equals + 1), ',');
  variant.model = parts.front();
  if (variant.model.empty()) return InvalidArgument("\"", text, "\" has no path (", kVariantForm, ")");
  for (size_t i = 1; i < parts.size(); ++i)
    RETURN_IF_ERROR(Annotate(SetPart(parts[i], variant), variant.name));
  return variant;
}

std::string ReportCascade::RowName(double threshold) const {
  std::string name;
  for (const std::string& tier : tiers) name += Concat(name.empty() ? "" : "+", tier);
  return Concat(name, "@", threshold);
}

StatusOr<ReportCascade> ParseCascade(std::string_view text) {
  const size_t at = text.find('@');
  if (at == std::string_view::npos) return InvalidArgument("\"", text, "\" is not ", kCascadeForm);
  ReportCascade cascade{.tiers = Split(text.substr(0, at), '+')};
  if (cascade.tiers.size() < 2) return InvalidArgument("\"", text, "\" has one tier only: ", kCascadeForm);
  for (size_t i = 0; i < cascade.tiers.size(); ++i) {
    const std::string& tier = cascade.tiers[i];
    if (tier.empty()) return InvalidArgument("\"", text, "\" has a tier without a name: ", kCascadeForm);
    if (std::find(cascade.tiers.begin(), cascade.tiers.begin() + static_cast<std::ptrdiff_t>(i), tier) !=
        cascade.tiers.begin() + static_cast<std::ptrdiff_t>(i))
      return InvalidArgument("\"", text, "\": ", tier, " is there twice");
  }
  for (const std::string& threshold : Split(text.substr(at + 1), ',')) {
    ASSIGN_OR_RETURN(cascade.thresholds.emplace_back(), ParseThreshold(threshold));
    const std::string name = cascade.RowName(cascade.thresholds.back());
    if (!IsTechniqueName(name))
      return InvalidArgument("\"", name, "\" is no name of a row: of at most 64 characters");
  }
  return cascade;
}

Status CheckNames(std::span<const std::string> techniques, std::span<const ReportVariant> variants,
                  std::span<const ReportCascade> cascades, const char* row) {
  std::set<std::string> names = {kBaseline};
  const auto add = [&](const std::string& name) {
    return names.insert(name).second ? Status() : InvalidArgument("two ", row, "s are named ", name);
  };
  for (const std::string& name : techniques) RETURN_IF_ERROR(add(name));
  for (const ReportVariant& variant : variants) RETURN_IF_ERROR(add(variant.name));
  const std::set<std::string> models = names;
  for (const ReportCascade& cascade : cascades) {
    for (const std::string& tier : cascade.tiers) {
      if (!models.contains(tier))
        return InvalidArgument("--cascade: no ", row, " is named ", tier,
                               ": baseline, a technique or a variant");
    }
    for (const double threshold : cascade.thresholds) RETURN_IF_ERROR(add(cascade.RowName(threshold)));
  }
  return {};
}

std::vector<ReportVariant> CombinationsOf(std::span<const ReportVariant> variants) {
  const ReportVariant& baseline = variants.front();
  std::vector<const ReportVariant*> weights, types = {nullptr}, drafters = {nullptr};
  for (const ReportVariant& each : variants) {
    const bool has_types = !each.kv_dtype.empty(), drafts = each.drafter != "none";
    if (!has_types && !drafts) weights.push_back(&each);
    if (each.model != baseline.model || each.compute != baseline.compute) continue;
    if (has_types && !drafts) types.push_back(&each);
    if (!has_types && drafts) drafters.push_back(&each);
  }
  std::vector<ReportVariant> out;
  for (const ReportVariant* const of : weights) {
    for (const ReportVariant* const type : types) {
      for (const ReportVariant* const drafter : drafters) {
        std::vector<const ReportVariant*> parts = {of, type, drafter};
        std::erase_if(parts, [&](const auto* part) { return part == nullptr || part == &baseline; });
        if (parts.size() < 2) continue;
        ReportVariant& combined = out.emplace_back(*of);
        combined.name = "";
        for (const ReportVariant* const part : parts)
          combined.name += Concat(combined.name.empty() ? "" : ".", part->name);
        if (type != nullptr) combined.kv_dtype = type->kv_dtype;
        if (drafter == nullptr) continue;
        combined.drafter = drafter->drafter;
        combined.draft_model = drafter->draft_model;
      }
    }
  }
  return out;
}

ModelTarget TargetOf(ModelTarget baseline, const ReportVariant& variant) {
  baseline.model = variant.model;
  if (!variant.compute.empty()) baseline.compute = variant.compute;
  if (!variant.kv_dtype.empty()) baseline.kv_dtype = variant.kv_dtype;
  return baseline;
}

const ReportTechnique* FindTechnique(std::string_view name) {
  const auto* const found = std::ranges::find(kReportTechniques, name, &ReportTechnique::name);
  return found == std::end(kReportTechniques) ? nullptr : found;
}

std::string TechniqueNames() { return ListOf(kReportTechniques, &ReportTechnique::name); }

Status CheckVariants(std::span<const std::string> techniques, std::span<const ReportVariant> variants,
                     const CalibrationOptions& calibration) {
  if (!calibration.path.empty()) RETURN_IF_ERROR(Annotate(CheckExists(calibration.path), "--calibration"));
  for (const std::string& name : techniques) {
    const ReportTechnique* const technique = FindTechnique(name);
    if (technique == nullptr)
      return InvalidArgument("--techniques: \"", name, "\" is none of ", TechniqueNames());
    const bool needs_text =
        !technique->method.empty() && Named(kQuantizeMethods, technique->method).needs_calibration();
    if (needs_text && calibration.path.empty())
      return InvalidArgument(name, ": needs calibration text (--calibration)");
  }
  for (const ReportVariant& variant : variants)
    RETURN_IF_ERROR(Annotate(CheckVariant(variant), variant.name));
  return {};
}

Status CheckTargets(std::span<const std::string> techniques, const std::string& baseline,
                    uint64_t mixed_bytes) {
  for (const std::string& name : techniques) {
    const ReportTechnique& technique = *FindTechnique(name);
    if (technique.target.empty()) continue;
    const auto bytes = QuantizedBytes(baseline, Named(kQuantizeTargets, technique.target),
                                      Named(kQuantizeMethods, technique.method));
    if (!bytes.ok()) return Annotate(bytes.status(), Concat("--techniques: ", name));
    if (technique.is_mixed && mixed_bytes > 0 && mixed_bytes < *bytes)
      return InvalidArgument("--mixed-fit: ", mixed_bytes,
                             " bytes; the smallest mixture of this model takes ", *bytes);
  }
  return {};
}

StatusOr<std::vector<std::string>> ExpandTechniques(std::span<const std::string> names,
                                                    const std::string& baseline,
                                                    const CalibrationOptions& calibration,
                                                    uint64_t mixed_bytes, std::string& notes) {
  std::vector<std::string> out;
  for (const std::string& name : names) {
    if (name != kAllTechniques) {
      out.push_back(name);
      continue;
    }
    for (const ReportTechnique& technique : kReportTechniques) {
      const std::string each(technique.name);
      Status can = CheckVariants({&each, 1}, {}, calibration);
      if (can.ok()) can = CheckTargets({&each, 1}, baseline, mixed_bytes);
      if (can.ok()) {
        out.push_back(each);
      } else if (can.code() == StatusCode::kInvalidArgument) {
        notes += Concat(each, ": left out: ", Message(can), "\n");
      } else {
        return can;
      }
    }
  }
  return out;
}

StatusOr<Descriptor> OpenWorkFolder(const std::string& work, std::span<const char* const> folders) {
  for (const char* const name : folders) {
    const std::string folder = Concat(work, "/", name);
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) return Unavailable("--work: ", folder, ": ", error.message());
  }
  Descriptor held(open(work.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!held.is_open()) return Unavailable("--work: ", work, ": ", std::strerror(errno));
  if (flock(held.number(), LOCK_EX | LOCK_NB) == 0) return held;
  return errno == EWOULDBLOCK ? Unavailable("--work: ", work, ": another process is at work there")
                              : Unavailable("--work: ", work, ": cannot lock: ", std::strerror(errno));
}

StatusOr<ReportVariant> MakeVariant(const ReportTechnique& technique, const MakeOptions& options,
                                    const CommandContext& context) {
  ReportVariant variant{.name = std::string(technique.name),
                        .model = options.baseline,
                        .kv_dtype = std::string(technique.kv_dtype),
                        .drafter = std::string(technique.drafter)};
  if (technique.target.empty()) return variant;
  QuantizeRequest request;
  request.model = options.baseline;
  request.target = Named(kQuantizeTargets, technique.target);
  request.method = Named(kQuantizeMethods, technique.method);
  request.out = Concat(options.folder, "/", technique.name, request.target.is_gguf() ? ".gguf" : "");
  if (request.method.needs_calibration()) request.calibration = options.calibration;
  if (technique.is_mixed) {
    request.budget.bytes = options.mixed_bytes;
    if (request.budget.bytes == 0) {
      auto bytes = QuantizedBytes(options.baseline, Named(kQuantizeTargets, kUniformSize));
      if (!bytes.ok()) return Annotate(bytes.status(), technique.name);
      request.budget.bytes = *bytes;
    }
  }
  variant.model = request.out;
  std::error_code ignored;
  if (std::filesystem::exists(request.out, ignored)) {
    RETURN_IF_ERROR(CheckMade(request, options));
    return variant;
  }
  request.threads = options.threads > 0 ? options.threads : UsableCores();
  request.is_cancelled = [&context] { return context.shutdown.IsPending(); };
  RETURN_IF_ERROR(Annotate(Quantize(request).status(), technique.name));
  return variant;
}

}  // namespace terrace
