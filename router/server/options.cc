#include "router/server/options.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/config.h"
#include "base/crypto.h"
#include "base/host_port.h"
#include "router/cluster/discovery.h"
#include "router/request/request.h"
#include "router/server/checks.h"
#include "router/tier/calibration.h"

namespace terrace {
namespace {

constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxCalibrationBytes = 1 << 20;
constexpr uint32_t kMaxShadowWindow = 10'000, kMaxShadowRecords = 100'000;
constexpr double kMinMaxSeconds = 0.001;            // of a budget
constexpr uint32_t kMinGrpcMemoryBytes = 16 << 20;  // less stops connections that are in order
constexpr size_t kDigestDigits = 32;                // of Hash128::Hex
constexpr double kMaxDrainSeconds = 3600;           // of a router that is told to end
constexpr uint64_t kMinTokenCacheBytes = 1 << 20;   // less keeps hardly a prompt

template <typename... Text>
Status Bad(std::string_view path, const Text&... text) {
  return BadSetting(path, text...);
}

Status CheckPrice(const std::string& path, double price) {
  return std::isfinite(price) && price >= 0 ? Status()
                                            : Bad(path, "must be a price of at least 0, got ", price);
}

Status CheckAddress(const std::string& path, const std::string& address, bool may_be_off) {
  if (address.empty() && may_be_off) return {};
  const auto parsed = ParseHostPort(address);
  return parsed.ok() ? Status() : Bad(path, Message(parsed.status()));
}

Status SetSeconds(const std::string& path, bool is_set, double value, double low, double high, double& out) {
  if (!is_set) return {};
  if (!(value >= low && value <= high))
    return Bad(path, "must be in [", low, ", ", high, "] seconds, got ", value);
  out = value;
  return {};
}

Status SetDuration(const std::string& path, bool is_set, double value, double low, double high,
                   Duration& out) {
  double seconds = Seconds(out);
  RETURN_IF_ERROR(SetSeconds(path, is_set, value, low, high, seconds));
  out = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
  return {};
}

Status SetCount(const std::string& path, bool is_set, uint32_t value, uint32_t& out) {
  if (!is_set) return {};
  if (value == 0) return Bad(path, "must be at least 1");
  out = value;
  return {};
}

Status SetListen(const v1::ListenConfig& config, RouterOptions& out) {
  if (config.has_http()) out.http = config.http();
  if (config.has_grpc()) out.grpc = config.grpc();
  if (config.has_ops()) out.ops = config.ops();
  RETURN_IF_ERROR(CheckAddress("listen.http", out.http, /*may_be_off=*/true));
  RETURN_IF_ERROR(CheckAddress("listen.grpc", out.grpc, /*may_be_off=*/true));
  const bool is_local = out.grpc.empty() || ParseHostPort(out.grpc)->is_loopback();
  out.grpc_reflection = config.has_grpc_reflection() ? config.grpc_reflection() : is_local;
  return CheckAddress("listen.ops", out.ops, /*may_be_off=*/true);
}

Status CheckTogether(const std::string& path, const std::string& certificate, const std::string& key) {
  if (certificate.empty() == key.empty()) return {};
  return Bad(path + (key.empty() ? ".key_file" : ".certificate_file"), "is needed beside the other");
}

Status SetTls(const v1::RouterConfig& config, RouterOptions& out) {
  if (config.listen().has_tls()) {
    const v1::TlsConfig& tls = config.listen().tls();
    if (tls.certificate_file().empty()) return Bad("listen.tls.certificate_file", "is needed");
    RETURN_IF_ERROR(CheckTogether("listen.tls", tls.certificate_file(), tls.key_file()));
    out.tls = {.certificate = tls.certificate_file(), .key = tls.key_file(), .ca = tls.client_ca_file()};
  }
  if (config.cluster().has_tls()) {
    const v1::ClientTlsConfig& tls = config.cluster().tls();
    RETURN_IF_ERROR(CheckTogether("cluster.tls", tls.certificate_file(), tls.key_file()));
    out.worker_tls = {.certificate = tls.certificate_file(), .key = tls.key_file(), .ca = tls.ca_file()};
    out.worker_server_name = tls.server_name();
  }
  return {};
}

// An address that other machines reach needs more than nothing between them and the models.
Status CheckReach(const v1::RouterConfig& config, const RouterOptions& out) {
  const v1::ListenConfig& listen = config.listen();
  if (listen.insecure()) return {};
  const auto is_open = [](const std::string& address) {
    return !address.empty() && !ParseHostPort(address)->is_loopback();
  };
  constexpr char kOpen[] = " can be reached by other machines: needs ";
  const bool asks_who = !config.auth().keys_file().empty() || !listen.tls().client_ca_file().empty();
  for (const auto& [path, address] :
       {std::pair("listen.http", out.http), std::pair("listen.grpc", out.grpc)}) {
    if (!is_open(address)) continue;
    if (!out.tls.has_value()) return Bad(path, address, kOpen, "listen.tls, or listen.insecure: true");
    if (!asks_who) {
      return Bad(path, address, kOpen,
                 "auth.keys_file or listen.tls.client_ca_file, or listen.insecure: true");
    }
  }
  if (!is_open(out.ops) || listen.ops_insecure()) return {};
  return Bad("listen.ops", out.ops, kOpen, "listen.ops_insecure: true, as it asks nobody for a key");
}

// "" is none.
Status CheckDigest(const std::string& path, const char* whose, const std::string& digest) {
  const bool is_digest =
      digest.size() == kDigestDigits && digest.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (digest.empty() || is_digest) return {};
  return Bad(path, "must be the ", kDigestDigits, " digits of a ", whose, " digest, got \"", digest, "\"");
}

Status CheckManifestLimits(const std::string& path, const ManifestLimits& limits) {
  if (!(limits.max_margin > 0 && limits.max_margin < 1))
    return Bad(path + ".max_margin", "must be above 0 and below 1, got ", limits.max_margin);
  if (!(limits.max_level > 0 && limits.max_level < 0.5))
    return Bad(path + ".max_level", "must be above 0 and below 0.5, got ", limits.max_level);
  if (!(limits.max_mean_kl >= 0))
    return Bad(path + ".max_mean_kl", "must be 0 or more, got ", limits.max_mean_kl);
  if (!(limits.max_flip_rate >= 0 && limits.max_flip_rate <= 1))
    return Bad(path + ".max_flip_rate", "must be in 0 to 1, got ", limits.max_flip_rate);
  return CheckDigest(path + ".task_set", "task set's", limits.task_set);
}

StatusOr<std::optional<ManifestGateOptions>> MakeManifests(const std::string& path,
                                                           const v1::TierConfig& tier) {
  if (!tier.require_manifest()) {
    const bool is_said = !tier.manifests().empty() || !tier.manifest_keys().empty() ||
                         !tier.manifest_baseline().empty() || tier.has_manifest_limits();
    if (is_said) return Bad(path + ".require_manifest", "must be true where manifests are named");
    return std::optional<ManifestGateOptions>();
  }
  ManifestGateOptions out = GateOptionsOf(tier);
  for (const auto& [key, files] :
       {std::pair(".manifests", &out.files), std::pair(".manifest_keys", &out.key_files)}) {
    if (files->empty()) return Bad(path + key, "at least one is needed with require_manifest");
    if (std::ranges::find(*files, std::string()) != files->end()) return Bad(path + key, "a name is empty");
  }
  RETURN_IF_ERROR(CheckDigest(path + ".manifest_baseline", "model's", out.baseline));
  RETURN_IF_ERROR(CheckManifestLimits(path + ".manifest_limits", out.limits));
  return std::optional(std::move(out));
}

Status SetTiers(const v1::RouterConfig& config, RouterOptions& out) {
  if (config.tiers().empty()) return Bad("tiers", "at least one is needed");
  std::set<std::string> names;
  const auto add_name = [&](const std::string& path, const std::string& name) -> Status {
    RETURN_IF_ERROR(CheckSettingName(path, name));
    return names.insert(name).second ? Status() : Bad(path, "\"", name, "\" is taken");
  };
  for (int i = 0; i < config.tiers_size(); ++i) {
    const v1::TierConfig& tier = config.tiers(i);
    const std::string path = Concat("tiers[", i, "]");
    RETURN_IF_ERROR(add_name(path + ".name", tier.name()));
    for (int a = 0; a < tier.aliases_size(); ++a) {
      RETURN_IF_ERROR(add_name(Concat(path, ".aliases[", a, "]"), tier.aliases(a)));
    }
    RETURN_IF_ERROR(
        CheckPrice(path + ".usd_per_million_prompt_tokens", tier.usd_per_million_prompt_tokens()));
    RETURN_IF_ERROR(
        CheckPrice(path + ".usd_per_million_completion_tokens", tier.usd_per_million_completion_tokens()));
    std::vector<std::string> workers(tier.workers().begin(), tier.workers().end());
    if (workers.empty()) return Bad(path + ".workers", "at least one is needed");
    if (const auto found = MakeDiscoveries(workers); !found.ok())
      return Bad(path + ".workers", Message(found.status()));
    out.workers.push_back(std::move(workers));
    ASSIGN_OR_RETURN(out.manifests.emplace_back(), MakeManifests(path, tier));
    out.tiers.push_back(
        {.name = tier.name(),
         .price = {tier.usd_per_million_prompt_tokens(), tier.usd_per_million_completion_tokens()},
         .aliases = {tier.aliases().begin(), tier.aliases().end()}});
  }
  for (int i = 0; i < config.policies_size(); ++i) {
    RETURN_IF_ERROR(add_name(Concat("policies[", i, "].name"), config.policies(i).name()));
  }
  return {};
}

using TierNumbers = std::map<std::string, size_t>;

StatusOr<size_t> FindTier(const std::string& path, const std::string& name, const TierNumbers& tiers) {
  const auto tier = tiers.find(name);
  if (tier == tiers.end()) return Bad(path, "there is no tier \"", name, "\"");
  return tier->second;
}

Status CheckLogprob(const std::string& path, double value) {
  return value <= 0 ? Status() : Bad(path, "must be at most 0, got ", value);  // also NaN
}

Status CheckProbability(const std::string& path, double value) {
  return value >= 0 && value <= 1 ? Status() : Bad(path, "must be in [0, 1], got ", value);  // also NaN
}

// `check_bound`: of what the gate looks at.
StatusOr<HoldBudget> MakeHold(const std::string& path, const v1::HoldConfig& config,
                              Status (&check_bound)(const std::string& path, double value)) {
  if (!config.has_tokens() && !config.has_seconds()) return Bad(path, "needs tokens or seconds");
  if (!config.has_accept_above() && !config.has_reject_below())
    return Bad(path, "needs accept_above or reject_below");
  HoldBudget out;
  if (config.has_tokens()) {
    RETURN_IF_ERROR(SetCount(path + ".tokens", true, config.tokens(), out.tokens.emplace()));
  }
  if (config.has_seconds()) {
    RETURN_IF_ERROR(SetDuration(path + ".seconds", true, config.seconds(), 0.001, 3600, out.time.emplace()));
  }
  if (config.has_accept_above()) {
    out.accept_above = config.accept_above();
    RETURN_IF_ERROR(check_bound(path + ".accept_above", config.accept_above()));
  }
  if (config.has_reject_below()) {
    out.reject_below = config.reject_below();
    RETURN_IF_ERROR(check_bound(path + ".reject_below", config.reject_below()));
  }
  if (config.has_accept_above() && config.has_reject_below() &&
      config.reject_below() > config.accept_above()) {
    return Bad(path + ".reject_below", "must be at most accept_above, got ", config.reject_below());
  }
  return out;
}

StatusOr<Gate> MakeGate(const std::string& path, const v1::CascadeStep& step, bool is_last) {
  if (is_last == step.has_min_mean_logprob()) {
    return Bad(path + ".min_mean_logprob", is_last ? "the last step accepts every answer" : "is needed");
  }
  if (is_last && step.has_hold()) return Bad(path + ".hold", "the last step's answer is not held back");
  if (is_last) return Gate();
  RETURN_IF_ERROR(CheckLogprob(path + ".min_mean_logprob", step.min_mean_logprob()));
  if (!step.has_hold()) return Gate(step.min_mean_logprob());
  ASSIGN_OR_RETURN(const HoldBudget hold, MakeHold(path + ".hold", step.hold(), CheckLogprob));
  if (hold.accept_above.has_value() && *hold.accept_above < step.min_mean_logprob()) {
    return Bad(path + ".hold.accept_above", "must be at least min_mean_logprob, ", step.min_mean_logprob(),
               ", which it overrules, got ", *hold.accept_above);
  }
  return Gate(step.min_mean_logprob(), hold);
}

StatusOr<std::vector<PlanStep>> MakeCascade(const std::string& path, const v1::CascadeConfig& cascade,
                                            const TierNumbers& tiers) {
  if (cascade.steps().empty()) return Bad(path + ".steps", "at least one is needed");
  const bool verifies = !cascade.has_verify() || cascade.verify();
  std::vector<PlanStep> out;
  for (int i = 0; i < cascade.steps_size(); ++i) {
    const std::string here = Concat(path, ".steps[", i, "]");
    ASSIGN_OR_RETURN(const size_t tier, FindTier(here + ".tier", cascade.steps(i).tier(), tiers));
    ASSIGN_OR_RETURN(const Gate gate, MakeGate(here, cascade.steps(i), i + 1 == cascade.steps_size()));
    out.push_back({.tier = tier, .gate = gate, .verifies = verifies && i > 0});
  }
  return out;
}

StatusOr<std::vector<PlanStep>> MakeVerify(const std::string& path, const v1::VerifyConfig& verify,
                                           const TierNumbers& tiers) {
  ASSIGN_OR_RETURN(const size_t draft, FindTier(path + ".draft", verify.draft(), tiers));
  ASSIGN_OR_RETURN(const size_t tier, FindTier(path + ".tier", verify.tier(), tiers));
  if (draft == tier) return Bad(path + ".draft", "must be another tier than the one that answers");
  if (draft > tier) {
    return Bad(path + ".draft", "must be a cheaper tier than the one that answers: \"", verify.draft(),
               "\" is behind \"", verify.tier(), "\" in tiers, which are listed cheapest first");
  }
  return std::vector<PlanStep>{{.tier = draft, .gate = Gate::Closed()}, {.tier = tier, .verifies = true}};
}

// `path`: of the policy or budget that names it.
StatusOr<Calibration> ReadCalibration(const std::string& path, const std::string& file) {
  const std::string setting = path + ".calibration";
  const auto text = ReadConfigFile(file, kMaxCalibrationBytes);
  if (!text.ok()) return Annotate(text.status(), setting);
  auto calibration = ParseCalibration(*text);
  if (!calibration.ok()) return Bad(setting, Message(Annotate(calibration.status(), file)));
  return calibration;
}

// A share, between 0 and 1.
Status SetShare(const std::string& path, bool is_set, double value, bool may_be_0, bool may_be_1,
                double& out) {
  if (!is_set) return {};
  const bool fits = (may_be_0 ? value >= 0 : value > 0) && (may_be_1 ? value <= 1 : value < 1);  // not NaN
  if (!fits)
    return Bad(path, "must be in ", may_be_0 ? "[" : "(", "0, 1", may_be_1 ? "]" : ")", ", got ", value);
  out = value;
  return {};
}

StatusOr<ShadowOptions> MakeShadow(const std::string& path, const v1::ShadowConfig& config) {
  ShadowOptions out;
  RETURN_IF_ERROR(SetShare(path + ".share", config.has_share(), config.share(), false, true, out.share));
  RETURN_IF_ERROR(SetCount(path + ".max_in_flight", config.has_max_in_flight(), config.max_in_flight(),
                           out.max_in_flight));
  RETURN_IF_ERROR(SetShare(path + ".min_agreement", config.has_min_agreement(), config.min_agreement(), false,
                           true, out.min_agreement));
  if (!config.has_max_disagreement() && config.records_file().empty())
    return Bad(path + ".max_disagreement", "is needed where there is no records_file");
  if (!config.has_max_disagreement()) out.max_disagreement = 1;  // drift is not judged
  RETURN_IF_ERROR(SetShare(path + ".max_disagreement", config.has_max_disagreement(),
                           config.max_disagreement(), true, false, out.max_disagreement));
  RETURN_IF_ERROR(SetCount(path + ".window", config.has_window(), config.window(), out.window));
  if (out.window > kMaxShadowWindow)
    return Bad(path + ".window", "must be at most ", kMaxShadowWindow, ", got ", out.window);
  if (config.has_delta() && !out.judges_drift()) return Bad(path + ".delta", "needs max_disagreement");
  RETURN_IF_ERROR(SetShare(path + ".delta", config.has_delta(), config.delta(), false, false, out.delta));
  out.records_file = config.records_file();
  if (config.has_max_records() && out.records_file.empty())
    return Bad(path + ".max_records", "needs records_file");
  RETURN_IF_ERROR(
      SetCount(path + ".max_records", config.has_max_records(), config.max_records(), out.max_records));
  if (out.max_records > kMaxShadowRecords)
    return Bad(path + ".max_records", "must be at most ", kMaxShadowRecords, ", got ", out.max_records);
  return out;
}

// Of a hand-set policy that asks `steps`.
StatusOr<ShadowOptions> MakeShadowOf(const std::string& path, const v1::PolicyConfig& policy,
                                     const std::vector<PlanStep>& steps) {
  std::set<size_t> tiers;
  for (const PlanStep& step : steps) tiers.insert(step.tier);
  if (tiers.size() < 2 || tiers.size() < steps.size())
    return Bad(path, "needs a policy that asks two tiers or more, each once");
  if (policy.has_verify() && policy.shadow().has_max_disagreement())
    return Bad(path + ".max_disagreement", "a draft of verify is nobody's answer: it cannot drift");
  if (policy.has_verify() && policy.shadow().records_file().empty())
    return Bad(path + ".records_file", "is needed: of verify there is no drift to look for");
  return MakeShadow(path, policy.shadow());
}

// A file holds the records of one policy.
Status CheckRecordsFiles(const std::vector<CatalogPolicy>& policies) {
  std::map<std::string, std::string> policy_of;  // by file
  for (size_t i = 0; i < policies.size(); ++i) {
    const auto& shadow = policies[i].shadow;
    if (!shadow.has_value() || shadow->records_file.empty()) continue;
    const std::filesystem::path file(shadow->records_file);
    const auto [found, is_first] = policy_of.emplace(file.lexically_normal().string(), policies[i].name);
    if (!is_first) {
      return Bad(Concat("policies[", i, "].shadow.records_file"), "\"", shadow->records_file, "\" is policy ",
                 found->second, "'s");
    }
  }
  return {};
}

StatusOr<BudgetCandidate> MakeCandidate(const std::string& path, const v1::BudgetCandidate& config,
                                        const TierNumbers& tiers) {
  BudgetCandidate out;
  ASSIGN_OR_RETURN(out.tier, FindTier(path + ".tier", config.tier(), tiers));
  if (!config.has_expected_quality()) return Bad(path + ".expected_quality", "is needed");
  RETURN_IF_ERROR(SetShare(path + ".expected_quality", true, config.expected_quality(), true, true,
                           out.expected_quality));
  return out;
}

StatusOr<BudgetOptions> MakeBudget(const std::string& path, const v1::BudgetConfig& config,
                                   const TierNumbers& tiers) {
  if (config.candidates().empty()) return Bad(path + ".candidates", "at least one is needed");
  BudgetOptions out;
  for (int i = 0; i < config.candidates_size(); ++i) {
    const std::string here = Concat(path, ".candidates[", i, "]");
    ASSIGN_OR_RETURN(const BudgetCandidate candidate, MakeCandidate(here, config.candidates(i), tiers));
    for (const BudgetCandidate& other : out.candidates) {
      if (other.tier == candidate.tier) return Bad(here + ".tier", "occurs twice");
    }
    out.candidates.push_back(candidate);
  }
  if (config.has_max_usd()) {
    RETURN_IF_ERROR(CheckPrice(path + ".max_usd", config.max_usd()));
    out.max_usd = config.max_usd();
  }
  if (config.has_max_seconds()) {
    RETURN_IF_ERROR(SetSeconds(path + ".max_seconds", true, config.max_seconds(), kMinMaxSeconds,
                               Request::kMaxMaxSeconds, out.max_seconds.emplace()));
  }
  RETURN_IF_ERROR(SetCount(path + ".expected_answer_tokens", config.has_expected_answer_tokens(),
                           config.expected_answer_tokens(), out.expected_answer_tokens));
  if (config.has_when_nothing_fits()) {
    const std::string& what = config.when_nothing_fits();
    if (what != "cheapest" && what != "refuse")
      return Bad(path + ".when_nothing_fits", "must be cheapest or refuse, got \"", what, "\"");
    out.refuses = what == "refuse";
  }
  if (!config.calibration().empty()) {
    ASSIGN_OR_RETURN(out.calibration, ReadCalibration(path, config.calibration()));
  }
  return out;
}

// What goes with a calibration alone, or not with a budget.
Status CheckExtras(const std::string& path, const v1::PolicyConfig& policy) {
  if (!policy.calibration().empty()) return {};
  if (policy.has_shadow() && policy.has_budget())
    return Bad(path + ".shadow", "needs a cascade, a verify or a calibration");
  if (!policy.holds().empty()) return Bad(path + ".holds", "needs a calibration");
  return policy.cache_affinity() ? Bad(path + ".cache_affinity", "needs a calibration") : Status();
}

using TierHolds = std::map<std::string, HoldBudget>;

StatusOr<TierHolds> MakeHolds(const std::string& path, const v1::PolicyConfig& policy,
                              const Calibration& calibration) {
  if (!policy.holds().empty() && calibration.kind != CalibrationKind::kCascade)
    return Bad(path, "needs a calibration that is a cascade: a classifier's answers are not held");
  TierHolds out;
  for (int i = 0; i < policy.holds_size(); ++i) {
    const std::string here = Concat(path, "[", i, "]"), &tier = policy.holds(i).tier();
    const auto step = std::ranges::find(calibration.steps, tier, &CalibratedStep::tier);
    if (step == calibration.steps.end() || !step->gate.has_value())
      return Bad(here + ".tier", "the calibration has no gate of a tier \"", tier, "\"");
    ASSIGN_OR_RETURN(const HoldBudget hold,
                     MakeHold(here + ".hold", policy.holds(i).hold(), CheckProbability));
    if (hold.accept_above.has_value() && *hold.accept_above < step->gate->threshold) {
      return Bad(here + ".hold.accept_above", "must be at least the gate's threshold, ",
                 step->gate->threshold, ", got ", *hold.accept_above);
    }
    if (!out.emplace(tier, hold).second) return Bad(here + ".tier", "occurs twice");
  }
  return out;
}

StatusOr<CatalogPolicy> MakeCalibrated(const std::string& path, const v1::PolicyConfig& policy) {
  ASSIGN_OR_RETURN(Calibration calibration, ReadCalibration(path, policy.calibration()));
  CatalogPolicy out{.name = policy.name(), .calibration_file = policy.calibration()};
  out.cache_affinity = policy.cache_affinity();
  ASSIGN_OR_RETURN(out.holds, MakeHolds(path + ".holds", policy, calibration));
  if (policy.has_shadow()) {
    ASSIGN_OR_RETURN(out.shadow, MakeShadow(path + ".shadow", policy.shadow()));
  }
  out.calibration = std::move(calibration);
  return out;
}

Status SetPolicies(const v1::RouterConfig& config, RouterOptions& out) {
  TierNumbers tiers;
  for (size_t i = 0; i < out.tiers.size(); ++i) tiers[out.tiers[i].name] = i;
  for (int i = 0; i < config.policies_size(); ++i) {
    const v1::PolicyConfig& policy = config.policies(i);
    const std::string path = Concat("policies[", i, "]");
    const int kinds =
        policy.has_cascade() + policy.has_verify() + policy.has_budget() + !policy.calibration().empty();
    if (kinds > 1) return Bad(path, "needs one of cascade, verify, calibration and budget, has ", kinds);
    RETURN_IF_ERROR(CheckExtras(path, policy));
    if (policy.has_budget() || !policy.calibration().empty()) {
      const std::string kind = policy.has_budget() ? ".budget" : ".calibration";
      if (policy.has_budget()) {
        ASSIGN_OR_RETURN(BudgetOptions budget, MakeBudget(path + kind, policy.budget(), tiers));
        out.policies.push_back({.name = policy.name(),
                                .budget = std::move(budget),
                                .calibration_file = policy.budget().calibration()});
      } else {
        ASSIGN_OR_RETURN(CatalogPolicy calibrated, MakeCalibrated(path, policy));
        out.policies.push_back(std::move(calibrated));
      }
      const auto catalog = ModelCatalog::Make(out.tiers, {out.policies.back()}, "");
      if (!catalog.ok()) return Bad(path + kind, Message(catalog.status()));
      continue;
    }
    auto steps = policy.has_verify() ? MakeVerify(path + ".verify", policy.verify(), tiers)
                                     : MakeCascade(path + ".cascade", policy.cascade(), tiers);
    RETURN_IF_ERROR(steps.status());
    CatalogPolicy& made =
        out.policies.emplace_back(CatalogPolicy{.name = policy.name(), .steps = *std::move(steps)});
    if (policy.has_shadow()) {
      ASSIGN_OR_RETURN(made.shadow, MakeShadowOf(path + ".shadow", policy, made.steps));
    }
  }
  RETURN_IF_ERROR(CheckRecordsFiles(out.policies));
  out.default_model = config.default_model();
  const auto catalog = ModelCatalog::Make(out.tiers, out.policies, out.default_model);
  return catalog.ok() ? Status() : Bad("default_model", Message(catalog.status()));
}

Status SetLimits(const v1::RouterConfig& config, RouterOptions& out) {
  const v1::AdmissionConfig& admission = config.admission();
  RETURN_IF_ERROR(SetCount("admission.max_in_flight", admission.has_max_in_flight(),
                           admission.max_in_flight(), out.max_in_flight));
  RETURN_IF_ERROR(SetCount("admission.max_body_bytes", admission.has_max_body_bytes(),
                           admission.max_body_bytes(), out.max_body_bytes));
  RETURN_IF_ERROR(SetSeconds("admission.default_timeout_seconds", admission.has_default_timeout_seconds(),
                             admission.default_timeout_seconds(), 0.001, 86400, out.default_timeout_seconds));
  RETURN_IF_ERROR(SetSeconds("admission.max_timeout_seconds", admission.has_max_timeout_seconds(),
                             admission.max_timeout_seconds(), 0.001, 86400, out.max_timeout_seconds));
  RETURN_IF_ERROR(
      SetCount("admission.max_queued", admission.has_max_queued(), admission.max_queued(), out.max_queued));
  RETURN_IF_ERROR(SetSeconds("admission.max_first_token_seconds", admission.has_max_first_token_seconds(),
                             admission.max_first_token_seconds(), 0.001, 86400, out.max_first_token_seconds));
  if (config.balance().has_policy()) {
    const auto policy = ParseBalancePolicy(config.balance().policy());
    if (!policy.has_value()) {
      return Bad("balance.policy",
                 "must be prefix, least_loaded, power_of_two, round_robin or random, got \"",
                 config.balance().policy(), "\"");
    }
    out.balance = *policy;
  }
  const v1::ClusterConfig& cluster = config.cluster();
  RETURN_IF_ERROR(SetSeconds("cluster.connect_backoff_seconds", cluster.has_connect_backoff_seconds(),
                             cluster.connect_backoff_seconds(), 0.01, 60, out.connect_backoff_seconds));
  RETURN_IF_ERROR(SetSeconds("cluster.watch_timeout_seconds", cluster.has_watch_timeout_seconds(),
                             cluster.watch_timeout_seconds(), 1, 300, out.watch_timeout_seconds));
  RETURN_IF_ERROR(SetSeconds("cluster.dns_refresh_seconds", cluster.has_dns_refresh_seconds(),
                             cluster.dns_refresh_seconds(), 0.1, 3600, out.dns_refresh_seconds));
  if (cluster.has_token_cache_bytes()) out.token_cache_bytes = cluster.token_cache_bytes();
  if (out.token_cache_bytes == 0 || out.token_cache_bytes >= kMinTokenCacheBytes) return {};
  return Bad("cluster.token_cache_bytes", "must be 0 or at least ", kMinTokenCacheBytes, ", got ",
             out.token_cache_bytes);
}

Status SetAuth(const v1::AuthConfig& config, RouterOptions& out) {
  out.keys_file = config.keys_file();
  out.cluster_secret_file = config.cluster_secret_file();
  if (out.keys_file.empty() && !out.cluster_secret_file.empty()) {
    return Bad("auth.keys_file", "is needed beside cluster_secret_file");
  }
  if (!out.keys_file.empty() && out.cluster_secret_file.empty()) {
    return Bad("auth.cluster_secret_file", "is needed beside keys_file");
  }
  return {};
}

// After max_body_bytes, which the memory of all bodies cannot be below.
Status SetHttpLimits(const v1::RouterConfig& config, uint32_t max_body_bytes, HttpLimits& out) {
  const v1::HttpLimitsConfig& limits = config.listen().http_limits();
  const std::string path = "listen.http_limits.";
  RETURN_IF_ERROR(SetCount(path + "max_connections", limits.has_max_connections(), limits.max_connections(),
                           out.max_connections));
  RETURN_IF_ERROR(SetCount(path + "max_header_bytes", limits.has_max_header_bytes(),
                           limits.max_header_bytes(), out.max_header_bytes));
  RETURN_IF_ERROR(
      SetCount(path + "max_headers", limits.has_max_headers(), limits.max_headers(), out.max_headers));
  RETURN_IF_ERROR(SetSeconds(path + "header_timeout_seconds", limits.has_header_timeout_seconds(),
                             limits.header_timeout_seconds(), 0.001, 3600, out.header_timeout_seconds));
  RETURN_IF_ERROR(SetCount(path + "min_body_bytes_per_second", limits.has_min_body_bytes_per_second(),
                           limits.min_body_bytes_per_second(), out.min_body_bytes_per_second));
  RETURN_IF_ERROR(SetSeconds(path + "idle_timeout_seconds", limits.has_idle_timeout_seconds(),
                             limits.idle_timeout_seconds(), 0.001, 86400, out.idle_timeout_seconds));
  RETURN_IF_ERROR(SetCount(path + "stream_buffer_bytes", limits.has_stream_buffer_bytes(),
                           limits.stream_buffer_bytes(), out.stream_buffer_bytes));
  RETURN_IF_ERROR(SetSeconds(path + "slow_reader_seconds", limits.has_slow_reader_seconds(),
                             limits.slow_reader_seconds(), 0.001, 86400, out.slow_reader_seconds));
  out.max_buffered_body_bytes = limits.has_max_buffered_body_bytes()
                                    ? limits.max_buffered_body_bytes()
                                    : std::max(out.max_buffered_body_bytes, max_body_bytes);
  if (out.max_buffered_body_bytes >= max_body_bytes) return {};
  return Bad(path + "max_buffered_body_bytes", "must be at least admission.max_body_bytes, ", max_body_bytes,
             ", got ", out.max_buffered_body_bytes);
}

Status SetGrpcLimits(const v1::RouterConfig& config, GrpcLimits& out) {
  const v1::GrpcLimitsConfig& limits = config.listen().grpc_limits();
  const std::string path = "listen.grpc_limits.";
  RETURN_IF_ERROR(
      SetCount(path + "max_streams", limits.has_max_streams(), limits.max_streams(), out.max_streams));
  RETURN_IF_ERROR(SetCount(path + "max_memory_bytes", limits.has_max_memory_bytes(),
                           limits.max_memory_bytes(), out.max_memory_bytes));
  if (limits.has_max_resets()) out.max_resets = limits.max_resets();
  if (out.max_memory_bytes >= kMinGrpcMemoryBytes) return {};
  return Bad(path + "max_memory_bytes", "must be at least ", kMinGrpcMemoryBytes, ", got ",
             out.max_memory_bytes);
}

Status SetEjection(const v1::EjectionConfig& config, EjectionOptions& out) {
  const std::string path = "cluster.ejection.";
  if (config.has_consecutive_failures()) out.consecutive_failures = config.consecutive_failures();
  if (config.has_window_failures()) out.window_failures = config.window_failures();
  RETURN_IF_ERROR(
      SetCount(path + "window_calls", config.has_window_calls(), config.window_calls(), out.window_calls));
  if (out.window_calls > EjectionOptions::kMostWindowCalls) {
    return Bad(path + "window_calls", "must be at most ", EjectionOptions::kMostWindowCalls, ", got ",
               out.window_calls);
  }
  if (out.window_failures > out.window_calls) {
    return Bad(path + "window_failures", "must be at most window_calls, ", out.window_calls, ", got ",
               out.window_failures);
  }
  RETURN_IF_ERROR(
      SetDuration(path + "seconds", config.has_seconds(), config.seconds(), 0.1, 3600, out.first_time));
  if (!config.has_max_seconds()) out.longest = std::max(out.longest, out.first_time);
  RETURN_IF_ERROR(SetDuration(path + "max_seconds", config.has_max_seconds(), config.max_seconds(),
                              Seconds(out.first_time), 86400, out.longest));
  if (!config.has_max_share()) return {};
  out.max_share = config.max_share();
  if (out.max_share > 0 && out.max_share <= 1) return {};
  return Bad(path + "max_share", "must be above 0 and at most 1, got ", out.max_share);
}

Status SetHealth(const v1::ClusterConfig& config, RouterOptions& out) {
  RETURN_IF_ERROR(SetEjection(config.ejection(), out.ejection));
  RETURN_IF_ERROR(SetSeconds("cluster.slow_start_seconds", config.has_slow_start_seconds(),
                             config.slow_start_seconds(), 0, 3600, out.slow_start_seconds));
  if (config.has_retry_ratio()) {
    out.retries.ratio = config.retry_ratio();
    if (!(out.retries.ratio >= 0 && out.retries.ratio <= 1))
      return Bad("cluster.retry_ratio", "must be in [0, 1], got ", out.retries.ratio);
  }
  RETURN_IF_ERROR(SetCount("cluster.max_attempts", config.has_max_attempts(), config.max_attempts(),
                           out.retries.max_attempts));
  if (out.retries.max_attempts > RetryOptions::kMostAttempts) {
    return Bad("cluster.max_attempts", "must be at most ", RetryOptions::kMostAttempts, ", got ",
               out.retries.max_attempts);
  }
  return SetDuration("cluster.resume_patience_seconds", config.has_resume_patience_seconds(),
                     config.resume_patience_seconds(), 0, 3600, out.retries.resume_patience);
}

Status SetLog(const v1::LogConfig& config, RouterOptions& out) {
  out.log.component = "router";
  if (config.has_level()) {
    const auto level = ParseLogLevel(config.level());
    if (!level.ok()) return Bad("log.level", Message(level.status()));
    out.log.level = *level;
  }
  if (config.has_format()) {
    if (config.format() != "json" && config.format() != "text") {
      return Bad("log.format", "must be json or text, got \"", config.format(), "\"");
    }
    out.log.as_json = config.format() == "json";
  }
  return {};
}

Status CheckUnchanged(std::string_view path, const std::string& before, const std::string& after) {
  if (before == after) return {};
  return Bad(path, "cannot change from \"", before, "\" while the router runs: restart it");
}

template <typename T>
Status CheckSame(std::string_view path, const T& before, const T& after) {
  if (before == after) return {};
  return Bad(path, "cannot change while the router runs: restart it");
}

// 48 bits: as many are exact in a double.
uint64_t HashOf(const v1::RouterConfig& config) {
  const Digest256 digest = Sha256(config.SerializeAsString());  // there are no maps in it
  uint64_t hash = 0;
  for (size_t i = 0; i < 6; ++i) hash = hash << 8 | digest[i];
  return hash;
}

}  // namespace

Status CheckSettingName(const std::string& path, const std::string& name) {
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  };
  if (!name.empty() && name.size() <= kMaxNameBytes && std::all_of(name.begin(), name.end(), is_allowed))
    return {};
  return Bad(path, "must be 1 to ", kMaxNameBytes, " of a-z 0-9 . _ -, got \"", name, "\"");
}

