#include "tools/optimize/quantize.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <utility>

#include "base/parallel_for.h"
#include "base/version.h"
#include "kernels/op_table.h"
#include "kernels/quant/weight_values.h"
#include "tools/optimize/journal.h"
#include "tools/optimize/layer_runner.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/gguf_tokenizer.h"
#include "worker/formats/model_files.h"
#include "worker/formats/model_writer.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_encoding.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = 4 << 20;  // of an embedding that is written

bool IsQuantized(DType dtype) { return Info(dtype).block_elements > 1 || dtype == DType::kInt8; }

// The model as the output has it.
ModelConfig TargetConfig(ModelConfig config, const QuantizeTarget& target) {
  config.name.clear();  // a model is named after its path
  config.warnings.clear();
  config.names = target.is_gguf() ? NameScheme::kGguf : NameScheme::kHuggingFace;
  config.rope_pairing = target.is_gguf() ? RopePairing::kNeighbours : RopePairing::kHalves;
  config.quantization.reset();
  if (target.dtype == DType::kInt8) {
    config.quantization = WeightQuantization{.bits = 8, .group = 0, .has_zero_points = false};
  } else if (!target.is_gguf()) {
    config.quantization = WeightQuantization{.bits = 4, .group = target.group, .has_zero_points = true};
  }
  return config;
}

// Of the embedding and the output matrix.
DType EmbeddingDType(const TensorView& source, const QuantizeTarget& target) {
  if (!target.is_gguf()) return IsQuantized(source.dtype) ? DType::kF16 : source.dtype;
  const bool has_gguf_blocks = IsQuantized(source.dtype) && Info(source.dtype).gguf_type >= 0;
  if (has_gguf_blocks) return source.dtype;
  return source.shape[1] % Info(DType::kQ8_0).block_elements == 0 ? DType::kQ8_0 : DType::kF16;
}

std::string PartName(uint32_t layer) { return Concat("layer-", layer); }

class Quantization {
 public:
  Quantization(const QuantizeRequest& request, ModelFiles files)
      : request_(request),
        files_(std::move(files)),
        config_(TargetConfig(files_.config, request.target)),
        pool_(request.threads) {}

  StatusOr<QuantizeReport> Run() {
    RETURN_IF_ERROR(CheckRequest());
    RETURN_IF_ERROR(ChooseFormats());
    ASSIGN_OR_RETURN(const ModelToWrite plan, Plan());
    RETURN_IF_ERROR(Calibrate());
    RETURN_IF_ERROR(CheckKept());
    ASSIGN_OR_RETURN(Journal journal, Journal::Open(request_.out, ToJsonText(Job())));
    RETURN_IF_ERROR(QuantizeLayers(journal));
    runner_.reset();  // its memory
    RETURN_IF_ERROR(Write(plan, journal));
    RETURN_IF_ERROR(journal.Remove());
    return std::move(report_);
  }

 private:
  bool is_calibrated() const { return !request_.calibration.path.empty(); }

  // request_.out without slashes at its end.
  std::string Out() const {
    std::string out = request_.out;
    while (out.size() > 1 && out.ends_with('/')) out.pop_back();
    return out;
  }
  std::string ReportPath() const { return Out() + ".quantize.json"; }

  Status CheckRequest() const {
    const double damping = request_.damping;
    if (!(damping >= 0 && damping <= 1))
      return InvalidArgument("--damping: ", damping, " is not between 0 and 1");
    if (!request_.method.passes_errors_on &&
        (request_.act_order || damping != QuantizeRequest::kDefaultDamping))
      return InvalidArgument("--method ", request_.method.name,
                             " has neither --damping nor --act-order; they are of gptq and awq-gptq");
    std::error_code ignored;
    if (!fs::exists(Out() + ".work", ignored) && fs::exists(fs::symlink_status(ReportPath(), ignored)))
      return InvalidArgument(ReportPath(), ": is there already, and nothing is overwritten");
    return Status();
  }

