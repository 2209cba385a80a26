#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <utility>

#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"
#include "worker/cuda/cuda_transformer.h"
#include "worker/model/arch_spec.h"

namespace terrace {
namespace {

std::vector<float> VectorOf(const TensorView& tensor) {
  const WeightMatrix row{.dtype = tensor.dtype, .data = tensor.data, .rows = 1, .columns = tensor.shape[0]};
  std::vector<float> out(row.columns);
  DecodeRow(row, 0, out.data());
  return out;
}

// Brings what was packed in the host's memory to the device: one piece is copied while the next is packed.
class Uploader {
 public:
  static StatusOr<Uploader> Create() {
    Uploader out;
    ASSIGN_OR_RETURN(out.stream_, CudaStream::Create());
    for (Slot& slot : out.slots_)
      RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    return out;
  }
  Uploader(Uploader&& other) noexcept
      : stream_(std::move(other.stream_)), slots_(std::exchange(other.slots_, {})), next_(other.next_) {}
  ~Uploader() {
    for (Slot& slot : slots_) {
      if (slot.copied != nullptr) cudaEventDestroy(slot.copied);
    }
  }

  // Pinned memory of `bytes`, once what it held is copied.
  StatusOr<std::byte*> Begin(size_t bytes) {
    Slot& slot = slots_[next_];
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(slot.copied));
    if (slot.memory.bytes() < bytes) {
      slot.memory = CudaBuffer();
      ASSIGN_OR_RETURN(slot.memory, CudaBuffer::Pinned(bytes, "weights on their way to the device"));
    }
    return slot.memory.data();
  }
  // Copies what Begin's memory holds now.
  Status End(void* to, size_t bytes) {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(to, slot.memory.data(), bytes, cudaMemcpyHostToDevice, stream_.get()));
    RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.copied, stream_.get()));
    return {};
  }
  Status Wait() {
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
    return {};
  }

 private:
  struct Slot {
    CudaBuffer memory;
    cudaEvent_t copied = nullptr;
  };
  Uploader() = default;
  CudaStream stream_;
  std::array<Slot, 2> slots_ = {};
  size_t next_ = 0;
};

class Loader {
 public:
  Loader(const DeviceLoadOptions& options, Uploader uploader)
      : options_(options), uploader_(std::move(uploader)) {}

  StatusOr<CudaWeights> Load() {
    ASSIGN_OR_RETURN(const std::vector<FoundTensor> found, FindTensors(*options_.config, *options_.weights));
    std::vector<std::array<const TensorView*, static_cast<size_t>(TensorKind::kDown) + 1>> by_layer(
        options_.config->layers);
    const TensorView *embedding = nullptr, *output = nullptr, *final_norm = nullptr;
    for (const auto& [required, tensor] : found) {
      ASSIGN_OR_RETURN(const uint64_t elements, ElementCount(tensor.shape));
      weights_.parameters += elements;
      weights_.bytes += tensor.bytes;
      if (required.kind == TensorKind::kEmbedding) embedding = &tensor;
      if (required.kind == TensorKind::kOutput) output = &tensor;
      if (required.kind == TensorKind::kFinalNorm) final_norm = &tensor;
      if (IsPerLayer(required.kind)) by_layer[required.layer][static_cast<size_t>(required.kind)] = &tensor;
    }
    CHECK(embedding != nullptr && final_norm != nullptr, "a tensor map without an embedding or a norm");
    for (const auto& tensors : by_layer) {
      const auto of = [&](TensorKind kind) { return MatrixOf(*tensors[static_cast<size_t>(kind)]); };
      const auto norm = [&](TensorKind kind) { return Vector(*tensors[static_cast<size_t>(kind)]); };
      CudaLayer layer;
      ASSIGN_OR_RETURN(layer.attention_norm, norm(TensorKind::kAttentionNorm));
      ASSIGN_OR_RETURN(layer.qkv,
                       Matrix({of(TensorKind::kQuery), of(TensorKind::kKey), of(TensorKind::kValue)}));
      ASSIGN_OR_RETURN(layer.output, Matrix({of(TensorKind::kAttentionOutput)}));
      ASSIGN_OR_RETURN(layer.ffn_norm, norm(TensorKind::kFfnNorm));
      ASSIGN_OR_RETURN(layer.gate_up, Matrix({of(TensorKind::kGate), of(TensorKind::kUp)}, /*gated=*/true));
      ASSIGN_OR_RETURN(layer.down, Matrix({of(TensorKind::kDown)}));
      weights_.layers.push_back(layer);
    }
    ASSIGN_OR_RETURN(weights_.final_norm, Vector(*final_norm));
    // The embedding is looked up in bf16, whatever the file holds; a tied output matrix of 16 bits is the
    // same.
    ASSIGN_OR_RETURN(const GpuMatrix table, MatrixAs({MatrixOf(*embedding)}, GpuFormat::kBF16));
    weights_.embedding = static_cast<const uint16_t*>(table.codes);
    const TensorView& head = output == nullptr ? *embedding : *output;
    const std::array head_parts = {MatrixOf(head)};
    weights_.head = GpuMatrixOf({.parts = head_parts}, *options_.pool);
    if (output == nullptr && weights_.head.format == GpuFormat::kBF16) {
      weights_.head = table;
    } else {
      ASSIGN_OR_RETURN(weights_.head, MatrixAs({MatrixOf(head)}, weights_.head.format));
    }
    RETURN_IF_ERROR(uploader_.Wait());
    return std::move(weights_);
  }

