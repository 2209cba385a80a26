// The small ops of a step on a GPU, by the rules of their tests on the emulator, at the sizes of real models
// too.
#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation/gate_mul_cuda.h"
#include "kernels/activation/gate_mul_testing.h"
#include "kernels/copy/kv_copy_cuda.h"
#include "kernels/copy/kv_copy_testing.h"
#include "kernels/embed/embed_cuda.h"
#include "kernels/norm/add_norm_cuda.h"
#include "kernels/norm/add_norm_testing.h"
#include "kernels/norm/rms_norm_cuda.h"
#include "kernels/norm/rms_norm_testing.h"
#include "kernels/quant/e4m3_testing.h"
#include "kernels/quant/int8_testing.h"
#include "kernels/quant/quantize_rows_cuda.h"
#include "kernels/rope/rope_kv_cuda.h"
#include "kernels/rope/rope_kv_testing.h"
#include "kernels/sample/cap_logits_cuda.h"
#include "kernels/sample/cap_logits_testing.h"
#include "kernels/scalar_convert.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {
namespace {

std::vector<float> RandomNormal(size_t count, uint64_t seed, float deviation = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> out(count);
  for (float& each : out) each = normal(random);
  return out;
}

struct Sizes {
  uint32_t count, width;
};

TEST(RmsNormGpu, MatchesTheReference) {
  constexpr float kEpsilon = 1e-5f;
  for (const auto [count, width] :
       {Sizes{1, 8}, {3, 136}, {5, 2048}, {300, 4096}, {64, 5000}, {33, 8192}, {7, 8200}, {2, 131072}}) {
    SCOPED_TRACE(testing::Message() << count << " rows of " << width);
    const std::vector<float> x = RandomNormal(size_t{count} * width, /*seed=*/width),
                             weight = RandomNormal(width, 1);
    std::vector<uint32_t> rows(count);
    for (uint32_t i = 0; i < count; ++i) rows[i] = (7 * i + 3) % count;
    const DeviceArray<float> device_x(x), device_weight(weight);
    const DeviceArray<uint32_t> device_rows(rows);
    DeviceArray<uint16_t> plain(x.size()), gathered(x.size());
    DeviceArray<uint8_t> codes(x.size());
    DeviceArray<float> scales(count);
    GpuRmsNormArgs args = {.x = device_x.data(),
                           .weight = device_weight.data(),
                           .count = count,
                           .width = width,
                           .epsilon = kEpsilon,
                           .out = plain.data()};
    CUDA_MUST(RmsNormCuda(args, {}));
    args.rows = device_rows.data();
    args.out = gathered.data();
    args.codes = RowCodes::kE4M3;
    args.out_codes = codes.data();
    args.scales = scales.data();
    CUDA_MUST(RmsNormCuda(args, {.follows = true}));
    const std::vector<uint16_t> got = plain.Get(), got_gathered = gathered.Get();
    const std::vector<uint8_t> got_codes = codes.Get();
    const std::vector<float> got_scales = scales.Get();
    for (size_t i = 0; i < count; ++i) {
      ExpectRmsNormRow(RmsNormRef(&x[i * width], weight, kEpsilon), &got[i * width]);
      const size_t row = rows[i];
      for (size_t k = 0; k < width; ++k) ASSERT_EQ(got_gathered[i * width + k], got[row * width + k]);
      ExpectE4M3Row(RmsNormRef(&x[row * width], weight, kEpsilon), &got_codes[i * width], got_scales[i],
                    kRmsNormError);
    }
  }
}

TEST(RmsNormGpu, Int8MatchesTheReference) {
  constexpr float kEpsilon = 1e-5f;
  for (const auto [count, width] : {Sizes{1, 8}, {5, 2048}, {300, 4096}, {7, 8200}}) {
    SCOPED_TRACE(testing::Message() << count << " rows of " << width);
    const std::vector<float> x = RandomNormal(size_t{count} * width, /*seed=*/width),
                             weight = RandomNormal(width, 1);
    const DeviceArray<float> device_x(x), device_weight(weight);
    DeviceArray<uint8_t> codes(x.size());
    DeviceArray<float> scales(count);
    CUDA_MUST(RmsNormCuda({.x = device_x.data(),
                           .weight = device_weight.data(),
                           .count = count,
                           .width = width,
                           .epsilon = kEpsilon,
                           .codes = RowCodes::kInt8,
                           .out_codes = codes.data(),
                           .scales = scales.data()},
                          {.follows = true}));
    const std::vector<uint8_t> got = codes.Get();
    const std::vector<float> got_scales = scales.Get();
    for (size_t i = 0; i < count; ++i) {
      ExpectInt8Row(RmsNormRef(&x[i * width], weight, kEpsilon),
                    reinterpret_cast<const int8_t*>(&got[i * width]), got_scales[i], kRmsNormError);
    }
  }
}

std::vector<uint16_t> RandomRows(uint32_t count, uint32_t width) {
  std::vector<uint16_t> x;
  for (const float value : RandomNormal(size_t{count} * width, /*seed=*/width))
    x.push_back(BF16FromFloat(value));
  return x;
}

// Codes and scales of rows of `width`.
std::pair<std::vector<uint8_t>, std::vector<float>> QuantizedRows(const std::vector<uint16_t>& x,
                                                                  uint32_t width, RowCodes row_codes) {
  const auto count = static_cast<uint32_t>(x.size() / width);
  const DeviceArray<uint16_t> device_x(x);
  DeviceArray<uint8_t> codes(x.size());
  DeviceArray<float> scales(count);
  CUDA_MUST(QuantizeRowsCuda({.x = device_x.data(),
                              .rows = count,
                              .width = width,
                              .out = codes.data(),
                              .scales = scales.data(),
                              .codes = row_codes},
                             {.follows = true}));
  return {codes.Get(), scales.Get()};
}

TEST(QuantizeRowsGpu, Int8IsWithinHalfAStep) {
  for (const auto [count, width] : {Sizes{1, 8}, {3, 2056}, {70, 14336}}) {
    SCOPED_TRACE(testing::Message() << count << " rows of " << width);
    const std::vector<uint16_t> x = RandomRows(count, width);
    const auto [got, got_scales] = QuantizedRows(x, width, RowCodes::kInt8);
    for (size_t i = 0; i < count; ++i) {
      std::vector<double> want(width);
      for (size_t k = 0; k < width; ++k) want[k] = FloatFromBF16(x[i * width + k]);
      ExpectInt8Row(want, reinterpret_cast<const int8_t*>(&got[i * width]), got_scales[i], 0);
    }
  }
}

TEST(QuantizeRowsGpu, E4M3MatchesTheReference) {
  for (const auto [count, width] : {Sizes{1, 8}, {3, 2056}, {70, 14336}}) {
    SCOPED_TRACE(testing::Message() << count << " rows of " << width);
    std::vector<uint16_t> x = RandomRows(count, width);
    if (count > 1) {
      std::fill_n(x.begin() + width, width, uint16_t{0});
      x.back() = 0x7fc0;  // NaN, in the last row
    }
    const auto [got, got_scales] = QuantizedRows(x, width, RowCodes::kE4M3);
    for (size_t i = 0; i < count; ++i) {
      if (count > 1 && i == count - 1) {
        EXPECT_TRUE(std::isnan(got_scales[i]));
        continue;
      }
      std::vector<double> want(width);
      for (size_t k = 0; k < width; ++k) want[k] = FloatFromBF16(x[i * width + k]);
      ExpectE4M3Row(want, &got[i * width], got_scales[i], 0x1p-22);  // value * inverse and its rounding
    }
  }
}

TEST(RmsNormGpu, RefusesWhatItCannot) {
  EXPECT_EQ(RmsNormCuda({.count = 1, .width = 12}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(RmsNormCuda({.count = 1, .width = 16}, {}), cudaErrorInvalidValue);
}

TEST(AddNormGpu, MatchesTheReference) {
  constexpr float kEpsilon = 1e-6f;
  for (const auto [count, width] :
       {Sizes{1, 8}, {3, 136}, {5, 2048}, {70, 2304}, {300, 4096}, {33, 8192}, {7, 8200}, {2, 131072}}) {
    SCOPED_TRACE(testing::Message() << count << " rows of " << width);
    const std::vector<float> x = RandomNormal(size_t{count} * width, /*seed=*/width),
                             weight = RandomNormal(width, 1), before = RandomNormal(x.size(), 2);
    const DeviceArray<float> device_x(x), device_weight(weight);
    const DeviceArray<float> hidden(before);
    CUDA_MUST(AddNormCuda({.x = device_x.data(),
                           .weight = device_weight.data(),
                           .hidden = hidden.data(),
                           .count = count,
                           .width = width,
                           .epsilon = kEpsilon},
                          {.follows = true}));
    const std::vector<float> got = hidden.Get();
    for (size_t i = 0; i < count; ++i)
      ExpectAddNormRow(&x[i * width], weight, kEpsilon, &before[i * width], &got[i * width]);
  }
}

TEST(AddNormGpu, WhatIsNotFiniteShows) {
  const uint32_t width = 256;
  std::vector<float> x(3 * width, 1);
  x[17] = NAN;
  x[width + 255] = INFINITY;
  x[2 * width + 200] = 3e19f;  // its square overflows
  const DeviceArray<float> device_x(x), weight(std::vector<float>(width, 2)),
      hidden(std::vector<float>(x.size(), 3));
  CUDA_MUST(AddNormCuda(
      {.x = device_x.data(), .weight = weight.data(), .hidden = hidden.data(), .count = 3, .width = width},
      {}));
  for (const float each : hidden.Get()) EXPECT_TRUE(std::isnan(each));
}

TEST(AddNormGpu, RefusesWhatItCannot) {
  for (const uint32_t width : {0, 12, 131080})
    EXPECT_EQ(AddNormCuda({.count = 1, .width = width}, {}), cudaErrorInvalidValue) << width;
}

TEST(CapLogitsGpu, MatchesTheReference) {
  for (const size_t count : {4, 1024, 5000, 3 * 256'000}) {
    for (const float cap : {0.5f, 30.0f}) {
      SCOPED_TRACE(testing::Message() << count << " logits, cap " << cap);
      std::vector<float> raw = RandomNormal(count, /*seed=*/count, /*deviation=*/30);
      raw[0] = 3e38f;
      raw[1] = -3e38f;
      if (count > 4) raw[4] = INFINITY, raw[5] = -INFINITY, raw[6] = NAN;
      const DeviceArray<float> logits(raw);
      CUDA_MUST(CapLogitsCuda({.logits = logits.data(), .count = count, .cap = cap}, {.follows = true}));
      const std::vector<float> got = logits.Get();
      ExpectCappedLogits(raw, cap, got.data());
      EXPECT_EQ(got[0], cap);
      EXPECT_EQ(got[1], -cap);
    }
  }
}

TEST(CapLogitsGpu, RefusesWhatItCannot) {
  EXPECT_EQ(CapLogitsCuda({.count = 6, .cap = 30}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(CapLogitsCuda({.count = 8, .cap = 0}, {}), cudaErrorInvalidValue);
}

TEST(GateMulGpu, MatchesTheReference) {
  for (const auto [tokens, width] :
       {Sizes{1, 8}, {5, 40}, {3, 4104}, {5, 8200}, {700, 14336}, {64, 28672}, {3, 33000}}) {
    std::vector<uint16_t> in;
    for (const float value :
         RandomNormal(size_t{tokens} * 2 * width, /*seed=*/width, /*deviation=*/width < 100 ? 50 : 3)) {
      in.push_back(BF16FromFloat(std::clamp(value, -kGateMulMost, kGateMulMost)));
    }
    const DeviceArray<uint16_t> device_in(in);
    for (const GateFunction function : kGateFunctions) {
      SCOPED_TRACE(testing::Message()
                   << GateFunctionName(function) << ", " << tokens << " tokens, width " << width);
      DeviceArray<uint16_t> plain(in.size() / 2), beside(in.size() / 2);
      DeviceArray<uint8_t> codes(in.size() / 2);
      DeviceArray<float> scales(tokens);
      GpuGateMulArgs args = {
          .in = device_in.data(), .tokens = tokens, .width = width, .gate = function, .out = plain.data()};
      CUDA_MUST(GateMulCuda(args, {}));
      args.out = beside.data();
      args.out_e4m3 = codes.data();
      args.scales = scales.data();
      CUDA_MUST(GateMulCuda(args, {.follows = true}));
      const std::vector<uint16_t> got = plain.Get();
      const std::vector<uint8_t> got_codes = codes.Get();
      const std::vector<float> got_scales = scales.Get();
      EXPECT_EQ(beside.Get(), got);
      for (size_t i = 0; i < tokens; ++i) {
        const std::vector<double> want = GateMulRef(function, &in[i * 2 * width], width);
        ExpectGateMulRow(function, want, &got[i * width]);
        ExpectE4M3Row(want, &got_codes[i * width], got_scales[i], GateMulError(function));
      }
    }
  }
}

TEST(GateMulGpu, GatesOfAnySizeVanishOrPass) {
  const DeviceArray<uint16_t> in(FarGates());
  for (const GateFunction function : kGateFunctions) {
    SCOPED_TRACE(GateFunctionName(function));
    const DeviceArray<uint16_t> out(16);
    CUDA_MUST(
        GateMulCuda({.in = in.data(), .tokens = 1, .width = 16, .gate = function, .out = out.data()}, {}));
    ExpectFarGatesVanishOrPass(out.Get());
  }
}

void ExpectRopeKvOnGpu(RopeKvCase& c) {
  const RopeKvShape& s = c.shape;
  SCOPED_TRACE(testing::Message() << KvDTypeName(s.dtype) << ", " << s.tokens << " tokens, heads " << s.heads
                                  << " and " << s.kv_heads << " of " << s.head_dim << " neighbours "
                                  << s.neighbours);
  RopeKvPool pool(s.dtype, c.Rows(), s.head_dim);
  const DeviceArray<uint32_t> positions(c.positions), sequences(c.sequences);
  const DeviceArray<int32_t> block_tables(c.block_tables);
  const DeviceArray<float> cos(c.cos), sin(c.sin);
  const DeviceArray<uint16_t> qkv(c.qkv), bias(c.bias);
  const DeviceArray<float> q_norm(c.q_norm), k_norm(c.k_norm);
  const DeviceArray<std::byte> keys(pool.keys), values(pool.values);
  const DeviceArray<float> key_scales(pool.key_scales), value_scales(pool.value_scales);
  CUDA_MUST(RopeKvCuda({.batch = {.tokens = s.tokens,
                                  .positions = positions.data(),
                                  .sequences = sequences.data(),
                                  .block_tables = block_tables.data(),
                                  .table_pitch = c.table_pitch,
                                  .kv_heads = s.kv_heads,
                                  .head_dim = s.head_dim,
                                  .blocks = c.blocks,
                                  .log2_block_tokens = 4},
                        .qkv = qkv.data(),
                        .cos = cos.data(),
                        .sin = sin.data(),
                        .heads = s.heads,
                        .neighbours = s.neighbours,
                        .kv = {.dtype = s.dtype,
                               .keys = {.data = keys.data(), .scales = key_scales.data()},
                               .values = {.data = values.data(), .scales = value_scales.data()}}},
                       {.follows = true},
                       {.bias = bias.data(),
                        .q_norm = q_norm.data(),
                        .k_norm = k_norm.data(),
                        .norm_epsilon = RopeKvCase::kNormEpsilon}));
  pool.keys = keys.Get();
  pool.values = values.Get();
  pool.key_scales = key_scales.Get();
  pool.value_scales = value_scales.Get();
  ExpectRopeKv(c, qkv.Get(), pool);
}

TEST(RopeKvGpu, MatchesTheReferenceToTheBit) {
  for (const KvDType dtype : kEveryGpuKvDType) {
    for (const bool neighbours : {false, true}) {
      for (const uint32_t head_dim : {16, 32, 64, 80, 96, 128, 176, 256}) {
        RopeKvCase c({dtype, /*heads=*/5, /*kv_heads=*/2, head_dim, neighbours, /*tokens=*/9},
                     /*seed=*/head_dim);
        ExpectRopeKvOnGpu(c);
      }
      RopeKvCase large({dtype, /*heads=*/32, /*kv_heads=*/8, /*head_dim=*/128, neighbours, /*tokens=*/500},
                       /*seed=*/1);
      ExpectRopeKvOnGpu(large);
      RopeKvCase extreme({dtype, /*heads=*/1, /*kv_heads=*/8, /*head_dim=*/64, neighbours, /*tokens=*/3},
                         /*seed=*/2);
      const float extremes[] = {INFINITY, -INFINITY, NAN, 1e30f, 65519, 65536, 3e-8f, 1e-41f};
      for (uint32_t i = 0; i < std::size(extremes); ++i) {
        extreme.Head(0, 1 + i)[5 * i] = extreme.Head(1, 9 + i)[5 * i] = BF16FromFloat(extremes[i]);
        for (uint32_t k = 0; k < 64; ++k) {  // rows of small and large values, at steps of int8
          extreme.Head(2, 9 + i)[k] =
              BF16FromFloat(std::ldexp(k % 2 == 0 ? 127.0f : 2.5f, static_cast<int>(i) * 25 - 128));
        }
      }
      ExpectRopeKvOnGpu(extreme);
    }
  }
}

// Norms too: roots and quotients are rounded as on the host.
TEST(RopeKvGpu, BiasesAndHeadNormsMatchTheReferenceToTheBit) {
  for (const KvDType dtype : kEveryGpuKvDType) {
    for (const bool neighbours : {false, true}) {
      for (const auto& [has_bias, has_norms] : {std::pair(true, false), {false, true}, {true, true}}) {
        SCOPED_TRACE(testing::Message() << "bias " << has_bias << " norms " << has_norms);
        for (const uint32_t head_dim : {16, 64, 80, 128, 176, 256}) {
          RopeKvCase c(
              {dtype, /*heads=*/5, /*kv_heads=*/2, head_dim, neighbours, /*tokens=*/9, has_bias, has_norms},
              /*seed=*/head_dim);
          ExpectRopeKvOnGpu(c);
        }
        RopeKvCase large({dtype, /*heads=*/32, /*kv_heads=*/8, /*head_dim=*/128, neighbours, /*tokens=*/300,
                          has_bias, has_norms},
                         /*seed=*/1);
        large.Head(7, 1)[70] = BF16FromFloat(INFINITY);
        large.Head(8, 33)[9] = BF16FromFloat(3e19f);
        ExpectRopeKvOnGpu(large);
      }
    }
  }
}

TEST(RopeKvGpu, RefusesWhatItCannot) {
  GpuRopeKvArgs args;
  args.batch.tokens = args.batch.kv_heads = 1;
  args.kv.dtype = KvDType::kBF16;
  for (const uint32_t head_dim : {0, 24, 272}) {
    args.batch.head_dim = head_dim;
    EXPECT_EQ(RopeKvCuda(args, {}), cudaErrorInvalidValue) << head_dim;
  }
  args.batch.head_dim = 64;
  args.kv.dtype = KvDType::kF32;
  EXPECT_EQ(RopeKvCuda(args, {}), cudaErrorInvalidValue);
}

TEST(EmbedGpu, LooksRowsUpExactly) {
  for (const auto [count, width] : {Sizes{1, 8}, {9, 1000}, {300, 4096}, {20, 8192}}) {
    SCOPED_TRACE(testing::Message() << count << " rows of " << width);
    const uint32_t vocab = 999;
    std::vector<uint16_t> table(size_t{vocab} * width);
    for (size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<uint16_t>((i * 40503) & 0xbf7f);  // finite
    std::vector<int32_t> tokens(count);
    for (uint32_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>(i * 331 % (vocab + 2)) - 1;
    const DeviceArray<uint16_t> device_table(table);
    const DeviceArray<int32_t> device_tokens(tokens);
    DeviceArray<float> out(size_t{count} * width);
    const float scale = count > 10 ? 47.8f : 1;
    CUDA_MUST(EmbedCuda({.tokens = device_tokens.data(),
                         .count = count,
                         .table = device_table.data(),
                         .vocab = vocab,
                         .width = width,
                         .out = out.data(),
                         .scale = scale},
                        {.follows = true}));
    const std::vector<float> got = out.Get();
    for (size_t i = 0; i < got.size(); ++i) {
      const int32_t token = tokens[i / width];
      if (token < 0 || token >= static_cast<int32_t>(vocab)) {
        ASSERT_TRUE(std::isnan(got[i])) << i;
      } else {
        ASSERT_EQ(got[i], scale * FloatFromBF16(table[static_cast<size_t>(token) * width + i % width])) << i;
      }
    }
  }
}

TEST(KvCopyGpu, MovesRowsWithinThePoolAndThroughStaging) {
  for (const auto& [block_tokens, head_dim, rows] :
       {std::tuple{16u, 64u, 16u}, {16u, 32u, 7u}, {128u, 256u, 128u}, {32u, 80u, 31u}}) {
    SCOPED_TRACE(testing::Message() << block_tokens << " tokens, head_dim " << head_dim << ", rows " << rows);
    KvCopyPool want(/*pool_blocks=*/50, /*heads=*/8, block_tokens, head_dim);
    std::vector<uint32_t> want_staging(want.staging_bytes / 4, 0xffffffff);
    std::vector<DeviceArray<uint32_t>> memory;
    std::vector<GpuKvPart> parts = want.parts;
    for (size_t i = 0; i < parts.size(); ++i) {
      memory.emplace_back(want.memory[i]);
      parts[i].data = memory[i].data();
    }
    const DeviceArray<GpuKvPart> device_parts(parts);
    const DeviceArray<uint32_t> staging(want_staging.size());
    const auto copy = [&](GpuKvCopyArgs args, bool staged) {
      args.parts = device_parts.data();
      args.part_count = static_cast<uint32_t>(parts.size());
      args.kv_heads = want.kv_heads;
      args.blocks = want.blocks;
      args.staging = staged ? staging.data() : nullptr;
      CUDA_MUST(KvCopyCuda(args, {.follows = true}));
      args.staging = staged ? want_staging.data() : nullptr;
      want.Copy(args);
    };
    copy({.from = 1, .to = 49, .rows = rows}, false);
    copy({.from = 49, .to = 0, .rows = rows}, true);
    copy({.from = 0, .to = 20, .rows = rows, .to_pool = true}, true);
    EXPECT_EQ(staging.Get(), want_staging);
    for (size_t i = 0; i < parts.size(); ++i) EXPECT_EQ(memory[i].Get(), want.memory[i]) << "part " << i;
  }
}

// A step is captured once and replayed: every op must be one that a graph holds.
TEST(ElementwiseGpu, IsCapturedInAGraph) {
  const uint32_t width = 64;
  const DeviceArray<int32_t> tokens(std::vector<int32_t>{1});
  const DeviceArray<uint16_t> table(std::vector<uint16_t>(2 * width, BF16FromFloat(2)));
  const DeviceArray<float> x(width), weight(std::vector<float>(width, 3));
  const DeviceArray<float> added(std::vector<float>(width, 1));
  const DeviceArray<uint16_t> normed(width), gated(width / 2);
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  CUDA_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  const CudaLaunch how = {.stream = stream, .follows = true};
  CUDA_MUST(EmbedCuda({.tokens = tokens.data(),
                       .count = 1,
                       .table = table.data(),
                       .vocab = 2,
                       .width = width,
                       .out = x.data()},
                      how));
  CUDA_MUST(RmsNormCuda(
      {.x = x.data(), .weight = weight.data(), .count = 1, .width = width, .out = normed.data()}, how));
  CUDA_MUST(AddNormCuda(
      {.x = x.data(), .weight = weight.data(), .hidden = added.data(), .count = 1, .width = width}, how));
  CUDA_MUST(CapLogitsCuda({.logits = x.data(), .count = width, .cap = 30}, how));
  CUDA_MUST(GateMulCuda({.in = normed.data(), .tokens = 1, .width = width / 2, .out = gated.data()}, how));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_MUST(cudaStreamEndCapture(stream, &graph));
  CUDA_MUST(cudaGraphInstantiate(&exec, graph, 0));
  CUDA_MUST(cudaGraphLaunch(exec, stream));
  CUDA_MUST(cudaStreamSynchronize(stream));
  for (const uint16_t each : normed.Get()) EXPECT_EQ(each, BF16FromFloat(3));
  for (const float each : added.Get()) EXPECT_NEAR(each, 4, 1e-5);
  for (const float each : x.Get()) EXPECT_NEAR(each, 30 * std::tanh(2.0 / 30), 1e-4);
  for (const uint16_t each : gated.Get()) EXPECT_NEAR(FloatFromBF16(each), 9 / (1 + std::exp(-3.0)), 0.05);
  CUDA_MUST(cudaGraphExecDestroy(exec));
  CUDA_MUST(cudaGraphDestroy(graph));
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
