#include "router/tier/calibration.h"

#include <algorithm>
#include <utility>

#include "base/hash.h"
#include "base/json.h"
#include "base/strict_fields.h"

namespace terrace {
namespace {

constexpr char kFormat[] = "terrace-calibration-1";
constexpr size_t kMaxBytes = 1 << 20, kMaxSteps = 16;

// Parsing and writing JSON again gives the same text, so white space does not count.
std::string Checksum(const Json& body) { return HashBytes(ToJsonText(body)).Hex(); }

Json ToJson(const FeatureScorer& scorer) {
  Json features = Json::array();
  for (const ScoredFeature& each : scorer.features) {
    features.push_back({{"name", std::string(each.feature->name)},
                        {"weight", each.weight},
                        {"mean", each.mean},
                        {"scale", each.scale}});
  }
  return {{"bias", scorer.bias}, {"features", std::move(features)}};
}

Json ToJson(const CalibratedStep& step) {
  Json json = {{"tier", step.tier}, {"model_digest", step.model_digest}, {"text_digest", step.text_digest}};
  if (step.gate.has_value()) {
    json["threshold"] = step.gate->threshold;
    json["scorer"] = ToJson(step.gate->scorer);
  }
  return json;
}

Json ToJson(const CalibrationEvidence& evidence) {
  return {{"epsilon", evidence.epsilon},
          {"delta", evidence.delta},
          {"rows", evidence.rows},
          {"losses", evidence.losses},
          {"loss_bound", evidence.loss_bound},
          {"fit_rows", evidence.fit_rows},
          {"accuracy", evidence.accuracy},
          {"last_tier_accuracy", evidence.last_tier_accuracy},
          {"relative_cost", evidence.relative_cost},
          {"data_digest", evidence.data_digest},
          {"date", evidence.date},
          {"version", evidence.version}};
}

StatusOr<ScoredFeature> ParseFeature(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  ScoredFeature scored;
  const std::string name = fields.Text("name");
  scored.weight = fields.Number("weight");
  scored.mean = fields.Number("mean");
  scored.scale = fields.Number("scale");
  RETURN_IF_ERROR(fields.Finish());
  ASSIGN_OR_RETURN(scored.feature, FindFeature(name));
  if (scored.scale <= 0) return InvalidArgument(place, ": \"scale\" must be more than 0, got ", scored.scale);
  return scored;
}

StatusOr<FeatureScorer> ParseScorer(const Json& json, CalibrationKind kind, const std::string& place) {
  StrictFields fields(json, place);
  FeatureScorer scorer;
  scorer.bias = fields.Number("bias");
  const Json& list = fields.List("features");
  RETURN_IF_ERROR(fields.Finish());
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(const ScoredFeature scored, ParseFeature(list[i], Concat(place, ".features[", i, "]")));
    const bool is_known = std::any_of(scorer.features.begin(), scorer.features.end(),
                                      [&](const auto& other) { return other.feature == scored.feature; });
    if (is_known) return InvalidArgument(place, ": feature ", scored.feature->name, " occurs twice");
    if (kind == CalibrationKind::kClassifier && !IsKnownEarly(*scored.feature)) {
      return InvalidArgument(place, ": feature ", scored.feature->name,
                             " is of an answer, which a classifier does not wait for");
    }
    scorer.features.push_back(scored);
  }
  return scorer;
}

StatusOr<CalibratedStep> ParseStep(const Json& json, CalibrationKind kind, bool is_last,
                                   const std::string& place) {
  StrictFields fields(json, place);
  CalibratedStep step;
  step.tier = fields.Text("tier");
  step.model_digest = fields.Text("model_digest");
  step.text_digest = fields.Text("text_digest");
  if (is_last) {
    RETURN_IF_ERROR(fields.Finish());
    return step;
  }
  CalibratedGate gate;
  gate.threshold = fields.Number("threshold");
  const Json& scorer = fields.Object("scorer");
  RETURN_IF_ERROR(fields.Finish());
  if (gate.threshold < 0 || gate.threshold > 1)
    return InvalidArgument(place, ": \"threshold\" must be in [0, 1], got ", gate.threshold);
  ASSIGN_OR_RETURN(gate.scorer, ParseScorer(scorer, kind, place + ".scorer"));
  step.gate = std::move(gate);
  return step;
}

StatusOr<CalibrationEvidence> ParseEvidence(const Json& json) {
  StrictFields fields(json, "evidence");
  CalibrationEvidence evidence;
  evidence.epsilon = fields.Number("epsilon");
  evidence.delta = fields.Number("delta");
  evidence.rows = fields.Count("rows");
  evidence.losses = fields.Count("losses");
  evidence.loss_bound = fields.Number("loss_bound");
  evidence.fit_rows = fields.Count("fit_rows");
  evidence.accuracy = fields.Number("accuracy");
  evidence.last_tier_accuracy = fields.Number("last_tier_accuracy");
  evidence.relative_cost = fields.Number("relative_cost");
  evidence.data_digest = fields.Text("data_digest");
  evidence.date = fields.Text("date");
  evidence.version = fields.Text("version");
  RETURN_IF_ERROR(fields.Finish());
  return evidence;
}

StatusOr<CalibrationKind> ParseKind(const std::string& name) {
  for (const CalibrationKind kind : {CalibrationKind::kCascade, CalibrationKind::kClassifier}) {
    if (name == CalibrationKindName(kind)) return kind;
  }
  return InvalidArgument("\"kind\" must be cascade or classifier, got \"", name, "\"");
}

StatusOr<Calibration> ParseBody(const Json& json) {
  StrictFields fields(json, "");
  Calibration calibration;
  const std::string kind = fields.Text("kind");
  calibration.policy = fields.Text("policy");
  const Json& steps = fields.List("steps");
  const Json& evidence = fields.Object("evidence");
  RETURN_IF_ERROR(fields.Finish());
  ASSIGN_OR_RETURN(calibration.kind, ParseKind(kind));
  if (steps.size() < 2 || steps.size() > kMaxSteps)
    return InvalidArgument("\"steps\" must be 2 to ", kMaxSteps, ", got ", steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    ASSIGN_OR_RETURN(CalibratedStep step,
                     ParseStep(steps[i], calibration.kind, i + 1 == steps.size(), Concat("steps[", i, "]")));
    for (const CalibratedStep& other : calibration.steps) {
      if (other.tier == step.tier) return InvalidArgument("tier ", step.tier, " occurs twice");
    }
    calibration.steps.push_back(std::move(step));
  }
  ASSIGN_OR_RETURN(calibration.evidence, ParseEvidence(evidence));
  return calibration;
}

StatusOr<Calibration> ParseDocument(std::string_view text) {
  ASSIGN_OR_RETURN(const Json document, ParseJson(text, {.bytes = kMaxBytes}));
  StrictFields fields(document, "");
  const std::string format = fields.Text("format"), checksum = fields.Text("checksum");
  const Json& body = fields.Object("calibration");
  if (document.is_object() && document.contains("format") && format != kFormat)
    return InvalidArgument("format \"", format, "\", this version reads ", kFormat);
  RETURN_IF_ERROR(fields.Finish());
  if (const std::string got = Checksum(body); got != checksum) {
    return InvalidArgument("checksum ", got, ", the file says ", checksum,
                           ": it was changed after it was written; calibrate again");
  }
  return ParseBody(body);
}

Status Stale(const CalibratedStep& step, const char* what, const std::string& measured,
             const std::string& served) {
  return WithReason(FailedPrecondition("tier ", step.tier, " was calibrated with the ", what, " ", measured,
                                       " and serves ", served, ": calibrate again"),
                    "stale_calibration");
}

}  // namespace

