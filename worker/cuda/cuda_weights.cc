#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/gemm/stream_gemm_cuda.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"
#include "worker/cuda/cuda_transformer_impl.h"
#include "worker/cuda/weight_uploader.h"
#include "worker/engine/device_shard.h"
#include "worker/model/found_tensors.h"
#include "worker/tensor/held_rows.h"

namespace terrace {
namespace {

// Two passes: what becomes of each tensor and where it goes, in one piece of memory; then all of them, one
// behind the other, without a pause between them.
class Loader {
 public:
  explicit Loader(const DeviceLoadOptions& options) : options_(options) {}

  StatusOr<CudaWeights> Load() {
    RETURN_IF_ERROR(Plan());
    RETURN_IF_ERROR(Allocate());
    for (const Planned& each : matrices_) RETURN_IF_ERROR(Pack(each));
    RETURN_IF_ERROR(UploadVectors());
    RETURN_IF_ERROR(uploader_->Wait());
    RETURN_IF_ERROR(PackUnfit());
    RETURN_IF_ERROR(UploadExperts());
    weights_.embedding = static_cast<const uint16_t*>(table_.codes);
    if (is_head_table_) weights_.head = HeadOf(table_);
    weights_.load = uploader_->times();
    return std::move(weights_);
  }

 private:
  // A tensor of the model, and which one it is: which part of it is loaded follows.
  struct Source {
    TensorKind kind;
    uint32_t layer;
    const TensorView* tensor;
  };
  // A matrix of the model, its format known, and what it is made of.
  struct Planned {
    GpuMatrix* out = nullptr;
    std::vector<Source> of;
    std::vector<WeightMatrix> parts;  // outlines, where a file stores them otherwise
    bool is_gated = false;
    bool may_be_fp8 = false;  // of a layer: the output matrix decides between near tokens
    // Of experts: the first of those that are of one format, and how many these are.
    size_t first_alike = 0, alike = 0;
    uint64_t at = 0;  // in the memory of all
    GpuPackTarget target = {};

    GpuMatrixParts sources() const { return {.parts = parts, .gated = is_gated}; }
  };
  struct PlannedVector {
    const float** out;
    TensorView tensor;
    float more = 0;  // than what the file holds
    uint64_t at = 0;
  };
  // Of queries, keys and values, one behind the other.
  struct PlannedBias {
    const uint16_t** out;
    std::array<TensorView, 3> tensors;
    std::array<IndexRange, 3> elements;
    uint64_t at = 0;

    size_t size() const { return elements[0].size() + elements[1].size() + elements[2].size(); }
  };
  // Of each kind, that of the layer or of its experts.
  using LayerTensors =
      std::array<std::vector<const TensorView*>, static_cast<size_t>(TensorKind::kFfnPostNorm) + 1>;

  Status Plan() {
    ASSIGN_OR_RETURN(found_, FindTensors(*options_.config, *options_.weights));
    std::vector<LayerTensors> by_layer(options_.config->layers);
    const TensorView *embedding = nullptr, *output = nullptr, *final_norm = nullptr;
    for (const auto& [required, tensor] : found_) {
      ASSIGN_OR_RETURN(const uint64_t elements, ElementCount(tensor.shape));
      weights_.parameters += elements;
      if (required.kind == TensorKind::kRopeDivisors) continue;
      const WeightMatrix part = PartOf(required.kind, required.layer, tensor);
      weights_.bytes += part.rows * part.RowBytes();
      if (required.kind == TensorKind::kEmbedding) embedding = &tensor;
      if (required.kind == TensorKind::kOutput) output = &tensor;
      if (required.kind == TensorKind::kFinalNorm) final_norm = &tensor;
      if (IsPerLayer(required.kind))
        by_layer[required.layer][static_cast<size_t>(required.kind)].push_back(&tensor);
    }
    CHECK(embedding != nullptr && final_norm != nullptr, "a tensor map without an embedding or a norm");
    weights_.layers.resize(by_layer.size());
    expert_matrices_.resize(by_layer.size() * kMatricesOfExpert * options_.config->experts);
    for (uint32_t i = 0; i < by_layer.size(); ++i)
      RETURN_IF_ERROR(PlanLayer(i, by_layer[i], weights_.layers[i]));
    AddVector(weights_.final_norm, TensorKind::kFinalNorm, *final_norm);
    // The embedding is looked up in bf16, whatever the file holds; a tied output matrix of 16 bits is the
    // same.
    Planned& table = Add(table_, {{TensorKind::kEmbedding, 0, embedding}});
    const bool is_bf16 = table_.format == GpuFormat::kBF16;
    DropCodes(table);
    is_head_table_ = output == nullptr && is_bf16;
    if (!is_head_table_)
      Add(weights_.head, {{TensorKind::kOutput, 0, output == nullptr ? embedding : output}});
    return {};
  }

