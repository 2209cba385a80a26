#include "kernels/rope/rope_kv_device.h"

#include "kernels/rope/rope_kv_testing.h"

namespace terrace {
namespace {

void ExpectKernel(RopeKvCase& c, uint64_t seed) {
  const RopeKvShape& s = c.shape;
  std::vector<uint16_t> qkv = c.qkv;
  RopeKvPool pool(s.dtype, c.Rows(), s.head_dim);
  const GpuRopeKvArgs args = {.batch = {.tokens = s.tokens,
                                        .positions = c.positions.data(),
                                        .sequences = c.sequences.data(),
                                        .block_tables = c.block_tables.data(),
                                        .table_pitch = c.table_pitch,
                                        .kv_heads = s.kv_heads,
                                        .head_dim = s.head_dim,
                                        .blocks = c.blocks,
                                        .log2_block_tokens = 4},
                              .qkv = qkv.data(),
                              .cos = c.cos.data(),
                              .sin = c.sin.data(),
                              .heads = s.heads,
                              .neighbours = s.neighbours,
                              .kv = pool.Layer()};
  const GpuHeadAdjustments adjustments = {.bias = c.bias.empty() ? nullptr : c.bias.data(),
                                          .q_norm = c.q_norm.empty() ? nullptr : c.q_norm.data(),
                                          .k_norm = c.k_norm.empty() ? nullptr : c.k_norm.data(),
                                          .norm_epsilon = RopeKvCase::kNormEpsilon};
  LaunchRopeKv(args, adjustments,
               [&](uint32_t blocks, uint32_t threads, auto* kernel, const auto&... arguments) {
                 simt::RunSeeded(seed, {s.tokens, blocks}, threads, 0, kernel, arguments...);
               });
  ExpectRopeKv(c, qkv, pool);
}

TEST(RopeKvDevice, MatchesTheReference) {
  for (const uint32_t head_dim : {16, 32, 64, 80, 96, 128, 176, 256}) {
    for (const bool neighbours : {false, true}) {
      for (const KvDType dtype : kEveryGpuKvDType) {
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", head_dim " << head_dim << " neighbours " << neighbours);
        RopeKvCase c({dtype, /*heads=*/5, /*kv_heads=*/2, head_dim, neighbours}, /*seed=*/head_dim);
        ExpectKernel(c, /*seed=*/head_dim % 3);
        ExpectNearRopeKvRef(c);
      }
    }
  }
}

TEST(RopeKvDevice, AddsBiasesAndNormalizesHeadsBeforeItRotates) {
  for (const uint32_t head_dim : {16, 64, 80, 128, 176, 256}) {
    for (const bool neighbours : {false, true}) {
      for (const KvDType dtype : kEveryGpuKvDType) {
        for (const auto& [has_bias, has_norms] : {std::pair(true, false), {false, true}, {true, true}}) {
          SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", head_dim " << head_dim << " neighbours "
                                          << neighbours << " bias " << has_bias << " norms " << has_norms);
          RopeKvCase c(
              {dtype, /*heads=*/5, /*kv_heads=*/2, head_dim, neighbours, /*tokens=*/4, has_bias, has_norms},
              /*seed=*/head_dim);
          ExpectKernel(c, /*seed=*/head_dim % 3);
          ExpectNearRopeKvRef(c);
        }
      }
    }
  }
}

// Either norm without the other; a head that is not finite, or too large to square, is NaN alone.
TEST(RopeKvDevice, NormsAreEachForItself) {
  for (const bool of_queries : {false, true}) {
    RopeKvCase c({KvDType::kBF16, /*heads=*/5, /*kv_heads=*/2, /*head_dim=*/80, false, /*tokens=*/3, false,
                  /*has_norms=*/true},
                 /*seed=*/6);
    (of_queries ? c.k_norm : c.q_norm).clear();
    c.Head(0, 1)[70] = BF16FromFloat(INFINITY);
    c.Head(1, 2)[9] = BF16FromFloat(NAN);
    c.Head(2, 3)[9] = c.Head(2, 5)[9] = BF16FromFloat(3e19f);
    ExpectKernel(c, /*seed=*/3);
  }
}

