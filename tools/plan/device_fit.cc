#include "tools/plan/device_fit.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "base/format.h"
#include "tools/plan/constraints.h"
#include "worker/engine/device_rules.h"
#include "worker/engine/device_shard.h"
#include "worker/kv/kv_pool.h"

namespace terrace {
namespace {

constexpr double kBandwidthShare = 0.77, kRateShare = 0.62, kLinkShare = 0.8;
constexpr double kNvLinkRound = 10e-6, kPcieRound = 20e-6;  // seconds
// Of a device's memory: its libraries' first, then of what is left the KV pool's, as kv_sizing.cc has it.
constexpr double kReservedShare = 0.02, kKvShare = 0.95;
constexpr uint32_t kDeviceStepTokens = 8192;  // engine.max_step_tokens on a device
constexpr uint32_t kSequencesPerDevice = 16, kUsualContext = 4096;
constexpr uint64_t kBlockTokens = 16;
constexpr double kAsFast = 0.98;  // of the fastest: then fewer ranks are better

// Of data sheets, all of the compute capability that workers need, 8.0 or newer: bytes, bytes a second, dense
// bf16 operations a second, bytes a second of the link in one direction.
struct KnownDevice {
  std::string_view name;
  double memory, bandwidth, rate, link;
  bool has_nvlink;
};
// Of several with the same memory, a size means the first.
constexpr KnownDevice kDevices[] = {
    {"H100", 80e9, 3.35e12, 989e12, 450e9, true},       {"A100", 80e9, 2.039e12, 312e12, 300e9, true},
    {"H200", 141e9, 4.8e12, 989e12, 450e9, true},       {"B200", 180e9, 8e12, 2250e12, 900e9, true},
    {"A100-40GB", 40e9, 1.555e12, 312e12, 300e9, true}, {"L40S", 48e9, 0.864e12, 362e12, 32e9, false},
    {"RTX4090", 24e9, 1.008e12, 165e12, 32e9, false},   {"A10", 24e9, 0.6e12, 125e12, 32e9, false},
    {"L4", 24e9, 0.3e12, 121e12, 32e9, false},
};

char Upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

const KnownDevice* FindDevice(std::string_view name) {
  for (const KnownDevice& known : kDevices) {
    if (std::ranges::equal(known.name, name, {}, Upper, Upper)) return &known;
  }
  return nullptr;
}

const KnownDevice& NearestDevice(double memory) {
  return *std::ranges::min_element(
      kDevices, {}, [memory](const KnownDevice& known) { return std::abs(std::log(known.memory / memory)); });
}

DeviceSpec SpecOf(const KnownDevice& known) {
  return {.name = std::string(known.name),
          .memory_bytes = static_cast<uint64_t>(known.memory),
          .bytes_per_second = known.bandwidth * kBandwidthShare,
          .operations_per_second = known.rate * kRateShare,
          .link = {.round_seconds = known.has_nvlink ? kNvLinkRound : kPcieRound,
                   .seconds_per_byte = 1 / (known.link * kLinkShare)}};
}

std::string KnownNames() {
  std::string names;
  for (const KnownDevice& known : kDevices) names += Concat(names.empty() ? "" : ", ", known.name);
  return names;
}

// "8x80GB" is 8 and "80GB"; without a number before an x it is one of them.
std::pair<std::string_view, std::string_view> CountAndDevice(std::string_view text) {
  const size_t x = text.find('x');
  const bool has_count =
      x != text.npos && x > 0 && text.substr(0, x).find_first_not_of("0123456789") == text.npos;
  return has_count ? std::pair(text.substr(0, x), text.substr(x + 1))
                   : std::pair(std::string_view("1"), text);
}

// Embeddings are looked up in bf16, whatever the file holds (worker/cuda/cuda_weights.cc).
uint64_t WeightBytes(const RankShare& share, const ModelConfig& config) {
  const uint64_t looked_up = uint64_t{config.vocab_size} * config.hidden_size * 2;
  return share.weight_bytes() - share.embedding_bytes + (share.embedding_bytes > 0 ? looked_up : 0);
}

// Activations of the largest step, in the widest of what is there at once, and logits of every sequence.
uint64_t WorkspaceBytes(const RankShare& share, const ModelConfig& config, uint64_t step_tokens,
                        uint64_t sequences, uint32_t tensor_ranks) {
  const uint64_t heads = uint64_t{share.heads} + 2 * uint64_t{share.kv_heads};
  const uint64_t ffn = (uint64_t{config.ffn_size} + tensor_ranks - 1) / tensor_ranks;
  const uint64_t of_experts = config.experts > 0 ? config.experts_per_token * (ffn + config.hidden_size) : 0;
  // Residual stream, its norm and a partial sum; queries, keys, values and what was attended; gate and up, or
  // what a token's experts gate and put out.
  const uint64_t per_token =
      sizeof(float) * (3 * uint64_t{config.hidden_size} + (heads + share.heads) * config.head_dim +
                       (config.experts > 0 ? of_experts : 2 * ffn));
  const uint64_t logits = share.output_elements > 0 ? sequences * config.vocab_size * sizeof(float) : 0;
  return step_tokens * per_token + logits;
}

std::string BytesText(uint64_t bytes) {
  const bool is_large = bytes >= uint64_t{1} << 30;
  const double unit = is_large ? 1 << 30 : 1 << 20;
  return Concat(bytes, " bytes (", FormatFixed(static_cast<double>(bytes) / unit, 1),
                is_large ? " GiB)" : " MiB)");
}

// What keeps workers on GPUs from such a group, as they say it themselves.
Status CheckDeviceSplit(const ModelShape& shape, const ParallelDegrees& degrees) {
  RETURN_IF_ERROR(CheckDeviceGroup(degrees.ranks(), degrees.pipeline));
  if (degrees.ranks() == 1) return {};
  ColumnBlocks blocks;
  for (const ShapedTensor& tensor : shape.tensors) {
    const size_t block = Info(tensor.dtype).block_elements;
    if (tensor.kind == TensorKind::kAttentionOutput)
      blocks.attention_output = std::max(blocks.attention_output, block);
    if (tensor.kind == TensorKind::kDown) blocks.down = std::max(blocks.down, block);
  }
  return PlanDeviceShard(shape.config, blocks, {.ranks = degrees.ranks()}).status();
}

class Fitter {
 public:
  Fitter(const ModelShape& shape, const DeviceGroup& group, const FitOptions& options)
      : shape_(shape), config_(shape.config), group_(group), options_(options) {}

