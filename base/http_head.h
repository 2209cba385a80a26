// Judges the head of an HTTP/1.1 request (its first line and its fields) by its bytes, before a parser reads
// it: what two programs could read differently, or what is too large, is refused. One head an object; one
// thread.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace terrace {

// A request that is not handled.
struct HttpRefusal {
  int status = 400;
  std::string_view reason = "malformed";  // a metric's label: one of kHttpRejections
  std::string message = {};
};

class HttpHeadCheck {
 public:
  struct Limits {
    size_t max_bytes = 0;         // of the head: 431
    size_t max_target_bytes = 0;  // of the URI: 414
    size_t max_fields = 0;        // 431
    size_t max_field_bytes = 0;   // of each, name and value: 431
  };
  explicit HttpHeadCheck(const Limits& limits) : limits_(limits) {}

  // `input` is what has come so far, from the first byte of the head on, and may go on behind its end. Each
  // call looks at what is new.
  std::optional<HttpRefusal> Check(std::string_view input);
  bool is_complete() const { return is_complete_; }

 private:
  std::optional<HttpRefusal> CheckByte(char c);
  std::optional<HttpRefusal> EndLine(std::string_view line);

  const Limits limits_;
  size_t looked_at_ = 0, line_start_ = 0, fields_ = 0;
  size_t spaces_ = 0, target_bytes_ = 0;  // of the first line
  bool is_first_line_ = true, is_after_cr_ = false, is_complete_ = false;
};

}  // namespace terrace
