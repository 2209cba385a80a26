#include "tools/optimize/model_rewriter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/build_id.h"
#include "base/json.h"
#include "base/version.h"
#include "kernels/op_table.h"
#include "kernels/quant/weight_values.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/gguf_tokenizer.h"
#include "worker/formats/weight_encoding.h"
#include "worker/tensor/held_rows.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = 4 << 20;  // of an embedding that is written

std::string PartName(uint32_t layer) { return Concat("layer-", layer); }

void Append(std::vector<std::byte>& to, std::span<const std::byte> bytes) {
  const size_t before = to.size();
  to.resize(before + bytes.size());
  if (!bytes.empty()) std::memcpy(to.data() + before, bytes.data(), bytes.size());
}

}  // namespace

uint64_t MatrixBytes(DType dtype, const Shape& shape) {
  const DTypeInfo& info = Info(dtype);
  const uint64_t bytes = shape[0] * (shape[1] / info.block_elements * info.block_bytes);
  return dtype == DType::kInt8 ? bytes + shape[0] * sizeof(float) : bytes;
}

Status CheckHeld(const FloatMatrix& written, DType dtype, const std::string& name) {
  if (IsFinite(written.values)) return Status();
  return WithReason(DataLoss(name, ": has a value that ", Info(dtype).name, " cannot hold"), "nonfinite");
}

ModelRewriter::ModelRewriter(const RewriteRequest& request, std::string_view command, ModelFiles files,
                             ModelConfig config)
    : request_(request),
      files_(std::move(files)),
      config_(std::move(config)),
      pool_(request.threads),
      command_(command) {
  config_.name.clear();  // a model is named after its path
  config_.warnings.clear();
}

StatusOr<RewriteReport> ModelRewriter::Run() {
  RETURN_IF_ERROR(CheckRequest());
  RETURN_IF_ERROR(Check());
  RETURN_IF_ERROR(Calibrate());
  RETURN_IF_ERROR(CheckKept());
  Json job = Job();
  job["build"] = OwnBuildId();  // another one may compute other bits; not in the report, which tells results
  ASSIGN_OR_RETURN(Journal journal, Journal::Open(request_.out, ToJsonText(job)));
  RETURN_IF_ERROR(Prepare(journal));
  ASSIGN_OR_RETURN(const ModelToWrite plan, Plan());
  RETURN_IF_ERROR(RewriteLayers(journal));
  runner_.reset();  // its memory
  CountExperts();
  RETURN_IF_ERROR(Write(plan, journal));
  RETURN_IF_ERROR(journal.Remove());
  return std::move(report_);
}

std::string ModelRewriter::Out() const {
  std::string out = request_.out;
  while (out.size() > 1 && out.ends_with('/')) out.pop_back();
  return out;
}

std::string ModelRewriter::ReportPath() const { return Concat(Out(), ".", command_, ".json"); }

Status ModelRewriter::CheckRequest() const {
  if (!(request_.damping >= 0 && request_.damping <= 1))
    return InvalidArgument("--damping: ", request_.damping, " is not between 0 and 1");
  std::error_code ignored;
  if (!fs::exists(Out() + ".work", ignored) && fs::exists(fs::symlink_status(ReportPath(), ignored)))
    return InvalidArgument(ReportPath(), ": is there already, and nothing is overwritten");
  return Status();
}

// What the output follows from.
Json ModelRewriter::Job() const {
  Json json = {{"format", Concat("terrace-", command_, "-1")},
               {"version", kVersion},
               {"model", {{"digest", files_.digest.Hex()}, {"format", files_.format}}},
               {"config", ConfigJsonText(files_.config)},
               {"text_digest", Digest(*files_.text).Hex()},
               {"calibration", nullptr}};
  if (is_calibrated()) {
    const CalibrationOptions& calibration = request_.calibration;
    json["calibration"] = {{"digest", set_.digest.Hex()}, {"samples", calibration.samples},
                           {"seed", calibration.seed},    {"sequences", set_.sequences.size()},
                           {"tokens", set_.tokens},       {"kernels", std::string(CpuOps().name)}};
  }
  json.update(Settings());
  return json;
}

