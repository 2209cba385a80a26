#include "base/json_fast_path.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little, "the first byte in memory is the lowest");

constexpr size_t kMaxDepth = 256;  // of this recursion, whatever the limits are

uint8_t ByteAt(const char* at) { return static_cast<uint8_t>(*at); }

bool IsPlain(uint8_t byte) { return byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\'; }

// The first byte in [at, end) that does not stand for itself in a string: a quote, a backslash, a control
// character, or one that is not ASCII. Eight at a time.
const char* EndOfPlain(const char* at, const char* end) {
  constexpr uint64_t kOnes = 0x0101010101010101, kHighBits = 0x8080808080808080;
  for (; end - at >= 8; at += 8) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, at, sizeof(bytes));
    const uint64_t quotes = bytes ^ kOnes * '"', backslashes = bytes ^ kOnes * '\\';  // 0 where there is one
    // The lowest bit that is set is that of the first such byte: only bytes behind it can be taken for one
    // wrongly, as a subtraction borrows from them.
    const uint64_t found =
        ((bytes - kOnes * 0x20) | (quotes - kOnes) | (backslashes - kOnes) | bytes) & kHighBits;
    if (found != 0) return at + std::countr_zero(found) / 8;
  }
  while (at != end && IsPlain(ByteAt(at))) ++at;
  return at;
}

