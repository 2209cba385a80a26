// Single ops against the limits of the machine, which are measured in the same process just before:
//   gemm        one token against read bandwidth; more against the rate of the instructions that the format
//               uses. Matrices are larger together than any cache and are used in turn, as a step uses them
//   attention   decode of one sequence, KV bytes against read bandwidth
//
//   bazel run --config=release //tests/bench:kernels -- --threads 2
//
// With --two-of-four instead matrices that are 2:4 against dense ones of their dtype, in turns in each round,
// as rows of a Markdown table: medians with the least and the most.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <span>

#include "base/clock.h"
#include "base/median.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/op_table.h"
#include "kernels/simd/pair_places.h"
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
  bool two_of_four = false;
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

// "12.3 (12.1 to 12.9)", of values that are not empty.
std::string Spread(const std::vector<double>& values, int digits) {
  const auto [low, high] = std::ranges::minmax(values);
  char text[96];
  std::snprintf(text, sizeof(text), "%.*f (%.*f to %.*f)", digits, Median(values), digits, low, digits, high);
  return text;
}

// Clears two of each four neighbours of every row, not the same ones everywhere.
void MakeTwoOfFour(const WeightMatrix& matrix, std::span<std::byte> rows) {
  const size_t element = Info(matrix.dtype).block_bytes;
  for (size_t row = 0; row < matrix.rows; ++row) {
    for (size_t i = 0; i < matrix.columns; ++i) {
      const PairPlaces kept = kPairPlaces[(row + i / 4) % std::size(kPairPlaces)];
      if (i % 4 == kept.first || i % 4 == kept.second) continue;
      std::memset(&rows[row * matrix.RowBytes() + i * element], 0, element);
    }
  }
}

// Matrices as gemm takes them, larger together than any cache, that are used in turn.
struct Copies {
  size_t bytes = 0;  // of one
  LargeBuffer memory;
  std::vector<GemmWeights> weights = {};  // borrow `memory`
  size_t turn = 0;

  const GemmWeights& Next() { return weights[turn++ % weights.size()]; }
};

class Bench {
 public:
  explicit Bench(const Flags& flags)
      : flags_(flags), ops_(TableOf(flags.kernels)), pool_(flags.threads), meter_(flags.threads) {}

  void Run() {
    std::printf("%s, %zu threads, %zu rounds\n", std::string(ops_.name).c_str(), flags_.threads,
                flags_.rounds);
    if (flags_.two_of_four) {
      std::printf(
          "%zu x %zu\n\n| weights | tokens | dense, us | 2:4, us | dense / 2:4 | dense, of read bandwidth | "
          "2:4, of read bandwidth |\n|---|---|---|---|---|---|---|\n",
          flags_.rows, flags_.columns);
      for (const DType dtype : {DType::kBF16, DType::kInt8}) {
        if (IsAskedFor(dtype)) TwoOfFour(dtype);
      }
      return;
    }
    std::printf("%-36s %12s %24s %8s %16s\n", "", "median", "", "of limit", "");
    for (const DTypeInfo& info : kDTypes) {
      if (IsAskedFor(info.dtype)) Gemm(info.dtype);
    }
    for (const std::string& kv : flags_.kv) Attention(kv);
  }

 private:
  bool IsAskedFor(DType dtype) const {
    const std::string name(Info(dtype).name);
    return flags_.formats.empty() || std::ranges::find(flags_.formats, name) != flags_.formats.end();
  }

  // How often to repeat `work` so that it takes long enough to be timed.
  static size_t Repeats(const std::function<void()>& work) {
    work();
    return static_cast<size_t>(std::max(1.0, 0.02 / SecondsOf(work, 1)));
  }

  static double SecondsOf(const std::function<void()>& work, size_t repeats) {
    const MonoTime start = RealClock().Now();
    for (size_t i = 0; i < repeats; ++i) work();
    return Seconds(RealClock().Now() - start);
  }

  // Runs `work` in rounds; `amount` is what one call does, of which limit(limits) are possible a second.
  void Measure(const std::string& name, double amount, const std::function<double()>& limit,
               const std::function<void()>& work) {
    const size_t repeats = Repeats(work);
    std::vector<double> rates, fractions;
    for (size_t round = 0; round < flags_.rounds; ++round) {
      limits_ = meter_.Measure();
      rates.push_back(amount * static_cast<double>(repeats) / SecondsOf(work, repeats) / 1e9);
      fractions.push_back(rates.back() / limit() * 1e9);
    }
    const auto [low, high] = std::ranges::minmax(rates);
    const auto [least, most] = std::ranges::minmax(fractions);
    std::printf("%-36s %12.1f (%9.1f to %9.1f) %8.2f (%.2f to %.2f)\n", name.c_str(), Median(rates), low,
                high, Median(fractions), least, most);
    std::fflush(stdout);
  }

