#include "tools/cli/distill.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tools/cli/launch/program_folders.h"

namespace terrace {
namespace {
constexpr char kProgram[] = "terrace-distill";
}

Status RunDistill(const DistillOptions& options, const CommandContext& context) {
  context.out << std::flush;
  return BecomeDistiller(ProgramFolders(context.argv0), options.arguments);
}

Status BecomeDistiller(const std::vector<std::string>& folders, const std::vector<std::string>& arguments) {
  for (const std::string& folder : folders) {
    std::string path = Concat(folder, "/", kProgram);
    if (access(path.c_str(), F_OK) != 0) continue;
    std::vector<std::string> words = arguments;
    std::vector<char*> argv = {path.data()};
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    execv(path.c_str(), argv.data());
    return Unavailable(path, ": cannot be started: ", std::strerror(errno));
  }
  return Unavailable(
      kProgram,
      " is not built: ./quickstart --with-distill builds it, and installs Debian's libtorch-dev "
      "for it");
}

}  // namespace terrace
