#include "tools/bench/length_distribution.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>
#include <optional>
#include <utility>

#include "base/rng.h"

namespace terrace {
namespace {

constexpr std::string_view kUniform = "uniform:", kLogNormal = "lognormal:";
constexpr double kMaxSigma = 4;

template <typename T>
std::optional<T> Number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::pair<std::string_view, std::string_view> Split(std::string_view text, char separator) {
  const size_t at = text.find(separator);
  if (at == std::string_view::npos) return {text, {}};
  return {text.substr(0, at), text.substr(at + 1)};
}

bool IsLength(double value) { return value >= 1 && value <= LengthDistribution::kMaxLength; }

}  // namespace

LengthDistribution LengthDistribution::Fixed(uint32_t length) {
  return LengthDistribution(std::to_string(length), length, length, 0, 0);
}

StatusOr<LengthDistribution> LengthDistribution::Parse(std::string_view text) {
  const auto out_of_range = [&] {
    return InvalidArgument("\"", text, "\": lengths are 1 to ", kMaxLength, " tokens");
  };
  if (text.starts_with(kUniform)) {
    const auto [first, second] = Split(text.substr(kUniform.size()), '-');
    const auto low = Number<uint64_t>(first), high = Number<uint64_t>(second);
    if (!low || !high) return InvalidArgument("\"", text, "\" is not uniform:LOW-HIGH");
    if (!IsLength(static_cast<double>(*low)) || !IsLength(static_cast<double>(*high))) return out_of_range();
    if (*low > *high) return InvalidArgument("\"", text, "\": ", *low, " is above ", *high);
    return LengthDistribution(std::string(text), static_cast<uint32_t>(*low), static_cast<uint32_t>(*high), 0,
                              0);
  }
  if (text.starts_with(kLogNormal)) {
    const auto [first, second] = Split(text.substr(kLogNormal.size()), ',');
    const auto median = Number<double>(first), sigma = Number<double>(second);
    if (!median || !sigma) return InvalidArgument("\"", text, "\" is not lognormal:MEDIAN,SIGMA");
    if (!IsLength(*median)) return out_of_range();
    if (!(*sigma > 0 && *sigma <= kMaxSigma))
      return InvalidArgument("\"", text, "\": sigma is above 0 and at most ", kMaxSigma);
    return LengthDistribution(std::string(text), 1, kMaxLength, *median, *sigma);
  }
  const auto length = Number<uint64_t>(text);
  if (!length) {
    return InvalidArgument("\"", text, "\" is not a number, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA");
  }
  if (!IsLength(static_cast<double>(*length))) return out_of_range();
  return Fixed(static_cast<uint32_t>(*length));
}

uint32_t LengthDistribution::Draw(uint64_t seed, uint64_t counter, uint64_t stream) const {
  if (sigma_ == 0) {
    if (min_ == max_) return min_;
    const double span = static_cast<double>(max_ - min_) + 1;
    return min_ +
           std::min(max_ - min_, static_cast<uint32_t>(RandomUniform(seed, 2 * counter, stream) * span));
  }
  // Box and Muller; 1 - u is in (0, 1], so that its logarithm is finite.
  const double radius = std::sqrt(-2 * std::log(1 - RandomUniform(seed, 2 * counter, stream)));
  const double angle = 2 * std::numbers::pi * RandomUniform(seed, 2 * counter + 1, stream);
  const double length = std::round(median_ * std::exp(sigma_ * radius * std::cos(angle)));
  return static_cast<uint32_t>(std::clamp(length, double{1}, static_cast<double>(kMaxLength)));
}

}  // namespace terrace
