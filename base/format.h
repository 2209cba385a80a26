// Numbers and times as text.
#pragma once

#include <ctime>
#include <string>

namespace terrace {

std::string FormatFixed(double value, int decimals);  // "0.857"; at most 63 characters of it

// With three digits that count, or all before the point: "0.000485", "1.20", "12.3", "1234".
std::string FormatSignificant(double value);
std::string FormatMillis(double seconds);  // the same: "12.3 ms"

// In UTC, as strftime's `format` has it; of up to 63 characters.
std::string FormatUtc(std::time_t time, const char* format);
std::string UtcNow(const char* format);  // the time it is

}  // namespace terrace
