#include "tools/calibrate/calibrator.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <utility>

#include "base/binomial.h"
#include "base/shuffle.h"

namespace terrace {
namespace {

bool LooksAtFirstToken(const std::vector<const Feature*>& features) {
  return std::any_of(features.begin(), features.end(),
                     [](const Feature* each) { return each->source == FeatureSource::kFirstToken; });
}

std::vector<const Feature*> FeaturesOf(const Calibration& calibration) {
  std::vector<const Feature*> features;
  for (const CalibratedStep& step : calibration.steps) {
    if (!step.gate.has_value()) continue;
    for (const ScoredFeature& each : step.gate->scorer.features) features.push_back(each.feature);
  }
  return features;
}

// What the gate of `tier` sees: of a cascade its answer, of a classifier the prompt and how the first tier
// would begin.
FeatureInputs InputsOf(const Record& record, CalibrationKind kind, size_t tier) {
  if (kind == CalibrationKind::kCascade) {
    const RecordedAnswer& answer = record.answers[tier];
    return {.answer = answer.signals, .draft_agreement = answer.draft_agreement, .prompt = record.prompt};
  }
  const AnswerSignals& first = record.answers.front().signals;
  return {.answer = {.first_logprob = first.first_logprob,
                     .first_margin = first.first_margin,
                     .first_entropy = first.first_entropy},
          .prompt = record.prompt};
}

using Score = std::function<double(size_t row, size_t tier)>;

// `pays_first_token`: a classifier has the first tier read the prompt and begin, whoever answers.
Choice ChoiceOf(const Records& records, size_t row, CalibrationKind kind, bool pays_first_token) {
  const Record& record = records.rows[row];
  Choice choice;
  double before = 0;
  for (size_t tier = 0; tier < records.tiers.size(); ++tier) {
    const double own = records.Cost(record, tier);
    choice.is_right.push_back(record.answers[tier].is_right);
    choice.costs.push_back(before + own);
    if (kind == CalibrationKind::kCascade) {
      before += own;
    } else if (pays_first_token && tier == 0) {
      before = static_cast<double>(records.tiers[0].parameters) *
               (static_cast<double>(record.answers[0].prompt_tokens) + 1);
    }
  }
  choice.last_tier_cost = records.Cost(record, records.tiers.size() - 1);
  return choice;
}

std::vector<Choice> ChoicesOf(const Records& records, CalibrationKind kind, bool pays_first_token,
                              const Score& score) {
  std::vector<Choice> choices;
  for (size_t row = 0; row < records.rows.size(); ++row) {
    choices.push_back(ChoiceOf(records, row, kind, pays_first_token));
    for (size_t tier = 0; tier + 1 < records.tiers.size(); ++tier)
      choices.back().scores.push_back(score(row, tier));
  }
  return choices;
}

struct Split {
  Records fit = {}, test = {};
};

Split SplitRows(const Records& records, const CalibratorOptions& options) {
  Split split = {.fit = {.tiers = records.tiers}, .test = {.tiers = records.tiers}};
  const auto fit_rows = static_cast<size_t>(options.fit_share * static_cast<double>(records.rows.size()));
  const std::vector<size_t> order = ShuffledIndices(records.rows.size(), options.seed);
  for (size_t i = 0; i < order.size(); ++i)
    (i < fit_rows ? split.fit : split.test).rows.push_back(records.rows[order[i]]);
  return split;
}

bool LabelOf(const Record& record, size_t tier, ScoreTarget target) {
  return record.answers[tier].is_right ||
         (target == ScoreTarget::kNoWorse && !record.answers.back().is_right);
}

StatusOr<std::vector<FittedScorer>> FitScorers(const Records& fit, const CalibratorOptions& options) {
  std::vector<FittedScorer> scorers;
  for (size_t tier = 0; tier + 1 < fit.tiers.size(); ++tier) {
    std::vector<ScorerExample> examples;
    for (const Record& record : fit.rows)
      examples.push_back({InputsOf(record, options.kind, tier), LabelOf(record, tier, options.target)});
    StatusOr<FittedScorer> scorer = FitScorer(examples, {.features = options.features, .seed = options.seed});
    if (!scorer.ok()) return Annotate(scorer.status(), Concat("tier ", fit.tiers[tier].name));
    scorers.push_back(*std::move(scorer));
  }
  return scorers;
}

ScoreReport ReportOf(const FittedScorer& scorer, const Records& fit, size_t tier, ScoreTarget target) {
  std::vector<ScoredLabel> scored;
  for (size_t i = 0; i < fit.rows.size(); ++i)
    scored.push_back({scorer.held_out[i], LabelOf(fit.rows[i], tier, target)});
  return ReportOn(scored);
}

// `fit_choices` order the candidates, `test_choices` judge them.
std::vector<TestedThresholds> TestCandidates(std::span<const Choice> fit_choices,
                                             std::span<const Choice> test_choices, const RiskLimit& limit) {
  std::vector<TestedThresholds> candidates;
  std::vector<double> p_values;
  for (Thresholds& thresholds : SafestFirst(fit_choices)) {
    TestedThresholds candidate = {.tally = Decide(test_choices, thresholds)};
    const Tally& tally = candidate.tally;
    candidate.loss_bound = UpperRateBound(tally.losses, tally.rows, limit.delta);
    p_values.push_back(RiskPValue(tally.losses, tally.rows, limit.epsilon));
    candidate.thresholds = std::move(thresholds);
    candidates.push_back(std::move(candidate));
  }
  const std::vector<bool> is_safe = FixedSequenceTest(p_values, limit.delta, limit.starts);
  for (size_t i = 0; i < candidates.size(); ++i) candidates[i].is_safe = is_safe[i];
  return candidates;
}

StatusOr<size_t> CheapestSafe(const std::vector<TestedThresholds>& candidates, const RiskLimit& limit) {
  std::optional<size_t> chosen;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!candidates[i].is_safe) continue;
    if (!chosen.has_value() || candidates[i].tally.cost < candidates[*chosen].tally.cost) chosen = i;
  }
  const uint64_t rows = candidates.front().tally.rows;
  if (!chosen.has_value()) {
    return FailedPrecondition("no threshold is safe: ", rows, " rows show, without any loss, a rate below ",
                              UpperRateBound(0, rows, limit.delta / static_cast<double>(limit.starts)),
                              " at best, not ", limit.epsilon);
  }
  if (const double cost = candidates[*chosen].tally.relative_cost(); cost >= 1) {
    return FailedPrecondition("what is safe costs ", cost, " of what the last tier costs alone: ask that");
  }
  return *chosen;
}

