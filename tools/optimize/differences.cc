#include "tools/optimize/differences.h"

#include <algorithm>

#include "base/json.h"

namespace terrace {
namespace {

constexpr size_t kShownBytes = 80;  // of a value

// `path` is where both stand.
std::string DifferencesAt(const std::string& path, const Json& there, const Json& here) {
  if (there == here) return "";
  if (!there.is_object() || !here.is_object()) {
    const std::string was = ToJsonText(there), is = ToJsonText(here);
    if (std::max(was.size(), is.size()) > kShownBytes) return path;
    return Concat(path, " (", was, " there, ", is, " here)");
  }
  std::string out;
  Json all = there;
  all.update(here);
  for (const auto& [key, ignored] : all.items()) {
    const std::string one = DifferencesAt(path.empty() ? key : Concat(path, ".", key),
                                          there.value(key, Json()), here.value(key, Json()));
    if (!one.empty()) out += Concat(out.empty() ? "" : ", ", one);
  }
  return out;
}

}  // namespace

std::string Differences(const Json& there, const Json& here) { return DifferencesAt("", there, here); }

}  // namespace terrace
