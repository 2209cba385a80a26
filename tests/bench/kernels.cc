// Single ops against the limits of the machine, which are measured in the same process just before:
//   gemm        one token against read bandwidth; more against the rate of the instructions that the format
//               uses. Matrices are larger together than any cache and are used in turn, as a step uses them
//   attention   decode of one sequence, KV bytes against read bandwidth
//
//   bazel run --config=release //tests/bench:kernels -- --threads 2
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include "base/clock.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/op_table.h"
#include "tests/bench/fill_kv.h"
#include "tests/bench/machine_limits.h"
#include "worker/formats/weight_encoding.h"
#include "worker/kv/kv_pool.h"
#include "worker/tensor/large_buffer.h"

namespace terrace {
namespace {

struct Flags {
  size_t threads = 1, rounds = 7, rows = 2048, columns = 2048;
  std::vector<size_t> tokens = {1, 4, 8, 32, 128, 512}, context = {4096, 16384};
  std::vector<std::string> formats, kv = {"f32", "f16", "bf16", "int8", "fp8"};
  std::string kernels;
};

const OpTable& TableOf(const std::string& name) {
  for (const OpTable& table : AllCpuOps()) {
    if (name == table.name) return table;
  }
  return CpuOps();
}

std::vector<float> RandomFloats(size_t count) {
  std::minstd_rand random(1);
  std::vector<float> out(count);
  for (float& value : out) value = static_cast<float>(random() % 2001) / 1000 - 1;
  return out;
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

class Bench {
 public:
  explicit Bench(const Flags& flags)
      : flags_(flags), ops_(TableOf(flags.kernels)), pool_(flags.threads), meter_(flags.threads) {}

  void Run() {
    std::printf("%s, %zu threads, %zu rounds\n", std::string(ops_.name).c_str(), flags_.threads,
                flags_.rounds);
    std::printf("%-36s %12s %24s %8s %16s\n", "", "median", "", "of limit", "");
    for (const DTypeInfo& info : kDTypes) {
      const std::string name(info.name);
      if (!flags_.formats.empty() && std::ranges::find(flags_.formats, name) == flags_.formats.end())
        continue;
      Gemm(info.dtype);
    }
    for (const std::string& kv : flags_.kv) Attention(kv);
  }

 private:
  // Runs `work` in rounds; `amount` is what one call does, of which limit(limits) are possible a second.
  void Measure(const std::string& name, double amount, const std::function<double()>& limit,
               const std::function<void()>& work) {
    work();
    const MonoTime begin = RealClock().Now();
    work();
    const double once = Seconds(RealClock().Now() - begin);
    const auto repeats = static_cast<size_t>(std::max(1.0, 0.02 / once));
    std::vector<double> rates, fractions;
    for (size_t round = 0; round < flags_.rounds; ++round) {
      limits_ = meter_.Measure();
      const MonoTime start = RealClock().Now();
      for (size_t i = 0; i < repeats; ++i) work();
      rates.push_back(amount * static_cast<double>(repeats) / Seconds(RealClock().Now() - start) / 1e9);
      fractions.push_back(rates.back() / limit() * 1e9);
    }
    const auto [low, high] = std::ranges::minmax(rates);
    const auto [least, most] = std::ranges::minmax(fractions);
    std::printf("%-36s %12.1f (%9.1f to %9.1f) %8.2f (%.2f to %.2f)\n", name.c_str(), Median(rates), low,
                high, Median(fractions), least, most);
    std::fflush(stdout);
  }

  void Gemm(DType dtype) {
    const DTypeInfo& info = Info(dtype);
    constexpr size_t kTogether = size_t{160} << 20;
    WeightMatrix matrix{.dtype = dtype, .rows = flags_.rows, .columns = flags_.columns};
    const std::vector<float> values = RandomFloats(flags_.columns), scales(flags_.rows, 0.01f);
    std::vector<std::byte> rows(matrix.rows * matrix.RowBytes());
    for (size_t row = 0; row < matrix.rows; ++row) {
      const auto out = std::span(rows).subspan(row * matrix.RowBytes(), matrix.RowBytes());
      if (dtype == DType::kInt8) {
        for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(i * 37 + row);
      } else {
        EncodeWeights(dtype, values, out);
      }
    }
    matrix.data = rows.data();
    matrix.row_scales = scales.data();
    const size_t bytes = ops_.packed_bytes(matrix, ComputeType::kAuto);
    const size_t copies = kTogether / bytes + 1;
    auto memory = LargeBuffer::Allocate(copies * bytes, "weights");
    CHECK(memory.ok(), Message(memory.status()));
    std::vector<GemmWeights> weights;
    for (size_t i = 0; i < copies; ++i) {
      weights.push_back(ops_.pack(matrix, ComputeType::kAuto, memory->data() + i * bytes, pool_));
    }
    const auto format = FormatOf(weights[0].dtype).activations;
    for (const size_t tokens : flags_.tokens) {
      const std::vector<float> x = RandomFloats(tokens * matrix.columns);
      std::vector<float> out(tokens * matrix.rows);
      size_t turn = 0;
      const auto work = [&] {
        const GemmPart part{.weights = weights[turn++ % copies], .out = out.data()};
        ops_.gemm({.x = x.data(), .tokens = tokens, .parts = {&part, 1}}, pool_);
      };
      const std::string name(info.name);
      if (tokens == 1) {
        Measure(
            Concat("gemm ", name, ", 1 token, GB/s"), static_cast<double>(bytes),
            [&] { return limits_.read_bytes; }, work);
        continue;
      }
      Measure(
          Concat("gemm ", name, ", ", tokens, " tokens, GOP/s"),
          2.0 * static_cast<double>(tokens * matrix.rows * matrix.columns),
          [&] {
            return format == ActivationFormat::kInt8   ? limits_.int8
                   : format == ActivationFormat::kBF16 ? limits_.bf16.value_or(limits_.f32)
                                                       : limits_.f32;
          },
          work);
    }
  }

  void Attention(const std::string& dtype) {
    constexpr uint32_t kHeads = 32, kKvHeads = 8, kHeadDim = 64, kBlockTokens = 16, kLayers = 4;
    for (const size_t context : flags_.context) {
      auto pool = KvPool::Create({.layers = kLayers,
                                  .kv_heads = kKvHeads,
                                  .head_dim = kHeadDim,
                                  .block_tokens = kBlockTokens,
                                  .blocks = static_cast<uint32_t>(context / kBlockTokens),
                                  .dtype = *ParseKvDType(dtype)});
      CHECK(pool.ok(), Message(pool.status()));
      FillKv(**pool);
      std::vector<int32_t> table(context / kBlockTokens);
      std::iota(table.begin(), table.end(), 0);
      const std::vector<float> q = RandomFloats(kHeads * kHeadDim);
      std::vector<float> out(q.size());
      const auto position = static_cast<uint32_t>(context - 1);
      const int32_t* tables[] = {table.data()};
      size_t turn = 0;
      const double bytes =
          static_cast<double>((*pool)->shape().BlockBytes()) / kLayers / kBlockTokens * context;
      Measure(
          Concat("attention ", dtype, ", ", context, " positions, GB/s"), bytes,
          [&] { return limits_.read_bytes; },
          [&] {
            ops_.paged_attention({.batch = {.positions = &position,
                                            .block_tables = tables,
                                            .tokens = 1,
                                            .kv_heads = kKvHeads,
                                            .head_dim = kHeadDim,
                                            .blocks = context / kBlockTokens,
                                            .block_tokens = kBlockTokens},
                                  .q = q.data(),
                                  .out = out.data(),
                                  .kv = (*pool)->layer(turn++ % kLayers),
                                  .heads = kHeads,
                                  .scale = 0.125f},
                                 pool_);
          });
    }
  }

  const Flags& flags_;
  const OpTable& ops_;
  ThreadPool pool_;
  LimitsMeter meter_;
  MachineLimits limits_;
};

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("Single ops against the limits of the machine");
  app.add_option("--threads", flags.threads, "of the compute pool")->check(CLI::Range(1, 1024));
  app.add_option("--rounds", flags.rounds, "")->check(CLI::Range(1, 1000));
  app.add_option("--rows", flags.rows, "outputs of the matrices")->check(CLI::Range(1, 1 << 20));
  app.add_option("--columns", flags.columns, "inputs; whole blocks of every format: a multiple of 256")
      ->check(CLI::Range(256, 1 << 20));
  app.add_option("--tokens", flags.tokens, "")->delimiter(',');
  app.add_option("--context", flags.context, "positions that attention reads")->delimiter(',');
  app.add_option("--formats", flags.formats, "such as Q8_0; default: all")->delimiter(',');
  app.add_option("--kv", flags.kv, "KV dtypes")->delimiter(',');
  app.add_option("--kernels", flags.kernels, "such as \"cpu avx2\"; default: the best");
  CLI11_PARSE(app, argc, argv);
  terrace::Bench(flags).Run();
  return 0;
}
