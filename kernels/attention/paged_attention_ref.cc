#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/attention/paged_attention.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

// An infinity as NaN, everything else as it is.
uint16_t F16OrNaN(float x) {
  const uint16_t bits = F16FromFloat(x);
  return (bits & 0x7c00) == 0x7c00 ? 0x7e00 : bits;
}
uint16_t BF16OrNaN(float x) {
  const uint16_t bits = BF16FromFloat(x);
  return (bits & 0x7f80) == 0x7f80 ? 0x7fc0 : bits;
}

void WriteInt8Row(const float* from, size_t count, std::byte* to, float& scale) {
  float largest = 0;
  bool is_finite = true;
  for (size_t d = 0; d < count; ++d) {
    largest = std::max(largest, std::abs(from[d]));
    is_finite = is_finite && std::isfinite(from[d]);
  }
  std::memset(to, 0, count);
  scale = !is_finite ? std::nanf("") : largest < kSmallestInt8Row ? 0 : largest / 127;
  if (!(scale > 0)) return;
  constexpr float kRounder = 0x1.8p23f;  // adding and taking it rounds to an integer, ties to even
  for (size_t d = 0; d < count; ++d) {
    to[d] = static_cast<std::byte>(static_cast<int8_t>(from[d] / scale + kRounder - kRounder));
  }
}

void WriteRow(KvDType dtype, const float* from, size_t row, size_t head_dim, const KvRows& rows) {
  std::byte* to = rows.data + row * head_dim * KvElementBytes(dtype);
  const auto put16 = [&](uint16_t (*convert)(float)) {
    for (size_t d = 0; d < head_dim; ++d) {
      const uint16_t bits = convert(from[d]);
      std::memcpy(to + 2 * d, &bits, sizeof(bits));
    }
  };
  switch (dtype) {
    case KvDType::kF32:
      std::memcpy(to, from, head_dim * sizeof(float));
      return;
    case KvDType::kF16:
      return put16(F16OrNaN);
    case KvDType::kBF16:
      return put16(BF16OrNaN);
    case KvDType::kInt8:
      return WriteInt8Row(from, head_dim, to, rows.scales[row]);
    case KvDType::kFp8:
      for (size_t d = 0; d < head_dim; ++d) to[d] = std::byte{E4M3FromFloat(from[d])};
      return;
  }
}

// Exactly what the row says: an int8 times its scale fits a double.
void ReadRow(KvDType dtype, const KvRows& rows, size_t row, std::vector<double>& out) {
  const std::byte* from = rows.data + row * out.size() * KvElementBytes(dtype);
  const auto read = [&](const auto& element) {
    for (double& each : out) {
      each = element(from);
      from += KvElementBytes(dtype);
    }
  };
  switch (dtype) {
    case KvDType::kF32:
      return read(LoadUnaligned<float>);
    case KvDType::kF16:
      return read([](const std::byte* at) { return FloatFromF16(LoadUnaligned<uint16_t>(at)); });
    case KvDType::kBF16:
      return read([](const std::byte* at) { return FloatFromBF16(LoadUnaligned<uint16_t>(at)); });
    case KvDType::kInt8:
      return read([scale = double{rows.scales[row]}](const std::byte* at) {
        return scale * LoadUnaligned<int8_t>(at);
      });
    case KvDType::kFp8:
      return read([](const std::byte* at) { return FloatFromE4M3(std::to_integer<uint8_t>(*at)); });
  }
}

}  // namespace

void WriteKv(const WriteKvArgs& a) {
  const size_t head_dim = a.batch.head_dim;
  for (size_t token = 0; token < a.batch.tokens; ++token) {
    for (size_t head = 0; head < a.batch.kv_heads; ++head) {
      const size_t from = (token * a.batch.kv_heads + head) * head_dim;
      const size_t row = a.batch.Row(token, head, a.batch.positions[token]);
      WriteRow(a.kv.dtype, a.keys + from, row, head_dim, a.kv.keys);
      WriteRow(a.kv.dtype, a.values + from, row, head_dim, a.kv.values);
    }
  }
}

// The softmax in two passes over all positions, in double: the definition knows no spans.
void PagedAttentionRef(const PagedAttentionArgs& a, ThreadPool&) {
  const size_t head_dim = a.batch.head_dim, group = a.heads / a.batch.kv_heads;
  std::vector<double> weights, row(head_dim), out(head_dim);
  for (size_t token = 0; token < a.batch.tokens; ++token) {
    const size_t first = a.WindowBegin(a.batch.positions[token]);
    const size_t count = size_t{a.batch.positions[token]} + 1 - first;
    weights.resize(count);
    for (size_t head = 0; head < a.heads; ++head) {
      const float* q = a.q + (token * a.heads + head) * head_dim;
      for (size_t j = 0; j < count; ++j) {
        ReadRow(a.kv.dtype, a.kv.keys, a.batch.Row(token, head / group, first + j), row);
        weights[j] = 0;
        for (size_t d = 0; d < head_dim; ++d) weights[j] += q[d] * row[d];
        weights[j] *= a.scale;
        if (a.softcap != 0) weights[j] = a.softcap * std::tanh(weights[j] / a.softcap);
      }
      const double largest = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      std::fill(out.begin(), out.end(), 0);
      for (size_t j = 0; j < count; ++j) {
        ReadRow(a.kv.dtype, a.kv.values, a.batch.Row(token, head / group, first + j), row);
        for (size_t d = 0; d < head_dim; ++d) out[d] += weights[j] / sum * row[d];
      }
      for (size_t d = 0; d < head_dim; ++d) {
        a.out[(token * a.heads + head) * head_dim + d] = static_cast<float>(out[d]);
      }
    }
  }
}

}  // namespace terrace
