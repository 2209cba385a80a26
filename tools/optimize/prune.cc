#include "tools/optimize/prune.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/json.h"
#include "kernels/op_table.h"
#include "kernels/quant/weight_values.h"
#include "tools/optimize/hessian_observer.h"
#include "tools/optimize/input_removal.h"
#include "tools/optimize/quantized_matrix.h"
#include "worker/formats/byte_reader.h"
#include "worker/tensor/held_rows.h"

namespace terrace {
namespace {

constexpr char kPlanPart[] = "plan";

// Writes `matrix`; it becomes what its dtype holds of it.
Status PutMatrix(const std::string& name, DType dtype, ThreadPool& pool, FloatMatrix& matrix,
                 RewrittenMatrix& out) {
  WrittenMatrix written = WriteNearest(matrix, {.dtype = dtype}, /*importance=*/{}, pool);
  out.bytes = std::move(written.bytes);
  matrix = std::move(written.values);
  return CheckHeld(matrix, dtype, name);
}

// `count` columns of each of `heads`, side by side.
std::vector<uint32_t> OfHeads(std::span<const uint32_t> heads, uint32_t count) {
  std::vector<uint32_t> out;
  for (const uint32_t head : heads) {
    for (uint32_t i = 0; i < count; ++i) out.push_back(head * count + i);
  }
  return out;
}

// What a layer did to the residual stream, of which rows of before and after come in turn.
class StreamChange {
 public:
  explicit StreamChange(size_t width) : width_(width) {}

  void Add(std::span<const float> before, std::span<const float> after) {
    is_finite_ = is_finite_ && IsFinite(after);
    rows_ += before.size() / width_;
    for (const float x : after) squares_ += double{x} * x;
    for (size_t first = 0; first < before.size(); first += width_) {
      double product = 0, a = 0, b = 0;
      for (size_t i = first; i < first + width_; ++i) {
        product += double{before[i]} * after[i];
        a += double{before[i]} * before[i];
        b += double{after[i]} * after[i];
      }
      if (a == 0 && b == 0) continue;
      turned_ += 1 - (a > 0 && b > 0 ? product / std::sqrt(a) / std::sqrt(b) : 0);
    }
  }

  bool is_finite() const { return is_finite_; }                           // after
  double squares() const { return squares_; }                             // after
  double turned() const { return turned_ / static_cast<double>(rows_); }  // 1 - the mean cosine of rows

 private:
  const size_t width_;
  size_t rows_ = 0;
  bool is_finite_ = true;
  double squares_ = 0, turned_ = 0;
};

StatusOr<StreamChange> ChangeOf(const HiddenStates& before, const HiddenStates& after) {
  StreamChange change(before.width());
  std::vector<float> rows;
  const auto add = [&](size_t first, std::span<const float> from) {
    rows.resize(from.size());
    RETURN_IF_ERROR(after.Read(first, rows));
    change.Add(from, rows);
    return Status();
  };
  RETURN_IF_ERROR(before.EachPiece(add));
  return change;
}

// What each channel has of the squares of a stream's rows, [tokens, width]: the mean over tokens.
class StreamEnergy {
 public:
  StreamEnergy(size_t tokens, size_t width) : tokens_(tokens), sums_(width) {}

  void Add(std::span<const float> rows) {
    const size_t width = sums_.size();
    for (size_t first = 0; first < rows.size(); first += width) {
      double squares = 0;
      for (size_t i = first; i < first + width; ++i) squares += double{rows[i]} * rows[i];
      if (squares == 0) continue;
      const double weight = 1 / (squares * static_cast<double>(tokens_));
      for (size_t i = 0; i < width; ++i) sums_[i] += weight * rows[first + i] * rows[first + i];
    }
  }
  const std::vector<double>& values() const { return sums_; }  // when all were added

