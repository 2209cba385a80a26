#include "text/jinja/marked_string.h"

namespace terrace {

std::vector<std::pair<size_t, size_t>> MarkedString::TrustedRanges() const {
  std::vector<std::pair<size_t, size_t>> ranges;
  for (size_t end = 0;;) {
    const size_t begin = marks_.find(kTrusted, end);
    if (begin == std::string::npos) return ranges;
    end = marks_.find(kUntrusted, begin);
    if (end == std::string::npos) end = marks_.size();
    ranges.emplace_back(begin, end);
  }
}

}  // namespace terrace