  // What of a tensor is loaded; its outline where it has to be made.
  WeightMatrix PartOf(TensorKind kind, uint32_t layer, const TensorView& tensor) const {
    const WeightMatrix whole = OutlineOf(tensor);
    if (options_.shard == nullptr) return whole;
    return PartOfRank(kind, layer, whole, *options_.config, *options_.shard);
  }

  // The first `most_rows` rows of that, or all, made. Appends to `held` what the result borrows.
  StatusOr<WeightMatrix> Make(const Source& source, size_t most_rows, std::vector<HeldRows>& held) const {
    TensorPart part;
    if (options_.shard != nullptr)
      part = terrace::PartOf(*options_.shard, *options_.config, source.kind, source.layer);
    IndexRange rows = part.rows.value_or(IndexRange{.begin = 0, .end = OutlineOf(*source.tensor).rows});
    rows.end = std::min(rows.end, rows.begin + most_rows);
    ASSIGN_OR_RETURN(HeldRows made, HeldRows::Hold(*source.tensor, rows.begin, rows.end, *options_.pool));
    const WeightMatrix& matrix = held.emplace_back(std::move(made)).matrix();
    if (part.columns.empty()) return matrix;
    return PartOfRank(source.kind, source.layer, matrix, *options_.config, *options_.shard);
  }

  // The parts with bytes.
  StatusOr<std::vector<WeightMatrix>> Made(const Planned& planned, size_t most_rows,
                                           std::vector<HeldRows>& held) const {
    std::vector<WeightMatrix> parts = planned.parts;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (planned.of[i].tensor->maker == nullptr) continue;
      ASSIGN_OR_RETURN(parts[i], Make(planned.of[i], most_rows, held));
    }
    return parts;
  }

  StatusOr<bool> MayBeSparse(const Planned& planned) const {
    if (!StreamGemmHasSparse()) return false;  // bf16 is as right
    std::vector<HeldRows> held;
    ASSIGN_OR_RETURN(const std::vector<WeightMatrix> parts, Made(planned, kSparseSampleRows, held));
    return terrace::MayBeSparse({.parts = parts, .gated = planned.is_gated}, *options_.pool);
  }

  // Its rows of an embedding that is in bf16, row behind row.
  GpuMatrix HeadOf(const GpuMatrix& table) const {
    GpuMatrix head = table;
    if (options_.shard == nullptr) return head;
    const IndexRange& rows = options_.shard->vocabulary;
    head.rows = static_cast<uint32_t>(rows.size());
    head.codes = static_cast<const uint16_t*>(table.codes) + rows.begin * table.columns;
    return head;
  }

  Status PlanLayer(uint32_t index, const LayerTensors& tensors, CudaLayer& layer) {
    const auto vector = [&](const float*& out, TensorKind kind) {
      for (const TensorView* tensor : tensors[static_cast<size_t>(kind)]) AddVector(out, kind, *tensor);
    };
    const auto matrix = [&](GpuMatrix& out, std::initializer_list<TensorKind> kinds,
                            bool is_gated = false) -> Status {
      const Planned& planned = AddLayers(out, index, tensors, kinds, is_gated);
      if (out.format != GpuFormat::kBF16) return {};
      ASSIGN_OR_RETURN(const bool may_be_sparse, MayBeSparse(planned));
      if (may_be_sparse) out.format = GpuFormat::kSparse;
      return {};
    };
    vector(layer.attention_norm, TensorKind::kAttentionNorm);
    if (options_.config->has_attention_bias) AddBias(index, tensors, layer.qkv_bias);
    vector(layer.query_norm, TensorKind::kQueryNorm);
    vector(layer.key_norm, TensorKind::kKeyNorm);
    vector(layer.attention_post_norm, TensorKind::kAttentionPostNorm);
    vector(layer.ffn_post_norm, TensorKind::kFfnPostNorm);
    RETURN_IF_ERROR(matrix(layer.qkv, {TensorKind::kQuery, TensorKind::kKey, TensorKind::kValue}));
    RETURN_IF_ERROR(matrix(layer.output, {TensorKind::kAttentionOutput}));
    vector(layer.ffn_norm, TensorKind::kFfnNorm);
    if (options_.config->experts > 0) return PlanExperts(index, tensors, layer);
    RETURN_IF_ERROR(matrix(layer.gate_up, {TensorKind::kGate, TensorKind::kUp}, /*is_gated=*/true));
    return matrix(layer.down, {TensorKind::kDown});
  }

