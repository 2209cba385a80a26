#include "tools/distill/checkpoint.h"

#include <cstring>

#include "worker/formats/byte_reader.h"

namespace terrace {
namespace {

template <typename T>
void Append(std::vector<std::byte>& out, std::span<const T> values) {
  const auto bytes = std::as_bytes(values);
  out.insert(out.end(), bytes.begin(), bytes.end());
}

void AppendNumber(std::vector<std::byte>& out, uint64_t value) {
  Append(out, std::span<const uint64_t>(&value, 1));
}

StatusOr<std::vector<float>> ReadFloats(ByteReader& in) {
  ASSIGN_OR_RETURN(const auto count, in.Read<uint64_t>());
  if (count > in.remaining() / sizeof(float))
    return Malformed("truncated", "a checkpoint: ", count, " values");
  ASSIGN_OR_RETURN(const auto bytes, in.Read(count * sizeof(float)));
  std::vector<float> values(count);
  if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

std::vector<std::byte> PackState(const TrainerState& state) {
  std::vector<std::byte> out;
  AppendNumber(out, state.steps);
  AppendNumber(out, state.tensors.size());
  for (const TrainerState::Tensor& tensor : state.tensors) {
    for (const std::vector<float>* values : {&tensor.values, &tensor.mean, &tensor.square}) {
      AppendNumber(out, values->size());
      Append(out, std::span<const float>(*values));
    }
  }
  return out;
}

StatusOr<TrainerState> ParseState(std::span<const std::byte> bytes) {
  ByteReader in(bytes);
  TrainerState state;
  ASSIGN_OR_RETURN(state.steps, in.Read<uint64_t>());
  ASSIGN_OR_RETURN(const auto tensors, in.Read<uint64_t>());
  for (uint64_t i = 0; i < tensors; ++i) {
    TrainerState::Tensor& tensor = state.tensors.emplace_back();
    for (std::vector<float>* values : {&tensor.values, &tensor.mean, &tensor.square}) {
      ASSIGN_OR_RETURN(*values, ReadFloats(in));
    }
  }
  if (in.remaining() > 0) return Malformed("truncated", "a checkpoint: ", in.remaining(), " bytes too many");
  return state;
}

}  // namespace terrace
