#include "tools/report/significant.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace terrace {
namespace {

constexpr int kDigits = 3, kMostDecimals = 18;

}  // namespace

std::string Significant(double value) {
  std::array<char, 64> text = {};
  std::snprintf(text.data(), text.size(), "%.*e", kDigits - 1, value);  // rounds, which may add a digit
  const char* const exponent = std::strchr(text.data(), 'e');           // none: not finite
  const int power = exponent == nullptr ? 0 : std::atoi(exponent + 1);
  const int decimals = std::clamp(kDigits - 1 - power, 0, kMostDecimals);
  const int size = std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  return {text.data(), std::min<size_t>(static_cast<size_t>(size), text.size() - 1)};
}

}  // namespace terrace
