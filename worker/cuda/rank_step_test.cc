// The steps of a group's ranks, each a thread, over fake_nccl.h: what they add and gather is what one rank
// with the whole model has, however their kernels' work is cut.
#include "worker/cuda/rank_step.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/parallel/fake_nccl.h"
#include "worker/parallel/index_range.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/on_each_rank.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr Duration kLong = std::chrono::seconds(120);  // no rank misses it
constexpr uint32_t kHidden = 24, kVocabulary = 64;

using NcclGroup = std::vector<std::unique_ptr<NcclCommunicator>>;

NcclGroup Connect(uint32_t ranks) {
  auto controls = MakeLocalCommunicators(ranks, kLong);
  NcclGroup group(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    auto made = ConnectNccl({.nccl = FakeNccl(),
                             .control = std::move(controls[rank]),
                             .device = MakeFakeNcclDevice(),
                             .max_tree_sum_bytes = 1 << 20});
    CHECK(made.ok(), Message(made.status()));
    group[rank] = *std::move(made);
  });
  return group;
}

// Whole numbers, so small that sums of them are exact in every order: [rows, columns].
std::vector<float> SmallNumbers(size_t rows, size_t columns, uint64_t seed) {
  std::vector<float> out(rows * columns);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(RandomBits(seed, i) % 5) - 2;
  return out;
}

// out[t][n] of rows [0, n) (+)= sum over `columns` of x[t][k] * w[n][k]; x [tokens, width], w [n, width].
void Multiply(const std::vector<float>& x, const std::vector<float>& w, size_t tokens, size_t width,
              const IndexRange& rows, const IndexRange& columns, bool adds, float* out) {
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t n = rows.begin; n < rows.end; ++n) {
      float& sum = out[t * rows.size() + n - rows.begin];
      if (!adds) sum = 0;
      for (size_t k = columns.begin; k < columns.end; ++k) sum += x[t * width + k] * w[n * width + k];
    }
  }
}

// A model without nonlinearities: in each layer x += W in, of inputs that no rank computes; then logits H x.
struct Model {
  explicit Model(uint32_t layer_count) {
    for (uint32_t i = 0; i < layer_count; ++i) layers.push_back(SmallNumbers(kHidden, kWidth, i));
  }
  static constexpr size_t kWidth = 32;
  std::vector<std::vector<float>> layers;  // [hidden, width]
  std::vector<float> head = SmallNumbers(kVocabulary, kHidden, 1000);
};
struct Outcome {
  std::vector<float> x, logits;
};

Outcome Alone(const Model& model, const std::vector<float>& inputs, const std::vector<float>& x,
              size_t tokens) {
  Outcome out{.x = x, .logits = std::vector<float>(tokens * kVocabulary)};
  for (const auto& layer : model.layers)
    Multiply(inputs, layer, tokens, Model::kWidth, {0, kHidden}, {0, Model::kWidth}, true, out.x.data());
  Multiply(out.x, model.head, tokens, kHidden, {0, kVocabulary}, {0, kHidden}, false, out.logits.data());
  return out;
}

// As CudaTransformer makes a step of it. What it computes stands for kernels, which the device runs in the
// order of the stream: here they wait for it.
Status RunRank(const Model& model, NcclCommunicator& nccl, RankStep& step, const std::vector<float>& inputs,
               uint32_t tokens, uint32_t rows_at_a_time, Outcome& out) {
  CUstream_st* const stream = nccl.stream();
  const uint32_t rank = nccl.rank(), ranks = nccl.ranks(), width = kVocabulary / ranks;
  RETURN_IF_ERROR(step.Begin(tokens, tokens));
  for (const auto& layer : model.layers) {
    Multiply(inputs, layer, tokens, Model::kWidth, {0, kHidden}, ShareOf(Model::kWidth, rank, ranks),
             step.leads(), out.x.data());
    RETURN_IF_ERROR(step.AddUp(out.x.data(), tokens, stream));
    RETURN_IF_ERROR(step.EndLayer(stream));
    RETURN_IF_ERROR(nccl.Drain(stream));
  }
  std::vector<float> mine(tokens * width), all(tokens * kVocabulary);
  for (uint32_t begin = 0; begin < tokens; begin += rows_at_a_time) {
    const uint32_t rows = std::min(rows_at_a_time, tokens - begin);
    if (begin > 0) RETURN_IF_ERROR(step.Begin(0, tokens - begin));
    const std::span<const float> left = std::span(out.x).subspan(size_t{begin} * kHidden);
    const std::vector<float> wanted(left.begin(), left.end());
    Multiply(wanted, model.head, rows, kHidden, ShareOf(kVocabulary, rank, ranks), {0, kHidden}, false,
             mine.data());
    RETURN_IF_ERROR(step.Gather(mine.data(), rows, width, all.data(), stream));
    RETURN_IF_ERROR(step.End(stream));
    if (!step.leads()) continue;
    float* const to = out.logits.data() + size_t{begin} * kVocabulary;
    for (const StridedCopy& copy : LogitCopies(rows, kVocabulary, ranks)) {
      for (size_t row = 0; row < copy.height; ++row) {
        std::copy_n(all.data() + copy.from + row * copy.from_pitch, copy.width,
                    to + copy.to + row * copy.to_pitch);
      }
    }
  }
  return Status();
}