 private:
  const size_t tokens_;
  std::vector<double> sums_;
};

// Adds the squares of a row of a matrix to the sums of its columns.
void AddSquares(std::span<const float> row, std::vector<double>& sums) {
  for (size_t i = 0; i < row.size(); ++i) sums[i] += double{row[i]} * row[i];
}

// What the heads and channels of a layer add to the residual stream and, where the stream becomes narrower,
// what the layer takes from each of its channels.
class ImportanceObserver final : public HessianObserver {
 public:
  ImportanceObserver(const ModelConfig& config, const FloatLayer& layer, uint32_t index, size_t tokens,
                     bool is_narrowed, ThreadPool& pool)
      : HessianObserver(config, index, pool),
        layer_values_(layer),
        is_narrowed_(is_narrowed),
        attention_energy_(tokens, config.hidden_size),
        ffn_energy_(tokens, config.hidden_size) {}

  bool changes_linears() const override { return false; }
  void OnStream(LinearInput input, std::span<const float> stream) override {
    if (is_narrowed_) (input == LinearInput::kFfn ? ffn_energy_ : attention_energy_).Add(stream);
  }

  // When the layer was run.
  LayerImportance Take() {
    if (is_narrowed_) {
      importance_.attention = UseBy(LinearInput::kAttention, attention_energy_, layer_values_.attention_norm);
      importance_.ffn = UseBy(LinearInput::kFfn, ffn_energy_, layer_values_.ffn_norm);
    }
    return std::move(importance_);
  }

 private:
  StreamUse UseBy(LinearInput input, const StreamEnergy& energy, const std::vector<float>& norm) const {
    std::vector<double> squares(config_.hidden_size);
    for (const TensorKind linear : LinearsOf(input)) {
      const FloatMatrix& matrix = layer_values_.matrix(linear);
      for (size_t row = 0; row < matrix.rows; ++row) AddSquares(matrix.Row(row), squares);
    }
    return UseOfStream(energy.values(), norm, squares);
  }

  bool Wants(LinearInput input) const override {
    return input == LinearInput::kAttentionOutput || input == LinearInput::kDown;
  }

  Status Use(LayerInput input, const Hessian& hessian) override {
    const bool is_down = input.kind == LinearInput::kDown;
    const FloatMatrix& matrix = is_down ? layer_values_.down : layer_values_.attention_output;
    std::vector<double>& out = is_down ? importance_.channels : importance_.kv_heads;
    const size_t width = is_down ? 1 : size_t{config_.heads / config_.kv_heads} * config_.head_dim;
    out.resize(matrix.columns / width);
    pool_.ParallelFor(out.size(), /*grain=*/1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) out[i] = RemovalCost(matrix, hessian, i * width, width);
    });
    return Status();
  }

  const FloatLayer& layer_values_;
  const bool is_narrowed_;
  StreamEnergy attention_energy_, ffn_energy_;
  LayerImportance importance_;
};

// Prunes the linears of an input as soon as all of it was seen. The layer then has what they became.
class WeightPruner final : public HessianObserver {
 public:
  // `dtype_of` says what a matrix is written as.
  WeightPruner(const ModelConfig& config, const PruneRequest& request,
               std::function<DType(const LayerTensor&)> dtype_of, ThreadPool& pool, FloatLayer& layer,
               RewrittenLayer& out)
      : HessianObserver(config, layer.number, pool),
        request_(request),
        dtype_of_(std::move(dtype_of)),
        values_(layer),
        out_(out) {}

 private:
  Status Use(LayerInput input, const Hessian& hessian) override {
    std::optional<InverseHessian> inverse;
    if (request_.method.passes_errors_on) {
      auto inverted = InvertHessian(hessian, request_.damping, /*by_size=*/false);
      if (!inverted.ok()) return Annotate(inverted.status(), NameOf(input));
      inverse = *std::move(inverted);
    }
    for (const TensorKind linear : LinearsOf(input.kind))
      RETURN_IF_ERROR(PruneLinear({linear, input.expert}, &hessian, inverse ? &*inverse : nullptr));
    return Status();
  }

