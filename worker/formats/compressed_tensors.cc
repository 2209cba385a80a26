#include "worker/formats/compressed_tensors.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "base/json.h"
#include "base/machine.h"
#include "base/parallel_for.h"
#include "kernels/quant/e4m3_row.h"
#include "kernels/scalar_convert.h"
#include "worker/formats/byte_reader.h"

namespace terrace {
namespace {

constexpr std::string_view kWeight = "weight", kPacked = "weight_packed", kZeroPoint = "weight_zero_point",
                           kScale = "weight_scale", kShape = "weight_shape", kGroupIndex = "weight_g_idx";
constexpr uint64_t kCodesPerWord = 8, kMaxGroup = 1u << 16;

// The member `key`; null when it is not there or `object` is none.
const Json& At(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

Status Expect(const Json& object, const char* path, const char* key, const Json& wanted) {
  const Json& found = At(object, key);
  if (found == wanted) return Status();
  return InvalidArgument(path, key, ": ", ToJsonText(found).substr(0, 100),
                         " is not supported; supported is ", ToJsonText(wanted));
}

// Static order changes how codes were found, not where they lie.
Status CheckOrder(const Json& order) {
  if (order.is_null() || order == false || order == "weight" || order == "static") return Status();
  return InvalidArgument("weights.actorder: ", ToJsonText(order).substr(0, 100),
                         " is not supported; supported are null, \"weight\" and \"static\"");
}

StatusOr<WeightQuantization> ParsePacked(const Json& scheme) {
  const Json& weights = At(scheme, "weights");
  RETURN_IF_ERROR(Expect(weights, "weights.", "num_bits", 4));
  RETURN_IF_ERROR(Expect(weights, "weights.", "strategy", "group"));
  RETURN_IF_ERROR(Expect(scheme, "", "input_activations", nullptr));
  RETURN_IF_ERROR(CheckOrder(At(weights, "actorder")));
  const Json &group = At(weights, "group_size"), &is_symmetric = At(weights, "symmetric");
  if (!group.is_number_unsigned() || group == 0 || group > kMaxGroup || group.get<uint64_t>() % 32 != 0)
    return InvalidArgument("weights.group_size: ", ToJsonText(group).substr(0, 100),
                           " is not a multiple of 32 up to ", kMaxGroup);
  if (!is_symmetric.is_boolean()) return InvalidArgument("weights.symmetric is neither true nor false");
  return WeightQuantization{
      .bits = 4, .group = group.get<uint32_t>(), .has_zero_points = !is_symmetric.get<bool>()};
}

StatusOr<WeightQuantization> ParseInt8(const Json& scheme) {
  const Json &weights = At(scheme, "weights"), &inputs = At(scheme, "input_activations");
  RETURN_IF_ERROR(Expect(weights, "weights.", "strategy", "channel"));
  for (const auto& [args, path] :
       {std::pair(&weights, "weights."), std::pair(&inputs, "input_activations.")}) {
    RETURN_IF_ERROR(Expect(*args, path, "num_bits", 8));
    RETURN_IF_ERROR(Expect(*args, path, "type", "int"));
    RETURN_IF_ERROR(Expect(*args, path, "symmetric", true));
  }
  RETURN_IF_ERROR(Expect(inputs, "input_activations.", "dynamic", true));
  RETURN_IF_ERROR(Expect(inputs, "input_activations.", "strategy", "token"));
  return WeightQuantization{.bits = 8, .group = 0, .has_zero_points = false};
}

StatusOr<WeightQuantization> ParseFp8(const Json& scheme) {
  const Json &weights = At(scheme, "weights"), &inputs = At(scheme, "input_activations");
  RETURN_IF_ERROR(Expect(weights, "weights.", "type", "float"));
  RETURN_IF_ERROR(Expect(weights, "weights.", "num_bits", 8));
  RETURN_IF_ERROR(Expect(weights, "weights.", "symmetric", true));
  if (At(weights, "strategy") != "tensor")
    RETURN_IF_ERROR(Expect(weights, "weights.", "strategy", "channel"));  // or that
  if (!inputs.is_null()) {
    RETURN_IF_ERROR(Expect(inputs, "input_activations.", "type", "float"));
    RETURN_IF_ERROR(Expect(inputs, "input_activations.", "dynamic", true));
  }
  return WeightQuantization{.bits = 8, .group = 0, .has_zero_points = false, .is_float = true};
}

StatusOr<WeightQuantization> ParseScheme(const Json& scheme, const Json& format) {
  RETURN_IF_ERROR(Expect(scheme, "", "output_activations", nullptr));
  if (format == "float-quantized") return ParseFp8(scheme);
  RETURN_IF_ERROR(Expect(At(scheme, "weights"), "weights.", "type", "int"));
  if (format == "pack-quantized") return ParsePacked(scheme);
  if (format == "int-quantized") return ParseInt8(scheme);
  return InvalidArgument("format: ", ToJsonText(format).substr(0, 100),
                         " is not supported; supported are \"pack-quantized\", \"int-quantized\" and "
                         "\"float-quantized\"");
}

StatusOr<std::vector<std::string>> ParseTargets(const Json& targets) {
  const auto is_string = [](const Json& name) { return name.is_string(); };
  if (!targets.is_array() || targets.empty() || !std::all_of(targets.begin(), targets.end(), is_string))
    return InvalidArgument("targets is not a list of names");
  return targets.get<std::vector<std::string>>();
}

// A group of each format, or of one of them.
StatusOr<WeightQuantization> ParseMixed(const Json& groups) {
  std::optional<WeightQuantization> int4, int8;
  for (const auto& [name, scheme] : groups.items()) {
    const std::string path = Concat("config_groups.", name.substr(0, 100));
    auto parsed = ParseScheme(scheme, At(scheme, "format"));
    if (!parsed.ok()) return Annotate(parsed.status(), path);
    auto targets = ParseTargets(At(scheme, "targets"));
    if (!targets.ok()) return Annotate(targets.status(), path);
    if (parsed->is_float) return InvalidArgument(path, ": FP8 beside other formats is not supported");
    const bool is_int4 = parsed->bits == 4;
    std::optional<WeightQuantization>& of_bits = is_int4 ? int4 : int8;
    if (of_bits)
      return InvalidArgument(path, ": is the second group of ", parsed->bits,
                             " bits; one of 4 bits and one of 8 are supported");
    (is_int4 ? parsed->int4_modules : parsed->int8_modules) = *std::move(targets);
    of_bits = *std::move(parsed);
  }
  if (int4 && int8) {
    int4->has_int8_too = true;
    int4->int8_modules = std::move(int8->int8_modules);
  }
  WeightQuantization mixed = int4 ? *std::move(int4) : *std::move(int8);
  if (!mixed.has_int8_too) mixed.int4_modules = mixed.int8_modules = {};
  return mixed;
}

// Of the matrices of 8 bits, or of those of 4.
Json SchemeJson(const WeightQuantization& quantization, bool is_8_bits) {
  const char* const type = quantization.is_float ? "float" : "int";
  const Json weights = {{"num_bits", is_8_bits ? 8 : 4},
                        {"type", type},
                        {"symmetric", is_8_bits || !quantization.has_zero_points},
                        {"strategy", is_8_bits ? "channel" : "group"},
                        {"group_size", is_8_bits ? Json() : Json(quantization.group)},
                        {"dynamic", false},
                        {"actorder", nullptr}};
  const Json inputs = {
      {"num_bits", 8}, {"type", type}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
  return {{"targets", Json::array({"Linear"})},
          {"weights", weights},
          {"input_activations", is_8_bits ? inputs : Json()},
          {"output_activations", nullptr}};
}

template <typename... Text>
Status TensorError(const SafetensorsTensor& tensor, std::string_view reason, const Text&... message) {
  return Malformed(reason, tensor.file, ": tensor \"", tensor.name, "\": ", message..., " (data at byte ",
                   tensor.offset, ")");
}

StatusOr<float> ScaleAt(const SafetensorsTensor& scales, uint64_t i) {
  float scale = 0;
  if (scales.dtype == "F32") {
    scale = ByteReader::Load<float>(scales.data.subspan(4 * i));
  } else if (scales.dtype == "F16" || scales.dtype == "BF16") {
    const auto bits = ByteReader::Load<uint16_t>(scales.data.subspan(2 * i));
    scale = scales.dtype == "F16" ? FloatFromF16(bits) : FloatFromBF16(bits);
  } else {
    return TensorError(scales, "bad_dtype", scales.dtype, " is no float");
  }
  if (!std::isfinite(scale))
    return TensorError(scales, "nonfinite", "scale ", i, " is infinite or not a number");
  return scale;
}

// The scale of a group of 4-bit codes, as blocks have it.
StatusOr<uint16_t> BlockScaleAt(const SafetensorsTensor& scales, uint64_t i) {
  ASSIGN_OR_RETURN(const float scale, ScaleAt(scales, i));
  const uint16_t bits = F16FromFloat(scale);
  if ((bits & 0x7c00) == 0x7c00)
    return TensorError(scales, "nonfinite", "scale ", i, " is too large for F16");
  return bits;
}

// Blocks of 4 bits, of codes, scales and zero points that lie apart.
class Int4Rows final : public RowMaker {
 public:
  struct Source {
    SafetensorsTensor codes, scales;
    std::optional<SafetensorsTensor> zeros;  // without: all are 8
    uint64_t groups, blocks_of_group, row_blocks;
  };
  Int4Rows(DType dtype, Source source) : info_(Info(dtype)), source_(std::move(source)) {}

  Status Make(uint64_t begin, uint64_t end, std::byte* to) const override {
    for (uint64_t row = begin; row < end; ++row, to += source_.row_blocks * info_.block_bytes)
      RETURN_IF_ERROR(MakeRow(row, to));
    return Status();
  }

 private:
  Status MakeRow(uint64_t row, std::byte* to) const {
    const uint64_t code_bytes = info_.block_elements / 2;
    const std::byte* from = source_.codes.data.data() + row * source_.row_blocks * code_bytes;
    for (uint64_t block = 0; block < source_.row_blocks;
         ++block, from += code_bytes, to += info_.block_bytes) {
      const uint64_t group = block / source_.blocks_of_group;
      ASSIGN_OR_RETURN(const uint16_t scale, BlockScaleAt(source_.scales, row * source_.groups + group));
      std::memcpy(to, &scale, sizeof(scale));
      to[2] = static_cast<std::byte>(ZeroPoint(row, group));
      to[3] = std::byte{0};
      std::memcpy(to + 4, from, code_bytes);  // both count nibbles from the lowest
    }
    return Status();
  }

  uint32_t ZeroPoint(uint64_t row, uint64_t group) const {
    if (!source_.zeros) return 8;
    const uint64_t word = row / kCodesPerWord * source_.groups + group;
    return ByteReader::Load<uint32_t>(source_.zeros->data.subspan(4 * word)) >> 4 * (row % kCodesPerWord) &
           15;
  }

  const DTypeInfo info_;
  const Source source_;
};

// BF16, of FP8 codes and the scales of their rows, or of all rows.
class Fp8Rows final : public RowMaker {
 public:
  Fp8Rows(const SafetensorsTensor& codes, const SafetensorsTensor& scales)
      : codes_(codes), scales_(scales), has_one_scale_(scales.shape.rank == 1) {}

  Status Make(uint64_t begin, uint64_t end, std::byte* to) const override {
    std::array<float, 256> values;  // of all codes
    for (size_t code = 0; code < values.size(); ++code)
      values[code] = FloatFromE4M3(static_cast<uint8_t>(code));
    const uint64_t columns = codes_.shape[1];
    for (uint64_t row = begin; row < end; ++row) {
      ASSIGN_OR_RETURN(const float scale, ScaleAt(scales_, has_one_scale_ ? 0 : row));
      const std::byte* const from = codes_.data.data() + row * columns;
      for (uint64_t i = 0; i < columns; ++i, to += sizeof(uint16_t)) {
        const uint16_t bits = BF16FromFloat(scale * values[std::to_integer<size_t>(from[i])]);
        if ((bits & 0x7f80) == 0x7f80)
          return TensorError(codes_, "nonfinite", "row ", row,
                             " has a value that is no number, or more than BF16 holds");
        std::memcpy(to, &bits, sizeof(bits));
      }
    }
    return Status();
  }

 private:
  const SafetensorsTensor codes_, scales_;
  const bool has_one_scale_;
};

// A matrix on its way from a file: `base` is what its tensors' names begin with.
class Matrix {
 public:
  Matrix(const std::map<std::string_view, const SafetensorsTensor*>& tensors, const SafetensorsTensor& codes,
         std::string_view base)
      : tensors_(tensors), codes_(codes), base_(base) {}

  Status AppendPacked(const WeightQuantization& quantization, ThreadPool& pool, KernelTensors& out) const {
    if (codes_.dtype != "I32" || codes_.shape.rank != 2)
      return Error(codes_, "bad_dtype", codes_.dtype, " ", codes_.shape.ToString(), " is no matrix of I32");
    if (Has(kWeight)) return Error(codes_, "bad_name", "the same matrix is there as ", kWeight, ", too");
    const uint64_t rows = codes_.shape[0],
                   columns = codes_.shape[1] * kCodesPerWord;  // bytes are in the file
    if (columns % quantization.group != 0)
      return Error(codes_, "bad_shape", "rows of ", columns, " are not whole groups of ", quantization.group);
    const uint64_t groups = columns / quantization.group;
    RETURN_IF_ERROR(CheckShape(rows, columns));
    ASSIGN_OR_RETURN(const SafetensorsTensor* scales, Find(kScale, {rows, groups}));
    if (scales->dtype != "F16" && scales->dtype != "BF16")
      return Error(*scales, "bad_dtype", scales->dtype, " is neither F16 nor BF16");
    const SafetensorsTensor* zeros = nullptr;
    if (quantization.has_zero_points) {
      ASSIGN_OR_RETURN(zeros, Find(kZeroPoint, {(rows + kCodesPerWord - 1) / kCodesPerWord, groups}));
      if (zeros->dtype != "I32") return Error(*zeros, "bad_dtype", zeros->dtype, " is not I32");
    } else if (Has(kZeroPoint)) {
      return Error(codes_, "bad_dtype", "has zero points, and quantization_config says symmetric");
    }
    RETURN_IF_ERROR(CheckBlockScales(*scales, pool));
    const DType dtype = KernelDType(quantization);
    const DTypeInfo& info = Info(dtype);
    Int4Rows::Source source{.codes = codes_,
                            .scales = *scales,
                            .zeros = zeros == nullptr ? std::nullopt : std::optional(*zeros),
                            .groups = groups,
                            .blocks_of_group = quantization.group / info.block_elements,
                            .row_blocks = columns / info.block_elements};
    const uint64_t bytes = rows * source.row_blocks * info.block_bytes;
    AppendMade(dtype, {rows, columns}, bytes, std::make_unique<Int4Rows>(dtype, std::move(source)), out);
    return Status();
  }

  Status AppendInt8(KernelTensors& out) const {
    if (codes_.shape.rank != 2) return Error(codes_, "bad_shape", codes_.shape.ToString(), " is no matrix");
    if (Has(kZeroPoint)) return Error(codes_, "bad_dtype", "has zero points, and INT8 is symmetric");
    const uint64_t rows = codes_.shape[0];
    ASSIGN_OR_RETURN(const SafetensorsTensor* scales, Find(kScale, {rows, 1}));
    out.memory.push_back(std::make_unique_for_overwrite<std::byte[]>(rows * sizeof(float)));
    float* const values = reinterpret_cast<float*>(out.memory.back().get());
    for (uint64_t row = 0; row < rows; ++row) {
      ASSIGN_OR_RETURN(values[row], ScaleAt(*scales, row));
    }
    Append(DType::kInt8, codes_.shape, codes_.data, out);
    out.entries.back().tensor.row_scales = values;
    return Status();
  }

  // As BF16.
  Status AppendFp8(KernelTensors& out) const {
    if (codes_.shape.rank != 2) return Error(codes_, "bad_shape", codes_.shape.ToString(), " is no matrix");
    if (Has(kZeroPoint)) return Error(codes_, "bad_dtype", "has zero points, and FP8 is symmetric");
    const uint64_t rows = codes_.shape[0], columns = codes_.shape[1];
    const auto scale = tensors_.find(Name(kScale));
    const bool is_one = scale != tensors_.end() && scale->second->shape == Shape{1};  // for all rows
    ASSIGN_OR_RETURN(const SafetensorsTensor* scales, Find(kScale, is_one ? Shape{1} : Shape{rows, 1}));
    for (uint64_t i = 0; i < (is_one ? 1 : rows); ++i) RETURN_IF_ERROR(ScaleAt(*scales, i).status());
    AppendMade(DType::kBF16, codes_.shape, rows * columns * sizeof(uint16_t),
               std::make_unique<Fp8Rows>(codes_, *scales), out);
    return Status();
  }

 private:
  // That of the first that is none is told, whatever thread finds it.
  static Status CheckBlockScales(const SafetensorsTensor& scales, ThreadPool& pool) {
    const uint64_t count = scales.shape[0] * scales.shape[1];
    std::atomic<uint64_t> first_bad = count;
    pool.ParallelFor(count, 4096, [&](uint64_t begin, uint64_t end) {
      for (uint64_t i = begin; i < end; ++i) {
        if (BlockScaleAt(scales, i).ok()) continue;
        uint64_t found = first_bad;
        while (i < found && !first_bad.compare_exchange_weak(found, i)) {
        }
        return;
      }
    });
    return first_bad == count ? Status() : BlockScaleAt(scales, first_bad).status();
  }

  std::string Name(std::string_view part) const { return Concat(base_, part); }
  bool Has(std::string_view part) const { return tensors_.contains(Name(part)); }

  template <typename... Text>
  static Status Error(const SafetensorsTensor& tensor, std::string_view reason, const Text&... message) {
    return TensorError(tensor, reason, message...);
  }

  StatusOr<const SafetensorsTensor*> Find(std::string_view part, const Shape& shape) const {
    const auto found = tensors_.find(Name(part));
    if (found == tensors_.end())
      return Malformed("missing_tensor", codes_.file, ": tensor \"", Name(part), "\": is missing");
    if (found->second->shape != shape)
      return Error(*found->second, "bad_shape", "shape ", found->second->shape.ToString(),
                   ", the codes want ", shape.ToString());
    return found->second;
  }

  // weight_shape, where it is there, agrees with the codes.
  Status CheckShape(uint64_t rows, uint64_t columns) const {
    if (!Has(kShape)) return Status();
    ASSIGN_OR_RETURN(const SafetensorsTensor* shape, Find(kShape, {2}));
    if (shape->dtype != "I32" && shape->dtype != "I64")
      return Error(*shape, "bad_dtype", shape->dtype, " is neither I32 nor I64");
    const auto at = [&](size_t i) -> int64_t {
      return shape->dtype == "I32" ? ByteReader::Load<int32_t>(shape->data.subspan(4 * i))
                                   : ByteReader::Load<int64_t>(shape->data.subspan(8 * i));
    };
    if (at(0) != static_cast<int64_t>(rows) || at(1) != static_cast<int64_t>(columns))
      return Error(*shape, "bad_shape", "says [", at(0), ", ", at(1), "], the codes are [", rows, ", ",
                   columns, "]");
    return Status();
  }

  void Append(DType dtype, const Shape& shape, std::span<const std::byte> data, KernelTensors& out) const {
    out.entries.push_back(
        {.name = Name(kWeight),
         .tensor = {.dtype = dtype, .shape = shape, .data = data.data(), .bytes = data.size()},
         .offset = codes_.offset,
         .file = codes_.file});
  }

  void AppendMade(DType dtype, const Shape& shape, uint64_t bytes, std::unique_ptr<RowMaker> maker,
                  KernelTensors& out) const {
    out.entries.push_back({.name = Name(kWeight),
                           .tensor = {.dtype = dtype, .shape = shape, .bytes = bytes, .maker = maker.get()},
                           .offset = codes_.offset,
                           .file = codes_.file});
    out.makers.push_back(std::move(maker));
  }

  const std::map<std::string_view, const SafetensorsTensor*>& tensors_;
  const SafetensorsTensor& codes_;
  const std::string_view base_;
};

std::optional<DType> FloatDType(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (name == Info(dtype).name) return dtype;
  }
  return std::nullopt;
}

// `name` up to its last part, when that is `part`.
std::optional<std::string_view> BaseOf(std::string_view name, std::string_view part) {
  if (!name.ends_with(part)) return std::nullopt;
  const std::string_view base = name.substr(0, name.size() - part.size());
  if (!base.ends_with('.')) return std::nullopt;
  return base;
}

std::vector<std::byte> StoredInt4(const WeightQuantization& quantization, const Shape& shape,
                                  std::span<const std::byte> blocks) {
  const DTypeInfo& info = Info(KernelDType(quantization));
  const uint64_t rows = shape[0], columns = shape[1], groups = columns / quantization.group;
  const uint64_t row_blocks = columns / info.block_elements,
                 blocks_of_group = quantization.group / info.block_elements,
                 code_bytes = info.block_elements / 2;
  const uint64_t zero_words = (rows + kCodesPerWord - 1) / kCodesPerWord * groups;
  const uint64_t zeros_at = rows * columns / 2,
                 scales_at = zeros_at + (quantization.has_zero_points ? 4 * zero_words : 0),
                 shape_at = scales_at + 2 * rows * groups;
  std::vector<std::byte> out(shape_at + 8);
  const std::byte* from = blocks.data();
  std::byte* codes = out.data();
  for (uint64_t row = 0; row < rows; ++row) {
    for (uint64_t block = 0; block < row_blocks; ++block, from += info.block_bytes, codes += code_bytes) {
      std::memcpy(codes, from + 4, code_bytes);
      const uint64_t group = block / blocks_of_group;
      std::byte* const scale = out.data() + scales_at + 2 * (row * groups + group);
      if (block % blocks_of_group == 0) {
        std::memcpy(scale, from, 2);
        if (!quantization.has_zero_points) {
          CHECK(from[2] == std::byte{8}, "a zero point where there are none");
          continue;
        }
        std::byte* const word = out.data() + zeros_at + 4 * (row / kCodesPerWord * groups + group);
        const auto zero = std::to_integer<uint32_t>(from[2]) << 4 * (row % kCodesPerWord);
        const uint32_t both = LoadUnaligned<uint32_t>(word) | zero;
        std::memcpy(word, &both, sizeof(both));
      } else {
        CHECK(std::memcmp(from, from - info.block_bytes, 4) == 0, "blocks of a group differ in their scale");
      }
    }
  }
  const uint32_t sizes[2] = {static_cast<uint32_t>(rows), static_cast<uint32_t>(columns)};
  std::memcpy(out.data() + shape_at, sizes, sizeof(sizes));
  return out;
}

// Of rows of BF16.
std::vector<std::byte> StoredFp8(const Shape& shape, std::span<const std::byte> blocks) {
  const uint64_t rows = shape[0], columns = shape[1];
  std::vector<std::byte> out(rows * columns + rows * sizeof(float));
  std::vector<float> values(columns);
  for (uint64_t row = 0; row < rows; ++row) {
    for (uint64_t i = 0; i < columns; ++i)
      values[i] = FloatFromBF16(LoadUnaligned<uint16_t>(blocks.data() + 2 * (row * columns + i)));
    const float scale = QuantizeE4M3(values, reinterpret_cast<uint8_t*>(out.data() + row * columns));
    std::memcpy(out.data() + rows * columns + row * sizeof(float), &scale, sizeof(scale));
  }
  return out;
}

}  // namespace

StatusOr<WeightQuantization> ParseQuantizationConfig(const Json& json) {
  RETURN_IF_ERROR(Expect(json, "", "quant_method", "compressed-tensors"));
  RETURN_IF_ERROR(Expect(json, "", "kv_cache_scheme", nullptr));
  if (const Json& status = At(json, "quantization_status"); !status.is_null())
    RETURN_IF_ERROR(Expect(json, "", "quantization_status", "compressed"));
  const Json& sparsity = At(json, "sparsity_config");
  if (!sparsity.is_null() && !sparsity.empty())
    RETURN_IF_ERROR(Expect(sparsity, "sparsity_config.", "format", "dense"));
  // Rotations of weights and activations (SpinQuant, QuIP).
  const Json& transforms = At(json, "transform_config");
  if (!transforms.empty() && !(transforms.is_object() && At(transforms, "config_groups").empty()))
    return InvalidArgument("transform_config is not supported");
  const Json &groups = At(json, "config_groups"), &format = At(json, "format");
  if (!groups.is_object() || groups.empty()) return InvalidArgument("config_groups has no group");
  if (format == "mixed-precision") return ParseMixed(groups);
  if (groups.size() != 1)
    return InvalidArgument(
        "config_groups is not one group; one for all matrices is supported, or format "
        "\"mixed-precision\"");
  RETURN_IF_ERROR(Expect(*groups.begin(), "", "targets", Json::array({"Linear"})));
  return ParseScheme(*groups.begin(), format);
}

Json QuantizationConfigJson(const WeightQuantization& quantization) {
  const bool is_8_bits = quantization.bits == 8;
  std::string_view format = is_8_bits ? "int-quantized" : "pack-quantized";
  if (quantization.is_float) format = "float-quantized";
  Json groups = {{"group_0", SchemeJson(quantization, is_8_bits)}};
  if (quantization.has_int8_too) {
    groups["group_0"]["format"] = std::string(format);
    groups["group_0"]["targets"] = quantization.int4_modules;
    groups["group_1"] = SchemeJson(quantization, /*is_8_bits=*/true);
    groups["group_1"]["format"] = "int-quantized";
    groups["group_1"]["targets"] = quantization.int8_modules;
    format = "mixed-precision";
  }
  Json ignore = Json::array({"lm_head"});
  for (const std::string& module : quantization.float_modules) ignore.push_back(module);
  return {{"quant_method", "compressed-tensors"},
          {"format", std::string(format)},
          {"quantization_status", "compressed"},
          {"config_groups", groups},
          {"ignore", ignore},
          {"kv_cache_scheme", nullptr}};
}

DType KernelDType(const WeightQuantization& quantization) {
  if (quantization.is_float) return DType::kBF16;
  if (quantization.bits == 8) return DType::kInt8;
  return quantization.group % 128 == 0 ? DType::kInt4G128 : DType::kInt4G32;
}

bool IsStoredInParts(const WeightQuantization& quantization, DType dtype) {
  return dtype == KernelDType(quantization) || (dtype == DType::kInt8 && quantization.has_int8_too);
}

std::string_view ModuleOf(std::string_view tensor) { return tensor.substr(0, tensor.rfind('.')); }

std::string FormatName(DType dtype, uint32_t group) {
  const bool is_int4 = dtype == DType::kInt4G32 || dtype == DType::kInt4G128;
  return is_int4 && group > 0 ? Concat("INT4_G", group) : std::string(Info(dtype).name);
}

std::string FormatName(DType dtype, const ModelConfig& config) {
  return FormatName(dtype, config.quantization.has_value() ? config.quantization->group : 0);
}

std::vector<StoredTensor> StoredTensors(const WeightQuantization& quantization, const std::string& name,
                                        DType dtype, const Shape& shape) {
  const auto base = BaseOf(name, kWeight);
  CHECK(base.has_value(), name, " is no weight");
  const uint64_t rows = shape[0], columns = shape[1];
  const auto tensor = [&](std::string_view part, std::string_view stored_dtype, uint64_t bytes,
                          std::vector<uint64_t> dims) {
    uint64_t all = bytes;
    for (const uint64_t dim : dims) all *= dim;
    return StoredTensor{Concat(*base, part), stored_dtype, std::move(dims), all};
  };
  if (dtype == DType::kInt8 || quantization.is_float)
    return {tensor(kWeight, quantization.is_float ? "F8_E4M3" : "I8", 1, {rows, columns}),
            tensor(kScale, "F32", 4, {rows, 1})};
  const uint64_t groups = columns / quantization.group;
  std::vector<StoredTensor> out = {tensor(kPacked, "I32", 4, {rows, columns / kCodesPerWord})};
  if (quantization.has_zero_points)
    out.push_back(tensor(kZeroPoint, "I32", 4, {(rows + kCodesPerWord - 1) / kCodesPerWord, groups}));
  out.push_back(tensor(kScale, "F16", 2, {rows, groups}));
  out.push_back(tensor(kShape, "I32", 4, {2}));
  return out;
}

std::vector<std::byte> StoredBytes(const WeightQuantization& quantization, DType dtype, const Shape& shape,
                                   std::span<const std::byte> blocks) {
  if (dtype == DType::kInt8) return std::vector<std::byte>(blocks.begin(), blocks.end());
  if (quantization.is_float) return StoredFp8(shape, blocks);
  return StoredInt4(quantization, shape, blocks);
}

StatusOr<KernelTensors> MakeKernelTensors(const std::vector<SafetensorsTensor>& tensors,
                                          const WeightQuantization* quantization) {
  std::map<std::string_view, const SafetensorsTensor*> by_name;
  for (const SafetensorsTensor& tensor : tensors) by_name.emplace(tensor.name, &tensor);
  KernelTensors out;
  ThreadPool pool(quantization != nullptr && quantization->bits == 4 ? OpeningThreads() : 1);
  for (const SafetensorsTensor& tensor : tensors) {
    const auto fail = [&](std::string_view reason, const auto&... message) {
      return Malformed(reason, tensor.file, ": tensor \"", tensor.name, "\": ", message..., " (data at byte ",
                       tensor.offset, ")");
    };
    if (quantization != nullptr) {
      if (BaseOf(tensor.name, kGroupIndex))
        return fail("unsupported_tensor", "groups that are no runs of columns are not supported");
      if (BaseOf(tensor.name, kScale) || BaseOf(tensor.name, kZeroPoint) || BaseOf(tensor.name, kShape))
        continue;  // belong to a matrix
      const auto packed = BaseOf(tensor.name, kPacked), plain = BaseOf(tensor.name, kWeight);
      if (quantization->bits == 4 && packed) {
        RETURN_IF_ERROR(Matrix(by_name, tensor, *packed).AppendPacked(*quantization, pool, out));
        continue;
      }
      if (IsStoredInParts(*quantization, DType::kInt8) && plain && tensor.dtype == "I8") {
        RETURN_IF_ERROR(Matrix(by_name, tensor, *plain).AppendInt8(out));
        continue;
      }
      if (quantization->is_float && plain && tensor.dtype == "F8_E4M3") {
        RETURN_IF_ERROR(Matrix(by_name, tensor, *plain).AppendFp8(out));
        continue;
      }
    }
    const auto dtype = FloatDType(tensor.dtype);
    if (!dtype)
      return fail("bad_dtype", "dtype ", tensor.dtype,
                  " is not supported here; supported are F32, F16 and BF16, and what config.json's "
                  "quantization_config says");
    out.entries.push_back({.name = tensor.name,
                           .tensor = {.dtype = *dtype,
                                      .shape = tensor.shape,
                                      .data = tensor.data.data(),
                                      .bytes = tensor.data.size()},
                           .offset = tensor.offset,
                           .file = tensor.file});
  }
  return out;
}

}  // namespace terrace
