#include "router/tier/budget_policy.h"

#include <algorithm>
#include <map>
#include <utility>

#include "router/tier/calibrated_tiers.h"
#include "router/tier/calibration_policy.h"

namespace terrace {
namespace {

struct Offer {
  size_t tier = 0;
  double quality = 0;
  double usd = 0;         // as long as the answer is expected to be
  RequestCost most = {};  // by the price of one as long as it may be
};

bool IsBetter(const Offer& a, const Offer& b) {
  return a.quality != b.quality ? a.quality > b.quality : a.usd < b.usd;
}

bool IsCheaper(const Offer& a, const Offer& b) {
  return a.usd != b.usd ? a.usd < b.usd : a.quality > b.quality;
}

class BudgetPolicy : public TierPolicy {
 public:
  BudgetPolicy(BudgetOptions options, std::vector<CalibratedTier> measured, std::vector<TierPrice> prices)
      : options_(std::move(options)), measured_(std::move(measured)), prices_(std::move(prices)) {}

  StatusOr<TierPlan> Plan(const PlanQuery& query) const override {
    const bool is_stale = IsStale(measured_, query.view);
    const std::map<size_t, double> chances =
        is_stale ? std::map<size_t, double>() : ChancesFor(query.request);
    std::vector<Offer> offers;
    Status error;  // the first
    for (const bool is_ready : {true, false}) {
      std::vector<Offer> next;
      for (const BudgetCandidate& candidate : options_.candidates) {
        if ((query.view.tiers[candidate.tier].ready_replicas() > 0) != is_ready) continue;
        const StatusOr<Offer> offer = MakeOffer(query, candidate, chances);
        if (offer.ok()) {
          next.push_back(*offer);
        } else if (error.ok()) {
          error = offer.status();
        }
      }
      if (auto plan = Choose(query.request, next, is_stale); plan.has_value()) return *std::move(plan);
      offers.insert(offers.end(), next.begin(), next.end());
    }
    return offers.empty() ? error : TooSmall(query.request, offers);
  }

  bool needs_speeds() const override { return options_.max_seconds.has_value(); }

  Status Check(const ClusterView& view) const override {
    return options_.calibration.has_value() ? CheckServed(*options_.calibration, view) : Status();
  }

 private:
  static TierPlan PlanOf(const Offer& offer, const char* reason) {
    return {.steps = {{.tier = offer.tier}}, .reason = reason, .is_limited = true};
  }

  StatusOr<Offer> MakeOffer(const PlanQuery& query, const BudgetCandidate& candidate,
                            const std::map<size_t, double>& chances) const {
    const TierView& tier = query.view.tiers[candidate.tier];
    const TierPrice& price = prices_[candidate.tier];
    const auto chance = chances.find(candidate.tier);
    Offer out{.tier = candidate.tier,
              .quality = chance == chances.end() ? candidate.expected_quality : chance->second};
    ASSIGN_OR_RETURN(out.usd, MostUsd(query, tier, price, options_.expected_answer_tokens));
    ASSIGN_OR_RETURN(out.most, CostAt(query, candidate.tier, price, options_.expected_answer_tokens));
    return out;
  }

  bool IsPaid(const Offer& offer) const {
    return !options_.max_usd.has_value() || offer.usd <= *options_.max_usd;
  }
  bool IsInTime(const Offer& offer) const {
    return !options_.max_seconds.has_value() || offer.most.seconds <= *options_.max_seconds;
  }

  // Of those within the request's limits; none where there are none, or the policy refuses them.
  std::optional<TierPlan> Choose(const Request& request, const std::vector<Offer>& offers,
                                 bool is_stale) const {
    std::vector<Offer> possible, fitting;
    for (const Offer& offer : offers) {
      if (!FitsLimits(request, offer.most)) continue;
      possible.push_back(offer);
      if (IsPaid(offer) && IsInTime(offer)) fitting.push_back(offer);
    }
    if (!fitting.empty()) {
      const Offer& best = *std::ranges::min_element(fitting, IsBetter);  // the first in this order
      return PlanOf(best, is_stale ? "budget: stale calibration" : "budget");
    }
    if (possible.empty() || options_.refuses) return std::nullopt;
    return PlanOf(*std::ranges::min_element(possible, IsCheaper), "budget: nothing fits");
  }

  // Of `offers`, of which there is one, none fits.
  Status TooSmall(const Request& request, const std::vector<Offer>& offers) const {
    std::vector<RequestCost> costs;
    std::vector<Offer> possible, paid;
    for (const Offer& offer : offers) {
      costs.push_back(offer.most);
      if (!FitsLimits(request, offer.most)) continue;
      possible.push_back(offer);
      if (IsPaid(offer)) paid.push_back(offer);
    }
    if (possible.empty()) return LimitsTooSmall(request, costs);
    if (paid.empty()) {
      return WithReason(
          InvalidArgument("the request may cost ", std::ranges::min_element(possible, {}, &Offer::usd)->usd,
                          " USD at the cheapest tier, the policy's limit is ", *options_.max_usd),
          kBudgetTooSmall);
    }
    const auto seconds_of = [](const Offer& offer) { return offer.most.seconds; };
    return WithReason(InvalidArgument("the answer is expected to take ",
                                      std::ranges::min_element(paid, {}, seconds_of)->most.seconds,
                                      " seconds at the fastest tier that can be paid, the policy's limit is ",
                                      *options_.max_seconds),
                      kBudgetTooSmall);
  }

  // By tier, that its answer to this prompt is good.
  std::map<size_t, double> ChancesFor(const Request& request) const {
    std::map<size_t, double> out;
    if (measured_.empty()) return out;
    const FeatureInputs inputs = {.prompt = TraitsOf(request.input())};
    for (const CalibratedTier& each : measured_) {
      if (each.gate.has_value()) out[each.tier] = each.gate->scorer.Probability(inputs);
    }
    return out;
  }

  const BudgetOptions options_;
  const std::vector<CalibratedTier> measured_;  // empty without a calibration
  const std::vector<TierPrice> prices_;
};

}  // namespace

StatusOr<std::unique_ptr<TierPolicy>> MakeBudgetPolicy(BudgetOptions options,
                                                       std::span<const std::string> tiers,
                                                       std::vector<TierPrice> prices) {
  CHECK(!options.candidates.empty() && tiers.size() == prices.size());
  std::vector<CalibratedTier> measured;
  if (options.calibration.has_value()) {
    if (options.calibration->kind != CalibrationKind::kClassifier)
      return FailedPrecondition("a budget takes a calibration of the kind classifier");
    ASSIGN_OR_RETURN(measured, FindCalibratedTiers(*options.calibration, tiers));
    if (const ScoredFeature* const early = FindFirstTokenFeature(measured)) {
      return FailedPrecondition("a budget takes scorers of the prompt alone, not of the first token (",
                                early->feature->name, ")");
    }
  }
  return std::unique_ptr<TierPolicy>(
      new BudgetPolicy(std::move(options), std::move(measured), std::move(prices)));
}

}  // namespace terrace
