#include "worker/sample/sampling_params.h"

namespace terrace {
namespace {

template <typename... Args>
Status Invalid(const Args&... args) {
  return WithReason(InvalidArgument(args...), "invalid_value");
}

// NaN is in no range.
Status CheckRange(const char* field, float value, float low, float high, bool above_low = false) {
  if ((above_low ? value > low : value >= low) && value <= high) return absl::OkStatus();
  return Invalid(field, ": ", value, ", not in ", above_low ? '(' : '[', low, ", ", high, "]");
}

}  // namespace

Status ValidateSamplingParams(const SamplingParams& params, uint32_t vocab_size) {
  constexpr size_t kMaxBiases = 1024;
  RETURN_IF_ERROR(CheckRange("temperature", params.temperature, 0, 2));
  if (params.top_k < 0) return Invalid("top_k: ", params.top_k, ", not 0 or more");
  RETURN_IF_ERROR(CheckRange("top_p", params.top_p, 0, 1, /*above_low=*/true));
  RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0, 1));
  RETURN_IF_ERROR(CheckRange("repetition_penalty", params.repetition_penalty, 0, 10, /*above_low=*/true));
  RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty, -2, 2));
  RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty, -2, 2));
  if (params.logit_bias.size() > kMaxBiases) {
    return Invalid("logit_bias: ", params.logit_bias.size(), " entries, limit ", kMaxBiases);
  }
  for (const auto& [token, bias] : params.logit_bias) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab_size) {
      return Invalid("logit_bias: token ", token, ", not in [0, ", vocab_size, ")");
    }
    RETURN_IF_ERROR(Annotate(CheckRange("logit_bias", bias, -100, 100), Concat("token ", token)));
  }
  return absl::OkStatus();
}

}  // namespace terrace
