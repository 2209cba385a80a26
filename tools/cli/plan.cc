#include "tools/cli/plan.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <system_error>
#include <utility>
#include <variant>

#include "base/mapped_file.h"
#include "tools/cli/bench_targets.h"
#include "tools/cli/launch/yaml_writer.h"
#include "tools/cli/new_file.h"
#include "tools/cli/plan_config.h"
#include "tools/cli/plan_measure.h"
#include "tools/cli/plan_report.h"
#include "tools/cli/plan_table.h"
#include "tools/cli/verdict.h"
#include "tools/plan/plan.h"
#include "tools/plan/step_probe.h"
#include "tools/plan/tier_on_ranks.h"
#include "tools/plan/trace_file.h"
#include "tools/report/report.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

std::vector<TokenId> Vocabulary(const ModelFiles& files) {
  return TextTokens(*files.text->tokenizer, files.config.vocab_size);
}

std::string NameOnRanks(const std::string& variant, uint32_t ranks) {
  return ranks == 1 ? variant : Concat(variant, "-tp", ranks);
}

StatusOr<std::string> Absolute(const std::string& path) {
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  if (error) return Unavailable(path, ": ", error.message());
  return absolute.lexically_normal().string();
}

class PlanRun {
 public:
  PlanRun(const PlanOptions& options, const CommandContext& context)
      : options_(options), context_(context), traffic_(options.traffic) {}

  Status Run() {
    if (!options_.out.empty()) {  // before the work
      RETURN_IF_ERROR(CheckIsNoInput("--out", options_.out,
                                     {{"--trace", options_.trace}, {"--report", options_.report}}));
      RETURN_IF_ERROR(CheckCanReplace(options_.out));
    }
    for (const ReportCascade& cascade : options_.cascades) {
      if (cascade.tiers.size() != 2)
        return InvalidArgument("--cascade: of two tiers, not ", cascade.tiers.size());
    }
    RETURN_IF_ERROR(CheckNames(options_.techniques, options_.variants, options_.cascades, "plan"));
    RETURN_IF_ERROR(CheckNamesOnRanks());
    RETURN_IF_ERROR(CheckVariants(options_.techniques, options_.variants, options_.calibration));
    RETURN_IF_ERROR(CheckTargets(options_.techniques, options_.target.model, options_.mixed_bytes));
    if (!options_.techniques.empty()) {
      constexpr const char* kFolders[] = {"models"};
      ASSIGN_OR_RETURN(work_, OpenWorkFolder(options_.work, kFolders));
    }
    RETURN_IF_ERROR(ReadTrace());
    RETURN_IF_ERROR(ReadReport());
    RETURN_IF_ERROR(MakeVariants());
    for (const ReportVariant& variant : variants_) {
      for (const uint32_t ranks : options_.ranks)
        RETURN_IF_ERROR(Annotate(AddVariant(variant, ranks), variant.name));
    }
    for (const ReportCascade& cascade : options_.cascades) AddCascade(cascade);
    if (candidates_.empty()) {
      context_.out << notes_;
      return AnswerIsNo("no plan is left");
    }
    const PlanSettings settings{.constraints = options_.constraints,
                                .traffic = traffic_,
                                .usd_per_hour = options_.usd_per_hour,
                                .max_sequences = options_.max_sequences,
                                .max_machines = options_.max_machines,
                                .is_cancelled = [this] { return context_.shutdown.IsPending(); }};
    ASSIGN_OR_RETURN(const std::vector<PlannedServing> plans, RankPlans(candidates_, settings));
    context_.out << FormatPlans(candidates_, plans) << notes_ << KvHint(plans);
    const PlannedServing& best = plans.front();
    if (!best.keeps_all()) return AnswerIsNo("no plan keeps every constraint");
    RETURN_IF_ERROR(Write(best));
    return options_.verify ? Verify(plans) : Status();
  }

 private:
  // How the workers of a tier are run; borrows from variants_ and probed_.
  struct Source {
    const ReportVariant* variant = nullptr;
    ModelTarget target = {};
    const TechniqueRow* engine = nullptr;
    PlanTier tier = {};
  };
  // What a candidate was made from.
  struct Origin {
    std::vector<const Source*> tiers = {};
    double min_mean_logprob = 0;  // of a cascade
  };

