// Numbers of any size for people.
#pragma once

#include <string>

namespace terrace {

// With three digits that count, or all before the point: "0.000485", "1.20", "12.3", "1234".
std::string Significant(double value);

}  // namespace terrace
