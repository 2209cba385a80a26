// What the tests of packing on a device share: every kind of matrix that a model may have, as a file holds
// it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/gemm/gpu_matrix_testing.h"
#include "kernels/gemm/pack_matrix_gpu.h"

namespace terrace {

struct PackCase {
  std::string name;
  std::vector<std::unique_ptr<FileWeights>> owned;
  std::vector<WeightMatrix> matrices;
  bool is_gated = false;
  GpuMatrix format;

  GpuMatrixParts parts() const { return {.parts = matrices, .gated = is_gated}; }
};

// As the formats of its parts say, or as `format`.
inline PackCase MakePackCase(const std::vector<DType>& dtypes, const std::vector<uint32_t>& rows,
                             uint32_t columns, bool is_gated, const GpuFormat* format = nullptr) {
  PackCase out;
  out.is_gated = is_gated;
  for (size_t i = 0; i < dtypes.size(); ++i) {
    out.name += Concat(i > 0 ? " and " : "", Info(dtypes[i]).name, " x ", rows[i]);
    out.owned.push_back(std::make_unique<FileWeights>(dtypes[i], rows[i], columns, /*seed=*/columns + i));
    out.matrices.push_back(out.owned.back()->matrix);
  }
  out.format = GpuMatrixByFormat(out.parts());
  if (format != nullptr && out.format.format != *format) {
    out.format.format = *format;
    out.format.group = 0;
  }
  out.name += Concat(", ", columns, " columns", is_gated ? ", gated" : "", ", format ",
                     static_cast<int>(out.format.format));
  return out;
}

// The same with rows of zeros behind it, up to whole tiles.
inline PackCase InWholeTiles(PackCase one) {
  one.format.rows = RowsOfWholeTiles(one.format.rows);
  one.name += ", in whole tiles";
  return one;
}

// Every dtype alone, in each format it may become, without and with rows behind it; every two, stacked and
// gated; three of rows that fill no tiles.
inline std::vector<PackCase> AllPackCases() {
  constexpr GpuFormat kBF16 = GpuFormat::kBF16, kE4M3 = GpuFormat::kE4M3;
  std::vector<PackCase> out;
  for (const DTypeInfo& a : kDTypes) {
    for (const uint32_t rows : {1u, 37u}) {
      for (const GpuFormat* const format : {static_cast<const GpuFormat*>(nullptr), &kBF16, &kE4M3}) {
        out.push_back(MakePackCase({a.dtype}, {rows}, 512, false, format));
        out.push_back(InWholeTiles(MakePackCase({a.dtype}, {rows}, 512, false, format)));
      }
    }
    for (const DTypeInfo& b : kDTypes) {
      out.push_back(MakePackCase({a.dtype, b.dtype}, {24, 24}, 256, true));
      out.push_back(MakePackCase({a.dtype, b.dtype}, {21, 27}, 256, false));
    }
    out.push_back(MakePackCase({a.dtype, a.dtype}, {16, 16}, 256, true, &kE4M3));
  }
  out.push_back(MakePackCase({DType::kQ4_K, DType::kQ4_K, DType::kQ6_K}, {40, 8, 8}, 256, false));
  out.push_back(MakePackCase({DType::kInt4G128, DType::kInt4G128, DType::kInt4G128}, {9, 30, 1}, 384, false));
  out.push_back(
      InWholeTiles(MakePackCase({DType::kQ8_0, DType::kQ6_K, DType::kF16}, {9, 3, 30}, 256, false)));
  out.push_back(MakePackCase({DType::kInt8, DType::kInt8}, {16, 16}, 192, false));  // a group and a half
  // 2:4: alone, gated, stacked, of both dtypes.
  constexpr GpuFormat kSparse = GpuFormat::kSparse;
  const size_t sparse = out.size();
  for (const DType a : {DType::kF16, DType::kBF16}) {
    out.push_back(MakePackCase({a}, {1}, 64, false, &kSparse));
    out.push_back(MakePackCase({a}, {37}, 512, false, &kSparse));
    out.push_back(InWholeTiles(MakePackCase({a}, {37}, 512, false, &kSparse)));
    out.push_back(MakePackCase({a, DType::kBF16}, {24, 24}, 192, true, &kSparse));
    out.push_back(MakePackCase({DType::kF16, a, DType::kBF16}, {21, 8, 19}, 256, false, &kSparse));
  }
  for (size_t i = sparse; i < out.size(); ++i) {
    for (size_t part = 0; part < out[i].owned.size(); ++part)
      KeepTwoOfFour(*out[i].owned[part], /*seed=*/i + part);
  }
  return out;
}

}  // namespace terrace
