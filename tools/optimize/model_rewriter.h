// What the commands that rewrite a model layer by layer share (quantize, prune): calibration text goes
// through the layers as they will be written, each finished layer is kept in a journal, and at the end the
// model and a report of the work appear under their names. The bytes follow from the request and the files it
// names, on one kind of processor; neither threads nor interruptions change them. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/json_fwd.h"
#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/dtype.h"
#include "tools/optimize/calibration.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"
#include "tools/optimize/hidden_states.h"
#include "tools/optimize/journal.h"
#include "tools/optimize/layer_runner.h"
#include "tools/optimize/quantized_matrix.h"
#include "worker/formats/model_files.h"
#include "worker/formats/model_writer.h"
#include "worker/formats/tensor_names.h"

namespace terrace {

// Of one of the seven linears of a layer; of experts, of that of all of them together.
struct LinearReport {
  std::string name;   // of the tensor in the output (NameOfAllExperts)
  std::string dtype;  // as FormatName has it
  Shape shape = {};   // [outputs, inputs], or [experts, outputs, inputs]
  // Of the outputs over the calibration tokens, or of the weights without any; of experts the root of the
  // mean of their squares, and the largest. With calibration each expert counts by the tokens that go to it,
  // and one that none goes to not at all.
  double relative_error = 0, largest_error = 0;
};

struct LayerReport {
  uint32_t layer = 0, layers = 0;
  bool was_kept = false;  // from an earlier run of the same job
  std::vector<LinearReport> linears = {};
  std::vector<uint64_t> expert_tokens = {};  // of the calibration text, that go to each expert
};

struct RewriteRequest {
  std::string model, out;
  CalibrationOptions calibration = {};  // no path: none
  double damping = kDefaultDamping;     // of Hessians that are inverted, times their mean diagonal; 0 to 1
  size_t threads = 1;
  // Called after each layer; an error of it ends the work and is returned, what is finished is kept.
  std::function<Status(const LayerReport&)> on_layer = [](const LayerReport&) { return Status(); };
  std::function<bool()> is_cancelled = nullptr;  // asked before each linear: CANCELLED
};

struct RewriteReport {
  uint64_t parameters = 0, parameters_after = 0;
  uint64_t bytes_before = 0, bytes_after = 0;  // of the weights
  Hash128 digest;                              // of the output: ModelFiles::digest
  std::vector<LayerReport> layers;
  std::string path;                 // of the report
  uint64_t calibration_tokens = 0;  // 0: it was not calibrated
  uint64_t most_inputs = 0;         // of a linear of the model that was read
  // Of all layers, with calibration: those that fewer tokens go to than one of their linears has inputs, and
  // of them those that none goes to, which are rewritten by their weights alone.
  uint64_t experts = 0, experts_with_few_tokens = 0, experts_without_tokens = 0;
};

struct RewrittenMatrix {
  std::vector<std::byte> bytes;  // as ModelWriter takes them
  double error = 0;
};

// A layer as it is written.
struct RewrittenLayer : LayerVectors {
  std::map<std::pair<TensorKind, uint32_t>, RewrittenMatrix> matrices;  // by kind and expert
  std::vector<uint64_t> expert_tokens;                                  // of LayerReport

  RewrittenMatrix& matrix(TensorKind kind, uint32_t expert = 0) { return matrices[{kind, expert}]; }
};

// What ModelWriter takes, and kernels read, of a matrix whose rows are whole blocks.
uint64_t MatrixBytes(DType dtype, const Shape& shape);

// DATA_LOSS, reason nonfinite, where a value of the matrix `name` became infinite or not a number in `dtype`.
Status CheckHeld(const FloatMatrix& written, DType dtype, const std::string& name);

class ModelRewriter {
 public:
  virtual ~ModelRewriter() = default;
  // INVALID_ARGUMENT for a path that is taken, DATA_LOSS, reason too_little_text, for fewer tokens of
  // calibration text than the residual stream has channels, DATA_LOSS, reason nonfinite, for weights that are
  // infinite, not a number or past what the output's formats can hold; FAILED_PRECONDITION, reason
  // model_changed, when the model's files have changed meanwhile; the errors of what is called.
  StatusOr<RewriteReport> Run();

