// Quantizes a model, layer by layer from its mapped file: a .gguf file in block formats, or a folder of INT4,
// INT8 or FP8 matrices (worker/formats/compressed_tensors.h). The matrices of the layers are quantized; the
// embedding and the output matrix stay as they are in a folder, and become Q8_0 in GGUF; norms are F32.
//
// With a budget the formats are mixed: the target is then the smallest one, and those matrices get a larger
// one, or stay as they are, that lose the model most for their bytes (sensitivity.h, format_choice.h). The
// linears of one input of a layer have the same format, with experts those of all of them.
//
// With calibration text a layer's inputs come from the quantized layers before it, and a linear's from the
// quantized linears before it. The bytes of the output follow from the request and the files it names, on one
// kind of processor; neither threads nor interruptions change them.
//
// Of models with experts each expert's matrices are linears of the layer, calibrated by the tokens that go to
// the expert (by their weights alone where these are fewer than inputs), and the matrix that chooses
// experts stays as it is, also by scales (channel_scales.h).
//
// Memory without calibration text: a matrix in f32, what becomes of it, and two layers as they are written.
// With it, whatever the length of the text (but for its tokens): two layers in f32, three while sensitivities
// are measured, Hessians of one input (8 bytes * inputs^2, three times while it is inverted), and what
// layer_runner.h says of a piece; docs/how-to/quantize.md has the sum. Hidden states are in a file of the
// journal's folder, 4 bytes * tokens * hidden, twice with scales (AWQ, SmoothQuant).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

#include "base/status.h"
#include "kernels/dtype.h"
#include "tools/optimize/model_rewriter.h"
#include "tools/optimize/quantize_layer.h"

namespace terrace {

struct QuantizeTarget {
  std::string_view name;
  DType dtype = DType::kQ8_0;  // of matrices whose rows are whole blocks (WithWholeBlocks)
  uint32_t group = 0;          // of INT4: columns that share a scale and a zero point
  bool is_fp8 = false;         // E4M3 with a scale for each row, which `dtype` holds (RoundToFp8)

  bool is_gguf() const { return !is_fp8 && Info(dtype).gguf_type >= 0; }
};
inline constexpr QuantizeTarget kQuantizeTargets[] = {{"int4-g32", DType::kInt4G32, 32},
                                                      {"int4-g64", DType::kInt4G32, 64},
                                                      {"int4-g128", DType::kInt4G128, 128},
                                                      {"int8", DType::kInt8, 0},
                                                      {"q8_0", DType::kQ8_0, 0},
                                                      {"q4_0", DType::kQ4_0, 0},
                                                      {"q4_k", DType::kQ4_K, 0},
                                                      {"q6_k", DType::kQ6_K, 0},
                                                      {"fp8", DType::kBF16, 0, true}};

inline constexpr QuantizeMethod kQuantizeMethods[] = {
    {"rtn", QuantizeMethod::Scales::kNone, false, false},
    {"gptq", QuantizeMethod::Scales::kNone, true, true},
    {"awq", QuantizeMethod::Scales::kAwq, false, true},
    {"awq-gptq", QuantizeMethod::Scales::kAwq, true, true},
    {"smoothquant", QuantizeMethod::Scales::kSmooth, false, false}};

// Raised when a request with AWQ comes to other bytes: what an older build began is not gone on with.
inline constexpr int kAwqRevision = 2;

// What the output may cost; one of the first two.
struct QuantizeBudget {
  uint64_t bytes = 0;  // of all weights in the output's file, at most; 0: no limit
  // By how much more tokens a second are to be decoded than with the model that is read (0.2: 20%), in so far
  // as time goes as the bytes of the matrices that each token reads; 0: no limit.
  double faster = 0;
  size_t tokens = 2048;  // of the calibration text, at most, by which sensitivities are measured

  bool is_set() const { return bytes > 0 || faster != 0; }
};

struct QuantizeRequest : RewriteRequest {
  QuantizeTarget target = kQuantizeTargets[0];  // with a budget, the smallest format
  QuantizeMethod method = kQuantizeMethods[0];
  bool act_order = false;  // GPTQ takes inputs in falling order of their size
  QuantizeBudget budget = {};
  // Called after the sensitivity of each layer was measured, not for those of an earlier run; an error of it
  // ends the work and is returned, what is finished is kept.
  std::function<Status(uint32_t layer, uint32_t layers)> on_measured = [](uint32_t, uint32_t) {
    return Status();
  };
};

// What a budget came to.
struct MixtureReport {
  uint64_t bytes = 0;  // of what the budget counts
  double faster = 0;   // with QuantizeBudget::faster, as it has it
  double predicted_divergence = 0;
  bool is_all_floats = false;  // nothing was quantized
};

struct QuantizeReport : RewriteReport {
  MixtureReport mixture = {};  // with a budget
};

// Writes request.out and, beside it, request.out + ".quantize.json": method, settings, digests of the model,
// of the calibration file and of the output, version, and the error of each linear. A run that was ended goes
// on where it was when it is repeated with the same request (journal.h). INVALID_ARGUMENT for what makes no
// sense (a path that is taken, the report's too, rows that are not whole groups, a method or a budget without
// its calibration, a budget that the target's format does not reach, settings that the method does not have),
// DATA_LOSS for files that are malformed, and, reason
// nonfinite, for weights or activations that are infinite, not a number or past what the target can hold,
// RESOURCE_EXHAUSTED for a full disk.
StatusOr<QuantizeReport> Quantize(const QuantizeRequest& request);

// Bytes of all weights in the file that Quantize would make of `model` with one format for all linears.
// Errors of OpenModel; INVALID_ARGUMENT for rows that are not whole groups.
StatusOr<uint64_t> QuantizedBytes(const std::string& model, const QuantizeTarget& target,
                                  const QuantizeMethod& method = kQuantizeMethods[0]);

}  // namespace terrace
