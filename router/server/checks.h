// What the readers of settings share: errors that begin with the setting's path. Pure.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

template <typename... Text>
Status BadSetting(std::string_view path, const Text&... text) {
  return FailedPrecondition(path, ": ", text...);
}

// Of tiers, policies and tenants.
Status CheckSettingName(const std::string& path, const std::string& name);

}  // namespace terrace
