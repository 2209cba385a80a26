// Numbers as text for people.
#pragma once

#include <string>

namespace terrace {

std::string FormatFixed(double value, int decimals);  // "0.857"; at most 63 characters of it

// With three digits that count, or all before the point: "0.000485", "1.20", "12.3", "1234".
std::string FormatSignificant(double value);
std::string FormatMillis(double seconds);  // the same: "12.3 ms"

}  // namespace terrace
