// No op reads or writes behind its buffers: each of them ends where no memory begins, for every backend, with
// shapes that fill no vector, block, strip or tile. (A sanitizer sees the same in the backends it compiles.)
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    whole_ = (count * sizeof(T) + page - 1) / page * page;
    void* memory = mmap(nullptr, whole_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memory_ = static_cast<std::byte*>(memory);
    mapped_ = whole_ + page;
    CHECK(mprotect(memory_ + whole_, page, PROT_NONE) == 0);
  }
  explicit Guarded(const std::vector<T>& values) : Guarded(values.size()) {
    std::copy(values.begin(), values.end(), data());
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, mapped_); }

  T* data() { return reinterpret_cast<T*>(memory_ + whole_ - count_ * sizeof(T)); }
  std::vector<T> Values() { return {data(), data() + count_}; }

 private:
  std::byte* memory_;
  size_t count_, whole_, mapped_;
};

TEST_P(EveryCpu, GemmStaysInItsBuffers) {
  for (const DType dtype : kEveryDType) {
    for (const size_t inputs : {3, 96, 160, 288, 512}) {
      if (inputs % Info(dtype).block_elements != 0) continue;
      const size_t rows = 70;  // four strips and a broken one
      RandomWeights weights(dtype, rows, inputs, /*seed=*/inputs);
      const DTypeInfo& info = Info(dtype);
      if (inputs == 288 && info.block_elements == 1) {  // 2:4, where the format may be
        for (size_t i = 2; i < rows * inputs; i += 4)
          std::memset(weights.bytes.data() + 1 + i * info.block_bytes, 0, 2 * info.block_bytes);
      }
      for (const ComputeType compute : {ComputeType::kAuto, ComputeType::kF32}) {
        const GemmWeights layout = ops().layout(weights.matrix, compute, pool_);
        Guarded<std::byte> memory(layout.bytes);
        const GemmWeights packed = ops().pack(weights.matrix, layout, memory.data(), pool_);
        for (const size_t tokens : {1, 2, 5, 13}) {
          SCOPED_TRACE(testing::Message()
                       << Info(dtype).name << " of " << inputs << ", " << tokens << " tokens");
          const auto values = RandomNormal(tokens * inputs, /*seed=*/tokens);
          Guarded<float> x(values), norm(RandomNormal(inputs, /*seed=*/9)), out(tokens * rows),
              gated(tokens * rows);
          GemmPart parts[] = {{packed, out.data()}, {packed, nullptr}};
          ops().gemm({.x = x.data(), .tokens = tokens, .parts = {parts, 1}}, pool_);
          EXPECT_TRUE(SameBits(out.Values(), Gemm(ops(), values, weights.matrix, pool_, compute)));
          parts[0].out = gated.data();
          parts[0].add_to_out = true;
          ops().gemm({.x = x.data(), .norm = norm.data(), .tokens = tokens, .parts = parts, .gated = true},
                     pool_);
        }
      }
    }
  }
}

TEST_P(EveryCpu, EmbeddingStaysInItsBuffers) {
  for (const DType dtype : kEveryDType) {
    for (const size_t width : {7, 32, 256}) {
      if (width % Info(dtype).block_elements != 0) continue;
      RandomWeights weights(dtype, 5, width, /*seed=*/width);
      Guarded<std::byte> table(5 * weights.matrix.RowBytes());
      std::memcpy(table.data(), weights.matrix.data, 5 * weights.matrix.RowBytes());
      weights.matrix.data = table.data();
      Guarded<int32_t> tokens(std::vector<int32_t>{4, 0, 4});
      Guarded<float> out(3 * width);
      for (const float scale : {1.0f, 3.0f}) {
        ops().embed(
            {.tokens = tokens.data(), .table = weights.matrix, .out = out.data(), .count = 3, .scale = scale},
            pool_);
      }
      EXPECT_EQ(out.data()[0], out.data()[2 * width]);
    }
  }
}

TEST_P(EveryCpu, RoutesStayInTheirBuffers) {
  const size_t tokens = 3, pitch = 32, per_token = 3;
  for (const size_t experts : {3, 17, 31}) {
    Guarded<float> logits(RandomNormal((tokens - 1) * pitch + experts, /*seed=*/experts));
    Guarded<uint32_t> chosen(tokens * per_token);
    Guarded<float> weights(tokens * per_token);
    ops().route_experts({.logits = logits.data(),
                         .pitch = pitch,
                         .tokens = tokens,
                         .experts = experts,
                         .per_token = per_token,
                         .normalizes = true,
                         .chosen = chosen.data(),
                         .weights = weights.data()},
                        pool_);
    for (const uint32_t expert : chosen.Values()) EXPECT_LT(expert, experts);
  }
}