  // Of a layer, or one of its experts.
  Planned& AddLayers(GpuMatrix& out, uint32_t layer, const LayerTensors& tensors,
                     std::initializer_list<TensorKind> kinds, bool is_gated, uint32_t expert = 0) {
    std::vector<Source> of;
    for (const TensorKind kind : kinds)
      of.push_back({kind, layer, tensors[static_cast<size_t>(kind)][IsPerExpert(kind) ? expert : 0]});
    Planned& planned = Add(out, std::move(of), is_gated);
    planned.may_be_fp8 = true;
    if (out.format == GpuFormat::kBF16) out.format = WithoutCodes(planned);
    return planned;
  }

  // Those of a layer are of one format, so that one kernel multiplies by all: where they differ, without
  // codes. They stay 2:4 where all of them are.
  Status PlanExperts(uint32_t index, const LayerTensors& tensors, CudaLayer& layer) {
    const TensorView* const router = tensors[static_cast<size_t>(TensorKind::kRouter)][0];
    DropCodes(Add(layer.router, {{TensorKind::kRouter, index, router}}));
    const uint32_t experts = options_.config->experts;
    for (const bool is_down : {false, true}) {
      const size_t first = matrices_.size();
      for (uint32_t expert = 0; expert < experts; ++expert) {
        GpuMatrix& out = ExpertMatrix(index, is_down, expert);
        Planned& planned =
            is_down ? AddLayers(out, index, tensors, {TensorKind::kDown}, /*is_gated=*/false, expert)
                    : AddLayers(out, index, tensors, {TensorKind::kGate, TensorKind::kUp}, true, expert);
        planned.first_alike = first;
        planned.alike = experts;
      }
      const std::span<Planned> alike = std::span(matrices_).subspan(first);
      const auto like_first = [&](const Planned& planned) {
        const GpuMatrix &a = *planned.out, &b = *alike[0].out;
        return a.format == b.format && a.group == b.group && a.has_row_scales == b.has_row_scales;
      };
      if (!std::ranges::all_of(alike, like_first))
        std::ranges::for_each(alike, [&](Planned& each) { DropCodes(each); });
      bool may_be_sparse = alike[0].out->format == GpuFormat::kBF16;
      for (size_t i = 0; may_be_sparse && i < alike.size(); ++i) {
        ASSIGN_OR_RETURN(may_be_sparse, MayBeSparse(alike[i]));
      }
      if (!may_be_sparse) continue;
      for (const Planned& planned : alike) planned.out->format = GpuFormat::kSparse;
    }
    return {};
  }

  GpuMatrix& ExpertMatrix(uint32_t layer, bool is_down, uint32_t expert) {
    const size_t experts = options_.config->experts;
    return expert_matrices_[(layer * kMatricesOfExpert + (is_down ? 1 : 0)) * experts + expert];
  }

  // Behind all packing, which may change them.
  Status UploadExperts() {
    if (expert_matrices_.empty()) return {};
    const size_t bytes = expert_matrices_.size() * sizeof(GpuMatrix);
    ASSIGN_OR_RETURN(CudaBuffer memory, CudaBuffer::Device(bytes, "the places of experts"));
    RETURN_IF_CUDA_ERROR(cudaMemcpy(memory.data(), expert_matrices_.data(), bytes, cudaMemcpyHostToDevice));
    const auto* const all = memory.as<GpuMatrix>();
    for (uint32_t i = 0; i < weights_.layers.size(); ++i) {
      CudaLayer& layer = weights_.layers[i];
      layer.gate_up = ExpertMatrix(i, /*is_down=*/false, 0);
      layer.down = ExpertMatrix(i, /*is_down=*/true, 0);
      layer.gate_ups = all + (&ExpertMatrix(i, false, 0) - expert_matrices_.data());
      layer.downs = all + (&ExpertMatrix(i, true, 0) - expert_matrices_.data());
    }
    weights_.memory.push_back(std::move(memory));
    return {};
  }

