#include "tools/cli/plan_measure.h"

#include <malloc.h>

#include <memory>
#include <random>

#include "base/machine.h"
#include "tools/bench/load_run.h"
#include "tools/cli/bench_targets.h"

namespace terrace {
namespace {

BenchSettings SettingsOf(const WorkerRun& run) {
  const Traffic& traffic = run.traffic;
  BenchSettings settings;
  settings.levels = {traffic.load};
  settings.requests = traffic.requests;
  settings.warmup_requests = run.warmup_requests;
  settings.workload = {.prompt_tokens = traffic.prompt_tokens,
                       .output_tokens = traffic.output_tokens,
                       .shared_prefix_tokens = traffic.shared_prefix_tokens,
                       .seed = traffic.seed};
  settings.cache_salt = Concat("plan-", std::random_device()());
  return settings;
}

}  // namespace

StatusOr<MeasuredWorker> MeasureWorker(const WorkerRun& run) {
  const BenchSettings settings = SettingsOf(run);
  RETURN_IF_ERROR(Validate(settings));
  malloc_trim(0);  // what engines before have freed would be taken again without growing
  const StatusOr<uint64_t> before = ResidentBytes();
  ASSIGN_OR_RETURN(const std::unique_ptr<BenchTarget> target, OpenLocalBenchTarget(run.engine));
  ASSIGN_OR_RETURN(const Workload workload, Workload::Make(settings.workload, target->vocabulary(),
                                                           target->description().context_length));
  const auto time = std::make_shared<RealBenchTime>();
  LoadHooks hooks;
  hooks.is_interrupted = run.is_interrupted;
  RunLoad(*target, workload, settings, {.level = 0, .is_warmup = true}, time, hooks);
  MeasuredWorker out;
  out.result = RunLoad(*target, workload, settings, {.level = 0}, time, hooks);
  if (out.result.is_interrupted || run.is_interrupted()) return Cancelled("interrupted");
  if (out.result.ok < out.result.planned)
    return Unavailable("--verify: ", out.result.planned - out.result.ok, " of ", out.result.planned,
                       " requests were not answered");
  out.allocated_bytes = target->description().memory_bytes;
  const StatusOr<uint64_t> after = ResidentBytes();
  const bool is_on_cpu = target->description().device.starts_with("cpu");
  if (is_on_cpu && before.ok() && after.ok() && *after > *before) out.resident_bytes = *after - *before;
  return out;
}

}  // namespace terrace
