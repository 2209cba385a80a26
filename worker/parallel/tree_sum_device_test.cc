// The kernel that adds ranks' partial sums on a device, on the emulator: AddTree, to the bit.
#include "kernels/reduce/tree_sum_device.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"
#include "worker/parallel/tree_sum.h"

namespace terrace {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr uint16_t kUnwritten = 0xbeef;

float ValueOf(DType dtype, const uint16_t* from) {
  if (dtype == DType::kF16) return FloatFromF16(*from);
  if (dtype == DType::kBF16) return FloatFromBF16(*from);
  return LoadUnaligned<float>(reinterpret_cast<const std::byte*>(from));
}
void Put(DType dtype, float value, uint16_t* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, &value, sizeof(value));
  } else {
    *to = dtype == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
  }
}

// Parts of `count` elements of many magnitudes, `offset` elements behind an aligned place; and a place of as
// many for the sum.
struct Parts {
  Parts(DType type, uint32_t parts, size_t elements, size_t begin, uint64_t seed)
      : dtype(type), count(elements), words(Info(type).block_bytes / 2), offset(begin * words) {
    for (uint32_t part = 0; part <= parts; ++part)
      memory.emplace_back(offset + (count + 8) * words, kUnwritten);
    for (uint32_t part = 0; part < parts; ++part) {
      for (size_t i = 0; i < count; ++i) {
        const double magnitude = std::exp2(8 * RandomUniform(seed, i, 2 * part));
        const double value = magnitude * (RandomUniform(seed, i, 2 * part + 1) - 0.5);
        Put(dtype, static_cast<float>(value), At(part, i));
      }
    }
  }
  uint16_t* At(size_t part, size_t i) { return memory[part].data() + offset + i * words; }

  // The sum's memory as it should be, where `out` is a part or, as the last one, the place beside them.
  std::vector<uint16_t> Want(size_t out) {
    std::vector<std::vector<float>> values(memory.size() - 1, std::vector<float>(count));
    std::vector<float*> pointers;
    for (size_t part = 0; part < values.size(); ++part) {
      for (size_t i = 0; i < count; ++i) values[part][i] = ValueOf(dtype, At(part, i));
      pointers.push_back(values[part].data());
    }
    AddTree(pointers, 0, count);
    std::vector<uint16_t> want = memory[out];
    for (size_t i = 0; i < count; ++i) Put(dtype, values[0][i], want.data() + offset + i * words);
    return want;
  }

  // `blocks`: 0 for as many as the launcher takes.
  void Add(size_t out, uint32_t blocks, uint64_t seed) {
    GpuTreeSumArgs args = {.part_count = static_cast<uint32_t>(memory.size() - 1),
                           .count = count,
                           .dtype = dtype,
                           .out = At(out, 0)};
    for (uint32_t part = 0; part < args.part_count; ++part) args.parts[part] = At(part, 0);
    LaunchTreeSum(args, [&](uint32_t grid, uint32_t threads, auto* kernel, const auto& arguments) {
      simt::RunSeeded(seed, {blocks == 0 ? grid : blocks}, threads, 0, kernel, arguments);
    });
  }

  DType dtype;
  size_t count, words, offset;  // words of 16 bits: of an element, before the first
  std::vector<std::vector<uint16_t>> memory;
};

void ExpectAddTree(Parts parts, size_t out, uint32_t blocks, uint64_t seed) {
  const std::vector<uint16_t> want = parts.Want(out);
  const auto others = parts.memory;
  parts.Add(out, blocks, seed);
  EXPECT_EQ(parts.memory[out], want);
  for (size_t part = 0; part < others.size(); ++part) {
    if (part == out) continue;
    EXPECT_EQ(parts.memory[part], others[part]) << "part " << part << " is read only";
  }
}

// The sum's place is one of a part, as on a rank, or beside them.
TEST(TreeSumDevice, IsAddTreeForEveryNumberOfParts) {
  for (uint32_t parts = 1; parts <= kMaxTreeParts; ++parts) {
    const DType dtype = kDTypes[parts % 3];
    SCOPED_TRACE(testing::Message() << parts << " parts of " << Info(dtype).name);
    const Parts values(dtype, parts, /*elements=*/1023, /*begin=*/0, /*seed=*/parts);
    ExpectAddTree(values, /*out=*/parts % 2 == 0 ? parts : parts / 2, /*blocks=*/0, /*seed=*/parts);
  }
}

TEST(TreeSumDevice, IsAddTreeOfEveryFormatInEveryKernel) {
  for (const DType dtype : kDTypes) {
    for (const uint32_t parts : {2u, 4u, 8u, 16u}) {
      SCOPED_TRACE(testing::Message() << parts << " parts of " << Info(dtype).name);
      ExpectAddTree(Parts(dtype, parts, 515, /*begin=*/0, /*seed=*/parts), /*out=*/1, /*blocks=*/0,
                    /*seed=*/2);
    }
  }
}

TEST(TreeSumDevice, FewElementsAreEnough) {
  for (const DType dtype : kDTypes) {
    for (const size_t count : {size_t{1}, size_t{7}}) {
      SCOPED_TRACE(testing::Message() << count << " " << Info(dtype).name);
      ExpectAddTree(Parts(dtype, 3, count, /*begin=*/0, /*seed=*/count), /*out=*/1, /*blocks=*/0, /*seed=*/1);
    }
  }
}

TEST(TreeSumDevice, PlacesNeedNoAlignment) {
  for (const DType dtype : kDTypes) {
    for (const size_t begin : {size_t{1}, size_t{2}, size_t{4}}) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " from " << begin);
      ExpectAddTree(Parts(dtype, 4, 300, begin, /*seed=*/begin), /*out=*/1, /*blocks=*/0, /*seed=*/1);
    }
  }
}

TEST(TreeSumDevice, AGridThatIsTooSmallGoesAroundAgain) {
  for (const DType dtype : kDTypes) {
    ExpectAddTree(Parts(dtype, 3, 5003, /*begin=*/0, /*seed=*/3), /*out=*/0, /*blocks=*/2, /*seed=*/2);
    ExpectAddTree(Parts(dtype, 3, 5003, /*begin=*/1, /*seed=*/4), /*out=*/0, /*blocks=*/2, /*seed=*/2);
  }
}

TEST(TreeSumDevice, WhatIsNotFiniteShows) {
  for (const DType dtype : kDTypes) {
    Parts parts(dtype, 4, 64, /*begin=*/0, /*seed=*/5);
    Put(dtype, std::nanf(""), parts.At(2, 10));
    Put(dtype, INFINITY, parts.At(1, 20));
    parts.Add(/*out=*/4, /*blocks=*/0, /*seed=*/0);
    EXPECT_TRUE(std::isnan(ValueOf(dtype, parts.At(4, 10))));
    EXPECT_TRUE(std::isinf(ValueOf(dtype, parts.At(4, 20))));
    EXPECT_TRUE(std::isfinite(ValueOf(dtype, parts.At(4, 11))));
  }
}

}  // namespace
}  // namespace terrace
