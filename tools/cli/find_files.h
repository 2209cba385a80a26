// Files of the project that commands use by default.
#pragma once

#include <string>

#include "base/status.h"

namespace terrace {

// `relative` ("deploy/demo/cluster.yaml") in the working directory, in the folder this program was called
// from, in its real one, or in a parent of these. NOT_FOUND.
StatusOr<std::string> FindProjectFile(const std::string& relative, const std::string& argv0);

}  // namespace terrace