 protected:
  // `command` names the report, OUT.<command>.json. `config` is the output's, as far as it is known; its
  // pairing is that of the layers. The request outlives the object.
  ModelRewriter(const RewriteRequest& request, std::string_view command, ModelFiles files,
                ModelConfig config);

  // What a command does:
  virtual Status Check() = 0;         // of the request, before any work
  virtual Json Settings() const = 0;  // all that the output follows from, beside the model and the text
  // When the text was read and the journal is open: the last moment to change config_.
  virtual Status Prepare(const Journal&) { return Status(); }
  virtual DType DTypeOf(const LayerTensor& tensor, uint32_t layer) const = 0;  // of a matrix of the output
  virtual uint32_t SourceLayer(uint32_t layer) const { return layer; }  // which one becomes layer `layer`
  // With calibration: `hidden` goes into the layer and becomes what comes out of the one that is written. Of
  // all matrices but the router, which stays as it is.
  virtual StatusOr<RewrittenLayer> Rewrite(FloatLayer source, uint32_t layer, HiddenStates& hidden) = 0;
  // Without: a linear by itself.
  virtual WrittenMatrix RewriteMatrix(const FloatMatrix& source, const LayerTensor& tensor,
                                      uint32_t layer) = 0;
  // Where the residual stream of the output is narrower: a row of a tensor that no layer has becomes so, too.
  virtual void Narrow(TensorKind, std::vector<float>&) const {}
  virtual void AddToReport(Json&) const {}

  // For commands:
  bool is_calibrated() const { return !request_.calibration.path.empty(); }
  bool is_cancelled() const { return request_.is_cancelled && request_.is_cancelled(); }
  // Of the matrix that chooses experts, which stays as it is: GGUF has it in F32, and of one that was
  // quantized F32 holds all.
  DType RouterDType(uint32_t layer) const;
  StatusOr<TensorView> Source(TensorKind kind) const;  // of those that no layer has
  StatusOr<FloatLayer> LoadSource(uint32_t layer);     // of the model that is read
  // What goes into the first layer: rows of the embedding as the output will have it.
  StatusOr<HiddenStates> Embed(const Journal& journal, const std::vector<std::vector<TokenId>>& sequences);
  StatusOr<std::vector<float>> FinalNorm() const;
  // The output but for its data; an error for what cannot be written.
  StatusOr<ModelToWrite> Plan() const;

  const RewriteRequest& request_;
  const ModelFiles files_;
  ModelConfig config_;  // of the output
  ThreadPool pool_;
  CalibrationSet set_;
  std::unique_ptr<LayerRunner> runner_;  // null without calibration, and when all layers are done

 private:
  std::string Out() const;  // request_.out without slashes at its end
  std::string ReportPath() const;
  bool is_narrower() const { return config_.hidden_size < files_.config.hidden_size; }
  Status CheckRequest() const;
  Json Job() const;
  Status Calibrate();
  Status CheckKept();
  Status RewriteLayers(const Journal& journal);
  // How much more a vector's values are than what the output holds of them; and what it holds.
  float MoreThanStored(TensorKind kind) const;
  std::vector<float> Stored(TensorKind kind, std::vector<float> values) const;
  StatusOr<RewrittenLayer> RewriteByWeights(uint32_t layer);
  std::vector<std::byte> MakePart(RewrittenLayer layer, uint32_t index) const;
  uint64_t BytesOf(const LayerTensor& tensor, uint32_t layer) const;  // in a part
  StatusOr<std::span<const std::byte>> ReadPart(std::span<const std::byte> part, LayerReport& report) const;
  StatusOr<FloatLayer> Decode(std::span<const std::byte> tensors, uint32_t layer);
  Status CheckSource() const;
  Status Write(const ModelToWrite& plan, Journal& journal);
  Status WriteLayer(const Journal& journal, uint32_t layer, ModelWriter& writer) const;
  Status ConvertMatrix(TensorKind kind, const std::function<Status(std::span<const std::byte>)>& use);
  void Measure(uint64_t bytes_after);
  void CountExperts();
  Status WriteReport(const Journal& journal);

  const std::string command_;
  RewriteReport report_;
};

}  // namespace terrace
