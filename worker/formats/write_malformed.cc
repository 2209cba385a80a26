// write_malformed DIR: writes every malformed model into DIR, which is made when it is absent, and prints one
// line for each: its name and the reason a reader must answer, a tab between them.
#include <cstdio>
#include <filesystem>
#include <string>

#include "base/exit_code.h"
#include "worker/formats/malformed_models.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s DIR\n", argv[0]);
    return terrace::kExitUsage;
  }
  const std::string directory = argv[1];
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (!std::filesystem::is_directory(directory, error)) {
    std::fprintf(stderr, "%s: cannot make this folder\n", directory.c_str());
    return terrace::kExitNoInput;
  }
  for (const auto& models : {terrace::MalformedGgufs(), terrace::MalformedFolders()}) {
    for (const auto& model : models) {
      model.write(directory + "/" + model.name);
      std::printf("%s\t%s\n", model.name.c_str(), model.reason.c_str());
    }
  }
  return terrace::kExitOk;
}