  void AddVector(const float*& out, TensorKind kind, const TensorView& tensor) {
    vectors_.push_back({&out, tensor, options_.config->norms_less_one && IsNorm(kind) ? 1.0f : 0.0f});
  }

  void AddBias(uint32_t layer, const LayerTensors& tensors, const uint16_t*& out) {
    PlannedBias& planned = biases_.emplace_back();
    planned.out = &out;
    constexpr TensorKind kKinds[] = {TensorKind::kQueryBias, TensorKind::kKeyBias, TensorKind::kValueBias};
    for (size_t i = 0; i < std::size(kKinds); ++i) {
      planned.tensors[i] = *tensors[static_cast<size_t>(kKinds[i])][0];
      planned.elements[i] = {.begin = 0, .end = planned.tensors[i].shape[0]};
      if (options_.shard == nullptr) continue;
      planned.elements[i] = ElementsOfBias(*options_.shard, *options_.config, kKinds[i], layer);
    }
  }

  // What a matrix is that does not keep the codes of its file.
  GpuFormat WithoutCodes(const Planned& planned) const {
    return planned.may_be_fp8 && options_.compute == "fp8" ? GpuFormat::kE4M3 : GpuFormat::kBF16;
  }

  void DropCodes(Planned& planned) {
    planned.out->format = WithoutCodes(planned);
    planned.out->group = 0;
    planned.out->has_row_scales = false;
  }

  Planned& Add(GpuMatrix& out, std::vector<Source> of, bool is_gated = false) {
    Planned& planned = matrices_.emplace_back();
    planned.out = &out;
    planned.is_gated = is_gated;
    for (const Source& source : of)
      planned.parts.push_back(PartOf(source.kind, source.layer, *source.tensor));
    planned.of = std::move(of);
    out = GpuMatrixByFormat(planned.sources());
    out.rows = RowsOfWholeTiles(out.rows);  // kernels take no less; experts and tokens may be any number
    return planned;
  }

  static uint64_t BytesOf(const GpuMatrix& matrix) {
    return Aligned(GpuCodeBytes(matrix)) + Aligned(GpuScaleBytes(matrix));
  }

