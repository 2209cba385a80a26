// What differs between two descriptions of a job, for the error of one that is not the other. Pure.
#pragma once

#include <string>

#include "base/json_fwd.h"

namespace terrace {

// `method ("gptq" there, "rtn" here), calibration.seed (1 there, 2 here)`: each value that differs, by the
// keys of the objects it is in. Of long values only the name. "" where all are equal.
std::string Differences(const Json& there, const Json& here);

}  // namespace terrace