 private:
  StatusOr<std::byte*> Allocate(size_t bytes) {
    ASSIGN_OR_RETURN(CudaBuffer buffer, CudaBuffer::Device(bytes, "model weights"));
    weights_.memory.push_back(std::move(buffer));
    return weights_.memory.back().data();
  }

  StatusOr<const float*> Vector(const TensorView& tensor) {
    const std::vector<float> values = VectorOf(tensor);
    ASSIGN_OR_RETURN(std::byte * memory, Allocate(values.size() * sizeof(float)));
    RETURN_IF_CUDA_ERROR(
        cudaMemcpy(memory, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
    return reinterpret_cast<const float*>(memory);
  }

  // FP8 is for the matrices of the layers: the output matrix decides between near tokens.
  StatusOr<GpuMatrix> Matrix(std::vector<WeightMatrix> parts, bool gated = false) {
    GpuMatrix matrix = GpuMatrixOf({.parts = parts, .gated = gated}, *options_.pool);
    if (options_.compute == "fp8" && matrix.format == GpuFormat::kBF16) matrix.format = GpuFormat::kE4M3;
    return MatrixAs(std::move(parts), matrix.format, gated);
  }

  StatusOr<GpuMatrix> MatrixAs(std::vector<WeightMatrix> parts, GpuFormat format, bool gated = false) {
    if (options_.is_cancelled && options_.is_cancelled()) return Cancelled("interrupted");
    const GpuMatrixParts sources{.parts = parts, .gated = gated};
    GpuMatrix matrix = GpuMatrixOf(sources, *options_.pool);
    if (matrix.format != format) {
      matrix.format = format;
      matrix.group = 0;
    }
    const size_t code_bytes = GpuCodeBytes(matrix), scale_bytes = GpuScaleBytes(matrix);
    const size_t scales_at = (code_bytes + 255) / 256 * 256;
    ASSIGN_OR_RETURN(std::byte * staged, uploader_.Begin(scales_at + scale_bytes));
    PackGpuMatrix(sources, matrix, staged, staged + scales_at, *options_.pool);
    ASSIGN_OR_RETURN(std::byte * memory, Allocate(scales_at + scale_bytes));
    RETURN_IF_ERROR(uploader_.End(memory, scales_at + scale_bytes));
    matrix.codes = memory;
    matrix.scales = scale_bytes == 0 ? nullptr : memory + scales_at;
    return matrix;
  }

  const DeviceLoadOptions& options_;
  Uploader uploader_;
  CudaWeights weights_;
};

// Fills device memory with copies of a random block: what a kernel reads differs from line to line, and no
// two matrices are near each other in it.
class RandomFill {
 public:
  template <typename Make>
  static StatusOr<RandomFill> Create(Make make) {
    RandomFill out;
    std::vector<std::byte> block(kBlock);
    std::mt19937_64 random(1);
    make(random, block);
    ASSIGN_OR_RETURN(out.block_, CudaBuffer::Device(kBlock, "random weights"));
    RETURN_IF_CUDA_ERROR(cudaMemcpy(out.block_.data(), block.data(), kBlock, cudaMemcpyHostToDevice));
    return out;
  }
  Status Fill(std::byte* to, size_t bytes) {
    while (bytes > 0) {
      const size_t from = offset_ % (kBlock / 2) / 512 * 512, part = std::min(bytes, kBlock - from);
      RETURN_IF_CUDA_ERROR(cudaMemcpy(to, block_.data() + from, part, cudaMemcpyDeviceToDevice));
      offset_ += 7'340'032 + 512 * 13;
      to += part;
      bytes -= part;
    }
    return {};
  }

 private:
  static constexpr size_t kBlock = size_t{32} << 20;
  CudaBuffer block_;
  size_t offset_ = 0;
};

}  // namespace

StatusOr<CudaWeights> LoadCudaWeights(const DeviceLoadOptions& options) {
  ASSIGN_OR_RETURN(Uploader uploader, Uploader::Create());
  return Loader(options, std::move(uploader)).Load();
}

StatusOr<CudaWeights> RandomCudaWeights(const ModelConfig& config, GpuFormat format) {
  // Of variance 1 / columns for 4096 of them, so that activations keep their size.
  constexpr float kDeviation = 1.0f / 64;
  ASSIGN_OR_RETURN(RandomFill values, RandomFill::Create([](auto& random, std::vector<std::byte>& block) {
                     std::normal_distribution<float> normal(0, kDeviation);
                     auto* out = reinterpret_cast<uint16_t*>(block.data());
                     for (size_t i = 0; i < block.size() / 2; ++i) out[i] = BF16FromFloat(normal(random));
                   }));
  ASSIGN_OR_RETURN(RandomFill codes, RandomFill::Create([&](auto& random, std::vector<std::byte>& block) {
                     for (std::byte& one : block) {
                       auto code = static_cast<uint8_t>(random() >> 20);
                       if (format == GpuFormat::kE4M3 && (code & 0x7f) == 0x7f) code ^= 0x40;  // not NaN
                       one = std::byte{code};
                     }
                   }));
  // The deviation of codes: 4.6 of 4 bits, 74 of 8, about 110 of E4M3's even bit patterns.
  const float of_codes = format == GpuFormat::kW4 ? 4.6f : format == GpuFormat::kW8 ? 74.0f : 110.0f;
  ASSIGN_OR_RETURN(RandomFill scales, RandomFill::Create([&](auto& random, std::vector<std::byte>& block) {
                     std::uniform_real_distribution<float> spread(0.8f, 1.2f);
                     if (format == GpuFormat::kE4M3) {
                       auto* out = reinterpret_cast<float*>(block.data());
                       for (size_t i = 0; i < block.size() / 4; ++i)
                         out[i] = kDeviation / of_codes * spread(random);
                       return;
                     }
                     auto* out = reinterpret_cast<uint16_t*>(block.data());
                     const float zero = format == GpuFormat::kW4 ? 8 : 128;
                     for (size_t i = 0; i < block.size() / 2; i += 2) {
                       out[i] = F16FromFloat(kDeviation / of_codes * spread(random));
                       out[i + 1] = F16FromFloat(zero);
                     }
                   }));
  CudaWeights weights;
  const auto allocate = [&](size_t bytes) -> StatusOr<std::byte*> {
    ASSIGN_OR_RETURN(CudaBuffer buffer, CudaBuffer::Device(bytes, "random weights"));
    weights.memory.push_back(std::move(buffer));
    return weights.memory.back().data();
  };
  const auto matrix_of = [&](uint32_t rows, uint32_t columns, GpuFormat as) -> StatusOr<GpuMatrix> {
    GpuMatrix matrix{.format = as, .rows = rows, .columns = columns};
    if (as == GpuFormat::kW4) matrix.group = 128;
    if (as == GpuFormat::kW8) matrix.group = 32;
    const size_t code_bytes = GpuCodeBytes(matrix), scale_bytes = GpuScaleBytes(matrix);
    ASSIGN_OR_RETURN(std::byte * code_memory, allocate(code_bytes));
    RETURN_IF_ERROR((as == GpuFormat::kBF16 ? values : codes).Fill(code_memory, code_bytes));
    matrix.codes = code_memory;
    if (scale_bytes > 0) {
      ASSIGN_OR_RETURN(std::byte * scale_memory, allocate(scale_bytes));
      RETURN_IF_ERROR(scales.Fill(scale_memory, scale_bytes));
      matrix.scales = scale_memory;
    }
    weights.parameters += uint64_t{rows} * columns;
    weights.bytes += code_bytes + scale_bytes;
    return matrix;
  };
  ASSIGN_OR_RETURN(std::byte * norm, allocate(config.hidden_size * sizeof(float)));
  const std::vector<float> ones(config.hidden_size, 1);
  RETURN_IF_CUDA_ERROR(cudaMemcpy(norm, ones.data(), ones.size() * sizeof(float), cudaMemcpyHostToDevice));
  weights.final_norm = reinterpret_cast<const float*>(norm);
  const uint32_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  for (uint32_t i = 0; i < config.layers; ++i) {
    CudaLayer layer;
    layer.attention_norm = layer.ffn_norm = weights.final_norm;
    ASSIGN_OR_RETURN(layer.qkv, matrix_of(q + 2 * kv, config.hidden_size, format));
    ASSIGN_OR_RETURN(layer.output, matrix_of(config.hidden_size, q, format));
    ASSIGN_OR_RETURN(layer.gate_up, matrix_of(2 * config.ffn_size, config.hidden_size, format));
    ASSIGN_OR_RETURN(layer.down, matrix_of(config.hidden_size, config.ffn_size, format));
    weights.layers.push_back(layer);
  }
  // As LoadCudaWeights: FP8 is for the layers.
  ASSIGN_OR_RETURN(weights.head, matrix_of(config.vocab_size, config.hidden_size,
                                           format == GpuFormat::kE4M3 ? GpuFormat::kBF16 : format));
  ASSIGN_OR_RETURN(const GpuMatrix embedding,
                   matrix_of(config.vocab_size, config.hidden_size, GpuFormat::kBF16));
  weights.embedding = static_cast<const uint16_t*>(embedding.codes);
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
  return weights;
}

}  // namespace terrace
