#include "text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace terrace {

// How much of the stop string is matched once `next` follows `matched` bytes of it.
size_t StopMatcher::Advance(const Stop& stop, size_t matched, char next) {
  while (matched > 0 && stop.text[matched] != next) matched = stop.borders[matched];
  return stop.text[matched] == next ? matched + 1 : 0;
}

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& text : stops) {
    CHECK(!text.empty(), "empty stop string");
    Stop stop{.text = std::move(text), .borders = {0, 0}};
    for (size_t i = 1; i < stop.text.size(); ++i) {
      stop.borders.push_back(Advance(stop, stop.borders[i], stop.text[i]));
    }
    stops_.push_back(std::move(stop));
  }
}

std::string StopMatcher::Push(std::string_view text) {
  if (stopped()) return "";
  if (stops_.empty()) return std::string(text);
  for (const char next : text) {
    held_.push_back(next);
    for (Stop& stop : stops_) {
      stop.matched = Advance(stop, stop.matched, next);
      if (stop.matched == stop.text.size() && stop.text.size() > matched_.size()) matched_ = stop.text;
    }
    if (stopped()) {
      held_.resize(held_.size() - matched_.size());
      return std::exchange(held_, "");
    }
  }
  size_t keep = 0;  // the longest start of a stop string that the text ends with
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopMatcher::Finish() {
  for (Stop& stop : stops_) stop.matched = 0;
  return std::exchange(held_, "");
}

}  // namespace terrace
