// A mixture of experts on a GPU, by the rules of its tests on the emulator, at the sizes of real models too.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <deque>

#include "kernels/gemm/stream_gemm_cuda.h"
#include "kernels/moe/grouped_gemm_cuda.h"
#include "kernels/moe/grouped_gemm_testing.h"
#include "kernels/moe/route_experts_cuda.h"
#include "tests/gpu/gemm_gpu_testing.h"

namespace terrace {
namespace {

// What routing leaves on the device.
struct DeviceRoutes {
  explicit DeviceRoutes(const RoutedTokens& from)
      : chunk_tokens(from.chunk_tokens),
        chosen(from.chosen),
        weights(from.weights),
        begin(from.begin),
        pairs(from.pairs),
        places(from.places),
        chunks(from.chunks) {}
  GpuExpertGroups groups() const {
    return {.begin = begin.data(),
            .pairs = pairs.data(),
            .places = places.data(),
            .chunks = chunks.data(),
            .chunk_count = static_cast<uint32_t>(chunks.size()),
            .chunk_tokens = chunk_tokens};
  }
  GpuRouteExpertsArgs Args(const RouteSizes& sizes, const float* logits, uint32_t pitch) const {
    return {.logits = logits,
            .pitch = pitch,
            .tokens = sizes.tokens,
            .experts = sizes.experts,
            .per_token = sizes.per_token,
            .normalizes = sizes.normalizes,
            .chosen = chosen.data(),
            .weights = weights.data(),
            .groups = groups()};
  }
  uint32_t chunk_tokens;
  DeviceArray<uint32_t> chosen;
  DeviceArray<float> weights;
  DeviceArray<uint32_t> begin, pairs, places;
  DeviceArray<GpuExpertChunk> chunks;
};

RoutedTokens Route(const RouteSizes& sizes, const std::vector<float>& logits, uint32_t pitch,
                   uint32_t chunk_tokens, bool follows = false) {
  RoutedTokens out(sizes, chunk_tokens);
  const DeviceRoutes device(out);
  const DeviceArray<float> device_logits(logits);
  CUDA_MUST(RouteExpertsCuda(device.Args(sizes, device_logits.data(), pitch), {.follows = follows}));
  out.chosen = device.chosen.Get();
  out.weights = device.weights.Get();
  out.begin = device.begin.Get();
  out.pairs = device.pairs.Get();
  out.places = device.places.Get();
  out.chunks = device.chunks.Get();
  return out;
}

TEST(RouteExpertsGpu, MatchesTheReference) {
  for (const RouteSizes& sizes : {RouteSizes{1, 8, 2, true},
                                  {1, 128, 8, true},
                                  {3, 1, 1, false},
                                  {5, 33, 16, true},
                                  {64, 128, 8, false},
                                  {70, 60, 4, true},
                                  {33, 512, 16, false},
                                  {8192, 8, 2, true},
                                  {4096, 128, 8, true},
                                  {1000, 256, 1, false}}) {
    SCOPED_TRACE(testing::Message() << sizes.tokens << " tokens to " << sizes.per_token << " of "
                                    << sizes.experts << ", normalizes " << sizes.normalizes);
    const uint32_t pitch = (sizes.experts + 15) / 16 * 16;
    const std::vector<float> logits = RandomLogits(sizes, pitch, /*seed=*/sizes.tokens);
    for (const uint32_t chunk_tokens : {8u, 32u, kWideChunkTokens})
      ExpectRoutes(sizes, logits, pitch, Route(sizes, logits, pitch, chunk_tokens, chunk_tokens == 32));
  }
}

TEST(RouteExpertsGpu, TiesAndWhatIsNotFinite) {
  for (const bool normalizes : {false, true}) {
    for (const uint32_t experts : {6u, 50u, 200u}) {
      const RouteSizes sizes{8, experts, 5, normalizes};
      std::vector<float> logits = RandomLogits(sizes, experts, /*seed=*/1);
      logits[1 * experts] = NAN;
      logits[2 * experts + experts - 1] = NAN;
      logits[3 * experts + 3] = INFINITY;
      std::fill_n(&logits[4 * experts], experts, -INFINITY);
      std::fill_n(&logits[5 * experts], experts, -INFINITY);
      logits[5 * experts + 4] = logits[5 * experts + 5] = -2e30f;
      for (uint32_t i = 0; i < experts; ++i) {
        logits[6 * experts + i] = i % 3 == 0 ? 0.0f : i % 3 == 1 ? -0.0f : -1.0f;
        logits[7 * experts + i] = static_cast<float>(i / 2 % 4);
      }
      ExpectRoutes(sizes, logits, experts, Route(sizes, logits, experts, 8));
    }
  }
}

TEST(RouteExpertsGpu, WhatItCannotDoIsRefused) {
  const GpuExpertGroups groups{.chunk_count = 2, .chunk_tokens = 8};
  const GpuRouteExpertsArgs args{.pitch = 8, .tokens = 1, .experts = 8, .per_token = 2, .groups = groups};
  GpuRouteExpertsArgs none = args, many = args, narrow = args, wide = args, chunks = args, room = args;
  none.per_token = 0;
  many.per_token = 9;
  narrow.pitch = 7;
  wide.experts = wide.pitch = 513;
  chunks.groups.chunk_tokens = 64;
  room.groups.chunk_count = 1;
  for (const GpuRouteExpertsArgs& each : {none, many, narrow, wide, chunks, room})
    EXPECT_EQ(RouteExpertsCuda(each, {}), cudaErrorInvalidValue);
}

// The matrices of experts on the device, and the array of them.
struct DeviceExperts {
  explicit DeviceExperts(const TestExperts& from) {
    std::vector<GpuMatrix> all;
    for (const auto& one : from.weights) all.push_back(matrices.emplace_back(*one->packed).matrix);
    array = DeviceArray<GpuMatrix>(all);
  }
  std::deque<DeviceMatrix> matrices;
  DeviceArray<GpuMatrix> array;
};

std::vector<std::byte> GroupedGemm(const TestExperts& experts, const DeviceExperts& device,
                                   const RoutedTokens& routed, const std::vector<uint16_t>& x,
                                   uint32_t per_token, GpuGemmOut kind, bool follows) {
  const DeviceRoutes routes(routed);
  const DeviceArray<uint16_t> device_x(x);
  const size_t bytes = routed.pairs.size() * RowBytes(experts.form.rows, kind);
  DeviceArray<std::byte> out(bytes + 64);
  CUDA_MUST(GroupedGemmCuda({.x = device_x.data(),
                             .per_token = per_token,
                             .groups = routes.groups(),
                             .weights = experts.form,
                             .experts = device.array.data(),
                             .out = out.data(),
                             .kind = kind},
                            {.follows = follows}));
  std::vector<std::byte> got = out.Get();
  for (size_t i = bytes; i < got.size(); ++i) EXPECT_EQ(got[i], std::byte{0xff});
  got.resize(bytes);
  return got;
}

TEST(GroupedGemmGpu, EveryFormatHasTheBitsOfStreamGemm) {
  constexpr uint32_t kColumns = 2048;
  for (const DType dtype : kGpuMatrixDTypes) {
    for (const GpuGemmOut kind : {GpuGemmOut::kBF16, GpuGemmOut::kF32, GpuGemmOut::kGated}) {
      const uint32_t rows = kind == GpuGemmOut::kF32 ? 528 : 256;
      const TestExperts experts(dtype, 6, rows, kColumns, /*seed=*/1, kind == GpuGemmOut::kGated);
      const DeviceExperts device(experts);
      for (const GroupedCase& c : {GroupedCase{1, 6, 6, 2, 8},
                                   {8, 6, 6, 6, 8},
                                   {23, 6, 4, 2, 16},
                                   {70, 6, 1, 1, 8},
                                   {300, 6, 6, 2, 32},
                                   {300, 6, 5, 3, kWideChunkTokens}}) {
        SCOPED_TRACE(testing::Message() << Info(dtype).name << " kind " << static_cast<int>(kind) << " "
                                        << c.tokens << " tokens, chunks of " << c.chunk_tokens);
        const RoutedTokens routed = RandomGroups(c, /*seed=*/c.tokens);
        const std::vector<uint16_t> x = RandomBF16(size_t{c.tokens} * kColumns, /*seed=*/c.tokens);
        const std::vector<uint16_t> placed = RowsOfPlaces(routed, c.per_token, x, kColumns);
        const std::vector<std::byte> out =
            GroupedGemm(experts, device, routed, x, c.per_token, kind, /*follows=*/c.tokens == 8);
        EXPECT_EQ(GroupedGemm(experts, device, routed, placed, 0, kind, false), out);
        const size_t row_bytes = RowBytes(rows, kind);
        for (uint32_t expert = 0; expert < c.experts; ++expert) {
          const uint32_t first = routed.begin[expert], count = routed.begin[expert + 1] - first;
          if (count == 0) continue;
          const std::vector<uint16_t> own(
              placed.begin() + static_cast<ptrdiff_t>(size_t{first} * kColumns),
              placed.begin() + static_cast<ptrdiff_t>(size_t{first + count} * kColumns));
          const GpuMatrix& matrix = device.matrices[expert].matrix;
          const std::vector<std::byte> dense = OutputsOf(matrix, own, kind, [&](const GpuGemmArgs& args) {
            CUDA_MUST(StreamGemmCuda(
                args, {.warps = StreamGemmParts(rows, kColumns, matrix.format), .row_tiles = 1}, {}));
          });
          EXPECT_EQ(std::memcmp(dense.data(), &out[first * row_bytes], dense.size()), 0) << expert;
          ExpectGemmRow(experts.matrices[expert], own.data(), kind, &out[first * row_bytes], 0,
                        /*stride=*/37);
        }
      }
    }
  }
}

TEST(GroupedGemmGpu, WhatItCannotDoIsRefused) {
  const GpuGroupedGemmArgs args{.groups = {.chunk_count = 1, .chunk_tokens = 8},
                                .weights = {.rows = 16, .columns = 64}};
  GpuGroupedGemmArgs rows = args, columns = args, chunk = args, adds = args;
  rows.weights.rows = 24;
  columns.weights.columns = 96;
  chunk.groups.chunk_tokens = 12;
  adds.kind = GpuGemmOut::kAddF32;
  for (const GpuGroupedGemmArgs& each : {rows, columns, chunk, adds})
    EXPECT_EQ(GroupedGemmCuda(each, {}), cudaErrorInvalidValue);
  EXPECT_EQ(CombineExpertsCuda({.tokens = 1, .per_token = 1, .width = 6}, {}), cudaErrorInvalidValue);
}

TEST(CombineExpertsGpu, MatchesTheReferenceToTheBit) {
  for (const GroupedCase& c :
       {GroupedCase{1, 4, 4, 2, 8}, {7, 9, 8, 8, 8}, {70, 5, 3, 1, 8}, {300, 128, 128, 8, 32}}) {
    for (const uint32_t width : {4u, 52u, 1028u, 4096u}) {
      for (const bool adds_to_out : {false, true}) {
        SCOPED_TRACE(testing::Message() << c.tokens << " tokens of " << width << ", adds " << adds_to_out);
        RoutedTokens routed = RandomGroups(c, /*seed=*/width);
        if (c.tokens > 1) routed.weights[c.per_token] = std::nanf("");  // of token 1
        std::mt19937_64 random(width);
        std::normal_distribution<float> normal;
        std::vector<float> rows(routed.pairs.size() * width), before(size_t{c.tokens} * width);
        for (float& each : rows) each = normal(random);
        for (float& each : before) each = normal(random);
        const DeviceRoutes routes(routed);
        const DeviceArray<float> device_rows(rows);
        DeviceArray<float> out(before.size());
        if (adds_to_out) out.Set(before);  // else it holds NaNs
        CUDA_MUST(CombineExpertsCuda({.rows = device_rows.data(),
                                      .places = routes.places.data(),
                                      .weights = routes.weights.data(),
                                      .tokens = c.tokens,
                                      .per_token = c.per_token,
                                      .width = width,
                                      .adds_to_out = adds_to_out,
                                      .out = out.data()},
                                     {.follows = adds_to_out}));
        if (!adds_to_out) std::ranges::fill(before, 0.0f);
        const std::vector<float> want = CombinedRows(routed, c.per_token, rows, width, before),
                                 got = out.Get();
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_EQ(std::isnan(got[i]), c.tokens > 1 && i / width == 1) << i;
          if (std::isnan(got[i])) continue;
          ASSERT_EQ(got[i], want[i]) << i;
        }
      }
    }
  }
}

// A feed-forward layer from logits to the residual stream, in one graph that is launched again with other
// logits and tokens: each token has the bits that it has alone.
TEST(MoeGpu, ALayerIsAGraphInWhichATokenHasTheBitsItHasAlone) {
  constexpr uint32_t kHidden = 512, kFfn = 384, kExperts = 16, kPerToken = 4, kMostTokens = 40;
  const TestExperts gated(DType::kQ4_0, kExperts, 2 * kFfn, kHidden, /*seed=*/1, /*gated=*/true);
  const TestExperts down(DType::kQ8_0, kExperts, kHidden, kFfn, /*seed=*/2, /*gated=*/false);
  const DeviceExperts device_gated(gated), device_down(down);
  const auto layer = [&](uint32_t tokens, const std::vector<std::vector<float>>& logits,
                         const std::vector<std::vector<uint16_t>>& xs) {
    const RouteSizes sizes{tokens, kExperts, kPerToken, true};
    const DeviceRoutes routes(RoutedTokens(sizes, ExpertChunkTokens(tokens * kPerToken, kExperts)));
    DeviceArray<float> device_logits(logits[0].size()), hidden(size_t{tokens} * kHidden),
        rows(size_t{tokens} * kPerToken * kHidden);
    DeviceArray<uint16_t> x(xs[0].size()), middle(size_t{tokens} * kPerToken * kFfn);
    cudaStream_t stream;
    CUDA_MUST(cudaStreamCreate(&stream));
    const CudaLaunch how{.stream = stream, .follows = true};
    CUDA_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CUDA_MUST(RouteExpertsCuda(routes.Args(sizes, device_logits.data(), kExperts), {.stream = stream}));
    CUDA_MUST(GroupedGemmCuda({.x = x.data(),
                               .per_token = kPerToken,
                               .groups = routes.groups(),
                               .weights = gated.form,
                               .experts = device_gated.array.data(),
                               .out = middle.data(),
                               .kind = GpuGemmOut::kGated},
                              how));
    CUDA_MUST(GroupedGemmCuda({.x = middle.data(),
                               .groups = routes.groups(),
                               .weights = down.form,
                               .experts = device_down.array.data(),
                               .out = rows.data(),
                               .kind = GpuGemmOut::kF32},
                              how));
    CUDA_MUST(CombineExpertsCuda({.rows = rows.data(),
                                  .places = routes.places.data(),
                                  .weights = routes.weights.data(),
                                  .tokens = tokens,
                                  .per_token = kPerToken,
                                  .width = kHidden,
                                  .adds_to_out = true,
                                  .out = hidden.data()},
                                 how));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_MUST(cudaStreamEndCapture(stream, &graph));
    CUDA_MUST(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<std::vector<float>> out;
    for (size_t i = 0; i < logits.size(); ++i) {
      device_logits.Set(logits[i]);
      x.Set(xs[i]);
      hidden.Set(std::vector<float>(hidden.size(), 1));
      CUDA_MUST(cudaGraphLaunch(exec, stream));
      CUDA_MUST(cudaStreamSynchronize(stream));
      out.push_back(hidden.Get());
    }
    CUDA_MUST(cudaGraphExecDestroy(exec));
    CUDA_MUST(cudaGraphDestroy(graph));
    CUDA_MUST(cudaStreamDestroy(stream));
    return out;
  };
  std::vector<std::vector<float>> logits;
  std::vector<std::vector<uint16_t>> xs;
  for (uint64_t seed : {1, 2}) {
    logits.push_back(RandomLogits({kMostTokens, kExperts, kPerToken, true}, kExperts, seed));
    xs.push_back(RandomBF16(size_t{kMostTokens} * kHidden, seed));
  }
  const auto together = layer(kMostTokens, logits, xs);
  for (const uint32_t token : {0u, 17u, kMostTokens - 1}) {
    std::vector<std::vector<float>> own_logits;
    std::vector<std::vector<uint16_t>> own_xs;
    for (size_t i = 0; i < 2; ++i) {
      own_logits.emplace_back(&logits[i][token * kExperts], &logits[i][(token + 1) * kExperts]);
      own_xs.emplace_back(&xs[i][token * kHidden], &xs[i][(token + 1) * kHidden]);
    }
    const auto alone = layer(1, own_logits, own_xs);
    for (size_t i = 0; i < 2; ++i) {
      for (uint32_t k = 0; k < kHidden; ++k) {
        ASSERT_EQ(together[i][token * kHidden + k], alone[i][k]) << "token " << token << " column " << k;
        ASSERT_TRUE(std::isfinite(alone[i][k]));
      }
    }
  }
}

// Prints times and bytes of weights per second of a layer's products; nothing is expected of them. With
// TERRACE_GPU_SPEED only: it is no test.
TEST(MoeGpu, Speed) {
  if (std::getenv("TERRACE_GPU_SPEED") == nullptr) GTEST_SKIP();
  constexpr struct {
    const char* name;
    uint32_t hidden, ffn, experts, per_token;
  } models[] = {{"30B-A3B", 2048, 768, 128, 8}, {"8x7B", 4096, 14336, 8, 2}};
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  for (const auto& model : models) {
    for (const SpeedFormat& format : kSpeedFormats) {
      const GpuMatrix forms[] = {
          {.format = format.format, .rows = 2 * model.ffn, .columns = model.hidden, .group = format.group},
          {.format = format.format, .rows = model.hidden, .columns = model.ffn, .group = format.group}};
      for (const GpuMatrix& form : forms) {
        const size_t code_bytes = GpuCodeBytes(form), bytes = code_bytes + GpuScaleBytes(form);
        DeviceArray<std::byte> memory(model.experts * bytes);
        CUDA_MUST(cudaMemset(memory.data(), 0, memory.size()));
        std::vector<GpuMatrix> all(model.experts, form);
        for (uint32_t i = 0; i < model.experts; ++i) {
          all[i].codes = memory.data() + i * bytes;
          all[i].scales = memory.data() + i * bytes + code_bytes;
        }
        const DeviceArray<GpuMatrix> array(all);
        std::printf("%s %-6s [%5u, %5u]:", model.name, format.name, form.rows, form.columns);
        for (const uint32_t tokens : {1u, 8u, 32u, 64u, 512u, 2048u}) {
          const uint32_t pairs = tokens * model.per_token, chunk = ExpertChunkTokens(pairs, model.experts);
          const RoutedTokens routed =
              RandomGroups({tokens, model.experts, model.experts, model.per_token, chunk}, tokens);
          const DeviceRoutes routes(routed);
          const size_t used =
              static_cast<size_t>(std::ranges::count_if(routed.chunks, [&](const GpuExpertChunk& c) {
                return c.count > 0 && c.first == routed.begin[c.expert];
              }));
          DeviceArray<uint16_t> x(size_t{pairs} * form.columns), out(size_t{pairs} * form.rows);
          const double seconds = SecondsOf(stream, 3, 20, [&] {
            CUDA_MUST(GroupedGemmCuda({.x = x.data(),
                                       .groups = routes.groups(),
                                       .weights = form,
                                       .experts = array.data(),
                                       .out = out.data()},
                                      {.stream = stream, .follows = true}));
          });
          std::printf("  %u: %.1f us %.0f GB/s", tokens, 1e6 * seconds,
                      1e-9 * static_cast<double>(used * bytes) / seconds);
        }
        std::printf("\n");
      }
    }
  }
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