  Status UseFew(LayerInput input, const Hessian* hessian) override {
    for (const TensorKind linear : LinearsOf(input.kind))
      RETURN_IF_ERROR(PruneLinear({linear, input.expert}, hessian, nullptr));
    return Status();
  }

  // Without an inverse the smallest weights go.
  Status PruneLinear(const LayerTensor& linear, const Hessian* hessian, const InverseHessian* inverse) {
    if (request_.is_cancelled && request_.is_cancelled()) return Cancelled("interrupted");
    FloatMatrix& matrix = values_.matrix(linear.kind, linear.expert);
    FloatMatrix pruned = inverse != nullptr ? SparseGpt(matrix, request_.pattern, *inverse, pool_)
                                            : PruneByMagnitude(matrix, request_.pattern);
    RewrittenMatrix& out = out_.matrix(linear.kind, linear.expert);
    RETURN_IF_ERROR(PutMatrix(NameOf(linear.kind, linear.expert), dtype_of_(linear), pool_, pruned, out));
    out.error = hessian != nullptr ? RelativeOutputError(matrix, pruned, *hessian, pool_)
                                   : RelativeWeightError(matrix, pruned);
    matrix = std::move(pruned);
    return Status();
  }

  const PruneRequest& request_;
  const std::function<DType(const LayerTensor&)> dtype_of_;
  FloatLayer& values_;
  RewrittenLayer& out_;
};

// Clears the columns of the attention's output and of down that go, and has the others make up for them.
class InputRemover final : public HessianObserver {
 public:
  InputRemover(const ModelConfig& config, const PruneRequest& request, std::span<const uint32_t> attention,
               std::span<const uint32_t> channels, uint32_t index, ThreadPool& pool, FloatLayer& layer)
      : HessianObserver(config, index, pool),
        request_(request),
        attention_(attention),
        channels_(channels),
        values_(layer) {}

  bool has_work() const { return Wants(LinearInput::kAttentionOutput) || Wants(LinearInput::kDown); }
  double attention_error() const { return attention_error_; }
  double down_error() const { return down_error_; }

 private:
  bool Wants(LinearInput input) const override {
    return (input == LinearInput::kAttentionOutput && attention_.size() < values_.attention_output.columns) ||
           (input == LinearInput::kDown && channels_.size() < values_.down.columns);
  }

  Status Use(LayerInput input, const Hessian& hessian) override {
    if (request_.is_cancelled && request_.is_cancelled()) return Cancelled("interrupted");
    const bool is_down = input.kind == LinearInput::kDown;
    FloatMatrix& matrix = is_down ? values_.down : values_.attention_output;
    auto left = WithInputs(matrix, hessian, is_down ? channels_ : attention_, request_.repair,
                           request_.damping, pool_);
    if (!left.ok()) return Annotate(left.status(), NameOf(input));
    (is_down ? down_error_ : attention_error_) = RelativeOutputError(matrix, *left, hessian, pool_);
    matrix = *std::move(left);
    return Status();
  }

  const PruneRequest& request_;
  const std::span<const uint32_t> attention_, channels_;  // columns that stay
  FloatLayer& values_;
  double attention_error_ = 0, down_error_ = 0;
};

// Makes a layer of a narrower residual stream while the layer runs as it is: what reads the stream makes up
// for the channels that go.
class StreamNarrower final : public HessianObserver {
 public:
  StreamNarrower(const ModelConfig& config, const PruneRequest& request, const CutPlan& plan,
                 const LayerPlan& layer_plan, const FloatLayer& layer, ThreadPool& pool)
      : HessianObserver(config, layer_plan.layer, pool),
        request_(request),
        kept_(plan.hidden),
        values_(layer) {
    out_.attention_norm = Gains(layer.attention_norm, layer_plan.attention_gain);
    out_.ffn_norm = Gains(layer.ffn_norm, layer_plan.ffn_gain);
    out_.attention_output = RowsAt(layer.attention_output, kept_);
    out_.down = RowsAt(layer.down, kept_);
  }