  // What the output follows from.
  Json Job() const {
    const CalibrationOptions& calibration = request_.calibration;
    Json json = {{"format", "terrace-quantize-1"},
                 {"version", kVersion},
                 {"model", {{"digest", files_.digest.Hex()}, {"format", files_.format}}},
                 {"config", ConfigJsonText(files_.config)},
                 {"text_digest", Digest(*files_.text).Hex()},
                 {"target", std::string(request_.target.name)},
                 {"method", std::string(request_.method.name)},
                 {"searches_levels", request_.method.searches_levels},
                 {"calibration", nullptr}};
    if (!is_calibrated()) return json;
    json["calibration"] = {{"digest", set_.digest.Hex()}, {"samples", calibration.samples},
                           {"seed", calibration.seed},    {"sequences", set_.sequences.size()},
                           {"tokens", set_.tokens},       {"kernels", std::string(CpuOps().name)}};
    if (request_.method.passes_errors_on) {
      json["damping"] = request_.damping;
      json["act_order"] = request_.act_order;
    }
    return json;
  }

  Status ChooseFormats() {
    for (const TensorKind linear : kLinears) {
      const Shape shape = TensorShape(config_, linear);
      const auto format = RowFormat::Create(WithWholeBlocks(request_.target.dtype, shape[1]),
                                            request_.target.group, shape[1]);
      if (!format.ok())
        return Annotate(format.status(),
                        Concat("--to ", request_.target.name, ": ", TensorName(config_.names, linear)));
      formats_.push_back(*format);
    }
    return Status();
  }

  const RowFormat& FormatOf(TensorKind linear) const {
    return formats_[static_cast<size_t>(std::ranges::find(kLinears, linear) - std::begin(kLinears))];
  }

  Status Calibrate() {
    if (!is_calibrated()) {
      if (!request_.method.needs_calibration()) return Status();
      return InvalidArgument("--method ", request_.method.name,
                             request_.method.name == "rtn" ? " with --imatrix" : "",
                             ": needs calibration text (--calibration)");
    }
    ASSIGN_OR_RETURN(set_, LoadCalibration(request_.calibration, *files_.text, files_.config));
    ASSIGN_OR_RETURN(runner_, LayerRunner::Create(config_, set_.sequences, CpuOps(), pool_));
    return Status();
  }

  StatusOr<TensorView> Source(TensorKind kind) const {
    return files_.weights->Find(TensorName(files_.config.names, kind));
  }

  // What goes into the first layer: rows of the embedding as the output will have it.
  StatusOr<std::vector<float>> Embed() const {
    std::vector<float> hidden;
    if (!is_calibrated()) return hidden;
    ASSIGN_OR_RETURN(const TensorView tensor, Source(TensorKind::kEmbedding));
    const WeightMatrix from = MatrixOf(tensor);
    WeightMatrix row = {.dtype = EmbeddingDType(tensor, request_.target), .rows = 1, .columns = from.columns};
    std::vector<std::byte> bytes(row.RowBytes());
    row.data = bytes.data();
    hidden.resize(set_.tokens * from.columns);
    float* out = hidden.data();
    for (const auto& sequence : set_.sequences) {
      for (const TokenId token : sequence) {
        DecodeRow(from, static_cast<size_t>(token), out);
        if (row.dtype != from.dtype) {
          EncodeWeights(row.dtype, {out, from.columns}, bytes);
          DecodeRow(row, 0, out);
        }
        out += from.columns;
      }
    }
    return hidden;
  }

