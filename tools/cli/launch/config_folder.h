// A private temporary folder for the configurations of child processes; gone with the object.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/status.h"
#include "google/protobuf/message.h"

namespace terrace {

class ConfigFolder {
 public:
  static StatusOr<std::unique_ptr<ConfigFolder>> Make();
  ~ConfigFolder();
  ConfigFolder(const ConfigFolder&) = delete;
  ConfigFolder& operator=(const ConfigFolder&) = delete;

  // Writes `config` as YAML; the path of the file.
  StatusOr<std::string> Write(const std::string& name, const google::protobuf::Message& config) const;

 private:
  explicit ConfigFolder(std::filesystem::path path) : path_(std::move(path)) {}
  const std::filesystem::path path_;
};

}  // namespace terrace