// The last row of the last block is that of the last position.
TEST_P(EveryCpu, RopeAndAttentionStayInTheirBuffers) {
  for (const KvDType dtype : kEveryKvDType) {
    for (const size_t head_dim : {1, 6, 20, 34, 64}) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", heads of " << head_dim);
      const size_t kv_heads = 2, heads = 10, block_tokens = 5, tokens = 305, blocks = tokens / block_tokens;
      const size_t rows = blocks * kv_heads * block_tokens;
      Guarded<std::byte> keys(rows * head_dim * KvElementBytes(dtype)),
          values(rows * head_dim * KvElementBytes(dtype));
      Guarded<float> key_scales(rows), value_scales(rows);
      std::vector<int32_t> ids(blocks);
      std::vector<uint32_t> all(tokens);
      for (size_t i = 0; i < blocks; ++i) ids[i] = static_cast<int32_t>(i);
      for (size_t i = 0; i < tokens; ++i) all[i] = static_cast<uint32_t>(i);
      Guarded<int32_t> table(ids);
      Guarded<uint32_t> positions(all);
      Guarded<const int32_t*> tables(std::vector<const int32_t*>(tokens, table.data()));
      Guarded<float> q(RandomNormal(tokens * heads * head_dim, 1)),
          k(RandomNormal(tokens * kv_heads * head_dim, 2)), v(RandomNormal(tokens * kv_heads * head_dim, 3)),
          cos(RandomNormal(tokens * (head_dim / 2), 4)), sin(RandomNormal(tokens * (head_dim / 2), 5)),
          out(tokens * heads * head_dim), q_bias(RandomNormal(heads * head_dim, 6)),
          k_bias(RandomNormal(kv_heads * head_dim, 7)), v_bias(RandomNormal(kv_heads * head_dim, 8)),
          q_norm(RandomNormal(head_dim, 9)), k_norm(RandomNormal(head_dim, 10));
      const PagedTokens batch{.positions = positions.data(),
                              .block_tables = tables.data(),
                              .tokens = tokens,
                              .kv_heads = kv_heads,
                              .head_dim = head_dim,
                              .blocks = blocks,
                              .block_tokens = block_tokens};
      const KvLayer kv{.dtype = dtype,
                       .keys = {.data = keys.data(), .scales = key_scales.data()},
                       .values = {.data = values.data(), .scales = value_scales.data()}};
      for (const bool neighbours : {false, true}) {
        ops().rope_kv({.batch = batch,
                       .q = q.data(),
                       .k = k.data(),
                       .v = v.data(),
                       .cos = cos.data(),
                       .sin = sin.data(),
                       .heads = heads,
                       .neighbours = neighbours,
                       .kv = kv,
                       .q_bias = q_bias.data(),
                       .k_bias = k_bias.data(),
                       .v_bias = v_bias.data(),
                       .q_norm = q_norm.data(),
                       .k_norm = k_norm.data(),
                       .norm_epsilon = 1e-6f},
                      pool_);
      }
      PagedAttentionArgs attention{
          .batch = batch, .q = q.data(), .out = out.data(), .kv = kv, .heads = heads, .scale = 0.1f};
      ops().paged_attention(attention, pool_);
      for (const float each : out.Values()) ASSERT_TRUE(std::isfinite(each));
      attention.window = 37;
      attention.softcap = 3;
      ops().paged_attention(attention, pool_);
      for (const float each : out.Values()) ASSERT_TRUE(std::isfinite(each));
    }
  }
}
TEST_P(EveryCpu, AddNormAndCapLogitsStayInTheirBuffers) {
  for (const size_t width : {1, 15, 16, 33}) {
    Guarded<float> x(RandomNormal(3 * width, 1)), norm(RandomNormal(width, 2)),
        hidden(RandomNormal(3 * width, 3));
    ops().add_norm({.x = x.data(),
                    .norm = norm.data(),
                    .norm_epsilon = 1e-6f,
                    .hidden = hidden.data(),
                    .tokens = 3,
                    .width = width},
                   pool_);
    ops().cap_logits({.logits = hidden.data(), .count = 3 * width, .cap = 30}, pool_);
    for (const float each : hidden.Values()) ASSERT_TRUE(std::isfinite(each));
  }
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