  Status Prepare() {
    if (options_.batch == 0) options_.batch = kSequencesPerDevice * group_.count;
    if (options_.context == 0) options_.context = std::min(kUsualContext, config_.context_length);
    if (options_.context > config_.context_length)
      return InvalidArgument("a context of ", options_.context, " tokens is more than the model's ",
                             config_.context_length);
    if (options_.prefill_tokens == 0) return InvalidArgument("a prompt of no tokens");
    options_.prefill_tokens = std::min(options_.prefill_tokens, config_.context_length);
    ASSIGN_OR_RETURN(kv_dtype_, ParseKvDType(options_.kv_dtype));
    if (kv_dtype_ == KvDType::kF32)
      return InvalidArgument("f32 keys and values are for CPUs; GPU workers take f16, bf16, int8 and fp8");
    return {};
  }

  const FitOptions& options() const { return options_; }

  SplitFit Fit(const ParallelDegrees& degrees) const {
    SplitFit fit{.degrees = degrees, .replicas = group_.count / degrees.ranks()};
    fit.batch = (options_.batch + fit.replicas - 1) / fit.replicas;
    const Status can = CheckDeviceSplit(shape_, degrees);
    const StatusOr<ModelSplit> split = can.ok() ? SplitModel(shape_, degrees) : can;
    if (!split.ok()) {
      fit.why_not = Message(split.status());
      return fit;
    }
    SetMemory(*split, fit);
    SetTimes(*split, fit);
    return fit;
  }

 private:
  void SetMemory(const ModelSplit& split, SplitFit& fit) const {
    const auto usable =
        static_cast<uint64_t>(static_cast<double>(group_.device.memory_bytes) * (1 - kReservedShare));
    const uint64_t step_tokens = std::max<uint64_t>(fit.batch, kDeviceStepTokens);
    fit.kv_tokens = std::numeric_limits<uint64_t>::max();
    for (const RankShare& share : split.ranks) {
      const uint64_t weights = WeightBytes(share, config_);
      const uint64_t workspace = WorkspaceBytes(share, config_, step_tokens, fit.batch, split.degrees.tensor);
      const uint64_t kv_bytes = KvBytesPerToken(share, config_, kv_dtype_);
      const uint64_t taken = weights + workspace;
      const auto left = static_cast<double>(usable - std::min(usable, taken)) * kKvShare;
      const auto blocks = static_cast<uint64_t>(left / static_cast<double>(kv_bytes * kBlockTokens));
      if (taken > fit.weight_bytes + fit.workspace_bytes) {
        fit.weight_bytes = weights;
        fit.workspace_bytes = workspace;
      }
      fit.kv_bytes_per_token = std::max(fit.kv_bytes_per_token, kv_bytes);
      fit.kv_tokens = std::min(fit.kv_tokens, blocks * kBlockTokens);
    }
    fit.why_not = WhyNot(fit, usable);
  }