// Bytes of the character at `at`, which is not ASCII; 0 when it is not well-formed (Unicode, table 3-7).
size_t CharacterLength(const char* at, const char* end) {
  const uint8_t lead = ByteAt(at);
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (static_cast<size_t>(end - at) < length) return 0;
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (ByteAt(at + 1) < low || ByteAt(at + 1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((ByteAt(at + i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

void AppendCharacter(uint32_t code_point, std::string& out) {
  const auto byte = [&](uint32_t value) { out.push_back(static_cast<char>(value)); };
  if (code_point < 0x80) return byte(code_point);
  if (code_point < 0x800) {
    byte(0xC0 | code_point >> 6);
  } else if (code_point < 0x10000) {
    byte(0xE0 | code_point >> 12);
    byte(0x80 | (code_point >> 6 & 0x3F));
  } else {
    byte(0xF0 | code_point >> 18);
    byte(0x80 | (code_point >> 12 & 0x3F));
    byte(0x80 | (code_point >> 6 & 0x3F));
  }
  byte(0x80 | (code_point & 0x3F));
}

// Each Read... is false when the document is none that this reads; then nothing else of it is looked at.
class Reader {
 public:
  Reader(std::string_view text, const JsonLimits& limits)
      : at_(text.data()), end_(text.data() + text.size()), limits_(limits) {}

  bool ReadDocument(Json& out) {
    if (!ReadValue(0, out)) return false;
    SkipSpace();
    return at_ == end_;
  }

 private:
  void SkipSpace() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }
  bool Take(char c) {
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  bool TakeAfterSpace(char c) {
    SkipSpace();
    return Take(c);
  }
  bool CountNode() { return ++nodes_ <= limits_.nodes; }

  // `depth`: of the containers around it.
  bool ReadValue(size_t depth, Json& out) {
    SkipSpace();
    if (at_ == end_ || !CountNode()) return false;
    switch (*at_) {
      case '{':
        return ReadObject(depth + 1, out);
      case '[':
        return ReadArray(depth + 1, out);
      case '"':
        out = Json::string_t();
        return ReadString(out.get_ref<Json::string_t&>());
      case 't':
        return ReadWord("true", true, out);
      case 'f':
        return ReadWord("false", false, out);
      case 'n':
        return ReadWord("null", nullptr, out);
      default:
        return ReadNumber(out);
    }
  }

  bool IsTooDeep(size_t depth) const { return depth > std::min(limits_.depth, kMaxDepth); }

  bool ReadObject(size_t depth, Json& out) {
    ++at_;
    if (IsTooDeep(depth)) return false;
    out = Json::object();
    auto& members = out.get_ref<Json::object_t&>();
    if (TakeAfterSpace('}')) return true;
    for (;;) {
      SkipSpace();
      std::string key;
      if (!ReadString(key) || !CountNode() || key.size() > limits_.key_bytes) return false;
      const auto [member, is_new] = members.try_emplace(std::move(key));
      if (!is_new || !TakeAfterSpace(':') || !ReadValue(depth, member->second)) return false;
      if (TakeAfterSpace('}')) return true;
      if (!Take(',')) return false;
    }
  }

  bool ReadArray(size_t depth, Json& out) {
    ++at_;
    if (IsTooDeep(depth)) return false;
    out = Json::array();
    auto& items = out.get_ref<Json::array_t&>();
    if (TakeAfterSpace(']')) return true;
    for (;;) {
      if (!ReadValue(depth, items.emplace_back())) return false;
      if (TakeAfterSpace(']')) return true;
      if (!Take(',')) return false;
    }
  }

  bool ReadWord(std::string_view word, const Json& value, Json& out) {
    if (!std::string_view(at_, end_).starts_with(word)) return false;
    at_ += word.size();
    out = value;
    return true;
  }

  bool TakeDigits() {
    const char* const begin = at_;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return at_ != begin;
  }

  bool ReadNumber(Json& out) {
    const char* const begin = at_;
    const bool is_negative = Take('-');
    if (!Take('0') && !TakeDigits()) return false;
    bool is_real = false;
    if (Take('.')) {
      is_real = true;
      if (!TakeDigits()) return false;
    }
    if (Take('e') || Take('E')) {
      is_real = true;
      if (!Take('-')) Take('+');
      if (!TakeDigits()) return false;
    }
    const std::string_view digits(begin, at_);
    if (is_real) return Convert<double>(digits, out);
    return is_negative ? Convert<int64_t>(digits, out) : Convert<uint64_t>(digits, out);
  }

  template <typename T>
  static bool Convert(std::string_view digits, Json& out) {
    T number = 0;
    const char* const end = digits.data() + digits.size();
    const auto [last, error] = std::from_chars(digits.data(), end, number);
    if (error != std::errc() || last != end) return false;
    out = number;
    return true;
  }

  bool ReadString(std::string& out) {
    if (!Take('"')) return false;
    for (;;) {
      const char* const begin = at_;
      for (;;) {
        at_ = EndOfPlain(at_, end_);
        const size_t length = at_ != end_ && ByteAt(at_) >= 0x80 ? CharacterLength(at_, end_) : 0;
        if (length == 0) break;
        at_ += length;
      }
      out.append(begin, at_);
      if (Take('"')) return true;
      if (!Take('\\') || !ReadEscape(out)) return false;
    }
  }

  bool ReadEscape(std::string& out) {
    if (at_ == end_) return false;
    const char kind = *at_++;
    if (kind == 'u') return ReadUnicode(out);
    constexpr std::string_view kKinds = "\"\\/bfnrt", kCharacters = "\"\\/\b\f\n\r\t";
    const size_t found = kKinds.find(kind);
    if (found == std::string_view::npos) return false;
    out.push_back(kCharacters[found]);
    return true;
  }

  bool ReadUnicode(std::string& out) {
    uint32_t code = 0;
    if (!ReadHex(code) || (code >= 0xDC00 && code < 0xE000)) return false;
    if (code >= 0xD800 && code < 0xDC00) {  // the first half of a pair
      uint32_t second = 0;
      if (!Take('\\') || !Take('u') || !ReadHex(second) || second < 0xDC00 || second >= 0xE000) return false;
      code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    }
    AppendCharacter(code, out);
    return true;
  }

  // Four digits.
  bool ReadHex(uint32_t& out) {
    if (end_ - at_ < 4) return false;
    const auto [last, error] = std::from_chars(at_, at_ + 4, out, 16);
    if (error != std::errc() || last != at_ + 4) return false;
    at_ = last;
    return true;
  }

  const char* at_;
  const char* const end_;
  const JsonLimits& limits_;
  size_t nodes_ = 0;  // values and keys
};

}  // namespace

std::optional<Json> ReadJsonFast(std::string_view text, const JsonLimits& limits) {
  Json out;
  if (!Reader(text, limits).ReadDocument(out)) return std::nullopt;
  return out;
}

}  // namespace terrace
