#include "tests/gpu/large_model.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kernels/scalar_convert.h"
#include "text/byte_alphabet.h"
#include "worker/formats/gguf_config.h"
#include "worker/formats/gguf_writer.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

constexpr size_t kPieceBytes = size_t{8} << 20;
constexpr float kDeviation = 1.0f / 64;  // of weights: sqrt(1 / 4096)

std::string ByteToken(size_t byte) { return ToByteAlphabet(std::string(1, static_cast<char>(byte))); }

// Control tokens and bytes, then every two bytes, then those and a letter, each with the merge that makes it.
void SetTokens(size_t count, GgufParts& parts) {
  std::vector<std::string> tokens = {"<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"}, merges;
  std::vector<int32_t> types(tokens.size(), 3);
  for (size_t byte = 0; byte < 256; ++byte) tokens.push_back(ByteToken(byte));
  const size_t first_pair = tokens.size();
  const auto add = [&](const std::string& left, const std::string& right) {
    if (tokens.size() >= count) return;
    merges.push_back(left + " " + right);
    tokens.push_back(left + right);
  };
  for (size_t pair = 0; pair < 65'536; ++pair) add(ByteToken(pair / 256), ByteToken(pair % 256));
  for (const char letter : {'e', 't'}) {
    for (size_t pair = 0; pair < 65'536 && tokens.size() < count; ++pair) {
      add(std::string(tokens[first_pair + pair]), ByteToken(static_cast<unsigned char>(letter)));
    }
  }
  types.resize(tokens.size(), 1);
  parts.Set("tokenizer.ggml.tokens", GgufStrings(tokens));
  parts.Set("tokenizer.ggml.token_type", GgufInts(types));
  parts.Set("tokenizer.ggml.merges", GgufStrings(merges));
}

// Data of a dtype: twice a piece, from which pieces begin at different blocks.
std::vector<std::byte> RandomData(DType dtype) {
  const size_t block = Info(dtype).block_bytes, blocks = 2 * kPieceBytes / block;
  std::vector<std::byte> out(blocks * block);
  std::minstd_rand random(1);
  if (dtype == DType::kF32) {  // norms
    for (size_t i = 0; i < blocks; ++i) {
      const float one = 1;
      std::memcpy(&out[i * block], &one, sizeof(one));
    }
    return out;
  }
  for (std::byte& byte : out) byte = static_cast<std::byte>(random() >> 8);
  for (size_t i = 0; i < blocks; ++i) {
    const float spread = 0.8f + 0.4f * static_cast<float>(random() % 256) / 256;
    uint16_t bits = F16FromFloat(kDeviation / 4.6f * spread);  // 4.6: the deviation of 4-bit codes
    if (dtype == DType::kBF16) {
      const float uniform = static_cast<float>(random() % 65'536) / 32'768 - 1;
      bits = BF16FromFloat(uniform * kDeviation * 1.732f);
    }
    std::memcpy(&out[i * block], &bits, sizeof(bits));
  }
  return out;
}

struct Piece {
  uint64_t at = 0;
  std::span<const std::byte> bytes;
};

bool WriteAt(int file, uint64_t at, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (wrote <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(wrote));
    at += static_cast<uint64_t>(wrote);
  }
  return true;
}

Status WritePieces(const std::string& path, std::span<const Piece> pieces, ThreadPool& pool) {
  ::unlink(path.c_str());
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return NotFound(path, ": ", std::strerror(errno));
  std::atomic<int> error = 0;
  pool.ParallelFor(pieces.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end && error == 0; ++i) {
      if (!WriteAt(file, pieces[i].at, pieces[i].bytes)) error = errno;
    }
  });
  if (::close(file) != 0 && error == 0) error = errno;
  if (error != 0) return ResourceExhausted(path, ": ", std::strerror(error));
  return {};
}

}  // namespace

Status WriteLargeModel(const std::string& path, const ModelConfig& config, DType layers, ThreadPool& pool) {
  GgufParts parts = TinyGguf();
  for (const GgufKey& key : GgufConfigKeys(config)) parts.Set(key.name, key.value);
  SetTokens(config.vocab_size, parts);
  const std::vector<std::byte> norms = RandomData(DType::kF32), wide = RandomData(DType::kBF16),
                               narrow = RandomData(layers);
  std::vector<GgufTensorInfo> infos;
  std::vector<Piece> pieces;
  uint64_t end = 0;
  ModelConfig named = config;
  named.names = NameScheme::kGguf;
  for (const TensorRequirement& tensor : RequiredTensors(named)) {
    const bool is_wide = tensor.kind == TensorKind::kEmbedding || tensor.kind == TensorKind::kOutput;
    const DType dtype = IsNorm(tensor.kind) ? DType::kF32 : is_wide ? DType::kBF16 : layers;
    const std::vector<std::byte>& data = IsNorm(tensor.kind) ? norms : is_wide ? wide : narrow;
    std::vector<uint64_t> dims(tensor.shape.dims.begin(), tensor.shape.dims.begin() + tensor.shape.rank);
    std::ranges::reverse(dims);
    infos.push_back({tensor.name, dims, GgufTensorType(dtype), end});
    ASSIGN_OR_RETURN(const uint64_t bytes, ByteCount(dtype, tensor.shape));
    const size_t block = Info(dtype).block_bytes, piece_bytes = kPieceBytes / block * block;
    for (uint64_t done = 0; done < bytes; done += piece_bytes) {
      const size_t from = pieces.size() * 104'729 % (piece_bytes / block) * block;
      pieces.push_back({end + done, std::span(data).subspan(from, std::min(piece_bytes, bytes - done))});
    }
    end = RoundUp(end + bytes, kGgufAlignment);
  }
  const std::string head = GgufHead(parts.keys, infos);
  for (Piece& piece : pieces) piece.at += head.size();
  pieces.push_back({0, std::as_bytes(std::span(head))});
  constexpr std::byte kPadding[kGgufAlignment] = {};
  const Piece last = pieces[pieces.size() - 2];
  const uint64_t data_end = last.at + last.bytes.size();
  pieces.push_back({data_end, std::span(kPadding).first(head.size() + end - data_end)});
  return WritePieces(path, pieces, pool);
}

}  // namespace terrace
