// What blocks of the CUDA kernels ask for at launch, beside what ptxas counts: the second table of
// docs/cuda-kernels.md is this.
#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "base/status.h"
#include "gtest/gtest.h"
#include "kernels/attention/hopper_prefill_device.h"
#include "kernels/attention/prefill_attention_device.h"
#include "kernels/attention/run_attention_device.h"
#include "kernels/gemm/int8_gemm_device.h"
#include "kernels/gemm/sparse_gemm_device.h"
#include "kernels/gemm/tile_gemm_device.h"
#include "kernels/gemm/wide_gemm_device.h"
#include "kernels/moe/grouped_gemm_device.h"
#include "kernels/sample/sample_device.h"

namespace terrace {
namespace {

class Table {
 public:
  // `least` and `most` where it depends on how many warps a block has.
  void Add(const std::string& kernel, size_t least, size_t most) {
    EXPECT_LE(most, kMostOfHopper) << kernel;
    text_ += Concat("| `", kernel, "` | ", least == most ? "" : Concat(least, " to "), most, " |\n");
  }
  void Add(const std::string& kernel, size_t bytes) { Add(kernel, bytes, bytes); }
  const std::string& text() const { return text_; }

 private:
  static constexpr size_t kMostOfHopper = 227 * 1024;

  std::string text_;
};

template <typename Rows, uint32_t kHeadDim, uint32_t kHeadTiles>
void AddDecodeTiles(Table& table, const std::string& rows) {
  table.Add(Concat("DecodeAttentionKernel<", rows, ", ", kHeadDim, ", ", kHeadTiles, ", *, *>"),
            sizeof(decode_attention::Shared<Rows, kHeadDim, kHeadTiles>));
}
template <typename Rows, uint32_t kHeadDim>
void AddDecode(Table& table, const std::string& rows) {
  AddDecodeTiles<Rows, kHeadDim, 1>(table, rows);
  if constexpr (GpuMostGroupHeads(kHeadDim) > decode_attention::kHeadTile)
    AddDecodeTiles<Rows, kHeadDim, 2>(table, rows);
}
template <typename Rows, uint32_t kHeadDim>
void AddRuns(Table& table, const std::string& rows) {
  using run_attention::kFewHeadWarps, run_attention::kManyHeadWarps;
  table.Add(Concat("RunAttentionKernel<", rows, ", ", kHeadDim, ", ", kManyHeadWarps, ", *>"),
            sizeof(run_attention::Shared<Rows, kHeadDim, kManyHeadWarps>));
  table.Add(Concat("RunAttentionKernel<", rows, ", ", kHeadDim, ", ", kFewHeadWarps, ", *>"),
            sizeof(run_attention::Shared<Rows, kHeadDim, kFewHeadWarps>));
}
template <KvDType kDType, uint32_t kHeadDim>
void AddPrefill(Table& table) {
  table.Add(Concat("PrefillAttentionKernel<(KvDType)", static_cast<int>(kDType), ", ", kHeadDim, ", *>"),
            prefill::Layout<kDType, kHeadDim>::kBytes);
}
template <typename Rows>
void AddAttention(Table& table, const std::string& rows) {
  AddDecode<Rows, 32>(table, rows);
  AddDecode<Rows, 64>(table, rows);
  AddDecode<Rows, 128>(table, rows);
  AddDecode<Rows, 256>(table, rows);
  AddRuns<Rows, 32>(table, rows);
  AddRuns<Rows, 64>(table, rows);
  AddRuns<Rows, 128>(table, rows);
  AddPrefill<Rows::kDType, 32>(table);
  AddPrefill<Rows::kDType, 64>(table);
  AddPrefill<Rows::kDType, 128>(table);
  AddPrefill<Rows::kDType, 256>(table);
}

template <bool kLimits>
void AddHopper(Table& table) {
  const std::string limits = kLimits ? "true" : "false";
  table.Add(Concat("HopperPrefillKernel<hopper_prefill::Layout<64, 128, ", limits, "> >"),
            hopper_prefill::Layout<64, 128, kLimits>::kBytes);
  table.Add(Concat("HopperPrefillKernel<hopper_prefill::Layout<128, 128, ", limits, "> >"),
            hopper_prefill::Layout<128, 128, kLimits>::kBytes);
}

template <typename Pieces, uint32_t kTokens>
void AddWide(Table& table, const std::string& pieces) {
  table.Add(Concat("WideGemmKernel<", pieces, ", ", kTokens, ", *>"),
            WideGemmSharedBytes<Pieces, kTokens>({.row_groups = 1}),
            WideGemmSharedBytes<Pieces, kTokens>({.row_groups = kMostWideGroups}));
}
template <typename Pieces>
void AddProducts(Table& table, const std::string& pieces) {
  const auto of_warps = [&](const std::string& kernel, size_t warp_bytes) {
    table.Add(kernel, kLeastStreamWarps * warp_bytes, kMostStreamWarps * warp_bytes);
  };
  of_warps(Concat("StreamGemmKernel<", pieces, ", *, *, false>"), kStreamWarpBytes<Pieces, 1, 1, false>);
  of_warps(Concat("StreamGemmKernel<", pieces, ", 1, 1, true>"), kStreamWarpBytes<Pieces, 1, 1, true>);
  of_warps(Concat("StreamGemmKernel<", pieces, ", 1, 2, true>"), kStreamWarpBytes<Pieces, 1, 2, true>);
  of_warps(Concat("GroupedGemmKernel<", pieces, ", *, *>"), kStreamWarpBytes<Pieces, 1, 1, false>);
  table.Add(Concat("WideGroupedGemmKernel<", pieces, ">"), WideChunkBlock<Pieces>::kShared);
  table.Add(Concat("OrderedGemmKernel<", pieces, ", 2, 4>"), OrderedBlock<Pieces, 2, 4>::kShared);
  table.Add(Concat("OrderedGemmKernel<", pieces, ", 4, 8>"), OrderedBlock<Pieces, 4, 8>::kShared);
}
template <typename Pieces, uint32_t kTokenTiles>
void AddTile(Table& table, const std::string& pieces) {
  std::vector<size_t> bytes;
  for (uint32_t row_warps = 1; row_warps <= 8; ++row_warps) {
    const uint32_t log2_parts = row_warps <= 4 ? 2 : 1;
    bytes.push_back(
        TileGemmSharedBytes<Pieces>({.row_warps = row_warps, .log2_parts = log2_parts}, kTokenTiles));
  }
  table.Add(Concat("TileGemmKernel<", pieces, ", ", kTokenTiles, ">"), std::ranges::min(bytes),
            std::ranges::max(bytes));
}
template <typename Pieces>
void AddOfCodes(Table& table, const std::string& pieces) {
  AddProducts<Pieces>(table, pieces);
  AddTile<Pieces, 4>(table, pieces);
  AddTile<Pieces, 8>(table, pieces);
  AddWide<Pieces, 16>(table, pieces);
  AddWide<Pieces, 32>(table, pieces);
  AddWide<Pieces, 64>(table, pieces);
  AddWide<Pieces, 96>(table, pieces);
  AddWide<Pieces, 128>(table, pieces);
}

TEST(DynamicSharedMemory, IsWhatTheDocumentationLists) {
  Table table;
  AddAttention<decode_attention::BF16Rows>(table, "BF16Rows");
  AddAttention<decode_attention::F16Rows>(table, "F16Rows");
  AddAttention<decode_attention::Int8Rows>(table, "Int8Rows");
  AddAttention<decode_attention::Fp8Rows>(table, "Fp8Rows");
  AddHopper<false>(table);
  AddHopper<true>(table);
  AddProducts<BF16Pieces>(table, "BF16Pieces");
  AddProducts<SparsePieces>(table, "SparsePieces");
  AddOfCodes<E4M3Pieces>(table, "E4M3Pieces");
  AddOfCodes<W4Pieces<1>>(table, "W4Pieces<1>");
  AddOfCodes<W4Pieces<2>>(table, "W4Pieces<2>");
  AddOfCodes<W8Pieces<1>>(table, "W8Pieces<1>");
  AddOfCodes<W8Pieces<2>>(table, "W8Pieces<2>");
  table.Add("SparseGemmKernel", kSparseSharedBytes);
  table.Add("Int8GemmKernel", kInt8SharedBytes);
  table.Add("SamplePartsKernel<false>", kSampleTopsOffset);
  table.Add("SamplePartsKernel<true>", kSampleTopsOffset + sizeof(SampleTopsShared));
  table.Add("SampleTallyKernel", sizeof(SampleTallyShared));
  table.Add("SampleListKernel", sizeof(SampleListShared));
  table.Add("SampleChooseKernel<true>", kSampleChooseShared);

  std::ifstream document("docs/cuda-kernels.md");
  ASSERT_TRUE(document.is_open());
  std::string documented, line;
  while (std::getline(document, line) && line != "| kernel | shared bytes of a block, at launch |") {
  }
  while (std::getline(document, line) && line.starts_with("|")) {
    if (!line.starts_with("|-")) documented += line + "\n";
  }
  EXPECT_EQ(documented, table.text());
}

}  // namespace
}  // namespace terrace
