// What the tests of the gemm kernels on a GPU share.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "kernels/gemm/gpu_gemm_testing.h"
#include "tests/gpu/device_data.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {

// Scratch of kernels whose blocks split the columns: see TileGemmScratch.
struct SplitScratch {
  SplitScratch(size_t floats, size_t counters) : partials(floats), arrived(counters) {
    arrived.Set(std::vector<uint32_t>(counters));
  }
  DeviceArray<float> partials;
  DeviceArray<uint32_t> arrived;
};

// Of a product that `queue`s: out's bytes, of `tokens` rows; kAddF32 adds to 2.5. What is behind them stays.
inline std::vector<std::byte> OutputsOf(const GpuMatrix& weights, const std::vector<uint16_t>& x,
                                        const TestGemmOut& output,
                                        const std::function<void(const GpuGemmArgs&)>& queue) {
  const auto tokens = static_cast<uint32_t>(x.size() / weights.columns);
  const DeviceArray<uint16_t> device_x(x);
  DeviceArray<std::byte> out(tokens * RowBytes(weights.rows, output) + 64);
  if (output.kind == GpuGemmOut::kAddF32) {
    const std::vector<float> before(size_t{tokens} * weights.rows, 2.5f);
    std::vector<std::byte> bytes(before.size() * 4);
    std::memcpy(bytes.data(), before.data(), bytes.size());
    out.Set(bytes);
  }
  queue({.x = device_x.data(),
         .tokens = tokens,
         .weights = weights,
         .out = out.data(),
         .kind = output.kind,
         .gate = output.gate});
  std::vector<std::byte> bytes = out.Get();
  for (size_t i = bytes.size() - 64; i < bytes.size(); ++i) EXPECT_EQ(bytes[i], std::byte{0xff});
  bytes.resize(bytes.size() - 64);
  return bytes;
}

// The matrices of a layer of an 8B model, in formats that GPUs hold: for printing times.
struct SpeedFormat {
  const char* name;
  GpuFormat format;
  uint32_t group;
};
inline constexpr SpeedFormat kSpeedFormats[] = {{"e4m3", GpuFormat::kE4M3, 0},
                                                {"w4g32", GpuFormat::kW4, 32},
                                                {"w4g128", GpuFormat::kW4, 128},
                                                {"w8g32", GpuFormat::kW8, 32}};
struct SpeedShape {
  uint32_t rows, columns;
};
inline constexpr SpeedShape kSpeedShapes[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};

// Copies of a matrix of zeros that take turns, so that none is found in L2.
class ColdMatrices {
 public:
  ColdMatrices(const SpeedFormat& format, const SpeedShape& shape)
      : matrix_{.format = format.format, .rows = shape.rows, .columns = shape.columns, .group = format.group},
        bytes_(GpuCodeBytes(matrix_) + GpuScaleBytes(matrix_)),
        count_((kCold + bytes_ - 1) / bytes_),
        memory_(count_ * bytes_) {
    CUDA_MUST(cudaMemset(memory_.data(), 0, count_ * bytes_));
  }
  const GpuMatrix& Next() {
    const std::byte* at = memory_.data() + turn_++ % count_ * bytes_;
    matrix_.codes = at;
    matrix_.scales = at + GpuCodeBytes(matrix_);
    return matrix_;
  }
  const GpuMatrix& matrix() const { return matrix_; }
  size_t bytes() const { return bytes_; }
  // Seconds of a call of `queue`.
  double SecondsOf(cudaStream_t stream, const std::function<void(const GpuMatrix&)>& queue) {
    return terrace::SecondsOf(stream, 3, static_cast<int>(2 * count_), [&] { queue(Next()); });
  }

 private:
  static constexpr size_t kCold = size_t{256} << 20;
  GpuMatrix matrix_;
  size_t bytes_, count_, turn_ = 0;
  DeviceArray<std::byte> memory_;
};

}  // namespace terrace