Status ModelRewriter::Calibrate() {
  if (!is_calibrated()) return Status();
  ASSIGN_OR_RETURN(set_, LoadCalibration(request_.calibration, *files_.text, files_.config));
  report_.calibration_tokens = set_.tokens;
  report_.most_inputs = std::max<uint64_t>({files_.config.hidden_size, files_.config.ffn_size,
                                            uint64_t{files_.config.heads} * files_.config.head_dim});
  // Fewer tokens than inputs say nothing of some directions: no layer has fewer inputs than the stream.
  if (set_.tokens < files_.config.hidden_size) {
    return WithReason(DataLoss(request_.calibration.path, ": ", set_.tokens,
                               " tokens to calibrate with, and each layer has ", files_.config.hidden_size,
                               " inputs at least: more rows or longer ones are needed"),
                      "too_little_text");
  }
  ASSIGN_OR_RETURN(runner_, LayerRunner::Create(config_, set_.sequences, CpuOps(), pool_));
  return Status();
}

float ModelRewriter::MoreThanStored(TensorKind kind) const {
  return config_.norms_less_one && IsNorm(kind) ? 1 : 0;
}

std::vector<float> ModelRewriter::Stored(TensorKind kind, std::vector<float> values) const {
  for (float& value : values) value -= MoreThanStored(kind);
  return values;
}

StatusOr<TensorView> ModelRewriter::Source(TensorKind kind) const {
  return files_.weights->Find(TensorName(files_.config, kind));
}

DType ModelRewriter::RouterDType(uint32_t layer) const {
  if (config_.names == NameScheme::kGguf) return DType::kF32;
  const auto source = files_.weights->Find(TensorName(files_.config, TensorKind::kRouter, layer));
  return source.ok() && !IsQuantized(source->dtype) ? source->dtype : DType::kF32;  // OpenModel found it
}

StatusOr<FloatLayer> ModelRewriter::LoadSource(uint32_t layer) {
  return LoadLayer(files_.config, *files_.weights, layer, config_.rope_pairing, pool_);
}

StatusOr<HiddenStates> ModelRewriter::Embed(const Journal& journal,
                                            const std::vector<std::vector<TokenId>>& sequences) {
  ASSIGN_OR_RETURN(const TensorView tensor, Source(TensorKind::kEmbedding));
  ASSIGN_OR_RETURN(const HeldRows held, HeldRows::Hold(tensor, pool_));
  const WeightMatrix& from = held.matrix();
  WeightMatrix row = {
      .dtype = DTypeOf({TensorKind::kEmbedding}, 0), .rows = 1, .columns = config_.hidden_size};
  std::vector<float> values, piece;
  std::vector<std::byte> bytes(row.RowBytes());
  row.data = bytes.data();
  size_t tokens = 0, written = 0;
  for (const auto& sequence : sequences) tokens += sequence.size();
  ASSIGN_OR_RETURN(HiddenStates hidden, HiddenStates::Create(journal.folder(), tokens, row.columns));
  const auto write = [&] {
    const Status status = hidden.Write(written, piece);
    written += piece.size() / row.columns;
    piece.clear();
    return status;
  };
  for (const auto& sequence : sequences) {
    for (const TokenId token : sequence) {
      values.resize(from.columns);
      DecodeRow(from, static_cast<size_t>(token), values.data());
      if (is_narrower()) Narrow(TensorKind::kEmbedding, values);
      if (row.dtype != from.dtype) {
        EncodeWeights(row.dtype, values, bytes);
        DecodeRow(row, 0, values.data());
      }
      for (float& value : values) value *= config_.embedding_scale;
      piece.insert(piece.end(), values.begin(), values.end());
      if (piece.size() == kPieceTokens * row.columns) RETURN_IF_ERROR(write());
    }
  }
  RETURN_IF_ERROR(write());
  return hidden;
}

