#include "tools/report/processor.h"

#include <fstream>
#include <map>

#include "base/status.h"

namespace terrace {
namespace {

std::string Stripped(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

}  // namespace

std::string ProcessorName(std::istream& cpuinfo) {
  std::map<std::string, std::string> fields;  // of the first processor
  for (std::string line; std::getline(cpuinfo, line) && !line.empty();) {
    const size_t colon = line.find(':');
    if (colon != std::string::npos)
      fields[Stripped(line.substr(0, colon))] = Stripped(line.substr(colon + 1));
  }
  if (fields["model name"].empty()) return "unknown processor";
  std::string name = fields["model name"];
  if (!fields["cpu family"].empty() && !fields["model"].empty())
    name += Concat(", family ", fields["cpu family"], " model ", fields["model"]);
  return name;
}

std::string ThisProcessor() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  return ProcessorName(cpuinfo);
}

}  // namespace terrace
