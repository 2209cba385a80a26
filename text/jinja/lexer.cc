#include "text/jinja/lexer.h"

#include <algorithm>
#include <charconv>

#include "text/unicode.h"

namespace terrace {
namespace {

// "\r\n" and "\r" become "\n"; one line break at the end is dropped.
std::string NormalizeLines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    const bool is_pair = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
    if (!is_pair) out.push_back(source[i] == '\r' ? '\n' : source[i]);
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Lexer {
 public:
  explicit Lexer(const std::string& source) : source_(source) {}

  StatusOr<std::vector<TemplateToken>> Run() {
    while (position_ < source_.size()) RETURN_IF_ERROR(LexTextAndTag());
    Add(TemplateToken::kEnd, position_);
    return std::move(tokens_);
  }

 private:
  std::string_view Rest(size_t from) const { return std::string_view(source_).substr(from); }
  bool At(size_t i, std::string_view text) const {
    return Rest(std::min(i, source_.size())).starts_with(text);
  }

  // Offsets are asked for in ascending order, so that counting lines is linear in all.
  TemplatePosition PositionOf(size_t offset) {
    for (; counted_ < offset; ++counted_) {
      if (source_[counted_] == '\n') {
        ++line_;
        line_begin_ = counted_ + 1;
      }
    }
    return {line_, static_cast<int>(offset - std::min(offset, line_begin_)) + 1};
  }

  TemplateToken& Add(TemplateToken::Kind kind, size_t offset, std::string text = "") {
    TemplateToken token{.kind = kind, .text = std::move(text), .position = PositionOf(offset)};
    return tokens_.emplace_back(std::move(token));
  }

  Status Error(size_t offset, std::string_view message) {
    return TemplateSyntaxError(PositionOf(offset), message);
  }

  // Template text up to the next tag, and the tag.
  Status LexTextAndTag() {
    size_t tag = position_;
    for (; tag < source_.size(); ++tag) {
      tag = std::min(source_.find('{', tag), source_.size());
      if (At(tag, "{{") || At(tag, "{%") || At(tag, "{#")) break;
    }
    tag = std::min(tag, source_.size());
    std::string_view text = Rest(position_).substr(0, tag - position_);
    if (tag == source_.size()) {
      if (!text.empty()) Add(TemplateToken::kText, position_, std::string(text));
      position_ = tag;
      return Status();
    }
    size_t inside = tag + 2;
    const char sign = At(inside, "-") || At(inside, "+") ? source_[inside++] : ' ';
    if (sign == '-') {
      text.remove_suffix(TrailingSpace(text));
    } else if (sign != '+' && source_[tag + 1] != '{') {
      const size_t line = text.rfind('\n') + 1;  // 0 when the text has no line break
      const std::string_view blanks = text.substr(line);
      const bool at_line_start = line > 0 || position_ == 0 || source_[position_ - 1] == '\n';
      if (at_line_start && LeadingSpace(blanks) == blanks.size()) text.remove_suffix(blanks.size());
    }
    if (!text.empty()) Add(TemplateToken::kText, position_, std::string(text));
    position_ = inside;
    return source_[tag + 1] == '#' ? SkipComment(tag) : LexTag(tag);
  }

  Status SkipComment(size_t tag) {
    const size_t end = source_.find("#}", position_);
    if (end == std::string::npos) return Error(tag, "comment without end");
    EndTag(end, /*takes_line_break=*/true, end > position_ ? source_[end - 1] : ' ');
    return Status();
  }

  // Goes on behind the two closing characters at `end`, which `sign` stands in front of.
  void EndTag(size_t end, bool takes_line_break, char sign) {
    position_ = end + 2;
    if (sign == '-') {
      position_ += LeadingSpace(Rest(position_));
    } else if (sign != '+' && takes_line_break && At(position_, "\n")) {
      ++position_;
    }
  }

  Status LexTag(size_t tag) {
    const bool is_output = source_[tag + 1] == '{';
    const std::string_view close = is_output ? "}}" : "%}";
    const TemplatePosition begin =
        Add(is_output ? TemplateToken::kOutputBegin : TemplateToken::kBlockBegin, tag).position;
    std::vector<char> open;  // brackets
    while (true) {
      position_ += LeadingSpace(Rest(position_));
      if (position_ == source_.size()) return TemplateSyntaxError(begin, Concat("tag without ", close));
      if (open.empty()) {
        const bool is_signed = At(position_, "-") || (!is_output && At(position_, "+"));
        const size_t end = position_ + (is_signed ? 1 : 0);
        if (At(end, close)) {
          Add(is_output ? TemplateToken::kOutputEnd : TemplateToken::kBlockEnd, position_);
          EndTag(end, /*takes_line_break=*/!is_output, is_signed ? source_[position_] : ' ');
          return Status();
        }
      }
      RETURN_IF_ERROR(LexToken(open));
    }
  }

  Status LexToken(std::vector<char>& open) {
    const char c = source_[position_];
    if (IsNameStart(c)) {
      size_t end = position_;
      while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
      Add(TemplateToken::kName, position_, source_.substr(position_, end - position_));
      position_ = end;
      return Status();
    }
    if (IsDigit(c)) return LexNumber();
    if (c == '\'' || c == '"') return LexString(c);
    return LexOperator(open);
  }

  Status LexOperator(std::vector<char>& open) {
    constexpr std::string_view kLong[] = {"//", "==", "!=", ">=", "<=", "**"};
    constexpr std::string_view kShort = "+-*/%~<>=.:|,()[]{}";
    const char c = source_[position_];
    size_t length = 1;
    for (const std::string_view text : kLong) {
      if (At(position_, text)) length = 2;
    }
    if (length == 1 && kShort.find(c) == std::string_view::npos)
      return Error(position_, "unexpected character");
    if (c == '(' || c == '[' || c == '{') open.push_back(c);
    if (c == ')' || c == ']' || c == '}') {
      const char opener = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open.empty() || open.back() != opener) return Error(position_, Concat("unexpected '", c, "'"));
      open.pop_back();
    }
    Add(TemplateToken::kOperator, position_, source_.substr(position_, length));
    position_ += length;
    return Status();
  }