Status ModelRewriter::RewriteLayers(const Journal& journal) {
  std::optional<HiddenStates> hidden;
  if (is_calibrated()) {
    ASSIGN_OR_RETURN(hidden, Embed(journal, set_.sequences));
  }
  for (uint32_t layer = 0; layer < config_.layers; ++layer) {
    LayerReport report = {.layer = layer, .layers = config_.layers};
    if (const auto part = journal.Find(PartName(layer)); part.ok()) {
      report.was_kept = true;
      ASSIGN_OR_RETURN(const auto tensors, ReadPart(part->bytes(), report));
      if (is_calibrated()) {
        ASSIGN_OR_RETURN(const FloatLayer kept, Decode(tensors, layer));
        RETURN_IF_ERROR(runner_->Run(kept, *hidden, *hidden, nullptr));
      }
    } else {
      RewrittenLayer rewritten;
      if (hidden) {
        ASSIGN_OR_RETURN(FloatLayer source, LoadSource(SourceLayer(layer)));
        const FloatMatrix router = source.router;
        ASSIGN_OR_RETURN(rewritten, Rewrite(std::move(source), layer, *hidden));
        if (config_.experts > 0) {
          rewritten.matrix(TensorKind::kRouter).bytes =
              WriteNearest(router, {.dtype = RouterDType(layer)}, /*importance=*/{}, pool_).bytes;
        }
      } else {
        ASSIGN_OR_RETURN(rewritten, RewriteByWeights(layer));
      }
      const std::vector<std::byte> made = MakePart(std::move(rewritten), layer);
      RETURN_IF_ERROR(ReadPart(made, report).status());
      RETURN_IF_ERROR(journal.Save(PartName(layer), made));
    }
    report_.layers.push_back(report);
    RETURN_IF_ERROR(request_.on_layer(report));
  }
  return Status();
}

// One matrix after the other. Layers only go with calibration: `layer` is the same one of the source.
StatusOr<RewrittenLayer> ModelRewriter::RewriteByWeights(uint32_t layer) {
  RewrittenLayer out;
  ASSIGN_OR_RETURN(static_cast<LayerVectors&>(out),
                   LoadVectors(files_.config, *files_.weights, layer, config_.rope_pairing));
  for (const LayerTensor& tensor : LayerTensors(config_)) {
    if (IsVector(tensor.kind)) continue;
    if (is_cancelled()) return Cancelled("interrupted");
    ASSIGN_OR_RETURN(const FloatMatrix source,
                     LoadMatrix(files_.config, *files_.weights, tensor, layer, config_.rope_pairing, pool_));
    const DType dtype = DTypeOf(tensor, layer);
    WrittenMatrix written = tensor.kind == TensorKind::kRouter
                                ? WriteNearest(source, {.dtype = dtype}, {}, pool_)
                                : RewriteMatrix(source, tensor, layer);
    RETURN_IF_ERROR(  // a scale may pass F16
        CheckHeld(written.values, dtype, TensorName(files_.config, tensor.kind, layer, tensor.expert)));
    out.matrix(tensor.kind, tensor.expert) = {.bytes = std::move(written.bytes),
                                              .error = RelativeWeightError(source, written.values)};
  }
  return out;
}

uint64_t ModelRewriter::BytesOf(const LayerTensor& tensor, uint32_t layer) const {
  const Shape shape = TensorShape(config_, tensor.kind, layer);
  return IsVector(tensor.kind) ? shape[0] * sizeof(float) : MatrixBytes(DTypeOf(tensor, layer), shape);
}

// A part of the journal is the length of a text, the text, which has the errors and how many tokens went to
// each expert, and then the data of the layer's tensors, in the order of the tensor map.
std::vector<std::byte> ModelRewriter::MakePart(RewrittenLayer layer, uint32_t index) const {
  const std::vector<LayerTensor> tensors = LayerTensors(config_);
  Json errors = Json::array();
  for (const LayerTensor& tensor : tensors) {
    if (!IsVector(tensor.kind)) errors.push_back(layer.matrix(tensor.kind, tensor.expert).error);
  }
  const std::string text = ToJsonText({{"errors", errors}, {"expert_tokens", layer.expert_tokens}});
  const uint64_t length = text.size();
  uint64_t size = sizeof(length) + length;
  for (const LayerTensor& tensor : tensors) size += BytesOf(tensor, index);
  std::vector<std::byte> part;
  part.reserve(size);
  Append(part, std::as_bytes(std::span(&length, 1)));
  Append(part, std::as_bytes(std::span(text)));
  uint64_t end = part.size();
  for (const LayerTensor& tensor : tensors) {
    if (IsVector(tensor.kind)) {
      const std::vector<float> values = Stored(tensor.kind, layer.vector(tensor.kind));
      Append(part, std::as_bytes(std::span(values)));
    } else {
      Append(part, std::exchange(layer.matrix(tensor.kind, tensor.expert).bytes, {}));  // whose memory goes
    }
    end += BytesOf(tensor, index);
    CHECK(part.size() == end, part.size(), " bytes up to ",
          TensorName(config_, tensor.kind, index, tensor.expert), ", not ", end);
  }
  return part;
}

