#include "router/tier/calibration_features.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace terrace {
namespace {

// Log-probabilities of sure tokens differ by orders of magnitude near 0, where floats still tell 1e-6 apart.
constexpr double kLeastSurprise = 1e-6;  // nats

double LogSurprise(double nats) { return std::log(kLeastSurprise + std::max(nats, 0.0)); }

using In = const FeatureInputs&;

constexpr Feature kFeatures[] = {
    {"mean_logprob", FeatureSource::kAnswer, [](In in) { return in.answer.mean_logprob; }},
    {"min_logprob", FeatureSource::kAnswer, [](In in) { return in.answer.min_logprob; }},
    {"first_logprob", FeatureSource::kFirstToken, [](In in) { return in.answer.first_logprob; }},
    {"log_answer_tokens", FeatureSource::kAnswer, [](In in) { return std::log1p(in.answer.tokens); }},
    {"mean_margin", FeatureSource::kAnswer, [](In in) { return in.answer.mean_margin; }},
    {"min_margin", FeatureSource::kAnswer, [](In in) { return in.answer.min_margin; }},
    {"first_margin", FeatureSource::kFirstToken, [](In in) { return in.answer.first_margin; }},
    {"mean_entropy", FeatureSource::kAnswer, [](In in) { return in.answer.mean_entropy; }},
    {"first_entropy", FeatureSource::kFirstToken, [](In in) { return in.answer.first_entropy; }},

    {"sum_logprob", FeatureSource::kDerived, [](In in) { return in.answer.mean_logprob * in.answer.tokens; }},
    {"log_mean_surprise", FeatureSource::kDerived,
     [](In in) { return LogSurprise(-in.answer.mean_logprob); }},
    {"log_max_surprise", FeatureSource::kDerived, [](In in) { return LogSurprise(-in.answer.min_logprob); }},
    {"log_mean_entropy", FeatureSource::kDerived, [](In in) { return LogSurprise(in.answer.mean_entropy); }},
    {"answer_tokens", FeatureSource::kDerived, [](In in) { return static_cast<double>(in.answer.tokens); }},
    {"draft_agreement", FeatureSource::kAgreement, [](In in) { return in.draft_agreement; }},

    {"log_prompt_bytes", FeatureSource::kPrompt, [](In in) { return std::log1p(in.prompt.bytes); }},
    {"digit_share", FeatureSource::kPrompt,
     [](In in) { return static_cast<double>(in.prompt.digits) / std::max(in.prompt.bytes, 1u); }},
    {"log_questions", FeatureSource::kPrompt, [](In in) { return std::log1p(in.prompt.questions); }},
    {"log_newlines", FeatureSource::kPrompt, [](In in) { return std::log1p(in.prompt.newlines); }},
    {"log_braces", FeatureSource::kPrompt, [](In in) { return std::log1p(in.prompt.braces); }},
};

}  // namespace

void PromptTraits::Add(std::string_view text) {
  bytes += static_cast<uint32_t>(text.size());
  for (const char c : text) {
    digits += c >= '0' && c <= '9';
    questions += c == '?';
    newlines += c == '\n';
    braces += c == '{' || c == '}';
  }
}

Status NotReadByGates(const Feature& feature) {
  return Unimplemented("the router's gates do not look at ", feature.name);
}

std::span<const Feature> AllFeatures() { return kFeatures; }

StatusOr<const Feature*> FindFeature(std::string_view name) {
  std::string known;
  for (const Feature& feature : kFeatures) {
    if (feature.name == name) return &feature;
    known += Concat(known.empty() ? "" : ", ", feature.name);
  }
  return InvalidArgument("no feature \"", name, "\"; there are ", known);
}

double FeatureScorer::Probability(const FeatureInputs& inputs) const {
  double logit = bias;
  for (const ScoredFeature& each : features)
    logit += each.weight * (each.feature->value(inputs) - each.mean) / each.scale;
  return Sigmoid(logit);
}

double Sigmoid(double x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const double e = std::exp(x);
  return e / (1 + e);
}

}  // namespace terrace
