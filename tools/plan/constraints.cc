#include "tools/plan/constraints.h"

#include <charconv>
#include <cmath>

namespace terrace {
namespace {

constexpr double kMostBytes = 1e18;

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr Unit kUnits[] = {{"B", 1},
                           {"KB", 1e3},
                           {"MB", 1e6},
                           {"GB", 1e9},
                           {"TB", 1e12},
                           {"KiB", 1024},
                           {"MiB", 1024.0 * 1024},
                           {"GiB", 1 << 30},
                           {"TiB", 1099511627776.0}};

}  // namespace

StatusOr<uint64_t> ParseBytes(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  if (unit.size() > 1 && unit.front() == ' ') unit.remove_prefix(1);
  double scale = 0;
  for (const Unit& known : kUnits) {
    if (known.name == unit) scale = known.bytes;
  }
  if (error == std::errc() && unit.empty())
    return InvalidArgument("\"", text, "\" has no unit; a size is such as 8GiB, 512MiB or 1.5GB");
  if (error != std::errc() || scale == 0)
    return InvalidArgument("\"", text, "\" is not a size such as 8GiB, 512MiB or 1.5GB");
  const double bytes = std::floor(value * scale);
  if (!(bytes >= 1 && bytes <= kMostBytes))
    return InvalidArgument("\"", text, "\" is not at least 1 byte and at most ", kMostBytes);
  return static_cast<uint64_t>(bytes);
}

}  // namespace terrace
