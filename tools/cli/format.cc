#include "tools/cli/format.h"

#include <algorithm>
#include <array>

#include "base/status.h"

namespace terrace {
namespace {

bool StartsCharacter(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

size_t Width(const std::string& text) { return std::count_if(text.begin(), text.end(), StartsCharacter); }

}  // namespace

std::string FormatCount(uint64_t count) {
  std::string digits = std::to_string(count);
  for (size_t i = digits.size(); i > 3;) digits.insert(i -= 3, ",");
  return digits;
}

std::string FormatCount(uint64_t count, const std::string& noun) {
  return Concat(FormatCount(count), " ", noun, count == 1 ? "" : "s");
}

std::string FormatBytes(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return Concat(FormatFixed(value, unit == 0 ? 0 : 1), " ", kUnits[unit]);
}

std::string FormatSeconds(double seconds) {
  if (seconds < 1e-3) return Concat(FormatFixed(seconds * 1e6, seconds < 1e-5 ? 1 : 0), " µs");
  if (seconds < 0.01) return Concat(FormatFixed(seconds * 1e3, 1), " ms");
  if (seconds < 1) return Concat(FormatFixed(seconds * 1e3, 0), " ms");
  return Concat(FormatFixed(seconds, 1), " s");
}

std::string FormatUsd(double usd) {
  if (usd < 1e-3) return Concat(FormatFixed(usd * 1e6, 3), " µUSD");
  return Concat("$", FormatFixed(usd, usd < 0.1 ? 4 : 2));
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows, size_t right_from) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - Width(row[i]), ' ');
      line += Concat(i == 0 ? "" : "  ", i >= right_from ? padding + row[i] : row[i] + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string Shorten(const std::string& text, size_t limit) {
  std::string out;
  size_t width = 0;
  for (const char c : text) {
    if (StartsCharacter(c) && ++width > limit) return out + "…";
    out += c == '\n' || c == '\r' || c == '\t' ? ' ' : c;
  }
  return out;
}

}  // namespace terrace