  bool changes_linears() const override { return false; }  // of the layer that runs
  FloatLayer TakeLayer() { return std::move(out_); }
  const std::vector<double>& errors() const { return errors_; }  // in the order of kLinears

 private:
  bool Wants(LinearInput input) const override {
    return input == LinearInput::kAttention || input == LinearInput::kFfn;
  }

  Status Use(LayerInput input, const Hessian& hessian) override {
    if (request_.is_cancelled && request_.is_cancelled()) return Cancelled("interrupted");
    FloatMatrix all = {.rows = 0, .columns = hessian.inputs(), .values = {}};  // one Hessian, solved once
    for (const TensorKind linear : LinearsOf(input.kind)) {
      const FloatMatrix& matrix = values_.matrix(linear);
      all.values.insert(all.values.end(), matrix.values.begin(), matrix.values.end());
      all.rows += matrix.rows;
    }
    auto left = WithInputs(all, hessian, kept_, request_.repair, request_.damping, pool_);
    if (!left.ok()) return Annotate(left.status(), NameOf(input));
    all = {};  // its memory
    auto next = left->values.begin();
    for (const TensorKind linear : LinearsOf(input.kind)) {
      const FloatMatrix& matrix = values_.matrix(linear);
      const auto end = next + static_cast<std::ptrdiff_t>(matrix.values.size());
      const FloatMatrix part = {.rows = matrix.rows, .columns = matrix.columns, .values = {next, end}};
      errors_[static_cast<size_t>(std::ranges::find(kLinears, linear) - std::begin(kLinears))] =
          RelativeOutputError(matrix, part, hessian, pool_);
      out_.matrix(linear) = ColumnsAt(part, kept_);
      next = end;
    }
    return Status();
  }

  std::vector<float> Gains(const std::vector<float>& gains, double factor) const {
    std::vector<float> out;
    for (const uint32_t i : kept_) out.push_back(static_cast<float>(factor * gains[i]));
    return out;
  }

  const PruneRequest& request_;
  const std::span<const uint32_t> kept_;  // channels of the stream
  const FloatLayer& values_;
  FloatLayer out_;
  std::vector<double> errors_ = std::vector<double>(std::size(kLinears));
};

class Pruning final : public ModelRewriter {
 public:
  Pruning(const PruneRequest& request, ModelFiles files, ModelConfig config)
      : ModelRewriter(request, "prune", std::move(files), std::move(config)), prune_(request) {}

  // Share of the feed-forward channels of the layers that stay; once it has run.
  double ffn_removed() const {
    double before = 0, after = 0;
    for (const LayerPlan& layer : plan_.layers) {
      before += files_.config.FfnSize(layer.layer);
      after += static_cast<double>(layer.channels.size());
    }
    return before > 0 ? 1 - after / before : 0;
  }

 private:
  bool is_narrowed() const { return prune_.cut.hidden > 0; }
  bool prunes_weights() const { return prune_.pattern.has_groups() || prune_.pattern.share != 0; }

  Status Check() override {
    const bool cuts = !prune_.cut.is_empty();
    if (prunes_weights() == cuts)
      return InvalidArgument(cuts ? "--sparsity and --pattern clear weights, --remove-... takes whole parts; "
                                    "first the one, then, of what came out, the other"
                                  : "nothing to remove: one of --sparsity, --pattern, --remove-ffn, "
                                    "--remove-kv-heads, --remove-layers and --remove-hidden is needed");
    if (files_.config.experts > 0 && cuts)
      return WithReason(
          InvalidArgument("--remove-...: not of ", prune_.model, ", which has ", files_.config.experts,
                          " experts in each layer; what works is --sparsity or --pattern"),
          "unsupported_model");
    RETURN_IF_ERROR(cuts ? CheckWholeParts() : CheckPattern());
    return Plan().status();
  }