// Returns the data of the tensors.
StatusOr<std::span<const std::byte>> ModelRewriter::ReadPart(std::span<const std::byte> part,
                                                             LayerReport& report) const {
  ByteReader in(part);
  ASSIGN_OR_RETURN(const auto length, in.Read<uint64_t>());
  ASSIGN_OR_RETURN(const auto text, in.Read(length));
  ASSIGN_OR_RETURN(const Json results, ParseJson(AsText(text)));
  const auto list = [&](const char* key) {
    return results.is_object() && results.contains(key) ? results[key] : Json();
  };
  const Json errors = list("errors"), tokens = list("expert_tokens");
  std::vector<LayerTensor> matrices = LayerTensors(config_);
  std::erase_if(matrices, [](const LayerTensor& tensor) { return IsVector(tensor.kind); });
  if (!errors.is_array() || errors.size() != matrices.size())
    return Malformed("truncated", "a part of the journal has no errors of its matrices");
  if (!tokens.is_array() || tokens.size() != (is_calibrated() ? config_.experts : 0))
    return Malformed("truncated", "a part of the journal has no tokens of its experts");
  for (const Json& count : tokens)
    report.expert_tokens.push_back(count.is_number_unsigned() ? count.get<uint64_t>() : 0);
  const bool is_fp8 = config_.quantization && config_.quantization->is_float;  // until it is opened
  for (const TensorKind linear : kLinears) {
    LinearReport out = {.name = NameOfAllExperts(config_, linear, report.layer),
                        .dtype = is_fp8 ? "FP8_E4M3" : FormatName(DTypeOf({linear}, report.layer), config_),
                        .shape = TensorShape(config_, linear, report.layer)};
    double squares = 0, count = 0;
    for (size_t i = 0; i < matrices.size(); ++i) {
      if (matrices[i].kind != linear) continue;
      const double error = errors[i].is_number() ? errors[i].get<double>() : 0;
      const bool goes_by_tokens = IsPerExpert(linear) && !report.expert_tokens.empty();
      const double share = goes_by_tokens ? static_cast<double>(report.expert_tokens[matrices[i].expert]) : 1;
      squares += share * error * error;
      count += share;
      if (share > 0) out.largest_error = std::max(out.largest_error, error);
    }
    out.relative_error = count > 0 ? std::sqrt(squares / count) : 0;
    if (config_.experts > 0 && IsPerExpert(linear)) out.shape = {config_.experts, out.shape[0], out.shape[1]};
    report.linears.push_back(std::move(out));
  }
  return in.Read(in.remaining());
}

StatusOr<FloatLayer> ModelRewriter::Decode(std::span<const std::byte> tensors, uint32_t layer) {
  FloatLayer out;
  out.number = layer;
  out.experts.resize(config_.experts);
  ByteReader in(tensors);
  for (const LayerTensor& tensor : LayerTensors(config_)) {
    const Shape shape = TensorShape(config_, tensor.kind, layer);
    ASSIGN_OR_RETURN(const auto bytes, in.Read(BytesOf(tensor, layer)));
    if (IsVector(tensor.kind)) {
      std::vector<float>& values = out.vector(tensor.kind);
      values.resize(shape[0]);
      std::memcpy(values.data(), bytes.data(), bytes.size());
      for (float& value : values) value += MoreThanStored(tensor.kind);
      continue;
    }
    WeightMatrix from = {
        .dtype = DTypeOf(tensor, layer), .data = bytes.data(), .rows = shape[0], .columns = shape[1]};
    std::vector<float> scales(from.dtype == DType::kInt8 ? from.rows : 0);
    if (!scales.empty()) {
      std::memcpy(scales.data(), bytes.last(scales.size() * sizeof(float)).data(),
                  scales.size() * sizeof(float));
      from.row_scales = scales.data();
    }
    out.matrix(tensor.kind, tensor.expert) = ToFloats(from, pool_);
  }
  return out;
}