  Status LexNumber() {
    const size_t begin = position_;
    const bool follows_dot = begin > 0 && source_[begin - 1] == '.';  // items.0.1: two indexes
    const auto skip_digits = [&](size_t from) {
      while (from < source_.size() && IsDigit(source_[from])) ++from;
      return from;
    };
    size_t end = skip_digits(begin);
    const size_t whole = end;
    if (!follows_dot && At(end, ".") && skip_digits(end + 1) > end + 1) end = skip_digits(end + 1);
    if (!follows_dot && (At(end, "e") || At(end, "E"))) {
      const size_t digits = end + 1 + (At(end + 1, "+") || At(end + 1, "-") ? 1 : 0);
      if (skip_digits(digits) > digits) end = skip_digits(digits);
    }
    if (end < source_.size() && IsNameStart(source_[end])) return Error(begin, "unsupported number");
    TemplateToken& token = Add(end == whole ? TemplateToken::kInteger : TemplateToken::kFloat, begin);
    const char* first = source_.data() + begin;
    const char* last = source_.data() + end;
    const auto result = end == whole ? std::from_chars(first, last, token.integer)
                                     : std::from_chars(first, last, token.number);
    if (result.ec != std::errc() || result.ptr != last) return Error(begin, "number out of range");
    position_ = end;
    return Status();
  }

  Status LexString(char quote) {
    const size_t begin = position_;
    std::string text;
    for (++position_; position_ < source_.size() && source_[position_] != quote;) {
      if (source_[position_] != '\\') {
        text.push_back(source_[position_++]);
      } else {
        RETURN_IF_ERROR(LexEscape(text));
      }
    }
    if (position_ >= source_.size()) return Error(begin, "string without end");
    ++position_;
    Add(TemplateToken::kString, begin, std::move(text));
    return Status();
  }

  // Python's escapes, less \N{name}. An unknown one stays as it is, backslash included.
  Status LexEscape(std::string& text) {
    constexpr std::string_view kPlain = "\\'\"abfnrtv", kMeaning = "\\'\"\a\b\f\n\r\t\v";
    const size_t begin = position_;
    if (begin + 1 >= source_.size()) return Error(begin, "string without end");
    const char c = source_[begin + 1];
    position_ += 2;
    if (c == '\n') return Status();
    if (const size_t plain = kPlain.find(c); plain != std::string_view::npos) {
      text.push_back(kMeaning[plain]);
      return Status();
    }
    if (c >= '0' && c <= '7') {
      --position_;
      size_t digits = 1;
      while (digits < 3 && position_ + digits < source_.size() && source_[position_ + digits] >= '0' &&
             source_[position_ + digits] <= '7') {
        ++digits;
      }
      return AppendCodePoint(begin, digits, 8, text);
    }
    if (c == 'x' || c == 'u' || c == 'U')
      return AppendCodePoint(begin, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, text);
    if (c == 'N') return Error(begin, "\\N is not supported");
    text.push_back('\\');
    text.push_back(c);
    return Status();
  }

  Status AppendCodePoint(size_t begin, size_t digits, int base, std::string& text) {
    uint32_t code_point = 0;
    const char* first = source_.data() + position_;
    const char* last = first + std::min(digits, source_.size() - position_);
    const auto result = std::from_chars(first, last, code_point, base);
    const bool is_surrogate = code_point >= 0xD800 && code_point < 0xE000;
    if (result.ec != std::errc() || result.ptr != first + digits || code_point > 0x10FFFF || is_surrogate) {
      return Error(begin, "bad escape");
    }
    AppendUtf8(code_point, text);
    position_ += digits;
    return Status();
  }

  const std::string& source_;
  size_t position_ = 0;
  size_t counted_ = 0, line_begin_ = 0;
  int line_ = 1;
  std::vector<TemplateToken> tokens_;
};

}  // namespace

Status TemplateSyntaxError(TemplatePosition position, std::string_view message) {
  return WithReason(
      DataLoss("chat template: line ", position.line, ", column ", position.column, ": ", message),
      "bad_template");
}

StatusOr<std::vector<TemplateToken>> LexTemplate(std::string_view source) {
  const std::string normalized = NormalizeLines(source);
  return Lexer(normalized).Run();
}

bool IsTemplateSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

size_t LeadingSpace(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const Utf8Step step = DecodeUtf8(text.substr(i));
    if (!step.valid || !IsTemplateSpace(step.code_point)) break;
    i += step.length;
  }
  return i;
}

size_t TrailingSpace(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t length = LastCharacterLength(text.substr(0, end));
    const Utf8Step step = DecodeUtf8(text.substr(end - length, length));
    if (!step.valid || !IsTemplateSpace(step.code_point)) break;
    end -= length;
  }
  return text.size() - end;
}

}  // namespace terrace