  Status CheckWholeParts() const {
    if (!is_calibrated()) return InvalidArgument("--remove-...: needs calibration text (--calibration)");
    if (!prune_.repair && prune_.damping != kDefaultDamping)
      return InvalidArgument("--no-repair has no --damping");
    if (!IsPlainLlama(files_.config))
      return InvalidArgument(
          "--remove-...: takes models of the shape of Llama 2, without windows, biases, scaled ",
          "RoPE or other norms; this is of the family ", files_.config.family);
    return CheckCut(prune_.cut, files_.config);
  }

  Status CheckPattern() const {
    const SparsityPattern& pattern = prune_.pattern;
    const PruneMethod& method = prune_.method;
    if (!prune_.repair) return InvalidArgument("--no-repair is of --remove-...");
    if (!pattern.has_groups() && !(pattern.share > 0 && pattern.share < 1))
      return InvalidArgument("--sparsity: ", pattern.share, " is not between 0 and 1");
    if (!method.passes_errors_on && prune_.damping != kDefaultDamping)
      return InvalidArgument("--method ", method.name, " has no --damping; it is of sparsegpt");
    if (!is_calibrated() && method.passes_errors_on)
      return InvalidArgument("--method ", method.name, ": needs calibration text (--calibration)");
    if (!pattern.has_groups()) return Status();
    for (uint32_t layer = 0; layer < config_.layers; ++layer) {
      for (const TensorKind linear : kLinears) {
        const uint64_t columns = TensorShape(config_, linear, layer)[1];
        if (columns % pattern.of != 0)
          return InvalidArgument("--pattern: ", TensorName(config_, linear, layer), ": rows of ", columns,
                                 " are not whole groups of ", pattern.of);
      }
    }
    return Status();
  }

  Json Settings() const override {
    if (prunes_weights()) {
      Json json = {{"method", std::string(prune_.method.name)}};
      if (prune_.pattern.has_groups()) {
        json["pattern"] = Concat(prune_.pattern.kept, ":", prune_.pattern.of);
      } else {
        json["sparsity"] = prune_.pattern.share;
      }
      if (prune_.method.passes_errors_on) json["damping"] = prune_.damping;
      return json;
    }
    const Cut& cut = prune_.cut;
    Json json = {{"removed",
                  {{"ffn", cut.ffn_share},
                   {"kv_heads", cut.kv_heads},
                   {"layers", cut.layers},
                   {"hidden", cut.hidden},
                   {"ffn_multiple", cut.multiple}}},
                 {"repair", prune_.repair}};
    if (prune_.repair) json["damping"] = prune_.damping;
    return json;
  }

  Status Prepare(const Journal& journal) override {
    if (prune_.cut.is_empty()) return Status();
    if (const auto part = journal.Find(kPlanPart); part.ok()) {
      ASSIGN_OR_RETURN(plan_, PlanFromText(AsText(part->bytes()), files_.config));
    } else {
      ASSIGN_OR_RETURN(const ModelImportance importance, MeasureImportance(journal));
      plan_ = PlanCut(prune_.cut, files_.config, importance);
      const std::string text = PlanToText(plan_);
      RETURN_IF_ERROR(journal.Save(kPlanPart, std::as_bytes(std::span(text))));
    }
    if (!is_narrowed()) {
      config_ = ConfigAfter(config_, plan_);
      return Status();
    }
    ASSIGN_OR_RETURN(original_, Embed(journal, set_.sequences));
    original_runner_ = std::move(runner_);
    ModelConfig narrower = config_;  // but for its heads: a layer runs with all before some go
    config_ = ConfigAfter(config_, plan_);
    narrower.hidden_size = config_.hidden_size;
    ASSIGN_OR_RETURN(runner_, LayerRunner::Create(narrower, set_.sequences, CpuOps(), pool_));
    return Status();
  }