  // Numbers in bytes: a short memory is often short of little.
  std::string WhyNot(const SplitFit& fit, uint64_t usable) const {
    if (const Status can = CheckDeviceModel(config_); !can.ok()) return Message(can);
    const uint64_t taken = fit.weight_bytes + fit.workspace_bytes;
    if (taken >= usable) {
      return Concat("weights of ", BytesText(fit.weight_bytes), " and a workspace of ",
                    BytesText(fit.workspace_bytes), " are not less than the ", BytesText(usable),
                    " that a device has after 2% for libraries");
    }
    if (fit.kv_tokens < config_.context_length) {
      return Concat("the KV pool holds ", fit.kv_tokens, " tokens, and a worker needs one context of ",
                    config_.context_length);
    }
    const uint64_t wanted = uint64_t{fit.batch} * options_.context;
    if (fit.kv_tokens < wanted) {
      return Concat("the KV pool holds ", fit.kv_tokens, " tokens; ", fit.batch, " sequences of ",
                    options_.context, " need ", wanted);
    }
    return "";
  }

  void SetTimes(const ModelSplit& split, SplitFit& fit) const {
    const auto estimate = [&](const StepShape& step) {
      return EstimateStep(split, config_, group_.device, kv_dtype_, step);
    };
    fit.decode = estimate({.sequences = fit.batch, .context = options_.context - 1});
    fit.prefill = estimate({.tokens = options_.prefill_tokens});
    fit.decode_tokens_per_second = options_.batch / fit.decode.seconds;
    fit.prefill_tokens_per_second =
        static_cast<double>(options_.prefill_tokens) * fit.replicas / fit.prefill.seconds;
  }

  const ModelShape& shape_;
  const ModelConfig& config_;
  const DeviceGroup& group_;
  FitOptions options_;
  KvDType kv_dtype_ = KvDType::kBF16;
};

}  // namespace

StatusOr<DeviceGroup> ParseDevices(std::string_view text) {
  const auto [count, device] = CountAndDevice(text);
  DeviceGroup group;
  const auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), group.count);
  if (error != std::errc() || group.count < 1 || group.count > kMostDevices)
    return InvalidArgument("\"", text, "\": ", count, " devices, not 1 to ", kMostDevices);
  if (const KnownDevice* const known = FindDevice(device); known != nullptr) {
    group.device = SpecOf(*known);
    return group;
  }
  const StatusOr<uint64_t> memory = ParseBytes(device);
  if (!memory.ok())
    return InvalidArgument("\"", text, "\": \"", device, "\" is neither a size such as 80GB nor one of ",
                           KnownNames());
  group.device = SpecOf(NearestDevice(static_cast<double>(*memory)));
  group.device.memory_bytes = *memory;
  group.has_assumed_rates = true;
  return group;
}

StatusOr<SplitFits> FitSplits(const ModelShape& shape, const DeviceGroup& group, const FitOptions& options) {
  CHECK(group.count >= 1 && group.count <= kMostDevices, group.count, " devices");
  Fitter fitter(shape, group, options);
  RETURN_IF_ERROR(fitter.Prepare());
  SplitFits fits{.options = fitter.options()};
  for (uint32_t tensor = 1; tensor <= group.count; ++tensor) {
    for (uint32_t pipeline = 1; tensor * pipeline <= group.count; ++pipeline) {
      if (group.count % (tensor * pipeline) == 0)
        fits.splits.push_back(fitter.Fit({.tensor = tensor, .pipeline = pipeline}));
    }
  }
  return fits;
}

std::optional<size_t> Recommend(std::span<const SplitFit> fits) {
  double most = 0;
  for (const SplitFit& fit : fits) {
    if (fit.fits()) most = std::max(most, fit.decode_tokens_per_second);
  }
  std::optional<size_t> best;
  for (size_t i = 0; i < fits.size(); ++i) {
    if (!fits[i].fits() || fits[i].decode_tokens_per_second < kAsFast * most) continue;
    if (!best.has_value() || fits[i].degrees.ranks() < fits[*best].degrees.ranks()) best = i;
  }
  return best;
}

}  // namespace terrace