StatusOr<ModelToWrite> ModelRewriter::Plan() const {
  ModelToWrite plan = {.config = config_, .text = *files_.text};
  plan.used_tokens = files_.text->tokenizer->vocab_size();
  if (config_.names == NameScheme::kGguf) {  // its vocabulary is as long as its embedding
    ASSIGN_OR_RETURN(plan.text, PadVocabulary(*files_.text, config_.vocab_size));
    RETURN_IF_ERROR(GgufTextKeys(plan.text, plan.used_tokens).status());
  }
  for (const TensorRequirement& tensor : RequiredTensors(config_)) {
    const DType dtype =
        IsVector(tensor.kind) ? DType::kF32 : DTypeOf({tensor.kind, tensor.expert}, tensor.layer);
    plan.tensors.push_back({tensor.name, dtype, tensor.shape});
  }
  return plan;
}

// What layers have no part in can be written, too: told before the work.
Status ModelRewriter::CheckKept() {
  const auto drop = [](std::span<const std::byte>) { return Status(); };
  RETURN_IF_ERROR(ConvertMatrix(TensorKind::kEmbedding, drop));
  if (!config_.tied_embeddings) RETURN_IF_ERROR(ConvertMatrix(TensorKind::kOutput, drop));
  return FinalNorm().status();
}

StatusOr<std::vector<float>> ModelRewriter::FinalNorm() const {
  ASSIGN_OR_RETURN(std::vector<float> norm,
                   LoadVector(files_.config, *files_.weights, TensorKind::kFinalNorm));
  if (is_narrower()) Narrow(TensorKind::kFinalNorm, norm);
  return norm;
}

// The files were read all the time: what was written into them meanwhile has gone into the output.
Status ModelRewriter::CheckSource() const {
  ASSIGN_OR_RETURN(const ModelFiles now, OpenModel(request_.model));
  if (now.digest == files_.digest) return Status();
  return WithReason(FailedPrecondition(request_.model, ": has changed while it was read: its digest was ",
                                       files_.digest.Hex(), " and is ", now.digest.Hex()),
                    "model_changed");
}

Status ModelRewriter::Write(const ModelToWrite& plan, Journal& journal) {
  const std::string temporary = journal.folder() + "/model";
  std::error_code ignored;
  fs::remove_all(temporary, ignored);  // of a process that was killed
  ASSIGN_OR_RETURN(const auto writer, ModelWriter::Create(request_.out, plan, temporary));
  const uint64_t head = writer->size();
  const auto append = [&](std::span<const std::byte> rows) { return writer->Append(rows); };
  RETURN_IF_ERROR(ConvertMatrix(TensorKind::kEmbedding, append));
  for (uint32_t layer = 0; layer < config_.layers; ++layer)
    RETURN_IF_ERROR(WriteLayer(journal, layer, *writer));
  ASSIGN_OR_RETURN(std::vector<float> norm, FinalNorm());
  norm = Stored(TensorKind::kFinalNorm, std::move(norm));
  RETURN_IF_ERROR(writer->Append(std::as_bytes(std::span(norm))));
  if (!config_.tied_embeddings) RETURN_IF_ERROR(ConvertMatrix(TensorKind::kOutput, append));
  if (plan.tensors.back().name == kRopeDivisorsName)
    RETURN_IF_ERROR(writer->Append(std::as_bytes(std::span(config_.rope_scaling.divisors))));

  if (const Status same = CheckSource(); !same.ok()) {
    RETURN_IF_ERROR(journal.Remove());  // nobody knows which layers are of what
    return same;
  }
  Measure(writer->size() - head);
  return writer
      ->Finish([&](const Hash128& digest) {
        report_.digest = digest;
        return WriteReport(journal);
      })
      .status();
}