  // The whole model over the calibration text, as it is.
  StatusOr<ModelImportance> MeasureImportance(const Journal& journal) {
    ModelImportance out;
    ASSIGN_OR_RETURN(HiddenStates hidden, Embed(journal, set_.sequences));
    ASSIGN_OR_RETURN(HiddenStates after, hidden.MakeAnother());
    for (uint32_t layer = 0; layer < files_.config.layers; ++layer) {
      if (is_cancelled()) return Cancelled("interrupted");
      ASSIGN_OR_RETURN(const FloatLayer values, LoadSource(layer));
      ImportanceObserver observer(files_.config, values, layer, hidden.tokens(), is_narrowed(), pool_);
      RETURN_IF_ERROR(runner_->Run(values, hidden, after, &observer));
      ASSIGN_OR_RETURN(const StreamChange change, ChangeOf(hidden, after));
      if (!change.is_finite())
        return WithReason(DataLoss("what comes out of layer ", layer,
                                   " is infinite or not a number, for some token of the calibration text"),
                          "nonfinite");
      LayerImportance& importance = out.layers.emplace_back(observer.Take());
      importance.turned = change.turned();
      for (std::vector<double>* costs : {&importance.kv_heads, &importance.channels}) {
        for (double& cost : *costs) cost = change.squares() > 0 ? cost / change.squares() : cost;
      }
      std::swap(hidden, after);
    }
    if (is_narrowed()) {
      ASSIGN_OR_RETURN(out.output, MeasureOutput(hidden));
    }
    return out;
  }

  // What the output matrix takes from the channels of `hidden`, which comes out of the last layer.
  StatusOr<StreamUse> MeasureOutput(const HiddenStates& hidden) {
    const size_t width = files_.config.hidden_size;
    ASSIGN_OR_RETURN(const TensorView tensor,
                     Source(files_.config.tied_embeddings ? TensorKind::kEmbedding : TensorKind::kOutput));
    ASSIGN_OR_RETURN(const std::vector<float> gains,
                     LoadVector(files_.config, *files_.weights, TensorKind::kFinalNorm));
    ASSIGN_OR_RETURN(const HeldRows held, HeldRows::Hold(tensor, pool_));
    const WeightMatrix& matrix = held.matrix();
    std::vector<float> row(width);
    std::vector<double> squares(width);
    for (size_t i = 0; i < matrix.rows; ++i) {
      DecodeRow(matrix, i, row.data());
      AddSquares(row, squares);
    }
    StreamEnergy energy(hidden.tokens(), width);
    RETURN_IF_ERROR(hidden.EachPiece([&](size_t, std::span<const float> rows) {
      energy.Add(rows);
      return Status();
    }));
    return UseOfStream(energy.values(), gains, squares);
  }

  DType DTypeOf(const LayerTensor& tensor, uint32_t layer) const override {
    if (tensor.kind == TensorKind::kRouter) return RouterDType(layer);
    const bool is_of_layer = IsPerLayer(tensor.kind);
    const auto source = files_.weights->Find(
        TensorName(files_.config, tensor.kind, is_of_layer ? SourceLayer(layer) : 0, tensor.expert));
    if (!source.ok()) return DType::kF32;  // OpenModel found all
    return (is_of_layer || is_narrowed()) && IsQuantized(source->dtype) ? DType::kF16 : source->dtype;
  }

  uint32_t SourceLayer(uint32_t layer) const override {
    return plan_.is_empty() ? layer : plan_.layers[layer].layer;
  }

  void Narrow(TensorKind kind, std::vector<float>& row) const override {
    const double factor = kind == TensorKind::kFinalNorm ? plan_.final_gain : 1;
    for (size_t i = 0; i < plan_.hidden.size(); ++i)  // rising, so what is read was not written
      row[i] = static_cast<float>(factor * row[plan_.hidden[i]]);
    row.resize(plan_.hidden.size());
  }

