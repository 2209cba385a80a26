// What a calibrated scorer looks at: numbers of a prompt and of a tier's answer, each with its name in
// calibration files. `terrace calibrate` learns from them and the router decides by them, so both take them
// from here. Values; pure.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "router/tier/answer_signals.h"

namespace terrace {

// Counts over the text of a prompt, or of all messages of a chat: cheap, and of no language, task or
// tokenizer.
struct PromptTraits {
  uint32_t bytes = 0, digits = 0, questions = 0, newlines = 0, braces = 0;

  void Add(std::string_view text);

  friend bool operator==(const PromptTraits&, const PromptTraits&) = default;
};

struct FeatureInputs {
  AnswerSignals answer = {};
  // The share of the answer of the tier before, counted from its start, that this tier gave too; 0 for the
  // first tier.
  double draft_agreement = 0;
  PromptTraits prompt = {};
};

// What must be known of a request before a feature is.
enum class FeatureSource : uint8_t {
  kPrompt,      // its text
  kFirstToken,  // the first token of the answer
  kAnswer,      // the whole answer; GateScorer takes these, as it does those of kFirstToken
  kDerived,     // likewise, but GateScorer does not take it
  kAgreement,   // and the answer of the tier before
};

struct Feature {
  std::string_view name;
  FeatureSource source;
  double (*value)(const FeatureInputs& inputs);
};

// Before the whole answer is.
inline bool IsKnownEarly(const Feature& feature) {
  return feature.source == FeatureSource::kPrompt || feature.source == FeatureSource::kFirstToken;
}

// Whether the router's gates look at it; studies may look at all.
inline bool IsReadByGates(const Feature& feature) {
  return feature.source != FeatureSource::kDerived && feature.source != FeatureSource::kAgreement;
}
Status NotReadByGates(const Feature& feature);  // UNIMPLEMENTED

std::span<const Feature> AllFeatures();
// One of AllFeatures(), which live as long as the process. INVALID_ARGUMENT.
StatusOr<const Feature*> FindFeature(std::string_view name);

struct ScoredFeature {
  const Feature* feature = nullptr;  // one of AllFeatures()
  double weight = 0, mean = 0, scale = 1;
};

// A logistic regression: Sigmoid(bias + sum of weight * (value - mean) / scale).
struct FeatureScorer {
  std::vector<ScoredFeature> features = {};
  double bias = 0;

  // NaN when a signal is: nothing is above a threshold then.
  double Probability(const FeatureInputs& inputs) const;
};

// 1 / (1 + exp(-x)), without overflow.
double Sigmoid(double x);

}  // namespace terrace
