#include "tools/cli/find_files.h"

#include <filesystem>
#include <system_error>
#include <vector>

#include "tools/cli/launch/program_folders.h"

namespace terrace {

namespace fs = std::filesystem;

StatusOr<std::string> FindProjectFile(const std::string& relative, const std::string& argv0) {
  std::error_code error;
  std::vector<fs::path> starts = {fs::current_path(error)};
  for (const std::string& folder : ProgramFolders(argv0)) starts.push_back(fs::absolute(folder, error));
  for (const fs::path& start : starts) {
    for (fs::path folder = start; !folder.empty(); folder = folder.parent_path()) {
      if (fs::exists(folder / relative, error)) return fs::proximate(folder / relative, error).string();
      if (folder == folder.root_path()) break;
    }
  }
  return NotFound("no ", relative,
                  " here or beside this program: run it in the project's folder or name the file");
}

}  // namespace terrace
