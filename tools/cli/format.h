// Numbers and tables for people.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/format.h"  // FormatFixed, FormatSignificant and UtcNow

namespace terrace {

std::string FormatCount(uint64_t count);                           // "2,722,560"
std::string FormatCount(uint64_t count, const std::string& noun);  // "1 row", "1,200 rows"
std::string FormatBytes(uint64_t bytes);                           // "5.2 MiB"
std::string FormatSeconds(double seconds);                         // "800 µs", "12 ms", "3.4 s"
// Millionths of a dollar below a tenth of a cent: nobody reads what an answer of a small model costs as
// $0.0000002.
std::string FormatUsd(double usd);  // "0.153 µUSD", "$0.0014", "$1.20"

// Rows under a header, each column as wide as its widest cell (in code points); `right_from` is the first
// column that is aligned right.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows, size_t right_from);

// The first `limit` characters of `text` on one line.
std::string Shorten(const std::string& text, size_t limit);

}  // namespace terrace