Calibration CalibrationOf(const Records& records, const std::vector<FittedScorer>& scorers,
                          const TestedThresholds& chosen, const CalibratorOptions& options) {
  Calibration calibration = {.kind = options.kind, .policy = options.policy};
  for (size_t i = 0; i < records.tiers.size(); ++i) {
    const RecordedTier& tier = records.tiers[i];
    CalibratedStep step = {
        .tier = tier.name, .model_digest = tier.model_digest, .text_digest = tier.text_digest};
    if (i < scorers.size()) step.gate = CalibratedGate{scorers[i].scorer, chosen.thresholds[i]};
    calibration.steps.push_back(std::move(step));
  }
  const Tally& tally = chosen.tally;
  calibration.evidence = {.epsilon = options.limit.epsilon,
                          .delta = options.limit.delta,
                          .rows = tally.rows,
                          .losses = tally.losses,
                          .loss_bound = chosen.loss_bound,
                          .fit_rows = records.rows.size() - tally.rows,
                          .accuracy = tally.accuracy(),
                          .last_tier_accuracy = tally.last_tier_accuracy(),
                          .relative_cost = tally.relative_cost(),
                          .data_digest = options.data_digest,
                          .date = options.date,
                          .version = options.version};
  return calibration;
}

Status Validate(const CalibratorOptions& options) {
  const RiskLimit& limit = options.limit;
  if (!(limit.epsilon > 0 && limit.epsilon < 1))
    return InvalidArgument("epsilon must be in (0, 1), got ", limit.epsilon);
  if (!(limit.delta > 0 && limit.delta < 1))
    return InvalidArgument("delta must be in (0, 1), got ", limit.delta);
  if (limit.starts < 1) return InvalidArgument("starts must be 1 or more");
  if (!(options.fit_share > 0 && options.fit_share < 1))
    return InvalidArgument("the share of rows to fit on must be in (0, 1), got ", options.fit_share);
  for (const Feature* feature : options.features) {
    if (options.kind == CalibrationKind::kClassifier && !IsKnownEarly(*feature)) {
      return InvalidArgument("feature ", feature->name,
                             " is of an answer, which a classifier does not wait for");
    }
  }
  return {};
}

}  // namespace

