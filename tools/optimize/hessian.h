// What calibration says of the inputs of a linear: H = 2 X^T X, by which an error D of its weights costs
// tr(D H D^T) / 2, the squared error of its outputs; the magnitudes of each input; and the inverse of H as
// GPTQ and SparseGPT walk it. The same bits for any number of threads, on one kind of processor. One thread
// at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "tools/optimize/float_layer.h"

namespace terrace {

// Sums over tokens, in double: 8 bytes * inputs^2.
class Hessian {
 public:
  explicit Hessian(size_t inputs);

  // Adds x, [tokens, inputs].
  void Add(std::span<const float> x, size_t tokens, ThreadPool& pool);

  size_t inputs() const { return inputs_; }
  uint64_t tokens() const { return tokens_; }
  std::span<const double> values() const { return values_; }  // [inputs, inputs], symmetric
  double Diagonal(size_t input) const { return values_[input * inputs_ + input]; }
  std::vector<float> Diagonal() const;       // all of it: what an error of each weight of a row costs
  double MeanMagnitude(size_t input) const;  // of x
  float LargestMagnitude(size_t input) const { return largest_[input]; }  // of x
  // The first input that was infinite or not a number at some token, or whose sums passed a double.
  std::optional<size_t> FirstNonFinite() const;

 private:
  void AddTile(std::span<const float> x, size_t tokens, size_t row, size_t column);

  const size_t inputs_;
  uint64_t tokens_ = 0;
  std::vector<double> values_;
  std::vector<double> magnitudes_;  // sums
  std::vector<float> largest_;
};

inline constexpr double kDefaultDamping = 0.01;  // as GPTQ's authors have it

// What is added to the diagonal of H before it is inverted: `damping` times its mean, or 1 where only zeros
// went in.
double DampingOf(const Hessian& hessian, double damping);
Status NotPositiveDefinite(const Hessian& hessian, double damping);  // INVALID_ARGUMENT, with what may help

// H^-1, of H with `damping` times the mean of its diagonal added to the diagonal: H^-1 = U^T U in the order
// of inputs given. Row k of U, over the inputs from k on, is what the inputs after it take over of an error
// of input k; its first element is the root of what such an error costs (Frantar et al., "GPTQ", 2023).
struct InverseHessian {
  std::vector<uint32_t> order;  // the input that is processed k-th
  std::vector<double> upper;    // U, [inputs, inputs]

  size_t inputs() const { return order.size(); }
  double At(size_t row, size_t column) const { return upper[row * inputs() + column]; }
};
// `by_size`: inputs in falling order of the diagonal, else as they are. INVALID_ARGUMENT when H is not
// positive definite for all its damping. Memory: twice that of H, beside it.
StatusOr<InverseHessian> InvertHessian(const Hessian& hessian, double damping, bool by_size);

// Sum of squares of the outputs of `matrix` over the calibration tokens.
double OutputSquares(const FloatMatrix& matrix, const Hessian& hessian, ThreadPool& pool);

// matrix - original; of one shape.
FloatMatrix Difference(const FloatMatrix& matrix, const FloatMatrix& original);

// How far the outputs of `changed` are from those of `original`: the root of the squares of the difference
// over those of the outputs (RelativeError).
double RelativeOutputError(const FloatMatrix& original, const FloatMatrix& changed, const Hessian& hessian,
                           ThreadPool& pool);

// The same of the weights themselves.
double RelativeWeightError(const FloatMatrix& original, const FloatMatrix& changed);

// The root of error / size, two sums of squares; 0 when there is no error, 1 when there is no size or no
// number comes out. Always finite.
double RelativeError(double error, double size);

}  // namespace terrace
