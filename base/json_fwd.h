// Json's name, for headers that only speak of it: the whole library takes 0.7 s of each compile.
#pragma once

#include "nlohmann/json_fwd.hpp"

namespace terrace {

using Json = nlohmann::json;

}  // namespace terrace
