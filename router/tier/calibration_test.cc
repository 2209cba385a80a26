#include "router/tier/calibration.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

FeatureScorer ScorerOf(std::initializer_list<const char*> names) {
  FeatureScorer scorer{.bias = 0.25};
  for (const char* name : names) {
    const double place = static_cast<double>(scorer.features.size()) + 1;
    scorer.features.push_back(
        {.feature = *FindFeature(name), .weight = 1 / place, .mean = -place / 3, .scale = place / 2});
  }
  return scorer;
}

Calibration Example() {
  Calibration calibration;
  calibration.policy = "auto";
  calibration.steps = {{.tier = "nano",
                        .model_digest = "m0",
                        .text_digest = "t0",
                        .gate = CalibratedGate{ScorerOf({"mean_logprob", "digit_share"}), 0.9375}},
                       {.tier = "small",
                        .model_digest = "m1",
                        .text_digest = "t1",
                        .gate = CalibratedGate{ScorerOf({"min_margin"}), 1.0 / 3}},
                       {.tier = "base", .model_digest = "m2", .text_digest = "t2"}};
  calibration.evidence = {.epsilon = 0.05,
                          .delta = 0.1,
                          .rows = 300,
                          .losses = 8,
                          .loss_bound = 0.0489,
                          .fit_rows = 200,
                          .accuracy = 0.86,
                          .last_tier_accuracy = 0.857,
                          .relative_cost = 0.43,
                          .data_digest = "d",
                          .date = "2026-11-30",
                          .version = "0"};
  return calibration;
}

Json Document() { return Json::parse(CalibrationText(Example())); }

// What a tool that makes the mistake itself would have written.
std::string Sealed(Json document) {
  document["checksum"] = HashBytes(ToJsonText(document["calibration"])).Hex();
  return document.dump();
}

std::string ErrorOf(const std::string& text) {
  const Status status = ParseCalibration(text).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << text;
  return Message(status);
}

TEST(Calibration, ComesBackFromItsTextTheSame) {
  const auto parsed = ParseCalibration(CalibrationText(Example()));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(CalibrationText(*parsed), CalibrationText(Example()));
  EXPECT_EQ(parsed->steps[0].gate->threshold, 0.9375);
  EXPECT_EQ(parsed->steps[0].gate->scorer.features[1].feature, *FindFeature("digit_share"));
  EXPECT_FALSE(parsed->steps[2].gate.has_value());
  EXPECT_TRUE(ParseCalibration(Document().dump()).ok()) << "white space does not count";
}

TEST(Calibration, AChangedMemberDoesNotFitTheChecksum) {
  const Json flat = Document().flatten();
  for (auto leaf = flat.begin(); leaf != flat.end(); ++leaf) {
    Json document = Document();
    Json& value = document[Json::json_pointer(leaf.key())];
    if (value.is_string()) {
      value = value.get<std::string>() + "x";
    } else {
      value = value.get<double>() * 2 + 1;
    }
    EXPECT_THAT(ErrorOf(document.dump()), testing::AnyOf(HasSubstr("checksum"), HasSubstr("format")))
        << leaf.key();
  }
}

TEST(Calibration, AMemberThatIsAbsentOrUnknownIsNamed) {
  const Json flat = Document().flatten();
  for (auto leaf = flat.begin(); leaf != flat.end(); ++leaf) {
    const Json::json_pointer path(leaf.key());
    Json without = Document(), beside = Document();
    without[path.parent_pointer()].erase(path.back());
    if (path.back() == "checksum") {
      EXPECT_THAT(ErrorOf(without.dump()), HasSubstr("checksum"));
    } else {
      EXPECT_THAT(ErrorOf(Sealed(without)), HasSubstr("\"" + path.back() + "\"")) << leaf.key();
    }
    beside[path.parent_pointer()]["surplus"] = 1;
    EXPECT_THAT(ErrorOf(Sealed(beside)), HasSubstr("\"surplus\"")) << leaf.key();
  }
}

TEST(Calibration, WhatMakesNoSenseIsRefused) {
  const struct {
    const char* names;
    std::function<void(Json& body)> change;
  } cases[] = {
      {"kind", [](Json& body) { body["kind"] = "oracle"; }},
      {"steps", [](Json& body) { body["steps"] = Json::array(); }},
      {"steps", [](Json& body) { body["steps"] = Json::array({body["steps"][2]}); }},
      {"twice", [](Json& body) { body["steps"][2]["tier"] = "nano"; }},
      {"threshold", [](Json& body) { body["steps"][0]["threshold"] = 1.5; }},
      {"threshold", [](Json& body) { body["steps"][0]["threshold"] = "high"; }},
      {"scorer", [](Json& body) { body["steps"][2] = body["steps"][0]; }},  // the last one has none
      {"scale", [](Json& body) { body["steps"][0]["scorer"]["features"][0]["scale"] = 0.0; }},
      {"no feature \"luck\"", [](Json& body) { body["steps"][0]["scorer"]["features"][0]["name"] = "luck"; }},
      {"twice",
       [](Json& body) {
         Json& features = body["steps"][0]["scorer"]["features"];
         features[1] = features[0];
       }},
      {"classifier", [](Json& body) { body["kind"] = "classifier"; }},  // it has features of an answer
  };
  for (const auto& c : cases) {
    Json document = Document();
    c.change(document["calibration"]);
    EXPECT_THAT(ErrorOf(Sealed(document)), HasSubstr(c.names));
  }
  for (const char* text : {"", "{}", "[]", "null", "7", "{\"format\": \"terrace-calibration-2\"}"}) {
    EXPECT_THAT(ErrorOf(text), HasSubstr("calibration: ")) << text;
  }
  const std::string whole = CalibrationText(Example());
  for (size_t size = 0; size + 2 < whole.size(); size += 7) ErrorOf(whole.substr(0, size));  // cut off
}

