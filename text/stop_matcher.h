// Finds stop strings in streamed text, also where they span pieces. Holds back only text that could still be
// the start of a stop string. Owned by one stream; one thread at a time.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace terrace {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // none of them empty

  // Text that may be shown now, for work in proportion to `text` and the longest stop string. After a match
  // (stopped()), everything from the stop string on is dropped and further calls give "". Of several matches
  // the one that ends first wins, and of those the one that begins first: the same whichever way the text was
  // cut into pieces.
  std::string Push(std::string_view text);
  // The text still held back, when the stream ends without a match.
  std::string Finish();

  bool stopped() const { return !matched_.empty(); }
  const std::string& matched() const { return matched_; }  // the stop string, "" while not stopped

 private:
  // One stop string and how much of it the text seen so far ends with (Knuth, Morris and Pratt: constant time
  // per byte, amortised).
  struct Stop {
    std::string text;
    std::vector<size_t> borders;  // [length]: longest proper prefix of text[0, length) that also ends it
    size_t matched = 0;
  };
  static size_t Advance(const Stop& stop, size_t matched, char next);

  std::vector<Stop> stops_;
  std::string held_;
  std::string matched_;
};

}  // namespace terrace
