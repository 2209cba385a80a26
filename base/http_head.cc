#include "base/http_head.h"

#include "base/status.h"

namespace terrace {
namespace {

HttpRefusal Malformed(std::string_view what) { return {.message = Concat("malformed HTTP: ", what)}; }

}  // namespace

std::optional<HttpRefusal> HttpHeadCheck::Check(std::string_view input) {
  while (looked_at_ < input.size() && !is_complete_) {
    if (looked_at_ >= limits_.max_bytes) {
      return HttpRefusal{431, "header_too_large",
                         Concat("the header is larger than ", limits_.max_bytes, " bytes")};
    }
    const char c = input[looked_at_++];
    if (auto refusal = CheckByte(c)) return refusal;
    if (c != '\n') continue;
    if (auto refusal = EndLine(input.substr(line_start_, looked_at_ - line_start_ - 2))) return refusal;
    line_start_ = looked_at_;
  }
  return std::nullopt;
}

std::optional<HttpRefusal> HttpHeadCheck::CheckByte(char c) {
  const bool is_line_start = looked_at_ - 1 == line_start_;
  if (is_after_cr_ != (c == '\n')) return Malformed("a line must end with CR LF");
  is_after_cr_ = c == '\r';
  if ((static_cast<unsigned char>(c) < ' ' && c != '\t' && c != '\r' && c != '\n') || c == '\x7f') {
    return Malformed("a control character in the header");
  }
  if (!is_first_line_) {
    if (is_line_start && (c == ' ' || c == '\t')) return Malformed("a folded header line");
    if (looked_at_ - line_start_ <= limits_.max_field_bytes + 2) return std::nullopt;  // with CR LF
    return HttpRefusal{431, "header_too_large",
                       Concat("one header is larger than ", limits_.max_field_bytes, " bytes")};
  }
  if (c == ' ') ++spaces_;
  if (c != ' ' && spaces_ == 1) ++target_bytes_;
  if (target_bytes_ > limits_.max_target_bytes) {
    return HttpRefusal{414, "uri_too_long",
                       Concat("the URI is longer than ", limits_.max_target_bytes, " bytes")};
  }
  return std::nullopt;
}

std::optional<HttpRefusal> HttpHeadCheck::EndLine(std::string_view line) {
  if (is_first_line_) {
    is_first_line_ = false;
    return line.empty() ? std::optional(Malformed("an empty first line")) : std::nullopt;
  }
  if (line.empty()) {
    is_complete_ = true;
    return std::nullopt;
  }
  const size_t colon = line.find(':');
  if (colon == 0 || colon == std::string_view::npos) return Malformed("a header line without a name");
  if (line[colon - 1] == ' ' || line[colon - 1] == '\t') return Malformed("a space before a colon");
  if (++fields_ > limits_.max_fields) {
    return HttpRefusal{431, "too_many_headers",
                       Concat("there are more than ", limits_.max_fields, " headers")};
  }
  return std::nullopt;
}

}  // namespace terrace
