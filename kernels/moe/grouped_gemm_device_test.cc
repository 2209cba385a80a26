#include "kernels/moe/grouped_gemm_device.h"

#include <bit>
#include <cmath>

#include "gtest/gtest.h"
#include "kernels/moe/grouped_gemm_testing.h"
#include "kernels/moe/route_experts_device.h"

namespace terrace {
namespace {

void GroupedGemm(const GpuGroupedGemmArgs& args, uint32_t warps, uint32_t row_tiles, uint64_t seed) {
  const auto log2_warps = static_cast<uint32_t>(std::countr_zero(warps));
  LaunchGroupedGemm(args, warps, row_tiles, [&](auto* kernel, const GroupedLaunch& launch) {
    simt::RunSeeded(seed, {args.groups.chunk_count, launch.row_blocks}, launch.threads, launch.shared, kernel,
                    args, log2_warps);
  });
}

// A dense product of one matrix, by as many tiles of tokens as a chunk's, whose bits stream_gemm's own test
// shows to be those of any batch.
template <typename Pieces>
void Dense(const GpuGemmArgs& args, uint32_t warps) {
  simt::Run({(args.tokens + 7) / 8, args.weights.rows / kTileRows}, 32 * warps,
            warps * kStreamRingBytes<Pieces>, StreamGemmKernel<Pieces, 1, 1, false>, args,
            static_cast<uint32_t>(std::countr_zero(warps)));
}
void DenseGemm(const GpuGemmArgs& args, uint32_t warps) {
  const GpuMatrix& weights = args.weights;
  if (weights.format == GpuFormat::kBF16) return Dense<BF16Pieces>(args, warps);
  if (weights.format == GpuFormat::kE4M3) return Dense<E4M3Pieces>(args, warps);
  if (weights.format == GpuFormat::kSparse) return Dense<SparsePieces>(args, warps);
  if (weights.format == GpuFormat::kW4)
    return weights.group == 32 ? Dense<W4Pieces<2>>(args, warps) : Dense<W4Pieces<1>>(args, warps);
  weights.group == 16 ? Dense<W8Pieces<2>>(args, warps) : Dense<W8Pieces<1>>(args, warps);
}

size_t BytesOfRow(const GpuMatrix& matrix, GpuGemmOut kind) {
  return size_t{kind == GpuGemmOut::kGated ? matrix.rows / 2 : matrix.rows} *
         (kind == GpuGemmOut::kF32 ? 4 : 2);
}

void ExpectGrouped(DType dtype, const GroupedCase& c, GpuGemmOut kind, bool is_by_token, uint32_t columns,
                   uint32_t warps, uint32_t row_tiles) {
  SCOPED_TRACE(testing::Message() << Info(dtype).name << " kind " << static_cast<int>(kind) << ", "
                                  << c.tokens << " tokens to " << c.per_token << " of " << c.used << " of "
                                  << c.experts << " experts, chunks of " << c.chunk_tokens << ", by token "
                                  << is_by_token << ", " << warps << " warps, " << row_tiles << " row tiles");
  constexpr uint32_t kRows = 32;
  const TestExperts experts(dtype, c.experts, kRows, columns, /*seed=*/c.tokens, kind == GpuGemmOut::kGated);
  RoutedTokens routed = RandomGroups(c, /*seed=*/c.tokens);
  const auto pairs = static_cast<uint32_t>(routed.pairs.size());
  const std::vector<uint16_t> x = RandomBF16(c.tokens * columns, /*seed=*/3);
  const std::vector<uint16_t> rows = RowsOfPlaces(routed, c.per_token, x, columns);
  const size_t row_bytes = BytesOfRow(experts.form, kind);
  std::vector<std::byte> out((pairs + 1) * row_bytes, std::byte{0xff});
  GroupedGemm({.x = is_by_token ? x.data() : rows.data(),
               .per_token = is_by_token ? c.per_token : 0,
               .groups = routed.groups(),
               .weights = experts.form,
               .experts = experts.matrices.data(),
               .out = out.data(),
               .kind = kind},
              warps, row_tiles, /*seed=*/c.tokens);
  for (uint32_t expert = 0; expert < c.experts; ++expert) {
    const uint32_t first = routed.begin[expert], count = routed.begin[expert + 1] - first;
    if (count == 0) continue;
    ExpectGemmRow(experts.matrices[expert], &rows[size_t{first + count - 1} * columns], kind,
                  &out[(first + count - 1) * row_bytes], 0);
    std::vector<std::byte> dense(count * row_bytes);
    DenseGemm({.x = &rows[size_t{first} * columns],
               .tokens = count,
               .weights = experts.matrices[expert],
               .out = dense.data(),
               .kind = kind},
              warps);
    ASSERT_EQ(std::memcmp(&out[first * row_bytes], dense.data(), dense.size()), 0) << "expert " << expert;
  }
  for (size_t i = pairs * row_bytes; i < out.size(); ++i) EXPECT_EQ(out[i], std::byte{0xff});
}

TEST(GroupedGemm, EveryFormatHasTheBitsOfItsExpertsAlone) {
  for (const DType dtype : kGpuMatrixDTypes) {
    ExpectGrouped(dtype, {3, 4, 4, 2, 8}, GpuGemmOut::kGated, true, 256, 4, 1);
    ExpectGrouped(dtype, {21, 3, 3, 2, 16}, GpuGemmOut::kF32, false, 512, 8, 2);
    ExpectGrouped(dtype, {37, 2, 2, 1, 32}, GpuGemmOut::kBF16, true, 256, 4, 2);
    ExpectGrouped(dtype, {71, 3, 3, 2, 128}, GpuGemmOut::kF32, true, 512, 8, 1);
  }
}

TEST(GroupedGemm, ExpertsMayHaveNoTokenOrAll) {
  for (const GroupedCase& c : {GroupedCase{1, 1, 1, 1, 8},
                               {1, 9, 9, 8, 8},
                               {8, 5, 1, 1, 8},
                               {9, 5, 2, 2, 8},
                               {17, 6, 1, 1, 16},
                               {70, 3, 3, 3, 32},
                               {70, 8, 7, 2, 32},
                               {33, 4, 1, 1, 32},
                               {150, 3, 2, 1, 128}}) {
    for (const bool is_by_token : {false, true}) {
      ExpectGrouped(DType::kBF16, c, GpuGemmOut::kGated, is_by_token, 128, 4, 1);
      ExpectGrouped(DType::kQ4_0, c, GpuGemmOut::kF32, is_by_token, 192, 4, 2);
    }
  }
}

// From logits to the residual stream; a token's experts one by one as dense products.
TEST(MoeDevice, ALayerAddsWhatATokensExpertsMakeAlone) {
  constexpr uint32_t kTokens = 11, kExperts = 6, kPerToken = 3, kHidden = 128, kFfn = 64, kWarps = 4;
  const RouteSizes sizes{kTokens, kExperts, kPerToken, true};
  const TestExperts gated(DType::kQ4_0, kExperts, 2 * kFfn, kHidden, /*seed=*/1, /*gated=*/true);
  const TestExperts down(DType::kQ8_0, kExperts, kHidden, kFfn, /*seed=*/2, /*gated=*/false);
  const std::vector<float> logits = RandomLogits(sizes, kExperts, /*seed=*/3);
  const std::vector<uint16_t> x = RandomBF16(kTokens * kHidden, /*seed=*/4);
  const GateFunction gate = GateFunction::kGelu;
  for (const uint32_t chunk_tokens : {8u, kWideChunkTokens}) {
    RoutedTokens routed(sizes, chunk_tokens);
    const GpuRouteExpertsArgs route{.logits = logits.data(),
                                    .pitch = kExperts,
                                    .tokens = kTokens,
                                    .experts = kExperts,
                                    .per_token = kPerToken,
                                    .normalizes = true,
                                    .chosen = routed.chosen.data(),
                                    .weights = routed.weights.data(),
                                    .groups = routed.groups()};
    LaunchRouteExperts(route, [&](void (*kernel)(GpuRouteExpertsArgs), uint32_t blocks, uint32_t threads) {
      simt::Run({blocks}, threads, 0, kernel, route);
    });
    std::vector<uint16_t> middle(kTokens * kPerToken * kFfn, 0x7fc0);
    GroupedGemm({.x = x.data(),
                 .per_token = kPerToken,
                 .groups = routed.groups(),
                 .weights = gated.form,
                 .experts = gated.matrices.data(),
                 .out = middle.data(),
                 .kind = GpuGemmOut::kGated,
                 .gate = gate},
                kWarps, 1, /*seed=*/5);
    std::vector<float> rows(kTokens * kPerToken * kHidden, std::nanf("")), hidden(kTokens * kHidden, 0.5f);
    GroupedGemm({.x = middle.data(),
                 .groups = routed.groups(),
                 .weights = down.form,
                 .experts = down.matrices.data(),
                 .out = rows.data(),
                 .kind = GpuGemmOut::kF32},
                kWarps, 1, /*seed=*/6);
    simt::Run({ElementwiseGeometry(hidden.size() / 4).blocks}, kElementwiseThreads, 0, CombineExpertsKernel,
              GpuCombineExpertsArgs{.rows = rows.data(),
                                    .places = routed.places.data(),
                                    .weights = routed.weights.data(),
                                    .tokens = kTokens,
                                    .per_token = kPerToken,
                                    .width = kHidden,
                                    .adds_to_out = true,
                                    .out = hidden.data()});
    for (uint32_t token = 0; token < kTokens; ++token) {
      std::vector<float> sum(kHidden);
      for (uint32_t pair = token * kPerToken; pair < (token + 1) * kPerToken; ++pair) {
        std::vector<uint16_t> of_pair(kFfn);
        std::vector<float> row(kHidden);
        DenseGemm({.x = &x[token * kHidden],
                   .tokens = 1,
                   .weights = gated.matrices[routed.chosen[pair]],
                   .out = of_pair.data(),
                   .kind = GpuGemmOut::kGated,
                   .gate = gate},
                  kWarps);
        DenseGemm({.x = of_pair.data(),
                   .tokens = 1,
                   .weights = down.matrices[routed.chosen[pair]],
                   .out = row.data(),
                   .kind = GpuGemmOut::kF32},
                  kWarps);
        for (uint32_t i = 0; i < kHidden; ++i) sum[i] = std::fma(routed.weights[pair], row[i], sum[i]);
      }
      for (uint32_t i = 0; i < kHidden; ++i) ASSERT_EQ(hidden[token * kHidden + i], 0.5f + sum[i]) << token;
    }
  }
}

TEST(CombineExperts, AddsATokensRowsBySlotAndThenToWhatIsThere) {
  for (const GroupedCase& c : {GroupedCase{1, 4, 4, 2, 8}, {7, 9, 8, 8, 8}, {70, 5, 3, 1, 8}}) {
    for (const uint32_t width : {4u, 52u, 1028u}) {
      for (const bool adds_to_out : {false, true}) {
        SCOPED_TRACE(testing::Message() << c.tokens << " tokens of " << width);
        RoutedTokens routed = RandomGroups(c, /*seed=*/width);
        if (c.tokens > 1) routed.weights[c.per_token] = std::nanf("");  // of token 1
        std::mt19937_64 random(width);
        std::normal_distribution<float> normal;
        std::vector<float> rows(routed.pairs.size() * width), before(size_t{c.tokens} * width);
        for (float& each : rows) each = normal(random);
        for (float& each : before) each = normal(random);
        std::vector<float> out = before;
        const uint32_t blocks = ElementwiseGeometry(out.size() / 4).blocks;
        simt::RunSeeded(/*seed=*/width, {blocks}, kElementwiseThreads, 0, CombineExpertsKernel,
                        GpuCombineExpertsArgs{.rows = rows.data(),
                                              .places = routed.places.data(),
                                              .weights = routed.weights.data(),
                                              .tokens = c.tokens,
                                              .per_token = c.per_token,
                                              .width = width,
                                              .adds_to_out = adds_to_out,
                                              .out = out.data()});
        if (!adds_to_out) std::ranges::fill(before, 0.0f);
        const std::vector<float> want = CombinedRows(routed, c.per_token, rows, width, before);
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_EQ(std::isnan(out[i]), c.tokens > 1 && i / width == 1);
          if (std::isnan(out[i])) continue;
          ASSERT_EQ(out[i], want[i]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace terrace