  // Its requests are asked whether answers come or not.
  Status ReadTrace() {
    if (options_.trace.empty()) return {};
    ASSIGN_OR_RETURN(const std::string text, ReadFile(options_.trace));
    ASSIGN_OR_RETURN(traffic_.trace, ParseTrace(text, options_.trace));
    traffic_.load = OpenLoop{};
    return {};
  }

  Status ReadReport() {
    if (options_.report.empty()) return {};
    ASSIGN_OR_RETURN(const std::string text, ReadFile(options_.report));
    auto report = ParseReport(text);
    if (!report.ok()) return Annotate(report.status(), options_.report);
    rows_ = std::move(report->rows);
    return {};
  }

  Status MakeVariants() {
    variants_.push_back({.name = kBaseline, .model = options_.target.model});
    ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(options_.target.model));
    const MakeOptions make = {.baseline = options_.target.model,
                              .baseline_digest = files.digest.Hex(),
                              .baseline_text_digest = Digest(*files.text).Hex(),
                              .folder = options_.work + "/models",
                              .calibration = options_.calibration,
                              .mixed_bytes = options_.mixed_bytes,
                              .threads = options_.target.threads};
    for (const std::string& name : options_.techniques) {
      ASSIGN_OR_RETURN(variants_.emplace_back(), MakeVariant(*FindTechnique(name), make, context_));
    }
    variants_.insert(variants_.end(), options_.variants.begin(), options_.variants.end());
    if (!options_.combine) return {};
    for (ReportVariant& each : CombinationsOf(variants_)) {
      const auto same = std::ranges::find(variants_, each.name, &ReportVariant::name);
      if (same != variants_.end()) return InvalidArgument("--combine: two plans are named ", each.name);
      variants_.push_back(std::move(each));
    }
    return {};
  }

  // An engine is measured once, whatever drafts for it.
  StatusOr<const ProbedEngine*> Probe(const ModelTarget& target) {
    const std::string key = Concat(target.model, "\n", target.compute, "\n", target.kv_dtype);
    const auto found = probed_.find(key);
    if (found != probed_.end()) return found->second.get();
    ASSIGN_OR_RETURN(ProbedEngine probed, ProbeSteps(EngineOptionsOf(target, context_.shutdown),
                                                     options_.probe_repeats, Vocabulary));
    return (probed_[key] = std::make_unique<ProbedEngine>(std::move(probed))).get();
  }

  // The answers of a row are those of any engine with the same weights in the same arithmetic.
  void AddQuality(const TechniqueRow& engine, PlanCandidate& candidate) const {
    const TechniqueRow* const row = RowOfEngine(rows_, engine);
    if (row == nullptr) return;
    candidate.accuracy = row->accuracy();
    candidate.shift = row->shift;
  }

  // Where the memory has no room for a whole batch, and no smaller keys and values were considered.
  std::string KvHint(const std::vector<PlannedServing>& plans) const {
    const auto is_small = [](const auto& source) {
      return source.second.engine->kv_dtype == "int8" || source.second.engine->kv_dtype == "fp8";
    };
    if (std::ranges::any_of(sources_, is_small) ||
        std::ranges::none_of(plans, &PlannedServing::is_memory_short))
      return "";
    return "the memory is short of sequences: smaller keys and values hold more of them (--techniques "
           "kv-int8,kv-fp8, or kv= of a --variant)\n";
  }

  // As it was said, or as the report has measured it of the same drafter.
  StatusOr<ReportedAcceptance> Acceptance(const ReportVariant& variant, const TechniqueRow& engine) const {
    if (options_.acceptance.has_value()) return ReportedAcceptance{.share = options_.acceptance};
    if (variant.drafter != "model") return AcceptanceOf(rows_, engine, variant.drafter, "");
    ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(variant.draft_model));
    return AcceptanceOf(rows_, engine, variant.drafter, files.digest.Hex());
  }

  // Names are different with the number of ranks, too.
  Status CheckNamesOnRanks() const {
    std::vector<std::string> names;
    const auto add = [&](const std::string& name) {
      for (const uint32_t ranks : options_.ranks) names.push_back(NameOnRanks(name, ranks));
    };
    add(kBaseline);
    std::ranges::for_each(options_.techniques, add);
    std::ranges::for_each(options_.variants, add, &ReportVariant::name);
    std::ranges::sort(names);
    const auto same = std::ranges::adjacent_find(names);
    return same == names.end() ? Status() : InvalidArgument("two plans are named ", *same);
  }

  // Sums over so many ranks are measured once.
  StatusOr<LinkCost> LinkOf(uint32_t ranks) {
    if (const auto found = links_.find(ranks); found != links_.end()) return found->second;
    ASSIGN_OR_RETURN(
        const std::vector<SumSample> sums,
        MeasureSumsHere(ranks, {.is_cancelled = [this] { return context_.shutdown.IsPending(); }}));
    ASSIGN_OR_RETURN(links_[ranks], FitLink(sums, ranks));
    return links_[ranks];
  }

  // What `tier`, which is of one rank, and the candidate are with several. False: it is left out.
  StatusOr<bool> SpreadOver(uint32_t ranks, const ReportVariant& variant, const ProbedEngine& probed,
                            PlanTier& tier, PlanCandidate& candidate) {
    ASSIGN_OR_RETURN(const ModelShape shape, ReadModelShape(variant.model, std::nullopt));
    if (const Status can = CheckRanks(probed, shape, ranks); !can.ok()) {
      notes_ += Concat(candidate.name, ": left out: ", Message(can), "\n");
      return false;
    }
    ASSIGN_OR_RETURN(const LinkCost link, LinkOf(ranks));
    ASSIGN_OR_RETURN(TierOnRanks spread, PutOnRanks(probed, shape, ranks, link, options_.max_sequences));
    tier.ranks = ranks;
    tier.weight_bytes = spread.weight_bytes;
    tier.kv_bytes_per_token = spread.kv_bytes_per_token;
    candidate.reasons_against = std::move(spread.reasons_against);
    tier.cost = Keep(std::move(spread.cost));
    return true;
  }

  const StepCost* Keep(StepCost cost) {
    return costs_.emplace_back(std::make_unique<StepCost>(std::move(cost))).get();
  }

  Status AddVariant(const ReportVariant& variant, uint32_t ranks) {
    ModelTarget target = TargetOf(options_.target, variant);
    target.max_sequences = options_.max_sequences;
    ASSIGN_OR_RETURN(const ProbedEngine* const probed, Probe(target));
    PlanCandidate candidate{.name = NameOnRanks(variant.name, ranks)};
    AddQuality(probed->engine, candidate);
    PlanTier tier{.cost = &probed->cost,
                  .weight_bytes = probed->engine.weight_bytes,
                  .kv_bytes_per_token = probed->engine.kv_bytes_per_token,
                  .context_length = probed->context_length,
                  .max_step_tokens = probed->max_step_tokens};
    if (ranks > 1) {
      ASSIGN_OR_RETURN(const bool is_in, SpreadOver(ranks, variant, *probed, tier, candidate));
      if (!is_in) return {};
    }
    if (variant.drafter != "none") {
      ASSIGN_OR_RETURN(const ReportedAcceptance acceptance, Acceptance(variant, probed->engine));
      if (!acceptance.share.has_value()) {
        notes_ += Concat(candidate.name, ": left out, as nothing says how often its drafts are accepted: ",
                         "--acceptance, or a --report that has measured it", acceptance.note, "\n");
        return {};
      }
      ASSIGN_OR_RETURN(tier.drafter, DrafterOf(variant, target, *acceptance.share, ranks));
    }
    Source& source = sources_[candidate.name];
    source = {.variant = &variant, .target = target, .engine = &probed->engine, .tier = tier};
    candidate.tiers = {tier};
    candidates_.push_back(std::move(candidate));
    origins_.push_back({.tiers = {&source}});
    return {};
  }

  StatusOr<PlanDrafter> DrafterOf(const ReportVariant& variant, ModelTarget target, double acceptance,
                                  uint32_t ranks) {
    PlanDrafter drafter{.acceptance = acceptance};
    if (variant.drafter != "model") return drafter;
    target.model = variant.draft_model;
    ASSIGN_OR_RETURN(const ProbedEngine* const probed, Probe(target));
    // The model runs at the leader alone, which has its share of the cores.
    drafter.cost = Keep(probed->cost.Changed(ranks, [](uint32_t) { return 0.0; }));
    drafter.weight_bytes = probed->engine.weight_bytes;
    drafter.kv_bytes_per_token = probed->engine.kv_bytes_per_token;
    return drafter;
  }

  // How often its first tier's answer is kept only a report knows, and only of the same engines.
  void AddCascade(const ReportCascade& cascade) {
    std::vector<const Source*> sources;
    std::vector<CascadeTier> tiers;
    for (const std::string& name : cascade.tiers) {
      const auto found = sources_.find(name);
      sources.push_back(found == sources_.end() ? nullptr : &found->second);
      tiers.push_back({.name = name, .engine = sources.back() ? sources.back()->engine : nullptr});
    }
    for (const double threshold : cascade.thresholds) {
      PlanCandidate candidate{.name = cascade.RowName(threshold)};
      const auto row = RowOfCascade(rows_, candidate.name, tiers);
      if (!row.ok()) {
        notes_ += Concat(candidate.name, ": left out: ", Message(row.status()), "\n");
        continue;
      }
      for (const Source* source : sources) candidate.tiers.push_back(source->tier);
      candidate.tiers[0].kept = (*row)->first_tier_share;
      candidate.accuracy = (*row)->accuracy();
      candidates_.push_back(std::move(candidate));
      origins_.push_back({.tiers = sources, .min_mean_logprob = threshold});
    }
  }

  StatusOr<PlannedWorker> WorkerOf(const Source& source) const {
    PlannedWorker worker{.name = source.variant->name,
                         .kv_dtype = source.engine->kv_dtype,
                         .device = source.target.device,
                         .compute = source.engine->compute,
                         .threads = source.target.threads,
                         .ranks = source.tier.ranks,
                         .drafter = source.variant->drafter,
                         .kv_bytes_per_token = source.tier.kv_bytes_per_token};
    std::ranges::transform(worker.name, worker.name.begin(), [](char c) {
      return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    ASSIGN_OR_RETURN(worker.model, Absolute(source.variant->model));
    if (worker.drafter != "model") return worker;
    ASSIGN_OR_RETURN(worker.draft_model, Absolute(source.variant->draft_model));
    worker.draft_kv_bytes_per_token = source.tier.drafter->kv_bytes_per_token;
    return worker;
  }

  Status Write(const PlannedServing& plan) const {
    if (options_.out.empty()) return {};
    const Origin& origin = origins_[plan.candidate];
    std::vector<PlannedWorker> workers;
    for (const Source* tier : origin.tiers) {
      ASSIGN_OR_RETURN(workers.emplace_back(), WorkerOf(*tier));
    }
    const std::string head =
        Concat("# Written by terrace plan: ", candidates_[plan.candidate].name,
               plan.machines() == 1 ? ".\n" : "; each worker is meant for a machine of its own.\n");
    RETURN_IF_ERROR(
        ReplaceFile(options_.out, head + ToYaml(ClusterOf(plan, workers, origin.min_mean_logprob))));
    context_.out << "wrote " << options_.out << "\n";
    return {};
  }

  // What this process cannot run of a plan; "": it can.
  std::string NotRunHere(const PlannedServing& plan) const {
    if (plan.tiers.size() > 1) return "a cascade";
    const uint32_t ranks = origins_[plan.candidate].tiers.front()->tier.ranks;
    return ranks > 1 ? Concat("a group of ", ranks, " ranks") : "";
  }

  const std::string& NameOf(const PlannedServing& plan) const { return candidates_[plan.candidate].name; }

  // The best, or else the best of those that can be run here: that is told, and no verification of the best.
  Status Verify(const std::vector<PlannedServing>& plans) const {
    const PlannedServing& best = plans.front();
    const std::string what = NotRunHere(best);
    if (what.empty()) {
      ASSIGN_OR_RETURN(const std::vector<std::string> broken, VerifyWorker(best));
      return MeasuredVerdict(broken, options_.out);
    }
    const std::string not_verified =
        Concat("not verified: ", NameOf(best), " is ", what, ", which is not run here");
    context_.out << "\n" << not_verified << "; terrace bench measures one that is served\n";
    const auto other = std::ranges::find_if(
        plans, [this](const PlannedServing& plan) { return plan.keeps_all() && NotRunHere(plan).empty(); });
    if (other == plans.end()) return NotVerified(not_verified);
    context_.out << "run instead, to compare what was predicted of it: " << NameOf(*other) << "\n";
    RETURN_IF_ERROR(VerifyWorker(*other).status());
    return NotVerified(Concat(not_verified, "; ", NameOf(*other), " was"));
  }

  // One worker with what it would get of the traffic, in this process: predicted anew, then measured. The
  // limits that it breaks, in words.
  StatusOr<std::vector<std::string>> VerifyWorker(const PlannedServing& plan) const {
    ServingTier tier = plan.tiers.front();
    Traffic traffic = traffic_;
    if (auto* const closed = std::get_if<ClosedLoop>(&traffic.load)) {
      closed->concurrency = (closed->concurrency + tier.workers - 1) / tier.workers;
    } else {
      std::get<OpenLoop>(traffic.load).rate /= tier.workers;
    }
    tier.workers = 1;
    ASSIGN_OR_RETURN(const ServingPrediction predicted,
                     SimulateServing({&tier, 1}, traffic, [this] { return context_.shutdown.IsPending(); }));
    const Source& source = *origins_[plan.candidate].tiers.front();
    ASSIGN_OR_RETURN(const MeasuredWorker measured,
                     MeasureWorker({.engine = EngineOf(source, tier.settings),
                                    .traffic = traffic,
                                    .warmup_requests = options_.max_sequences,
                                    .is_interrupted = [this] { return context_.shutdown.IsPending(); }}));
    const LevelResult& result = measured.result;
    const ServingCosts planned = {.memory_bytes = plan.most_memory(),
                                  .usd_per_million_tokens = PriceAt(predicted.TokensPerSecond())},
                       costs = {.memory_bytes = measured.allocated_bytes,
                                .resident_bytes = measured.resident_bytes,
                                .usd_per_million_tokens =
                                    PriceAt(result.PerSecond(result.prompt_tokens + result.output_tokens))};
    std::vector<std::string> broken =
        BrokenFigures(options_.constraints, result.first_token, result.inter_token,
                      result.output_tokens_per_second() * plan.tiers.front().workers);
    std::ranges::move(BrokenCosts(options_.constraints, costs.memory_bytes, costs.usd_per_million_tokens),
                      std::back_inserter(broken));
    context_.out << "\n"
                 << FormatVerification(predicted, planned, result, costs)
                 << FormatDrafts(tier.settings.drafts.acceptance, result.speculation)
                 << FormatMeasuredConstraints(broken);
    return broken;
  }

  // US dollars of a million tokens of one worker that gives so many a second.
  double PriceAt(double tokens_per_second) const {
    return options_.usd_per_hour / 3600 / tokens_per_second * 1e6;
  }

  OpenEngineOptions EngineOf(const Source& source, const ServingSettings& planned) const {
    OpenEngineOptions engine = EngineOptionsOf(source.target, context_.shutdown);
    engine.max_step_tokens = planned.max_step_tokens;
    engine.kv_pool_bytes = planned.kv_tokens * source.engine->kv_bytes_per_token;
    if (planned.drafts.length == 0) return engine;
    engine.speculation.drafter = source.variant->drafter;
    engine.speculation.max_tokens = planned.drafts.length;
    engine.speculation.model = source.variant->draft_model;
    engine.speculation.kv_pool_bytes = planned.kv_tokens * source.tier.drafter->kv_bytes_per_token;
    context_.out << "--verify: prompts of random ids; drafts may be right less or more often than planned\n";
    return engine;
  }

  const PlanOptions& options_;
  const CommandContext& context_;
  Descriptor work_;  // locked
  Traffic traffic_;
  std::vector<TechniqueRow> rows_;       // of the report
  std::vector<ReportVariant> variants_;  // the baseline first
  std::map<std::string, std::unique_ptr<ProbedEngine>> probed_;
  std::map<uint32_t, LinkCost> links_;            // by ranks
  std::vector<std::unique_ptr<StepCost>> costs_;  // that were made of those measured
  std::map<std::string, Source> sources_;         // by name
  std::vector<PlanCandidate> candidates_;         // borrow from probed_ and costs_
  std::vector<Origin> origins_;                   // [candidates_], borrow from sources_
  std::string notes_;
};

}  // namespace

Status RunPlan(const PlanOptions& options, const CommandContext& context) {
  PlanOptions chosen = options;
  std::string notes;
  ASSIGN_OR_RETURN(chosen.techniques, ExpandTechniques(options.techniques, options.target.model,
                                                       options.calibration, options.mixed_bytes, notes));
  context.out << notes;
  const Status status = PlanRun(chosen, context).Run();
  if (status.code() != StatusCode::kCancelled || chosen.techniques.empty()) return status;
  return Cancelled("interrupted; the same command goes on with the models that were made in ", options.work);
}

}  // namespace terrace