  WrittenMatrix RewriteMatrix(const FloatMatrix& source, const LayerTensor& tensor, uint32_t layer) override {
    return WriteNearest(PruneByMagnitude(source, prune_.pattern), {.dtype = DTypeOf(tensor, layer)},
                        /*importance=*/{}, pool_);
  }

  StatusOr<RewrittenLayer> Rewrite(FloatLayer source, uint32_t layer, HiddenStates& hidden) override {
    const auto dtype_of = [&](const LayerTensor& tensor) { return DTypeOf(tensor, layer); };
    if (!plan_.is_empty()) {
      std::vector<DType> dtypes;
      for (const TensorKind linear : kLinears) dtypes.push_back(dtype_of({linear}));
      return CutLayer(plan_.layers[layer], dtypes, std::move(source), hidden);
    }
    RewrittenLayer out;
    static_cast<LayerVectors&>(out) = source;
    WeightPruner pruner(config_, prune_, dtype_of, pool_, source, out);
    RETURN_IF_ERROR(runner_->Run(source, hidden, hidden, &pruner));
    out.expert_tokens = pruner.expert_tokens();
    return out;
  }

  // The layer with the channels of the residual stream that stay, and the errors of that. What goes into the
  // layer as it is comes from the layers before it as they are.
  StatusOr<std::vector<double>> NarrowLayer(const LayerPlan& plan, FloatLayer& layer) {
    for (; original_layers_ < plan.layer; ++original_layers_) {
      if (is_cancelled()) return Cancelled("interrupted");
      ASSIGN_OR_RETURN(const FloatLayer before, LoadSource(original_layers_));
      RETURN_IF_ERROR(original_runner_->Run(before, *original_, *original_, nullptr));
    }
    StreamNarrower narrower(files_.config, prune_, plan_, plan, layer, pool_);
    RETURN_IF_ERROR(original_runner_->Run(layer, *original_, *original_, &narrower));
    ++original_layers_;
    if (plan.layer == plan_.layers.back().layer) original_.reset();  // its space on the disk
    layer = narrower.TakeLayer();
    return narrower.errors();
  }

  // The smaller layer; `hidden` becomes what comes out of it.
  StatusOr<RewrittenLayer> CutLayer(const LayerPlan& plan, std::span<const DType> dtypes, FloatLayer layer,
                                    HiddenStates& hidden) {
    RewrittenLayer out;
    std::vector<double> errors(std::size(kLinears));
    if (is_narrowed()) {
      ASSIGN_OR_RETURN(errors, NarrowLayer(plan, layer));
    }
    out.attention_norm = layer.attention_norm;
    out.ffn_norm = layer.ffn_norm;
    const ModelConfig& config = files_.config;
    const std::vector<uint32_t> of_queries =
        OfHeads(plan.kv_heads, config.heads / config.kv_heads * config.head_dim);
    const std::vector<uint32_t> of_keys = OfHeads(plan.kv_heads, config.head_dim);
    InputRemover remover(files_.config, prune_, of_queries, plan.channels, plan.layer, pool_, layer);
    if (remover.has_work()) RETURN_IF_ERROR(runner_->Show(layer, hidden, remover));
    layer.query = RowsAt(layer.query, of_queries);
    layer.key = RowsAt(layer.key, of_keys);
    layer.value = RowsAt(layer.value, of_keys);
    layer.attention_output = ColumnsAt(layer.attention_output, of_queries);
    layer.gate = RowsAt(layer.gate, plan.channels);
    layer.up = RowsAt(layer.up, plan.channels);
    layer.down = ColumnsAt(layer.down, plan.channels);
    for (size_t i = 0; i < std::size(kLinears); ++i) {
      const TensorKind linear = kLinears[i];
      const std::string name = TensorName(files_.config, linear, plan.layer);
      RETURN_IF_ERROR(PutMatrix(name, dtypes[i], pool_, layer.matrix(linear), out.matrix(linear)));
      out.matrix(linear).error = errors[i];
    }
    out.matrix(TensorKind::kAttentionOutput).error = remover.attention_error();
    out.matrix(TensorKind::kDown).error = remover.down_error();
    RETURN_IF_ERROR(runner_->Run(layer, hidden, hidden, nullptr));
    return out;
  }