  Status QuantizeLayers(const Journal& journal) {
    ASSIGN_OR_RETURN(std::vector<float> hidden, Embed());
    const LayerQuantizer quantizer(config_, formats_,
                                   {.method = request_.method,
                                    .damping = request_.damping,
                                    .act_order = request_.act_order,
                                    .is_cancelled = request_.is_cancelled},
                                   runner_.get(), pool_);
    for (uint32_t layer = 0; layer < config_.layers; ++layer) {
      LayerReport report = {.layer = layer, .layers = config_.layers};
      if (const auto part = journal.Find(PartName(layer)); part.ok()) {
        report.was_kept = true;
        ASSIGN_OR_RETURN(const QuantizedLayer kept, ReadPart(part->bytes(), report));
        if (is_calibrated()) RETURN_IF_ERROR(runner_->Run(kept.ToFloat(pool_), hidden, nullptr));
      } else {
        ASSIGN_OR_RETURN(FloatLayer loaded,
                         LoadLayer(files_.config, *files_.weights, layer, config_.rope_pairing, pool_));
        ASSIGN_OR_RETURN(const LayerQuantizer::Result result,
                         quantizer.Quantize(std::move(loaded), layer, hidden));
        for (size_t i = 0; i < result.errors.size(); ++i)
          report.linears.push_back(
              {TensorName(config_.names, kLinears[i], layer), formats_[i].dtype(), result.errors[i]});
        RETURN_IF_ERROR(journal.Save(PartName(layer), MakePart(result.layer, report)));
      }
      report_.layers.push_back(report);
      RETURN_IF_ERROR(request_.on_layer(report));
    }
    return Status();
  }

  // A part of the journal is the length of a text, the text, which has the errors, and then the data of the
  // layer's tensors.
  static std::vector<std::byte> MakePart(const QuantizedLayer& layer, const LayerReport& report) {
    Json errors = Json::array();
    for (const LinearReport& linear : report.linears) errors.push_back(linear.relative_error);
    const std::string text = ToJsonText(errors);
    const uint64_t length = text.size();
    std::vector<std::byte> part;
    const auto append = [&](std::span<const std::byte> bytes) {
      part.insert(part.end(), bytes.begin(), bytes.end());
    };
    append(std::as_bytes(std::span(&length, 1)));
    append(std::as_bytes(std::span(text)));
    append(std::as_bytes(std::span(layer.attention_norm)));
    append(std::as_bytes(std::span(layer.ffn_norm)));
    for (const QuantizedMatrix& matrix : layer.linears) {
      append(matrix.codes());
      append(std::as_bytes(matrix.row_scales()));
    }
    return part;
  }

  StatusOr<QuantizedLayer> ReadPart(std::span<const std::byte> part, LayerReport& report) const {
    ByteReader in(part);
    ASSIGN_OR_RETURN(const auto length, in.Read<uint64_t>());
    ASSIGN_OR_RETURN(const auto text, in.Read(length));
    ASSIGN_OR_RETURN(const Json errors, ParseJson(AsText(text)));
    if (!errors.is_array() || errors.size() != std::size(kLinears))
      return Malformed("truncated", "a part of the journal has no errors of its linears");
    QuantizedLayer layer;
    for (std::vector<float>* norm : {&layer.attention_norm, &layer.ffn_norm}) {
      norm->resize(config_.hidden_size);
      ASSIGN_OR_RETURN(const auto bytes, in.Read(norm->size() * sizeof(float)));
      std::memcpy(norm->data(), bytes.data(), bytes.size());
    }
    for (size_t i = 0; i < std::size(kLinears); ++i) {
      const TensorKind linear = kLinears[i];
      layer.linears.emplace_back(FormatOf(linear), TensorShape(config_, linear)[0]);
      ASSIGN_OR_RETURN(const auto bytes, in.Read(layer.linears.back().byte_count()));
      layer.linears.back().SetBytes(bytes);
      const double error = errors[i].is_number() ? errors[i].get<double>() : 0;
      report.linears.push_back(
          {TensorName(config_.names, linear, report.layer), FormatOf(linear).dtype(), error});
    }
    return layer;
  }

