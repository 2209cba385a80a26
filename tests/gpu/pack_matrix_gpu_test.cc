#include "gtest/gtest.h"
#include "kernels/gemm/pack_matrix_testing.h"
#include "tests/gpu/gpu_testing.h"
#include "worker/cuda/weight_uploader.h"

namespace terrace {
namespace {

// Where an uploader packs to.
struct DevicePacked {
  explicit DevicePacked(const GpuMatrix& format)
      : codes(GpuCodeBytes(format)),
        scales(GpuScaleBytes(format)),
        unfit(std::vector<uint32_t>{0}),
        target{.matrix = format, .codes = codes.data(), .scales = scales.data(), .unfit = unfit.data()} {}

  void ExpectIs(const PackedGpuMatrix& want) const {
    ASSERT_TRUE(codes.Get() == want.codes);
    ASSERT_TRUE(scales.Get() == want.scales);
    ASSERT_EQ(unfit.Get()[0], 0u);
  }

  DeviceArray<std::byte> codes, scales;
  DeviceArray<uint32_t> unfit;
  GpuPackTarget target;
};

std::unique_ptr<WeightUploader> MakeUploader(ThreadPool& pool, uint64_t slot_bytes) {
  auto made = WeightUploader::Create(pool, slot_bytes);
  CHECK(made.ok(), Message(made.status()));
  return *std::move(made);
}

TEST(PackMatrixGpu, EveryBitIsThatOfTheHost) {
  ThreadPool pool(2);
  // A tile or two at a time, so that slots come again; and all at once.
  for (const uint64_t slot_bytes : {uint64_t{36} << 10, uint64_t{1} << 20}) {
    const auto uploader = MakeUploader(pool, slot_bytes);
    for (const PackCase& c : AllPackCases()) {
      SCOPED_TRACE(c.name);
      const DevicePacked packed(c.format);
      ASSERT_EQ(uploader->Pack(c.parts(), packed.target), Status());
      ASSERT_EQ(uploader->Wait(), Status());
      packed.ExpectIs(PackedGpuMatrix(c.parts(), c.format));
    }
  }
}

// Of a model's sizes, several on their way at once.
TEST(PackMatrixGpu, LargeMatricesFollowEachOther) {
  constexpr GpuFormat kE4M3 = GpuFormat::kE4M3;
  ThreadPool pool(4);
  const auto uploader = MakeUploader(pool, uint64_t{4} << 20);
  std::vector<PackCase> cases;
  cases.push_back(MakePackCase({DType::kQ4_0, DType::kQ4_0}, {3072, 3072}, 4096, true));
  cases.push_back(MakePackCase({DType::kQ4_K, DType::kQ4_K, DType::kQ6_K}, {4096, 1024, 1024}, 4096, false));
  cases.push_back(MakePackCase({DType::kBF16}, {2048}, 4096, false));
  cases.push_back(MakePackCase({DType::kBF16, DType::kBF16}, {1024, 1024}, 4096, true, &kE4M3));
  cases.push_back(MakePackCase({DType::kInt4G128}, {2048}, 14336, false));
  std::vector<std::unique_ptr<DevicePacked>> packed;
  for (const PackCase& c : cases) packed.push_back(std::make_unique<DevicePacked>(c.format));
  for (size_t i = 0; i < cases.size(); ++i) {
    ASSERT_EQ(uploader->Pack(cases[i].parts(), packed[i]->target), Status());
  }
  ASSERT_EQ(uploader->Wait(), Status());
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(cases[i].name);
    packed[i]->ExpectIs(PackedGpuMatrix(cases[i].parts(), cases[i].format));
  }
}

TEST(PackMatrixGpu, FindsScalesThatDoNotFit) {
  PackCase c = MakePackCase({DType::kQ6_K}, {48}, 256, false);
  const uint16_t bits = F16FromFloat(6e4f);
  std::memcpy(&c.owned[0]->bytes[1 + 33 * 210 + 208], &bits, 2);
  ThreadPool pool(1);
  ASSERT_EQ(GpuMatrixOf(c.parts(), pool).format, GpuFormat::kBF16);
  const auto uploader = MakeUploader(pool, uint64_t{64} << 10);
  const DevicePacked packed(c.format);
  ASSERT_EQ(uploader->Pack(c.parts(), packed.target), Status());
  ASSERT_EQ(uploader->Wait(), Status());
  EXPECT_EQ(packed.unfit.Get()[0], 1u);
}

}  // namespace
}  // namespace terrace
