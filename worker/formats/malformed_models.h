// Models that must be refused: each is a small valid model with one thing wrong. Shared by the tests and by
// write_malformed, so that whole programs can be tried on the same files.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace terrace {

struct MalformedModel {
  std::string name;                   // of the .gguf file or the folder; says what is wrong
  std::string reason;                 // of the DATA_LOSS that OpenModel answers
  std::vector<std::string> mentions;  // what its message has beside the model's path
  std::function<void(const std::string& path)> write;
};

std::vector<MalformedModel> MalformedGgufs();
std::vector<MalformedModel> MalformedFolders();

}  // namespace terrace
