#include "tools/bench/workload.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/rng.h"
#include "tools/bench/streams.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxPrefixGroups = 1'000'000;

PromptSettings PromptsOf(const WorkloadSettings& settings) {
  return {.shared_prefix_tokens = settings.shared_prefix_tokens,
          .prefix_groups = settings.prefix_groups,
          .prefix_zipf = settings.prefix_zipf,
          .seed = settings.seed};
}

}  // namespace

Status Validate(const WorkloadSettings& settings) {
  if (!settings.prompt_tokens.is_log_normal() &&
      settings.shared_prefix_tokens >= settings.prompt_tokens.min()) {
    return InvalidArgument("--shared-prefix-tokens ", settings.shared_prefix_tokens,
                           " leaves nothing of its own to a prompt of ", settings.prompt_tokens.min(),
                           " tokens (--prompt-tokens counts the prefix too)");
  }
  if (settings.shared_prefix_tokens >= LengthDistribution::kMaxLength)
    return InvalidArgument("--shared-prefix-tokens: at most ", LengthDistribution::kMaxLength - 1);
  if (settings.prefix_groups < 1 || settings.prefix_groups > kMaxPrefixGroups)
    return InvalidArgument("--prefix-groups: 1 to ", kMaxPrefixGroups);
  if (settings.prefix_groups > 1 && settings.shared_prefix_tokens == 0)
    return InvalidArgument("--prefix-groups needs --shared-prefix-tokens");
  if (!(settings.prefix_zipf >= 0 && settings.prefix_zipf <= 10))
    return InvalidArgument("--prefix-zipf: 0 to 10");
  if (settings.prefix_zipf > 0 && settings.prefix_groups == 1)
    return InvalidArgument("--prefix-zipf needs --prefix-groups above 1");
  if (!(settings.cancel_fraction >= 0 && settings.cancel_fraction <= 1))
    return InvalidArgument("--cancel-fraction: 0 to 1");
  if (settings.cancel_fraction > 0 && settings.output_tokens.max() < 2)
    return InvalidArgument("--cancel-fraction: an answer of one token cannot be cancelled in the middle");
  return Status();
}

Workload::Workload(const WorkloadSettings& settings, std::vector<TokenId> vocabulary, uint32_t context_length)
    : settings_(settings),
      context_length_(context_length > 0 ? context_length : std::numeric_limits<uint32_t>::max()),
      prompts_(PromptsOf(settings), std::move(vocabulary)) {}

StatusOr<Workload> Workload::Make(const WorkloadSettings& settings, std::vector<TokenId> vocabulary,
                                  uint32_t context_length) {
  RETURN_IF_ERROR(Validate(settings));
  if (vocabulary.size() < 2) {
    return InvalidArgument("the target's vocabulary has ", vocabulary.size(),
                           " tokens that a prompt may hold: too few");
  }
  // Log-normal lengths give way to the context, other ones do not.
  const auto needed = [](const LengthDistribution& lengths) -> uint64_t {
    return lengths.is_log_normal() ? lengths.min() : lengths.max();
  };
  const uint64_t prompt =
      std::max<uint64_t>(needed(settings.prompt_tokens), settings.shared_prefix_tokens + uint64_t{1});
  const uint64_t output = needed(settings.output_tokens);
  if (context_length > 0 && prompt + output > context_length) {
    return InvalidArgument("prompts of ", prompt, " and answers of ", output, " tokens are ", prompt + output,
                           ", the target's context is ", context_length);
  }
  return Workload(settings, std::move(vocabulary), context_length);
}

PlannedRequest Workload::Plan(const RequestKey& key) const {
  CHECK(key.level < RequestKey::kMaxLevels && key.index < RequestKey::kMaxIndex, key.level, " ", key.index);
  const auto same_on_every_level = RequestKey::kMaxIndex * (key.is_warmup ? 1 : 0) + key.index;
  const uint64_t request = RequestKey::kMaxIndex * (2 * uint64_t{key.level}) + same_on_every_level;
  const uint64_t seed = settings_.seed;

  const uint32_t drawn_prompt = settings_.prompt_tokens.Draw(seed, same_on_every_level, kPromptLengthStream);
  const uint32_t drawn_output = settings_.output_tokens.Draw(seed, same_on_every_level, kOutputLengthStream);
  const uint32_t least_prompt = std::max(settings_.prompt_tokens.min(), settings_.shared_prefix_tokens + 1);
  PlannedRequest planned;
  planned.output_tokens = std::min(drawn_output, context_length_ - least_prompt);
  const uint32_t length = std::clamp(drawn_prompt, least_prompt, context_length_ - planned.output_tokens);
  planned.is_cut = planned.output_tokens < drawn_output || length < drawn_prompt;
  planned.prompt = prompts_.Build(request, key.level, length);
  planned.sampling_seed = RandomBits(seed, request, kSamplingSeedStream);
  if (planned.output_tokens > 1 &&
      RandomUniform(seed, 2 * same_on_every_level, kCancelStream) < settings_.cancel_fraction) {
    const uint64_t after = RandomBits(seed, 2 * same_on_every_level + 1, kCancelStream);
    planned.cancel_after = static_cast<uint32_t>(1 + after % (planned.output_tokens - 1));
  }
  return planned;
}

}  // namespace terrace