TEST(Calibration, IsStaleWhenATierServesAnotherModelOrTemplate) {
  const Calibration calibration = Example();
  const std::vector<ServedTier> measured = {
      {"base", "m2", "t2"}, {"nano", "m0", "t0"}, {"other", "m9", "t9"}, {"small", "m1", "t1"}};
  EXPECT_TRUE(CheckCalibration(calibration, measured).ok());
  for (const char* name : {"nano", "small", "base"}) {
    for (std::string ServedTier::*digest : {&ServedTier::model_digest, &ServedTier::text_digest}) {
      std::vector<ServedTier> served = measured;
      auto& tier =
          *std::find_if(served.begin(), served.end(), [&](const auto& each) { return each.name == name; });
      const std::string was = tier.*digest;
      tier.*digest = "new";
      const Status status = CheckCalibration(calibration, served);
      EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
      EXPECT_EQ(Reason(status), "stale_calibration");
      EXPECT_THAT(Message(status),
                  testing::AllOf(HasSubstr(name), HasSubstr(" " + was + " "), HasSubstr(" new")));
      tier.*digest = "";
      EXPECT_TRUE(CheckCalibration(calibration, served).ok()) << "not known yet";
    }
  }
  EXPECT_EQ(CheckCalibration(calibration, {measured.data(), 3}).code(), StatusCode::kFailedPrecondition)
      << "small is not served";
}

TEST(Features, HaveNamesOfTheirOwnAndFiniteValues) {
  std::set<std::string_view> names;
  const FeatureInputs extremes[] = {
      {},
      {.answer = {.tokens = 1, .mean_logprob = -1e-9, .min_logprob = -100}, .draft_agreement = 1},
      {.prompt = {.bytes = 1u << 22, .digits = 1u << 22}}};
  for (const Feature& feature : AllFeatures()) {
    EXPECT_TRUE(names.insert(feature.name).second) << feature.name;
    EXPECT_EQ(*FindFeature(feature.name), &feature);
    for (const FeatureInputs& inputs : extremes)
      EXPECT_TRUE(std::isfinite(feature.value(inputs))) << feature.name;
  }
  EXPECT_EQ(FindFeature("luck").status().code(), StatusCode::kInvalidArgument);
}

TEST(Features, TraitsOfPiecesAddUp) {
  const std::string_view text = "Order {12}?\nWhy 3?\n";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    PromptTraits traits;
    traits.Add(text.substr(0, cut));
    traits.Add(text.substr(cut));
    EXPECT_EQ(traits, (PromptTraits{.bytes = static_cast<uint32_t>(text.size()),
                                    .digits = 3,
                                    .questions = 2,
                                    .newlines = 2,
                                    .braces = 2}));
  }
}

TEST(FeatureScorer, IsTheLogisticFunctionOfStandardisedValues) {
  const FeatureScorer scorer = ScorerOf({"mean_logprob", "draft_agreement"});
  const FeatureInputs inputs = {.answer = {.tokens = 3, .mean_logprob = -0.33}, .draft_agreement = 0.5};
  double logit = scorer.bias;
  for (const auto& [feature, weight, mean, scale] : scorer.features)
    logit += weight * (feature->value(inputs) - mean) / scale;
  EXPECT_DOUBLE_EQ(scorer.Probability(inputs), 1 / (1 + std::exp(-logit)));
  EXPECT_EQ(FeatureScorer().Probability(inputs), 0.5);
  for (const double x : {0.0, 1e-9, 0.7, 30.0, 1000.0}) EXPECT_NEAR(Sigmoid(x) + Sigmoid(-x), 1, 1e-15) << x;
}

TEST(CalibratedGate, AcceptsNothingThatIsNotANumber) {
  const CalibratedGate gate{ScorerOf({"mean_logprob"}), /*threshold=*/0};
  FeatureInputs inputs = {.answer = {.tokens = 3, .mean_logprob = -0.1}};
  EXPECT_TRUE(gate.Accepts(inputs));
  inputs.answer.mean_logprob = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(gate.Accepts(inputs));
}

}  // namespace
}  // namespace terrace
