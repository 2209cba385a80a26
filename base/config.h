// YAML -> protobuf, strictly: keys are field names of the message, each at most once; unknown keys, wrong
// types and out-of-range numbers are errors "file:line:column: ...", FAILED_PRECONDITION (exit code 78). No
// defaults are filled in here. Limits: 1 MiB, depth 32, no anchors or aliases, one document.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "google/protobuf/message.h"

namespace terrace {

enum class ConfigValues : bool {
  kShown,   // in errors
  kSecret,  // in none, nor are keys that no message declares: what is at the wrong place may be a secret
};

// Merges `yaml` into `message` (lists and maps are replaced); `file` names it in errors. On an error
// `message` is as before.
Status ParseYaml(std::string_view yaml, const std::string& file, google::protobuf::Message& message,
                 ConfigValues values = ConfigValues::kShown);
// What a file has that a configuration names: errors of ReadFile (exit code 66 where it is not there, 69
// where it cannot be read), but FAILED_PRECONDITION (78) when it is larger than `limit`.
StatusOr<std::string> ReadConfigFile(const std::string& path, size_t limit);

// Errors of ReadConfigFile too.
Status LoadYamlFile(const std::string& file, google::protobuf::Message& message,
                    ConfigValues values = ConfigValues::kShown);

// One "--set" override: "engine.threads=2" or "tiers[1].workers=[\"a:1\"]"; the value is YAML.
Status ApplyOverride(std::string_view assignment, google::protobuf::Message& message);

}  // namespace terrace
