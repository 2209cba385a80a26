// Whether the guarantee of `terrace calibrate` holds on real records: calibrations of resampled records, each
// judged by the rate of losses that it then really has.
//
//   drawn   The records are the population, so the true rate of a calibration is known: that of its losses
//           among all of them. A run draws rows independently, with replacement, and calibrates on them. The
//           guarantee says of each run, on its own: the true rate is above epsilon with probability delta at
//           most. So the number of runs above it is at most that of a binomial distribution, and it is
//           refuted if so many would be seen less than once in a hundred times.
//   split   A run calibrates on some of the records and looks at the others, as in use. What is counted is
//           the rate of these: a sample itself, and of so few that it may be above epsilon where the true
//           rate is not. So delta does not bound the share of runs above it; the share of those that are
//           above it beyond the others' own chance (at 5%, exact) is shown beside.
//
// "No bound" is the control, which should fail: the cheapest thresholds whose losses, as counted, are at most
// epsilon. Exit code 1 if the guarantee is refuted.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/binomial.h"
#include "base/median.h"
#include "base/rng.h"
#include "base/shuffle.h"
#include "base/status.h"
#include "router/tier/records.h"
#include "tools/calibrate/calibrator.h"
#include "tools/cli/calibrate.h"

namespace terrace {
namespace {

constexpr double kRefutes = 0.01, kSplitLevel = 0.05;

struct Flags {
  std::vector<std::string> records = {}, features = {};
  size_t runs = 200, rows = 600;
  RiskLimit limit = {};
  ScoreTarget target = ScoreTarget::kRight;
  bool is_classifier = false;
  uint64_t seed = 1;
};

// What a calibration does to rows that it was not made from.
struct Judged {
  uint64_t rows = 0, losses = 0;
  double relative_cost = 0, accuracy_gain = 0;  // of the last tier alone

  double rate() const { return static_cast<double>(losses) / static_cast<double>(rows); }
};

Judged Judge(const Calibration& calibration, const Records& records) {
  const StatusOr<Tally> tally = ApplyCalibration(calibration, records);
  CHECK(tally.ok(), Message(tally.status()));
  return {.rows = tally->rows,
          .losses = tally->losses,
          .relative_cost = tally->relative_cost(),
          .accuracy_gain = tally->accuracy() - tally->last_tier_accuracy()};
}

// The cheapest thresholds whose losses, as counted, are no more than allowed.
std::optional<Calibration> WithoutBound(const CalibratorResult& result, double epsilon) {
  const TestedThresholds* cheapest = nullptr;
  for (const TestedThresholds& candidate : result.candidates) {
    const Tally& tally = candidate.tally;
    const bool is_allowed = static_cast<double>(tally.losses) <= epsilon * static_cast<double>(tally.rows);
    if (is_allowed && (cheapest == nullptr || tally.cost < cheapest->tally.cost)) cheapest = &candidate;
  }
  if (cheapest == nullptr) return std::nullopt;
  Calibration calibration = result.calibration;
  for (size_t i = 0; i < cheapest->thresholds.size(); ++i)
    calibration.steps[i].gate->threshold = cheapest->thresholds[i];
  return calibration;
}

struct Runs {
  std::vector<Judged> judged = {};   // of the runs that made a calibration
  std::vector<Judged> control = {};  // of the same
  size_t refused = 0;                // no threshold was safe: the last tier answers, without a loss
};

class Resampling {
 public:
  Resampling(const Flags& flags, Records all, std::vector<const Feature*> features)
      : flags_(flags), all_(std::move(all)), features_(std::move(features)) {}

  StatusOr<Runs> Drawn() const {
    Runs runs;
    for (size_t run = 0; run < flags_.runs; ++run) {
      Records drawn{.tiers = all_.tiers};
      for (size_t i = 0; i < flags_.rows; ++i) {
        const double place = RandomUniform(flags_.seed, i, run) * static_cast<double>(all_.rows.size());
        drawn.rows.push_back(all_.rows[static_cast<size_t>(place)]);
      }
      RETURN_IF_ERROR(Add(drawn, all_, run, runs));
    }
    return runs;
  }

  StatusOr<Runs> Split() const {
    Runs runs;
    for (size_t run = 0; run < flags_.runs; ++run) {
      Records tune{.tiers = all_.tiers}, held_out{.tiers = all_.tiers};
      const std::vector<size_t> order =
          ShuffledIndices(all_.rows.size(), RandomBits(flags_.seed, run, /*stream=*/UINT32_MAX));
      for (size_t i = 0; i < order.size(); ++i)
        (i < flags_.rows ? tune : held_out).rows.push_back(all_.rows[order[i]]);
      RETURN_IF_ERROR(Add(tune, held_out, run, runs));
    }
    return runs;
  }

 private:
  Status Add(const Records& tune, const Records& judge, uint64_t run, Runs& runs) const {
    const CalibratorOptions options = {
        .kind = flags_.is_classifier ? CalibrationKind::kClassifier : CalibrationKind::kCascade,
        .limit = flags_.limit,
        .features = features_,
        .target = flags_.target,
        .seed = run};
    const StatusOr<CalibratorResult> result = Calibrate(tune, options);
    if (result.status().code() == StatusCode::kFailedPrecondition) {
      ++runs.refused;
      return {};
    }
    RETURN_IF_ERROR(result.status());
    runs.judged.push_back(Judge(result->calibration, judge));
    if (const auto control = WithoutBound(*result, flags_.limit.epsilon); control.has_value())
      runs.control.push_back(Judge(*control, judge));
    return {};
  }

