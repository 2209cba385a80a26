// Numbers as text for people.
#pragma once

#include <string>

namespace terrace {

std::string FormatFixed(double value, int decimals);  // "0.857"; at most 63 characters of it

}  // namespace terrace
