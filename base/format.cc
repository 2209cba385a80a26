#include "base/format.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>

namespace terrace {

std::string FormatFixed(double value, int decimals) {
  std::array<char, 64> text;
  const int size = std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  return std::string(text.data(), std::min<size_t>(static_cast<size_t>(size), text.size() - 1));
}

}  // namespace terrace
