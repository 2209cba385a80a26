#include "tools/optimize/output_divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tools/optimize/packed_matrices.h"

namespace terrace {
namespace {

constexpr size_t kChunkRows = 1024;   // of the output matrix
constexpr size_t kLogitTokens = 256;  // whose logits of a chunk are in memory

// KL(p || q) of one token, of logits that come in chunks: sums of exponentials relative to the largest logit
// so far, as of softmax in one pass (Milakov and Gimelshein, "Online normalizer calculation for softmax",
// 2018).
class TokenDivergence {
 public:
  void Add(std::span<const float> p, std::span<const float> q) {
    const double most_p = std::max(most_p_, double{std::ranges::max(p)}),
                 most_q = std::max(most_q_, double{std::ranges::max(q)});
    sum_p_ *= std::exp(most_p_ - most_p);
    cross_ *= std::exp(most_p_ - most_p);
    sum_q_ *= std::exp(most_q_ - most_q);
    for (size_t i = 0; i < p.size(); ++i) {
      const double share = std::exp(p[i] - most_p);
      sum_p_ += share;
      cross_ += share * (double{p[i]} - q[i]);
      sum_q_ += std::exp(q[i] - most_q);
    }
    most_p_ = most_p;
    most_q_ = most_q;
  }
  // Not below 0 but for rounding.
  double Value() const {
    return cross_ / sum_p_ + ((most_q_ + std::log(sum_q_)) - (most_p_ + std::log(sum_p_)));
  }

 private:
  double most_p_ = -std::numeric_limits<double>::infinity(), most_q_ = most_p_;
  double sum_p_ = 0, sum_q_ = 0;
  double cross_ = 0;  // of exp(p) * (p - q)
};

}  // namespace

StatusOr<std::vector<double>> OutputDivergence::Measure(const HiddenStates& reference,
                                                        std::span<const HiddenStates> streams) const {
  const size_t width = output_.columns, tokens = reference.tokens();
  CHECK(reference.width() == width, "a stream of another model");
  std::vector<std::vector<TokenDivergence>> found(streams.size(), std::vector<TokenDivergence>(tokens));
  std::vector<float> hidden, p, q;
  for (size_t row = 0; row < output_.rows; row += kChunkRows) {
    const size_t rows = std::min(kChunkRows, output_.rows - row);
    const FloatMatrix chunk = ToFloats(RowsOf(output_, row, rows), pool_);
    ASSIGN_OR_RETURN(const PackedMatrices packed, PackedMatrices::Make({&chunk}, ops_, pool_));
    const auto multiply = [&](const HiddenStates& states, size_t first, size_t count,
                              std::vector<float>& logits) -> Status {
      hidden.resize(count * width);
      RETURN_IF_ERROR(states.Read(first, hidden));
      logits.resize(count * rows);
      const GemmPart part = {packed[0], logits.data()};
      ops_.gemm({.x = hidden.data(),
                 .norm = norm_.data(),
                 .norm_epsilon = norm_epsilon_,
                 .tokens = count,
                 .parts = {&part, 1}},
                pool_);
      if (softcap_ > 0)
        ops_.cap_logits({.logits = logits.data(), .count = logits.size(), .cap = softcap_}, pool_);
      return Status();
    };
    for (size_t begin = 0; begin < tokens; begin += kLogitTokens) {
      const size_t count = std::min(kLogitTokens, tokens - begin);
      RETURN_IF_ERROR(multiply(reference, begin, count, p));
      for (size_t i = 0; i < streams.size(); ++i) {
        CHECK(streams[i].tokens() == tokens, "streams of two lengths");
        RETURN_IF_ERROR(multiply(streams[i], begin, count, q));
        pool_.ParallelFor(count, /*grain=*/4, [&](size_t first, size_t end) {
          for (size_t token = first; token < end; ++token)
            found[i][begin + token].Add(std::span(p).subspan(token * rows, rows),
                                        std::span(q).subspan(token * rows, rows));
        });
      }
    }
  }
  std::vector<double> means;
  for (const auto& of_tokens : found) {
    double sum = 0;
    for (const TokenDivergence& token : of_tokens) {
      const double value = token.Value();
      if (!std::isfinite(value))
        return WithReason(DataLoss("a logit is infinite or not a number, for some token of the calibration "
                                   "text"),
                          "nonfinite");
      sum += std::max(0.0, value);
    }
    means.push_back(sum / static_cast<double>(tokens));
  }
  return means;
}

}  // namespace terrace
