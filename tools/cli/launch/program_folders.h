// Where other programs of this project are looked for.
#pragma once

#include <string>
#include <vector>

namespace terrace {

// The folder that this program was called from, when `argv0` names one, then the one its file really lies in.
std::vector<std::string> ProgramFolders(const std::string& argv0);

}  // namespace terrace