// More heads than a block of threads takes; heads that warps share; none of keys but one.
TEST(RopeKvDevice, TakesAnyNumberOfHeads) {
  for (const auto& [heads, kv_heads] :
       {std::pair(1u, 1u), std::pair(32u, 8u), std::pair(64u, 8u), std::pair(71u, 1u)}) {
    RopeKvCase c({KvDType::kInt8, heads, kv_heads, /*head_dim=*/128, false, /*tokens=*/2}, /*seed=*/heads);
    ExpectKernel(c, /*seed=*/1);
  }
}

// Values that a dtype cannot hold; rows that are too small, and as small as may be; ties between int8 codes.
TEST(RopeKvDevice, ExtremesAreWrittenAsDefined) {
  for (const KvDType dtype : kEveryGpuKvDType) {
    for (const bool neighbours : {false, true}) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << " neighbours " << neighbours);
      const uint32_t heads = 1, kv_heads = 14, head_dim = 48;
      RopeKvCase c({dtype, heads, kv_heads, head_dim, neighbours, /*tokens=*/3}, /*seed=*/4);
      const float extremes[] = {INFINITY, -INFINITY, NAN,   1e30f, 65519, 65536, 3e-8f,
                                1e-41f,   3e38f,     -0.0f, 464,   -466,  0.02f};
      for (uint32_t i = 0; i < std::size(extremes); ++i) {
        for (uint32_t token = 0; token < 3; ++token) {
          c.Head(token, heads + i)[(11 * i + 30 * token) % head_dim] = BF16FromFloat(extremes[i]);
          c.Head(token, heads + kv_heads + i)[(11 * i + 30 * token) % head_dim] = BF16FromFloat(extremes[i]);
        }
      }
      // Rows of one magnitude: none, too small, at both sides of the least, and far below and above 1.
      const float magnitudes[] = {0, 1e-39f, 1.48e-36f, 1.5e-36f};
      const float ties[] = {127, 0.5f, -1.5f, 2.5f};
      for (uint32_t i = 0; i < std::size(magnitudes); ++i) {
        for (uint32_t k = 0; k < head_dim; ++k) {
          c.Head(0, heads + kv_heads + 10 + i)[k] =
              BF16FromFloat(k % 3 == 0 ? -magnitudes[i] : magnitudes[i] / 3);
          c.Head(1, heads + kv_heads + 10 + i)[k] =
              BF16FromFloat(std::ldexp(ties[k % 4], static_cast<int>(i) * 39 - 77));
        }
      }
      c.Head(2, 0)[7] = BF16FromFloat(NAN);
      ExpectKernel(c, /*seed=*/2);
    }
  }
}

// v / scale as Int8Row computes it is rounded as a division is.
TEST(RopeKvDevice, Int8CodesAreThoseOfADivision) {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<float> magnitude(-126, 120), fraction(-127, 127);
  for (int i = 0; i < 300'000; ++i) {
    const float scale = std::exp2(magnitude(random));
    const Int8Row row(scale);
    RopePiece piece;
    for (uint32_t k = 0; k < 8; ++k) {
      const float code = fraction(random);
      piece.x[k] = (k % 2 == 0 ? code : std::round(code) + 0.5f) * scale;  // odd: ties, or next to one
    }
    const uint2 codes = row.Codes(piece);
    for (uint32_t k = 0; k < 8; ++k) {
      const auto got = static_cast<int8_t>((k < 4 ? codes.x : codes.y) >> (8 * (k % 4)));
      const float want = piece.x[k] / scale + 0x1.8p23f - 0x1.8p23f;
      if (std::abs(want) <= 127) {
        ASSERT_EQ(got, static_cast<int8_t>(want)) << piece.x[k] << " / " << scale;
      }
    }
  }
}

}  // namespace
}  // namespace terrace