  // The model but for its data; an error for what cannot be written.
  StatusOr<ModelToWrite> Plan() const {
    ModelToWrite plan = {.config = config_, .text = *files_.text};
    plan.used_tokens = files_.text->tokenizer->vocab_size();
    if (request_.target.is_gguf()) {  // its vocabulary is as long as its embedding
      ASSIGN_OR_RETURN(plan.text, PadVocabulary(*files_.text, config_.vocab_size));
      RETURN_IF_ERROR(GgufTextKeys(plan.text, plan.used_tokens).status());
    }
    for (const TensorRequirement& tensor : RequiredTensors(config_)) {
      DType dtype = DType::kF32;
      if (tensor.kind == TensorKind::kEmbedding || tensor.kind == TensorKind::kOutput) {
        ASSIGN_OR_RETURN(const TensorView source, Source(tensor.kind));
        dtype = EmbeddingDType(source, request_.target);
      } else if (!IsNorm(tensor.kind)) {
        dtype = FormatOf(tensor.kind).dtype();
      }
      plan.tensors.push_back({tensor.name, dtype, tensor.shape});
    }
    return plan;
  }

  // What layers have no part in can be written, too: told before the work.
  Status CheckKept() const {
    const auto drop = [](std::span<const std::byte>) { return Status(); };
    RETURN_IF_ERROR(ConvertMatrix(TensorKind::kEmbedding, drop));
    if (!config_.tied_embeddings) RETURN_IF_ERROR(ConvertMatrix(TensorKind::kOutput, drop));
    return FinalNorm().status();
  }

  StatusOr<std::vector<float>> FinalNorm() const {
    return LoadVector(*files_.weights, TensorName(files_.config.names, TensorKind::kFinalNorm));
  }

  Status Write(const ModelToWrite& plan, const Journal& journal) {
    const std::string temporary = journal.folder() + "/model";
    std::error_code ignored;
    fs::remove_all(temporary, ignored);  // of a process that was killed
    ASSIGN_OR_RETURN(const auto writer, ModelWriter::Create(request_.out, plan, temporary));
    const uint64_t head = writer->size();
    const auto append = [&](std::span<const std::byte> rows) { return writer->Append(rows); };
    RETURN_IF_ERROR(ConvertMatrix(TensorKind::kEmbedding, append));
    for (uint32_t layer = 0; layer < config_.layers; ++layer)
      RETURN_IF_ERROR(WriteLayer(journal, layer, *writer));
    ASSIGN_OR_RETURN(const std::vector<float> norm, FinalNorm());
    RETURN_IF_ERROR(writer->Append(std::as_bytes(std::span(norm))));
    if (!config_.tied_embeddings) RETURN_IF_ERROR(ConvertMatrix(TensorKind::kOutput, append));

    Measure(writer->size() - head);
    return writer
        ->Finish([&](const Hash128& digest) {
          report_.digest = digest;
          return WriteReport(journal);
        })
        .status();
  }

  // Gives the embedding or the output matrix in the output's dtype to `use`, in pieces.
  Status ConvertMatrix(TensorKind kind, const std::function<Status(std::span<const std::byte>)>& use) const {
    ASSIGN_OR_RETURN(const TensorView tensor, Source(kind));
    const WeightMatrix from = MatrixOf(tensor);
    WeightMatrix to = {
        .dtype = EmbeddingDType(tensor, request_.target), .rows = from.rows, .columns = from.columns};
    const size_t chunk = std::max<size_t>(1, kChunkBytes / to.RowBytes());
    const auto fail = [&](size_t row, const auto&... what) {
      return Malformed("nonfinite", files_.weights->path(), ": tensor \"",
                       TensorName(files_.config.names, kind), "\": row ", row, " has a value that ", what...);
    };
    std::vector<float> values(from.columns);
    std::vector<std::byte> bytes;
    for (size_t first = 0; first < from.rows; first += chunk) {
      const size_t count = std::min(chunk, from.rows - first);
      bytes.resize(count * to.RowBytes());
      to.data = bytes.data();
      for (size_t i = 0; i < count; ++i) {
        DecodeRow(from, first + i, values.data());
        if (!IsFinite(values)) return fail(first + i, "is infinite or not a number");
        const auto row = std::span(bytes).subspan(i * to.RowBytes(), to.RowBytes());
        if (from.dtype == to.dtype) {
          std::memcpy(row.data(), from.Row(first + i), row.size());
          continue;
        }
        EncodeWeights(to.dtype, values, row);
        DecodeRow(to, i, values.data());
        if (!IsFinite(values)) return fail(first + i, Info(to.dtype).name, " cannot hold");
      }
      RETURN_IF_ERROR(use(bytes));
    }
    return Status();
  }