  Status Allocate() {
    uint64_t end = 0, slot_bytes = kUploadSlotBytes;
    for (Planned& each : matrices_) {
      each.at = std::exchange(end, end + BytesOf(*each.out));
      while (RowsStagedIn(each.sources(), slot_bytes) == 0) slot_bytes *= 2;
    }
    vectors_at_ = end;
    for (PlannedVector& each : vectors_) {
      each.at = std::exchange(end, end + Aligned(each.tensor.shape[0] * sizeof(float)));
    }
    for (PlannedBias& each : biases_)
      each.at = std::exchange(end, end + Aligned(each.size() * sizeof(uint16_t)));
    unfit_at_ = end;
    end += matrices_.size() * sizeof(uint32_t);
    ASSIGN_OR_RETURN(CudaBuffer memory, CudaBuffer::Device(end, "model weights"));
    for (Planned& each : matrices_) {
      each.target.unfit = memory.as<uint32_t>(unfit_at_) + (&each - matrices_.data());
      Place(each, memory.data() + each.at);
    }
    for (const PlannedVector& each : vectors_) *each.out = memory.as<float>(each.at);
    for (const PlannedBias& each : biases_) *each.out = memory.as<uint16_t>(each.at);
    RETURN_IF_CUDA_ERROR(cudaMemset(memory.data() + unfit_at_, 0, end - unfit_at_));
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr));  // other streams do not wait for this one
    weights_.memory.push_back(std::move(memory));
    ASSIGN_OR_RETURN(uploader_, WeightUploader::Create(*options_.pool, slot_bytes));
    return {};
  }

  static void Place(Planned& each, std::byte* memory) {
    GpuMatrix& matrix = *each.out;
    each.target.codes = memory;
    each.target.scales = memory + Aligned(GpuCodeBytes(matrix));
    matrix.codes = memory;
    matrix.scales = GpuScaleBytes(matrix) == 0 ? nullptr : each.target.scales;
    each.target.matrix = matrix;
  }

  Status Pack(const Planned& each) {
    if (options_.is_cancelled && options_.is_cancelled()) return Cancelled("interrupted");
    std::vector<HeldRows> held;  // until the uploader has read them
    ASSIGN_OR_RETURN(const std::vector<WeightMatrix> parts,
                     Made(each, std::numeric_limits<uint32_t>::max(), held));
    return uploader_->Pack({.parts = parts, .gated = each.is_gated}, each.target);
  }

  Status UploadVectors() {
    std::vector<std::byte> bytes(unfit_at_ - vectors_at_);
    std::vector<float> values;
    const auto decode = [&](const TensorView& tensor) {
      const WeightMatrix row = MatrixOf(tensor);
      values.resize(row.columns);
      DecodeRow(row, 0, values.data());
    };
    for (const PlannedVector& each : vectors_) {
      decode(each.tensor);
      for (float& value : values) value += each.more;
      std::memcpy(&bytes[each.at - vectors_at_], values.data(), values.size() * sizeof(float));
    }
    for (const PlannedBias& each : biases_) {
      std::byte* out = &bytes[each.at - vectors_at_];
      for (size_t part = 0; part < each.tensors.size(); ++part) {
        decode(each.tensors[part]);
        for (size_t i = each.elements[part].begin; i < each.elements[part].end; ++i) {
          const uint16_t value = BF16FromFloat(values[i]);
          std::memcpy(out, &value, sizeof(value));
          out += sizeof(value);
        }
      }
    }
    RETURN_IF_CUDA_ERROR(cudaMemcpy(weights_.memory[0].data() + vectors_at_, bytes.data(), bytes.size(),
                                    cudaMemcpyHostToDevice));
    return {};
  }

  // The few matrices that have a scale beyond f16, or seemed to be 2:4 and are not, once more, without codes.
  Status PackUnfit() {
    std::vector<uint32_t> unfit(matrices_.size());
    RETURN_IF_CUDA_ERROR(cudaMemcpy(unfit.data(), weights_.memory[0].data() + unfit_at_,
                                    unfit.size() * sizeof(uint32_t), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < matrices_.size(); ++i) {
      const auto first = unfit.begin() + static_cast<std::ptrdiff_t>(matrices_[i].first_alike);
      const auto is_unfit = [](uint32_t one) { return one != 0; };
      if (unfit[i] == 0 &&
          std::none_of(first, first + static_cast<std::ptrdiff_t>(matrices_[i].alike), is_unfit))
        continue;
      GpuMatrix& matrix = *matrices_[i].out;
      DropCodes(matrices_[i]);
      ASSIGN_OR_RETURN(CudaBuffer memory, CudaBuffer::Device(BytesOf(matrix), "model weights"));
      Place(matrices_[i], memory.data());
      weights_.memory.push_back(std::move(memory));
      RETURN_IF_ERROR(Pack(matrices_[i]));
    }
    return uploader_->Wait();
  }

  const DeviceLoadOptions& options_;
  std::vector<FoundTensor> found_;  // what sources borrow
  std::vector<Planned> matrices_;
  std::vector<PlannedVector> vectors_;
  std::vector<PlannedBias> biases_;
  uint64_t vectors_at_ = 0, unfit_at_ = 0;        // in weights_.memory[0]
  static constexpr size_t kMatricesOfExpert = 2;  // gate with up, and down
  std::vector<GpuMatrix> expert_matrices_;        // [layers, kMatricesOfExpert, experts]
  GpuMatrix table_;
  bool is_head_table_ = false;
  CudaWeights weights_;
  std::unique_ptr<WeightUploader> uploader_;  // last: it waits for what it queued before the memory goes
};

}  // namespace

StatusOr<CudaWeights> LoadCudaWeights(const DeviceLoadOptions& options) { return Loader(options).Load(); }

}  // namespace terrace
