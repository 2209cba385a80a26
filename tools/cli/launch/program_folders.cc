#include "tools/cli/launch/program_folders.h"

#include <filesystem>
#include <system_error>

namespace terrace {

namespace fs = std::filesystem;

std::vector<std::string> ProgramFolders(const std::string& argv0) {
  std::vector<std::string> folders;
  std::error_code error;
  if (argv0.find('/') != std::string::npos) folders.push_back(fs::path(argv0).parent_path());
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (!error) folders.push_back(self.parent_path());
  return folders;
}

}  // namespace terrace