  Status WriteLayer(const Journal& journal, uint32_t index, ModelWriter& writer) const {
    const auto part = journal.Find(PartName(index));
    if (!part.ok()) return Internal("a finished layer is gone: ", Message(part.status()));
    LayerReport ignored;
    ASSIGN_OR_RETURN(const QuantizedLayer layer, ReadPart(part->bytes(), ignored));
    const auto append = [&](size_t first, size_t end) {
      for (size_t i = first; i < end; ++i) {
        RETURN_IF_ERROR(writer.Append(layer.linears[i].codes()));
        if (!layer.linears[i].row_scales().empty())
          RETURN_IF_ERROR(writer.Append(std::as_bytes(layer.linears[i].row_scales())));
      }
      return Status();
    };
    // In the order of the tensor map.
    RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(layer.attention_norm))));
    RETURN_IF_ERROR(append(0, 4));
    RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(layer.ffn_norm))));
    return append(4, 7);
  }

  void Measure(uint64_t bytes_after) {
    report_.bytes_after = bytes_after;
    for (const TensorRequirement& tensor : RequiredTensors(files_.config)) {
      const StatusOr<TensorView> view = files_.weights->Find(tensor.name);
      if (!view.ok()) continue;  // OpenModel found all
      uint64_t elements = 1;
      for (size_t i = 0; i < view->shape.rank; ++i) elements *= view->shape[i];
      report_.parameters += elements;
      report_.bytes_before += view->bytes + (view->row_scales != nullptr ? 4 * view->shape[0] : 0);
    }
  }

  Status WriteReport(const Journal& journal) {
    Json json = Job();
    json.erase("config");
    json["model"]["name"] = files_.config.name;
    json["model"]["weight_bytes"] = report_.bytes_before;
    json["output"] = {{"digest", report_.digest.Hex()},
                      {"weight_bytes", report_.bytes_after},
                      {"bits_per_weight", 8 * static_cast<double>(report_.bytes_after) /
                                              static_cast<double>(report_.parameters)}};
    json["error_of"] = is_calibrated() ? "outputs" : "weights";
    json["layers"] = Json::array();
    for (const LayerReport& layer : report_.layers) {
      Json linears = Json::array();
      for (const LinearReport& linear : layer.linears)
        linears.push_back({{"tensor", linear.name},
                           {"dtype", FormatName(linear.dtype, request_.target.group)},
                           {"relative_error", linear.relative_error}});
      json["layers"].push_back({{"layer", layer.layer}, {"linears", linears}});
    }
    report_.path = ReportPath();
    const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
    return ReplaceFile(report_.path, journal.folder() + "/report", {std::as_bytes(std::span(text))});
  }

  const QuantizeRequest& request_;
  const ModelFiles files_;
  const ModelConfig config_;        // of the output
  std::vector<RowFormat> formats_;  // of the linears
  ThreadPool pool_;
  CalibrationSet set_;
  std::unique_ptr<LayerRunner> runner_;  // null without calibration, and when all layers are done
  QuantizeReport report_;
};

}  // namespace

StatusOr<QuantizeReport> Quantize(const QuantizeRequest& request) {
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(request.model));
  return Quantization(request, std::move(files)).Run();
}

}  // namespace terrace
