#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "kernels/scalar_convert.h"
#include "worker/cuda/cuda_transformer.h"

namespace terrace {
namespace {

// Fills device memory with copies of a random block: what a kernel reads differs from line to line, and no
// two matrices are near each other in it.
class RandomFill {
 public:
  // Copies begin at multiples of `unit` bytes, a multiple of 512: what the block consists of stays whole.
  template <typename Make>
  static StatusOr<RandomFill> Create(Make make, size_t unit = 512) {
    RandomFill out;
    out.unit_ = unit;
    std::vector<std::byte> block(kBlock / unit * unit);
    std::mt19937_64 random(1);
    make(random, block);
    ASSIGN_OR_RETURN(out.block_, CudaBuffer::Device(block.size(), "random weights"));
    RETURN_IF_CUDA_ERROR(cudaMemcpy(out.block_.data(), block.data(), block.size(), cudaMemcpyHostToDevice));
    return out;
  }
  Status Fill(std::byte* to, size_t bytes) {
    while (bytes > 0) {
      const size_t from = offset_ % (kBlock / 2) / unit_ * unit_,
                   part = std::min(bytes, block_.bytes() - from);
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
  size_t offset_ = 0, unit_ = 512;
};

}  // namespace

StatusOr<CudaWeights> RandomCudaWeights(const ModelConfig& config, GpuFormat format) {
  if (config.has_attention_bias || config.has_head_norms || config.has_post_norms || config.experts > 0)
    return Unimplemented("random weights of the family ", config.family);
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
  constexpr size_t kSparseUnit = 4 * kSparsePieceBytes;
  static_assert(kSparseUnit % 512 == 0);
  RandomFill sparse;
  if (format == GpuFormat::kSparse) {
    const auto fill_pieces = [](auto& random, std::vector<std::byte>& block) {
      constexpr uint8_t kPlaces[] = {0x4, 0x8, 0xc, 0x9, 0xd, 0xe};
      std::normal_distribution<float> normal(0, kDeviation);
      for (size_t piece = 0; piece < block.size(); piece += kSparsePieceBytes) {
        auto* kept = reinterpret_cast<uint16_t*>(&block[piece]);
        for (size_t i = 0; i < kSparseKeptBytes / 2; ++i) kept[i] = BF16FromFloat(normal(random));
        for (size_t i = kSparseKeptBytes; i < kSparsePieceBytes; ++i) {
          const auto both = static_cast<uint32_t>(random() % 36);
          block[piece + i] = static_cast<std::byte>(kPlaces[both % 6] | kPlaces[both / 6] << 4);
        }
      }
    };
    ASSIGN_OR_RETURN(sparse, RandomFill::Create(fill_pieces, kSparseUnit));
  }
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
    RandomFill& fill = as == GpuFormat::kBF16 ? values : as == GpuFormat::kSparse ? sparse : codes;
    RETURN_IF_ERROR(fill.Fill(code_memory, code_bytes));
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
  // As LoadCudaWeights: FP8 and 2:4 are for the layers.
  const bool is_of_layers = format == GpuFormat::kE4M3 || format == GpuFormat::kSparse;
  ASSIGN_OR_RETURN(weights.head, matrix_of(RowsOfWholeTiles(config.vocab_size), config.hidden_size,
                                           is_of_layers ? GpuFormat::kBF16 : format));
  ASSIGN_OR_RETURN(const GpuMatrix embedding,
                   matrix_of(config.vocab_size, config.hidden_size, GpuFormat::kBF16));
  weights.embedding = static_cast<const uint16_t*>(embedding.codes);
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
  return weights;
}

}  // namespace terrace