StatusOr<CalibratorResult> Calibrate(const Records& records, const CalibratorOptions& options) {
  RETURN_IF_ERROR(Validate(options));
  const Split split = SplitRows(records, options);
  if (split.test.rows.empty()) return InvalidArgument(records.rows.size(), " rows are too few to split");
  ASSIGN_OR_RETURN(const std::vector<FittedScorer> scorers, FitScorers(split.fit, options));
  const bool pays_first_token = LooksAtFirstToken(options.features);
  // The order of the candidates comes from scores as they are on rows that were not learnt from.
  const auto held_out = [&](size_t row, size_t tier) { return scorers[tier].held_out[row]; };
  const auto score = [&](size_t row, size_t tier) {
    return scorers[tier].scorer.Probability(InputsOf(split.test.rows[row], options.kind, tier));
  };
  CalibratorResult result;
  for (size_t tier = 0; tier < scorers.size(); ++tier) {
    result.scorers.push_back(ReportOf(scorers[tier], split.fit, tier, options.target));
    result.penalties.push_back(scorers[tier].l2);
  }
  result.candidates =
      TestCandidates(ChoicesOf(split.fit, options.kind, pays_first_token, held_out),
                     ChoicesOf(split.test, options.kind, pays_first_token, score), options.limit);
  ASSIGN_OR_RETURN(result.chosen, CheapestSafe(result.candidates, options.limit));
  result.calibration = CalibrationOf(records, scorers, result.candidates[result.chosen], options);
  return result;
}

StatusOr<Tally> ApplyCalibration(const Calibration& calibration, const Records& records) {
  const bool are_same = std::equal(
      calibration.steps.begin(), calibration.steps.end(), records.tiers.begin(), records.tiers.end(),
      [](const CalibratedStep& step, const RecordedTier& tier) { return step.tier == tier.name; });
  if (!are_same) return InvalidArgument("the records are of other tiers than the calibration");
  Thresholds thresholds;
  for (const CalibratedStep& step : calibration.steps) {
    if (step.gate.has_value()) thresholds.push_back(step.gate->threshold);
  }
  const auto score = [&](size_t row, size_t tier) {
    const FeatureInputs inputs = InputsOf(records.rows[row], calibration.kind, tier);
    return calibration.steps[tier].gate->scorer.Probability(inputs);
  };
  return Decide(ChoicesOf(records, calibration.kind, LooksAtFirstToken(FeaturesOf(calibration)), score),
                thresholds);
}

Tally ApplyLogprobThreshold(double min_mean_logprob, const Records& records) {
  const auto score = [&](size_t row, size_t tier) {
    return records.rows[row].answers[tier].signals.mean_logprob;
  };
  return Decide(ChoicesOf(records, CalibrationKind::kCascade, false, score),
                Thresholds(records.tiers.size() - 1, min_mean_logprob));
}

Tally ApplyOracle(const Records& records) {
  const auto score = [](size_t, size_t) { return 0.0; };  // are not looked at
  return DecideByOracle(ChoicesOf(records, CalibrationKind::kClassifier, false, score));
}

}  // namespace terrace
