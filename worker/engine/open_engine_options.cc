// Which settings can be used: ValidateOpenEngineOptions and CheckDeviceSettings.
#include <bit>
#include <span>
#include <tuple>

#include "worker/engine/device_rules.h"
#include "worker/engine/device_shard.h"
#include "worker/engine/max_ranks.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/model_files.h"
#include "worker/model/transformer.h"
#include "worker/parallel/shard_plan.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxThreads = 1024, kMaxSequences = 4096;
constexpr double kMaxPrefillWait = 3600, kMaxDrain = 3600;
constexpr uint32_t kMaxStepTokens = 1u << 16, kMaxInbox = 1u << 16;
constexpr uint32_t kLeastDeviceBlock = 16;
constexpr uint32_t kMaxSpeculatedTokens = 64, kMaxMinMatch = 16;

constexpr std::string_view kDevices[] = {"auto", "cpu", "cuda"}, kNumerics[] = {"auto", "invariant"},
                           kKernels[] = {"auto", "cpu", "reference"}, kComputes[] = {"auto", "f32", "fp8"},
                           kKvDTypes[] = {"auto", "f32", "f16", "bf16", "int8", "fp8"},
                           kDrafters[] = {"none", "ngram", "model", "remote"};

template <typename... Text>
Status Bad(const Text&... text) {
  return WithReason(InvalidArgument(text...), "invalid_value");
}

Status CheckRange(std::string_view name, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return {};
  return Bad(name, " is ", value, ", not in [", low, ", ", high, "]");
}

Status CheckName(std::string_view name, std::string_view value, std::span<const std::string_view> known) {
  std::string all;
  for (const std::string_view one : known) {
    if (value == one) return {};
    all += Concat(all.empty() ? "" : ", ", one);
  }
  return Bad(name, ": \"", value, "\", not one of ", all);
}

// 0 stands for a default.
Status CheckSizes(const OpenEngineOptions& options) {
  if (options.threads != 0) RETURN_IF_ERROR(CheckRange("engine.threads", options.threads, 1, kMaxThreads));
  RETURN_IF_ERROR(CheckRange("engine.max_sequences", options.max_sequences, 0, kMaxSequences));
  if (options.max_step_tokens != 0) {  // a step has room for every decode
    RETURN_IF_ERROR(
        CheckRange("engine.max_step_tokens", options.max_step_tokens, options.max_sequences, kMaxStepTokens));
  }
  RETURN_IF_ERROR(CheckRange("engine.inbox", options.inbox, 1, kMaxInbox));
  if (!std::has_single_bit(options.virtual_shards) || options.virtual_shards > kMaxVirtualShards) {
    return Bad("engine.virtual_shards is ", options.virtual_shards, ", not a power of two up to ",
               kMaxVirtualShards);
  }
  return CheckRange("kv.block_tokens", options.block_tokens, 1, kMaxBlockTokens);
}

// Of a group.
Status CheckRanks(const OpenEngineOptions& options) {
  const auto [rank, ranks, stages] =
      std::tuple(options.group.rank, options.group.ranks, options.group.stages);
  RETURN_IF_ERROR(CheckRange("group.ranks", ranks, 1, kMaxRanks));
  RETURN_IF_ERROR(CheckRange("group.pipeline_parallel", stages, 1, kMaxRanks));
  if (rank >= ranks) return Bad("group.rank is ", rank, ", group.ranks ", ranks);
  if (ranks % stages != 0)
    return Bad("group.ranks is ", ranks, ", not a multiple of group.pipeline_parallel, ", stages);
  const uint32_t tensor = ranks / stages;
  if (!std::has_single_bit(tensor)) {
    return Bad("group.ranks is ", ranks, ": ", tensor, " for each of ", stages,
               " pipeline stages, not a power of two");
  }
  if (options.virtual_shards % tensor == 0) return {};
  return Bad("engine.virtual_shards is ", options.virtual_shards,
             ", not a multiple of group.tensor_parallel, ", tensor);
}

Status CheckTimes(const OpenEngineOptions& options) {
  if (!(options.max_prefill_wait_seconds > 0 && options.max_prefill_wait_seconds <= kMaxPrefillWait)) {
    return Bad("engine.max_prefill_wait_seconds is ", options.max_prefill_wait_seconds, ", not in (0, ",
               kMaxPrefillWait, "]");
  }
  if (!(options.drain_seconds >= 0 && options.drain_seconds <= kMaxDrain)) {
    return Bad("drain_seconds is ", options.drain_seconds, ", not in [0, ", kMaxDrain, "]");
  }
  return {};
}