  // Copies of one matrix; with `two_of_four` half of it is zero.
  Copies MakeCopies(DType dtype, bool two_of_four) {
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
    if (two_of_four) MakeTwoOfFour(matrix, rows);
    matrix.data = rows.data();
    matrix.row_scales = scales.data();
    const GemmWeights layout = ops_.layout(matrix, ComputeType::kAuto, pool_);
    const size_t bytes = layout.bytes, count = kTogether / bytes + 1;
    auto memory = LargeBuffer::Allocate(count * bytes, "weights");
    CHECK(memory.ok(), Message(memory.status()));
    Copies out = {.bytes = bytes, .memory = *std::move(memory)};
    for (size_t i = 0; i < count; ++i)
      out.weights.push_back(ops_.pack(matrix, layout, out.memory.data() + i * bytes, pool_));
    return out;
  }

  // One product with the next of the copies.
  void Multiply(Copies& copies, const std::vector<float>& x, std::vector<float>& out) {
    const GemmPart part{.weights = copies.Next(), .out = out.data()};
    ops_.gemm({.x = x.data(), .tokens = x.size() / flags_.columns, .parts = {&part, 1}}, pool_);
  }

  void Gemm(DType dtype) {
    const std::string name(Info(dtype).name);
    Copies copies = MakeCopies(dtype, /*two_of_four=*/false);
    const auto format = FormatOf(copies.weights[0].dtype).activations;
    for (const size_t tokens : flags_.tokens) {
      const std::vector<float> x = RandomFloats(tokens * flags_.columns);
      std::vector<float> out(tokens * flags_.rows);
      const auto work = [&] { Multiply(copies, x, out); };
      if (tokens == 1) {
        Measure(
            Concat("gemm ", name, ", 1 token, GB/s"), static_cast<double>(copies.bytes),
            [&] { return limits_.read_bytes; }, work);
        continue;
      }
      Measure(
          Concat("gemm ", name, ", ", tokens, " tokens, GOP/s"),
          2.0 * static_cast<double>(tokens * flags_.rows * flags_.columns),
          [&] {
            return format == ActivationFormat::kInt8   ? limits_.int8
                   : format == ActivationFormat::kBF16 ? limits_.bf16.value_or(limits_.f32)
                                                       : limits_.f32;
          },
          work);
    }
  }

  // A row of the table for each number of tokens.
  void TwoOfFour(DType dtype) {
    Copies dense = MakeCopies(dtype, /*two_of_four=*/false), sparse = MakeCopies(dtype, /*two_of_four=*/true);
    CHECK(sparse.weights[0].two_of_four && !dense.weights[0].two_of_four, "not what is compared");
    for (const size_t tokens : flags_.tokens) {
      const std::vector<float> x = RandomFloats(tokens * flags_.columns);
      std::vector<float> out(tokens * flags_.rows);
      struct Side {
        Copies& copies;
        std::function<void()> work;
        size_t repeats = 1;
        std::vector<double> micros = {}, of_bandwidth = {};
      } sides[] = {{dense, [&] { Multiply(dense, x, out); }}, {sparse, [&] { Multiply(sparse, x, out); }}};
      for (Side& side : sides) side.repeats = Repeats(side.work);
      std::vector<double> ratios;
      for (size_t round = 0; round < flags_.rounds; ++round) {
        limits_ = meter_.Measure();
        for (const size_t i : {round % 2, 1 - round % 2}) {  // neither is always the first
          Side& side = sides[i];
          const double seconds = SecondsOf(side.work, side.repeats) / static_cast<double>(side.repeats);
          side.micros.push_back(seconds * 1e6);
          side.of_bandwidth.push_back(static_cast<double>(side.copies.bytes) / seconds / limits_.read_bytes);
        }
        ratios.push_back(sides[0].micros.back() / sides[1].micros.back());
      }
      std::printf("| %s | %zu | %s | %s | %s | %s | %s |\n", std::string(Info(dtype).name).c_str(), tokens,
                  Spread(sides[0].micros, 1).c_str(), Spread(sides[1].micros, 1).c_str(),
                  Spread(ratios, 2).c_str(), Spread(sides[0].of_bandwidth, 2).c_str(),
                  Spread(sides[1].of_bandwidth, 2).c_str());
      std::fflush(stdout);
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
  app.add_flag("--two-of-four", flags.two_of_four, "2:4 against dense: BF16 and INT8, of --formats");
  app.add_option("--kernels", flags.kernels, "such as \"cpu avx2\"; default: the best");
  CLI11_PARSE(app, argc, argv);
  terrace::Bench(flags).Run();
  return 0;
}
