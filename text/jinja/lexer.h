// Cuts a template into tokens. White space around tags is settled here, as Jinja does with trim_blocks and
// lstrip_blocks on (Hugging Face's setting): "-" strips all of it, a block or comment takes the line break
// after it and the blanks before it on its line, "+" turns that off; one line break at the very end is
// dropped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace {

struct TemplatePosition {
  int line = 1, column = 1;
};

struct TemplateToken {
  enum Kind {
    kText,
    kOutputBegin,
    kOutputEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind = kEnd;
  std::string text;     // template text, name, decoded string or operator
  int64_t integer = 0;  // kInteger
  double number = 0;    // kFloat
  TemplatePosition position;
};

// DATA_LOSS, reason bad_template, with line and column.
Status TemplateSyntaxError(TemplatePosition position, std::string_view message);

// The tokens of `source` (valid UTF-8), kEnd last.
StatusOr<std::vector<TemplateToken>> LexTemplate(std::string_view source);

// Python's str.isspace: White_Space and U+001C to U+001F.
bool IsTemplateSpace(char32_t code_point);
// Bytes of white space at either end of `text`.
size_t LeadingSpace(std::string_view text);
size_t TrailingSpace(std::string_view text);

}  // namespace terrace