Status CheckSpeculation(const SpeculationOptions& options) {
  RETURN_IF_ERROR(CheckName("engine.speculation.drafter", options.drafter, kDrafters));
  RETURN_IF_ERROR(CheckRange("engine.speculation.max_tokens", options.max_tokens, 1, kMaxSpeculatedTokens));
  RETURN_IF_ERROR(
      CheckRange("engine.speculation.max_branch_tokens", options.max_branch_tokens, 0, kMaxSpeculatedTokens));
  RETURN_IF_ERROR(CheckRange("engine.speculation.min_match", options.min_match, 1, kMaxMinMatch));
  if (options.drafter == "remote" && options.max_branch_tokens > 0)
    return Bad("engine.speculation.max_branch_tokens is ", options.max_branch_tokens,
               "; drafter: remote has no second guesses, 0 is its limit");
  const bool drafts_with_model = options.drafter == "model";
  if (drafts_with_model && options.model.empty())
    return Bad("engine.speculation.model: is needed with drafter: model");
  if (!drafts_with_model && !options.model.empty())
    return Bad("engine.speculation.model: is for drafter: model, not ", options.drafter);
  if (!drafts_with_model && options.device != "auto")
    return Bad("engine.speculation.device: is for drafter: model, not ", options.drafter);
  return CheckName("engine.speculation.device", options.device, kDevices);
}

// Of a group whose ranks have a GPU each.
Status CheckDeviceRanks(const OpenEngineOptions& options) {
  const GroupOptions& group = options.group;
  if (group.ranks > 1 && options.device != "cuda") {  // or some ranks would be on GPUs and others not
    return Bad("group.ranks: ", group.ranks, " with engine.device: ", options.device,
               " is for CPUs only; on GPUs it needs engine.device: cuda");
  }
  RETURN_IF_ERROR(CheckDeviceGroup(group.ranks, group.stages));
  if (options.virtual_shards != group.ranks) {
    return Bad("engine.virtual_shards: ", options.virtual_shards, " is for CPUs only; CUDA has ", group.ranks,
               group.ranks > 1 ? ", as many as ranks" : "");
  }
  if (group.ranks > 1 && options.speculation.device == "cuda") {
    return Bad("engine.speculation.device: cuda is for one GPU; with group.ranks: ", group.ranks,
               " a model drafts on the CPUs of the leader: cpu, or auto");
  }
  return {};
}

}  // namespace

Status ValidateOpenEngineOptions(const OpenEngineOptions& options) {
  RETURN_IF_ERROR(CheckRanks(options));
  RETURN_IF_ERROR(CheckSizes(options));
  RETURN_IF_ERROR(CheckTimes(options));
  RETURN_IF_ERROR(CheckName("kv.dtype", options.kv_dtype, kKvDTypes));
  RETURN_IF_ERROR(CheckName("engine.kernels", options.kernels, kKernels));
  RETURN_IF_ERROR(CheckName("engine.compute", options.compute, kComputes));
  RETURN_IF_ERROR(CheckName("engine.device", options.device, kDevices));
  RETURN_IF_ERROR(CheckName("engine.numerics", options.numerics, kNumerics));
  RETURN_IF_ERROR(CheckSpeculation(options.speculation));
  if (options.device == "cpu" && options.speculation.device == "cuda")
    return Bad("engine.speculation.device: cuda is for engine.device: auto or cuda, not cpu");
  if (options.device == "cuda") return CheckDeviceSettings(options);
  // Not with auto either: weights of half the bits are nothing to get or not by where a worker starts.
  if (options.compute == "fp8") return Bad("engine.compute: fp8 needs engine.device: cuda");
  return {};
}

Status CheckDeviceSettings(const OpenEngineOptions& options) {
  if (options.kernels != "auto") return Bad("engine.kernels: ", options.kernels, " is for CPUs only");
  if (options.compute == "f32") return Bad("engine.compute: f32 is for CPUs only; CUDA has auto, fp8");
  RETURN_IF_ERROR(CheckDeviceRanks(options));
  if (options.kv_dtype == "f32")
    return Bad("kv.dtype: f32 is for CPUs only; CUDA has auto, bf16, f16, int8, fp8");
  if (options.block_tokens < kLeastDeviceBlock || !std::has_single_bit(options.block_tokens)) {
    return Bad("kv.block_tokens is ", options.block_tokens, "; CUDA takes powers of two from ",
               kLeastDeviceBlock, " on");
  }
  return {};
}

ShardOptions ShardOptionsOf(const OpenEngineOptions& options) {
  return {.rank = options.group.rank,
          .ranks = options.group.ranks,
          .stages = options.group.stages,
          .virtual_shards = options.virtual_shards};
}

OpenModelOptions OpenModelOptionsOf(const OpenEngineOptions& options) {
  return {.use_digest_list = options.group.ranks > 1, .is_cancelled = options.is_cancelled};
}

Status CheckShards(const OpenEngineOptions& options) {
  if (options.group.ranks == 1 && options.virtual_shards == 1) return {};
  ASSIGN_OR_RETURN(const ModelFiles files, OpenWeights(options.model));
  if (options.device == "cuda")
    return PlanDeviceShard(files.config, *files.weights, ShardOptionsOf(options)).status();
  return Transformer::Plan(files.config, *files.weights, ShardOptionsOf(options)).status();
}

}  // namespace terrace
