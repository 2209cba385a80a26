// A protobuf message as the YAML that base/config.h reads back to an equal message.
#pragma once

#include <string>

#include "google/protobuf/message.h"

namespace terrace {

std::string ToYaml(const google::protobuf::Message& message);

}  // namespace terrace
