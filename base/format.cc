#include "base/format.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace terrace {
namespace {

constexpr int kSignificantDigits = 3, kMostDecimals = 18;

}  // namespace

std::string FormatFixed(double value, int decimals) {
  std::array<char, 64> text;
  const int size = std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  return std::string(text.data(), std::min<size_t>(static_cast<size_t>(size), text.size() - 1));
}

std::string FormatSignificant(double value) {
  std::array<char, 64> text = {};
  // Rounds, which may add a digit.
  std::snprintf(text.data(), text.size(), "%.*e", kSignificantDigits - 1, value);
  const char* const exponent = std::strchr(text.data(), 'e');  // none: not finite
  const int power = exponent == nullptr ? 0 : std::atoi(exponent + 1);
  return FormatFixed(value, std::clamp(kSignificantDigits - 1 - power, 0, kMostDecimals));
}

std::string FormatMillis(double seconds) { return FormatSignificant(seconds * 1e3) + " ms"; }

std::string FormatUtc(std::time_t time, const char* format) {
  std::tm utc = {};
  gmtime_r(&time, &utc);
  std::array<char, 64> text = {};
  return std::string(text.data(), std::strftime(text.data(), text.size(), format, &utc));
}

std::string UtcNow(const char* format) { return FormatUtc(std::time(nullptr), format); }

}  // namespace terrace