// Gives the embedding or the output matrix in the output's dtype to `use`, in pieces.
Status ModelRewriter::ConvertMatrix(TensorKind kind,
                                    const std::function<Status(std::span<const std::byte>)>& use) {
  ASSIGN_OR_RETURN(const TensorView tensor, Source(kind));
  ASSIGN_OR_RETURN(const HeldRows held, HeldRows::Hold(tensor, pool_));
  const WeightMatrix& from = held.matrix();
  WeightMatrix to = {.dtype = DTypeOf({kind}, 0), .rows = from.rows, .columns = config_.hidden_size};
  const size_t chunk = std::max<size_t>(1, kChunkBytes / to.RowBytes());
  const auto fail = [&](size_t row, const auto&... what) {
    return Malformed("nonfinite", files_.weights->path(), ": tensor \"", TensorName(files_.config, kind),
                     "\": row ", row, " has a value that ", what...);
  };
  std::vector<float> values;
  std::vector<std::byte> bytes;
  for (size_t first = 0; first < from.rows; first += chunk) {
    const size_t count = std::min(chunk, from.rows - first);
    bytes.resize(count * to.RowBytes());
    to.data = bytes.data();
    for (size_t i = 0; i < count; ++i) {
      values.resize(from.columns);
      DecodeRow(from, first + i, values.data());
      if (!IsFinite(values)) return fail(first + i, "is infinite or not a number");
      if (is_narrower()) Narrow(kind, values);
      const auto row = std::span(bytes).subspan(i * to.RowBytes(), to.RowBytes());
      if (from.dtype == to.dtype && !is_narrower()) {
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

Status ModelRewriter::WriteLayer(const Journal& journal, uint32_t layer, ModelWriter& writer) const {
  const auto part = journal.Find(PartName(layer));
  if (!part.ok()) return Internal("a finished layer is gone: ", Message(part.status()));
  LayerReport ignored = {.layer = layer};
  ASSIGN_OR_RETURN(const auto tensors, ReadPart(part->bytes(), ignored));
  ByteReader in(tensors);
  for (const LayerTensor& tensor : LayerTensors(config_)) {
    ASSIGN_OR_RETURN(const auto bytes, in.Read(BytesOf(tensor, layer)));
    RETURN_IF_ERROR(writer.Append(bytes));
  }
  return Status();
}

void ModelRewriter::Measure(uint64_t bytes_after) {
  const auto elements = [](const Shape& shape) {
    uint64_t count = 1;
    for (size_t i = 0; i < shape.rank; ++i) count *= shape[i];
    return count;
  };
  report_.bytes_after = bytes_after;
  for (const TensorRequirement& tensor : RequiredTensors(files_.config)) {
    const StatusOr<TensorView> view = files_.weights->Find(tensor.name);
    if (!view.ok()) continue;  // OpenModel found all
    report_.parameters += elements(view->shape);
    report_.bytes_before += view->bytes + (view->row_scales != nullptr ? 4 * view->shape[0] : 0);
  }
  for (const TensorRequirement& tensor : RequiredTensors(config_))
    report_.parameters_after += elements(tensor.shape);
}

void ModelRewriter::CountExperts() {
  const uint64_t inputs = std::max(config_.hidden_size, config_.ffn_size);
  for (const LayerReport& layer : report_.layers) {
    for (const uint64_t tokens : layer.expert_tokens) {
      ++report_.experts;
      if (tokens < inputs) ++report_.experts_with_few_tokens;
      if (tokens == 0) ++report_.experts_without_tokens;
    }
  }
}

Status ModelRewriter::WriteReport(const Journal& journal) {
  Json json = Job();
  json.erase("config");
  json["model"]["name"] = files_.config.name;
  json["model"]["weight_bytes"] = report_.bytes_before;
  json["model"]["parameters"] = report_.parameters;
  json["output"] = {{"digest", report_.digest.Hex()},
                    {"weight_bytes", report_.bytes_after},
                    {"parameters", report_.parameters_after},
                    {"bits_per_weight", 8 * static_cast<double>(report_.bytes_after) /
                                            static_cast<double>(report_.parameters_after)}};
  json["error_of"] = is_calibrated() ? "outputs" : "weights";
  json["layers"] = Json::array();
  for (const LayerReport& layer : report_.layers) {
    Json linears = Json::array();
    for (const LinearReport& linear : layer.linears) {
      linears.push_back(
          {{"tensor", linear.name}, {"dtype", linear.dtype}, {"relative_error", linear.relative_error}});
      if (linear.shape.rank == 3) linears.back()["largest_error_of_an_expert"] = linear.largest_error;
    }
    json["layers"].push_back({{"layer", layer.layer}, {"linears", linears}});
    if (!layer.expert_tokens.empty()) json["layers"].back()["expert_tokens"] = layer.expert_tokens;
  }
  AddToReport(json);
  report_.path = ReportPath();
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  return ReplaceFile(report_.path, journal.folder() + "/report", {std::as_bytes(std::span(text))});
}

}  // namespace terrace