StatusOr<RouterOptions> MakeRouterOptions(const v1::RouterConfig& config) {
  RouterOptions out;
  out.config_hash = HashOf(config);
  RETURN_IF_ERROR(SetListen(config.listen(), out));
  RETURN_IF_ERROR(SetTls(config, out));
  RETURN_IF_ERROR(CheckReach(config, out));
  RETURN_IF_ERROR(SetTiers(config, out));
  RETURN_IF_ERROR(SetPolicies(config, out));
  RETURN_IF_ERROR(SetLimits(config, out));
  RETURN_IF_ERROR(SetAuth(config.auth(), out));
  RETURN_IF_ERROR(SetHttpLimits(config, out.max_body_bytes, out.http_limits));
  RETURN_IF_ERROR(SetGrpcLimits(config, out.grpc_limits));
  RETURN_IF_ERROR(SetHealth(config.cluster(), out));
  RETURN_IF_ERROR(SetSeconds("drain_seconds", config.has_drain_seconds(), config.drain_seconds(), 0,
                             kMaxDrainSeconds, out.drain_seconds));
  RETURN_IF_ERROR(SetLog(config.log(), out));
  return out;
}

Status CheckReloadable(const RouterOptions& before, const RouterOptions& after) {
  RETURN_IF_ERROR(CheckUnchanged("listen.http", before.http, after.http));
  RETURN_IF_ERROR(CheckUnchanged("listen.grpc", before.grpc, after.grpc));
  RETURN_IF_ERROR(CheckUnchanged("listen.ops", before.ops, after.ops));
  RETURN_IF_ERROR(CheckSame("listen.tls", before.tls, after.tls));
  RETURN_IF_ERROR(CheckSame("listen.http_limits", before.http_limits, after.http_limits));
  RETURN_IF_ERROR(CheckSame("listen.grpc_limits", before.grpc_limits, after.grpc_limits));
  RETURN_IF_ERROR(CheckSame("listen.grpc_reflection", before.grpc_reflection, after.grpc_reflection));
  RETURN_IF_ERROR(CheckSame("cluster.tls", before.worker_tls, after.worker_tls));
  RETURN_IF_ERROR(CheckSame("admission.max_body_bytes", before.max_body_bytes, after.max_body_bytes));
  RETURN_IF_ERROR(CheckSame("log.level", before.log.level, after.log.level));
  return CheckSame("log.format", before.log.as_json, after.log.as_json);
}

}  // namespace terrace