  void AddToReport(Json& json) const override {
    for (size_t i = 0; i < plan_.layers.size(); ++i) {
      const LayerPlan& plan = plan_.layers[i];
      json["layers"][i]["of_layer"] = plan.layer;
      json["layers"][i]["kept"] = {{"kv_heads", plan.kv_heads}, {"channels", plan.channels}};
      if (is_narrowed())
        json["layers"][i]["norm_factors"] = {{"attention", plan.attention_gain}, {"ffn", plan.ffn_gain}};
    }
    if (is_narrowed()) json["hidden"] = {{"kept", plan_.hidden}, {"final_norm_factor", plan_.final_gain}};
    if (prune_.cut.ffn_share > 0)
      json["feed_forward"] = {{"asked", prune_.cut.ffn_share}, {"removed", ffn_removed()}};
  }

  const PruneRequest& prune_;
  CutPlan plan_;  // of a cut
  // Where the residual stream becomes narrower: the model as it is.
  std::unique_ptr<LayerRunner> original_runner_;
  std::optional<HiddenStates> original_;  // what comes out of
  uint32_t original_layers_ = 0;          // its first layers
};

// The matrices that a step of one answer reads, as this machine's kernels keep them; of experts as many as a
// token takes.
struct StepWeights {
  uint64_t bytes = 0;
  bool has_two_of_four = false;
};
StatusOr<StepWeights> StepWeightsOf(const ModelFiles& files, ThreadPool& pool) {
  StepWeights out;
  const ModelConfig& config = files.config;
  uint64_t expert_bytes = 0;  // of all
  for (const TensorRequirement& tensor : RequiredTensors(config)) {
    if (IsVector(tensor.kind)) continue;
    if (tensor.kind == TensorKind::kEmbedding && !config.tied_embeddings) continue;
    ASSIGN_OR_RETURN(const TensorView view, files.weights->Find(tensor.name));
    ASSIGN_OR_RETURN(const HeldRows held, HeldRows::Hold(view, pool));
    const bool is_router = tensor.kind == TensorKind::kRouter;
    const GemmWeights layout =
        CpuOps().layout(held.matrix(), is_router ? ComputeType::kF32 : ComputeType::kAuto, pool);
    (config.experts > 0 && IsPerExpert(tensor.kind) ? expert_bytes : out.bytes) += layout.bytes;
    out.has_two_of_four |= layout.two_of_four;
  }
  if (config.experts > 0) out.bytes += expert_bytes * config.experts_per_token / config.experts;
  return out;
}

}  // namespace

StatusOr<PruneReport> Prune(const PruneRequest& request) {
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(request.model));
  PruneReport report;
  ThreadPool pool(request.threads);
  ASSIGN_OR_RETURN(const StepWeights before, StepWeightsOf(files, pool));
  ModelConfig config = files.config;
  config.quantization.reset();
  {
    Pruning pruning(request, std::move(files), std::move(config));
    ASSIGN_OR_RETURN(static_cast<RewriteReport&>(report), pruning.Run());
    report.ffn_removed = pruning.ffn_removed();
  }
  ASSIGN_OR_RETURN(const ModelFiles after, OpenModel(request.out));
  ASSIGN_OR_RETURN(const StepWeights step_after, StepWeightsOf(after, pool));
  report.step_bytes_before = before.bytes;
  report.step_bytes_after = step_after.bytes;
  report.was_two_of_four = before.has_two_of_four;
  return report;
}

}  // namespace terrace
