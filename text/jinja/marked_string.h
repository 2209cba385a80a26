// A string that knows of each byte whether the template vouches for it (trusted: literals, roles, bos and
// eos) or it came out of a message's content. Every operation of the template language carries the marks
// along. Values.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace terrace {

class MarkedString {
 public:
  MarkedString() = default;
  MarkedString(std::string bytes, bool trusted)
      : bytes_(std::move(bytes)), marks_(bytes_.size(), trusted ? kTrusted : kUntrusted) {}

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool is_trusted(size_t i) const { return marks_[i] == kTrusted; }
  // Whether all of [begin, end) is trusted.
  bool is_trusted(size_t begin, size_t end) const {
    return std::string_view(marks_).substr(begin, end - begin).find(kUntrusted) == std::string_view::npos;
  }

  void Append(std::string_view bytes, bool trusted) {
    bytes_.append(bytes);
    marks_.append(bytes.size(), trusted ? kTrusted : kUntrusted);
  }
  void Append(const MarkedString& other) { AppendSlice(other, 0, other.size()); }
  void AppendSlice(const MarkedString& other, size_t begin, size_t end) {
    bytes_.append(other.bytes_, begin, end - begin);
    marks_.append(other.marks_, begin, end - begin);
  }
  MarkedString Slice(size_t begin, size_t end) const {
    MarkedString slice;
    slice.AppendSlice(*this, begin, end);
    return slice;
  }
  // Replaces each byte; lengths and marks stay.
  template <typename Map>
  MarkedString MapBytes(Map map) const {
    MarkedString mapped = *this;
    for (char& c : mapped.bytes_) c = map(c);
    return mapped;
  }

  // The maximal trusted ranges [begin, end), sorted.
  std::vector<std::pair<size_t, size_t>> TrustedRanges() const;

 private:
  static constexpr char kUntrusted = 0, kTrusted = 1;
  std::string bytes_;
  std::string marks_;  // one for each byte
};

}  // namespace terrace