const char* CalibrationKindName(CalibrationKind kind) {
  return kind == CalibrationKind::kCascade ? "cascade" : "classifier";
}

std::string CalibrationText(const Calibration& calibration) {
  Json steps = Json::array();
  for (const CalibratedStep& step : calibration.steps) steps.push_back(ToJson(step));
  const Json body = {{"kind", CalibrationKindName(calibration.kind)},
                     {"policy", calibration.policy},
                     {"steps", std::move(steps)},
                     {"evidence", ToJson(calibration.evidence)}};
  const Json document = {{"format", kFormat}, {"checksum", Checksum(body)}, {"calibration", body}};
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

StatusOr<Calibration> ParseCalibration(std::string_view text) {
  StatusOr<Calibration> calibration = ParseDocument(text);
  if (!calibration.ok()) return DataLoss("calibration: ", Message(calibration.status()));
  return calibration;
}

Status CheckCalibration(const Calibration& calibration, std::span<const ServedTier> tiers) {
  for (const CalibratedStep& step : calibration.steps) {
    const auto served =
        std::find_if(tiers.begin(), tiers.end(), [&](const auto& tier) { return tier.name == step.tier; });
    if (served == tiers.end())
      return FailedPrecondition("the calibration's tier ", step.tier, " is not served");
    if (!served->model_digest.empty() && served->model_digest != step.model_digest)
      return Stale(step, "model", step.model_digest, served->model_digest);
    if (!served->text_digest.empty() && served->text_digest != step.text_digest)
      return Stale(step, "tokenizer and chat template", step.text_digest, served->text_digest);
  }
  return {};
}

}  // namespace terrace