TEST(RankStep, RanksHaveWhatOneWithTheWholeModelHas) {
  const Model model(/*layer_count=*/RankStep::kLayersAhead + 3);
  for (const uint32_t ranks : {1u, 2u, 4u, 8u}) {
    const NcclGroup group = Connect(ranks);
    for (const bool is_invariant : {false, true}) {
      std::vector<RankStep> steps;
      for (uint32_t rank = 0; rank < ranks; ++rank) steps.emplace_back(*group[rank], kHidden, is_invariant);
      for (const uint32_t tokens : {1u, 5u}) {
        for (const uint32_t rows_at_a_time : {2u, 100u}) {
          SCOPED_TRACE(Concat(ranks, " ranks, ", tokens, " tokens, ", rows_at_a_time, " rows at a time"));
          const auto inputs = SmallNumbers(tokens, Model::kWidth, 77), x = SmallNumbers(tokens, kHidden, 78);
          const Outcome want = Alone(model, inputs, x, tokens);
          OnEachRank(ranks, [&](uint32_t rank) {
            Outcome got{.x = x, .logits = std::vector<float>(want.logits.size())};
            EXPECT_EQ(RunRank(model, *group[rank], steps[rank], inputs, tokens, rows_at_a_time, got),
                      Status());
            EXPECT_EQ(got.x, want.x) << "rank " << rank;
            if (rank == 0) {
              EXPECT_EQ(got.logits, want.logits);
            }
          });
        }
      }
    }
  }
}

TEST(RankStep, RanksThatDisagreeAboutAStepNeverReachNccl) {
  const NcclGroup group = Connect(2);
  const size_t calls = FakeNcclCalls();
  OnEachRank(2, [&](uint32_t rank) {
    RankStep step(*group[rank], kHidden, /*is_invariant=*/false);
    const Status status = step.Begin(/*tokens=*/3, /*rows=*/1 + rank);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(Concat("rank ", 1 - rank)));
  });
  EXPECT_EQ(FakeNcclCalls(), calls);
}

TEST(RankStep, ARankThatCannotGoOnEndsTheOthersWait) {
  const NcclGroup group = Connect(2);
  std::vector<RankStep> steps;
  for (const auto& nccl : group) steps.emplace_back(*nccl, kHidden, /*is_invariant=*/false);
  OnEachRank(2, [&](uint32_t rank) { EXPECT_EQ(steps[rank].Begin(1, 1), Status()); });
  steps[1].Abort(Internal("its kernel failed"));
  const Status status = steps[0].Begin(1, 1);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("rank 1"));
}

TEST(LogitCopies, FillEveryRowOnceFromEveryPlaceOnce) {
  for (const uint32_t ranks : {1u, 2u, 4u, 8u}) {
    for (const uint32_t rows : {1u, 3u, 512u}) {
      const uint32_t vocabulary = 16 * ranks;
      std::vector<int> read(rows * vocabulary), written(rows * vocabulary);
      for (const StridedCopy& copy : LogitCopies(rows, vocabulary, ranks)) {
        for (size_t row = 0; row < copy.height; ++row) {
          for (size_t i = 0; i < copy.width; ++i) {
            ++read.at(copy.from + row * copy.from_pitch + i);
            ++written.at(copy.to + row * copy.to_pitch + i);
          }
        }
      }
      EXPECT_EQ(read, std::vector<int>(rows * vocabulary, 1));
      EXPECT_EQ(written, read);
    }
  }
}

}  // namespace
}  // namespace terrace
