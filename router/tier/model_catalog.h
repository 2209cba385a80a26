// The names that clients may ask for: tiers, policies and their aliases. Immutable after Make. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "router/tier/budget_policy.h"
#include "router/tier/calibration.h"
#include "router/tier/drift.h"
#include "router/tier/gate.h"
#include "router/tier/price.h"
#include "router/tier/tier_policy.h"

namespace terrace {

struct CatalogTier {
  std::string name = {};
  TierPrice price = {};
  std::vector<std::string> aliases = {};
};

struct CatalogPolicy {
  std::string name = {};
  std::vector<PlanStep> steps = {};              // as MakeCascadePolicy takes them
  std::optional<Calibration> calibration = {};   // instead
  std::optional<BudgetOptions> budget = {};      // instead
  std::string calibration_file = {};             // that either was read from
  bool cache_affinity = false;                   // of a calibration
  std::map<std::string, HoldBudget> holds = {};  // by tier, of those that a calibrated cascade has gates for
  std::optional<ShadowOptions> shadow = {};      // of all but a budget
};

struct CatalogEntry {
  std::string id = {};
  bool is_policy = false;
  std::vector<size_t> tiers = {};  // in the order they are asked
  std::unique_ptr<TierPolicy> policy = {};
  std::optional<ShadowOptions> shadow = {};
};

class ModelCatalog {
 public:
  // `default_model`: the entry or alias for requests that name none; "": the first policy, else the first
  // tier. FAILED_PRECONDITION when a name is given twice or the default does not exist, and as of
  // MakeCalibratedPolicy and MakeBudgetPolicy.
  static StatusOr<std::unique_ptr<ModelCatalog>> Make(std::vector<CatalogTier> tiers,
                                                      std::vector<CatalogPolicy> policies,
                                                      const std::string& default_model);

  // NOT_FOUND (model_not_found). The entry lives as long as the catalog.
  StatusOr<const CatalogEntry*> Find(std::string_view model) const;
  const std::vector<CatalogEntry>& entries() const { return entries_; }  // policies first
  const std::vector<CatalogTier>& tiers() const { return tiers_; }

 private:
  ModelCatalog() = default;
  std::vector<CatalogTier> tiers_;
  std::vector<CatalogEntry> entries_;
  std::map<std::string, size_t, std::less<>> by_name_;
  size_t default_entry_ = 0;
};

}  // namespace terrace
