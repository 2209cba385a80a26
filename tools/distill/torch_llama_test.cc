#include "tools/distill/torch_llama.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "kernels/op_table.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

at::Tensor TokensOf(const std::vector<std::vector<int32_t>>& rows) {
  size_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, row.size());
  const at::Tensor out =
      at::zeros({static_cast<int64_t>(rows.size()), static_cast<int64_t>(longest)}, at::kLong);
  for (size_t i = 0; i < rows.size(); ++i) std::ranges::copy(rows[i], out.data_ptr<int64_t>() + i * longest);
  return out;
}

at::Tensor Random(at::IntArrayRef sizes, uint64_t seed) {
  const at::Tensor out = at::empty(sizes, at::kFloat);
  for (int64_t i = 0; i < out.numel(); ++i)
    out.data_ptr<float>()[i] = static_cast<float>(6 * RandomUniform(seed, static_cast<uint64_t>(i)) - 3);
  return out;
}

std::vector<double> Numbers(const at::Tensor& of) {
  const at::Tensor plain = of.detach().to(at::kDouble).contiguous();
  return {plain.data_ptr<double>(), plain.data_ptr<double>() + plain.numel()};
}

// ln softmax(logits / temperature) of one position.
std::vector<double> Softened(const double* logits, size_t vocabulary, double temperature) {
  std::vector<float> row;
  for (size_t i = 0; i < vocabulary; ++i) row.push_back(static_cast<float>(logits[i] / temperature));
  return Logprobs(row);
}

double PlainKl(const std::vector<double>& log_p, const std::vector<double>& log_q) {
  double sum = 0;
  for (size_t i = 0; i < log_p.size(); ++i) sum += std::exp(log_p[i]) * (log_p[i] - log_q[i]);
  return sum;
}

// The probabilities of `named`, and one of all others.
std::vector<double> Bucketed(const std::vector<double>& log_p, const std::vector<size_t>& named) {
  std::vector<double> out;
  double rest = 1;
  for (const size_t token : named) {
    out.push_back(log_p[token]);
    rest -= std::exp(log_p[token]);
  }
  out.push_back(std::log(rest));
  return out;
}

TEST(TorchLlama, LogitsAreThoseOfTheReferenceToRounding) {
  for (const bool is_tied : {true, false}) {
    ModelConfig config = RandomModel::SmallConfig();  // two query heads share a key head
    config.tied_embeddings = is_tied;
    const RandomModel random(DType::kF32, /*seed=*/21, config);
    ModelWeights weights = {.config = config};
    for (const auto& entry : random.entries()) {
      std::vector<float>& values = weights.tensors.emplace_back(entry.tensor.bytes / sizeof(float));
      std::memcpy(values.data(), entry.tensor.data, entry.tensor.bytes);
    }
    const TorchLlama model(weights, /*is_trained=*/false);
    const std::vector<std::vector<int32_t>> rows = {RandomTokens(40, config.vocab_size, 1),
                                                    RandomTokens(17, config.vocab_size, 2)};
    const at::Tensor logits = model.Forward(TokensOf(rows)).logits;
    for (size_t row = 0; row < rows.size(); ++row) {
      TestModel reference(config, random, ReferenceOps(), /*threads=*/1, /*blocks=*/64, KvDType::kF32,
                          ComputeType::kF32);
      const std::vector<float> want = SequenceLogits(reference, rows[row]);
      const std::vector<double> got = Numbers(logits.select(0, static_cast<int64_t>(row)));
      double largest = 0;
      for (size_t i = 0; i < want.size(); ++i) largest = std::max(largest, std::abs(want[i] - got[i]));
      // Sums of 256 products of size 1/16, and two layers of them: some tens of f32's 6e-8.
      EXPECT_LT(largest, 2e-5) << "row " << row << ", tied " << is_tied;
    }
  }
}

TEST(KlDivergence, IsThatOfAPlainLoop) {
  constexpr size_t kPositions = 6, kVocab = 11;
  for (const double temperature : {1.0, 2.5}) {
    const at::Tensor student = Random({2, 3, kVocab}, 1), teacher = Random({2, 3, kVocab}, 2);
    const at::Tensor log_q = at::log_softmax(student / temperature, -1);
    const std::vector<double> q = Numbers(student), p = Numbers(teacher);
    for (const int64_t top_k : {0, 1, 4, 10, 11}) {
      const TeacherTargets targets = TargetsOf(teacher, temperature, top_k);
      for (const bool is_reverse : {false, true}) {
        const std::vector<double> got = Numbers(KlDivergence(log_q, targets, is_reverse));
        ASSERT_EQ(got.size(), kPositions);
        for (size_t position = 0; position < kPositions; ++position) {
          std::vector<double> from = Softened(p.data() + position * kVocab, kVocab, temperature),
                              to = Softened(q.data() + position * kVocab, kVocab, temperature);
          if (top_k > 0 && top_k < static_cast<int64_t>(kVocab)) {
            std::vector<size_t> order(kVocab);
            for (size_t i = 0; i < kVocab; ++i) order[i] = i;
            std::ranges::sort(order, [&](size_t a, size_t b) { return from[a] > from[b]; });
            order.resize(static_cast<size_t>(top_k));
            from = Bucketed(from, order);
            to = Bucketed(to, order);
          }
          EXPECT_NEAR(got[position], is_reverse ? PlainKl(to, from) : PlainKl(from, to), 1e-5)
              << "top " << top_k << ", temperature " << temperature << ", reverse " << is_reverse;
        }
      }
    }
  }
}

TEST(KlDivergence, ItsGradientIsTheDifferenceOfTheDistributions) {
  constexpr double kTemperature = 2;
  const at::Tensor student = Random({5, 7}, 3).set_requires_grad(true), teacher = Random({5, 7}, 4);
  for (const int64_t top_k : {0, 7}) {
    student.mutable_grad() = at::Tensor();
    KlDivergence(at::log_softmax(student / kTemperature, -1), TargetsOf(teacher, kTemperature, top_k),
                 /*is_reverse=*/false)
        .sum()
        .backward();
    const at::Tensor want =
        (at::softmax(student.detach() / kTemperature, -1) - at::softmax(teacher / kTemperature, -1)) /
        kTemperature;
    EXPECT_LT((student.grad() - want).abs().max().item().toDouble(), 1e-6) << top_k;
  }
}

TEST(KlDivergence, OfFewNamedTokensTheGradientIsFinite) {
  const at::Tensor student = Random({5, 7}, 5).set_requires_grad(true), teacher = Random({5, 7}, 6);
  for (const bool is_reverse : {false, true}) {
    student.mutable_grad() = at::Tensor();
    KlDivergence(at::log_softmax(student, -1), TargetsOf(teacher, 1, 3), is_reverse).sum().backward();
    EXPECT_TRUE(student.grad().isfinite().all().item().toBool());
    EXPECT_GT(student.grad().abs().max().item().toDouble(), 0);
  }
}

}  // namespace
}  // namespace terrace