  const Flags& flags_;
  const Records all_;
  const std::vector<const Feature*> features_;
};

size_t CountAbove(const std::vector<Judged>& judged, double epsilon) {
  return static_cast<size_t>(
      std::ranges::count_if(judged, [&](const Judged& each) { return each.rate() > epsilon; }));
}

template <typename Value>
double MedianOf(const std::vector<Judged>& judged, Value value) {
  std::vector<double> values;
  for (const Judged& each : judged) values.push_back(value(each));
  return values.empty() ? 0 : Median(std::move(values));
}

void Print(const char* name, const std::vector<Judged>& judged, size_t runs, double epsilon) {
  const size_t above = CountAbove(judged, epsilon);
  double most = 0;
  for (const Judged& each : judged) most = std::max(most, each.rate());
  std::printf("%-22s %5zu %12zu %7zu %7.3f %10.4f %9.4f %9.3f %10.4f\n", name, runs, judged.size(), above,
              static_cast<double>(above) / static_cast<double>(runs),
              MedianOf(judged, [](const Judged& each) { return each.rate(); }), most,
              MedianOf(judged, [](const Judged& each) { return each.relative_cost; }),
              MedianOf(judged, [](const Judged& each) { return each.accuracy_gain; }));
}

// Whether so many runs above epsilon can be.
bool Holds(size_t above, const Flags& flags) {
  const double probability =
      above == 0 ? 1 : -std::expm1(LogBinomialTail(above - 1, flags.runs, flags.limit.delta));
  const bool holds = probability >= kRefutes;
  std::printf(
      "drawn: %zu of %zu runs are above epsilon; if each is with probability %g, so many or more are "
      "with %.4f: the guarantee %s\n",
      above, flags.runs, flags.limit.delta, probability, holds ? "holds" : "IS REFUTED");
  return holds;
}

StatusOr<bool> Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const std::string text, ReadRecords(flags.records));
  ASSIGN_OR_RETURN(Records records, ParseRecords(text));
  const size_t all = records.rows.size();
  const CalibrationKind kind = flags.is_classifier ? CalibrationKind::kClassifier : CalibrationKind::kCascade;
  ASSIGN_OR_RETURN(std::vector<const Feature*> features, ChooseFeatures(flags.features, kind));
  const Resampling resampling(flags, std::move(records), std::move(features));
  const double epsilon = flags.limit.epsilon;
  std::printf("%zu records, %s calibrated on %zu of them in each run, epsilon %g, delta %g, seed %zu\n\n",
              all, CalibrationKindName(kind), flags.rows, epsilon, flags.limit.delta,
              static_cast<size_t>(flags.seed));
  std::printf("%-22s %5s %12s %7s %7s %10s %9s %9s %10s\n", "", "runs", "calibrations", "above", "share",
              "rate p50", "most", "cost p50", "gain p50");
  ASSIGN_OR_RETURN(const Runs drawn, resampling.Drawn());
  Print("drawn", drawn.judged, flags.runs, epsilon);
  Print("drawn, no bound", drawn.control, flags.runs, epsilon);
  if (flags.rows < all) {
    ASSIGN_OR_RETURN(const Runs split, resampling.Split());
    Print("split", split.judged, flags.runs, epsilon);
    Print("split, no bound", split.control, flags.runs, epsilon);
    const auto surely = std::ranges::count_if(split.judged, [&](const Judged& each) {
      return LowerRateBound(each.losses, each.rows, kSplitLevel) > epsilon;
    });
    std::printf("\nsplit: %zu of %zu runs are above epsilon beyond the %zu other rows' own chance (%g)\n",
                static_cast<size_t>(surely), flags.runs, all - flags.rows, kSplitLevel);
  }
  return Holds(CountAbove(drawn.judged, epsilon), flags);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  std::string target = "right";
  CLI::App app("Whether the guarantee of terrace calibrate holds on real records");
  app.add_option("--records", flags.records, "files of terrace calibrate --save-records, taken together")
      ->required();
  app.add_option("--runs", flags.runs, "")->check(CLI::Range(1, 100'000))->capture_default_str();
  app.add_option("--rows", flags.rows, "that a run calibrates on")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--epsilon", flags.limit.epsilon, "")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  app.add_option("--delta", flags.limit.delta, "")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  app.add_option("--starts", flags.limit.starts, "")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--features", flags.features, "as of terrace calibrate")->delimiter(',');
  app.add_option("--target", target, "right or no_worse")->check(CLI::IsMember({"right", "no_worse"}));
  app.add_flag("--classifier", flags.is_classifier, "as terrace train-router");
  app.add_option("--seed", flags.seed, "")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (target == "no_worse") flags.target = terrace::ScoreTarget::kNoWorse;
  const terrace::StatusOr<bool> holds = terrace::Run(flags);
  if (!holds.ok()) std::fprintf(stderr, "%s\n", terrace::Message(holds.status()).c_str());
  return holds.ok() && *holds ? 0 : 1;
}
