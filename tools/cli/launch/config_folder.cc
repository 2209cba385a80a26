#include "tools/cli/launch/config_folder.h"

#include <stdlib.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "tools/cli/launch/yaml_writer.h"

namespace terrace {

namespace fs = std::filesystem;

StatusOr<std::unique_ptr<ConfigFolder>> ConfigFolder::Make() {
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  std::string pattern = (error ? fs::path("/tmp") : parent) / "terrace-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr)
    return Unavailable("cannot make ", pattern, ": ", std::strerror(errno));
  return std::unique_ptr<ConfigFolder>(new ConfigFolder(pattern));
}

ConfigFolder::~ConfigFolder() {
  std::error_code error;  // nothing depends on it
  fs::remove_all(path_, error);
}

StatusOr<std::string> ConfigFolder::Write(const std::string& name,
                                          const google::protobuf::Message& config) const {
  const std::string file = path_ / (name + ".yaml");
  std::ofstream out(file);
  out << ToYaml(config);
  out.close();
  if (!out) return Unavailable("cannot write ", file);
  return file;
}

}  // namespace terrace
