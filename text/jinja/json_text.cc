// The filter tojson: what Python's json.dumps(value, ensure_ascii=False) writes.
#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"

namespace terrace {
namespace {

class JsonWriter {
 public:
  JsonWriter(int indent, Budget& budget) : indent_(indent), budget_(budget) {}

  Status Write(const Value& value) {
    RETURN_IF_ERROR(budget_.Spend(1));
    if (const auto* text = value.As<Value::Text>()) return WriteText(*text);
    if (const auto* list = value.As<Value::List>()) {
      return WriteItems('[', ']', list->items.size(), [&](size_t i) { return Write(list->items[i]); });
    }
    if (const auto* dict = value.As<Value::Dict>()) {
      return WriteItems('{', '}', dict->items.size(), [&](size_t i) {
        RETURN_IF_ERROR(WriteText(*dict->items[i].first.As<Value::Text>()));
        out_.Append(": ", true);
        return Write(dict->items[i].second);
      });
    }
    if (value.Is<NoneValue>()) {
      out_.Append("null", true);
    } else if (const auto* boolean = value.As<bool>()) {
      out_.Append(*boolean ? "true" : "false", true);
    } else if (value.Is<int64_t>() || value.Is<double>()) {
      ASSIGN_OR_RETURN(const Value::Text number, ToText(value));
      out_.Append(*number);
    } else {
      return TemplateError(KindOf(value), " cannot be written as JSON");
    }
    return Status();
  }

  MarkedString Take() { return std::move(out_); }

 private:
  template <typename WriteItem>
  Status WriteItems(char open, char close, size_t count, WriteItem write_item) {
    out_.Append(std::string_view(&open, 1), true);
    ++depth_;
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out_.Append(indent_ < 0 ? ", " : ",", true);
      RETURN_IF_ERROR(BreakLine());
      RETURN_IF_ERROR(write_item(i));
    }
    --depth_;
    if (count > 0) RETURN_IF_ERROR(BreakLine());
    out_.Append(std::string_view(&close, 1), true);
    return Status();
  }

  Status BreakLine() {
    if (indent_ < 0) return Status();
    const auto blanks = static_cast<size_t>(depth_ * indent_);
    RETURN_IF_ERROR(SpendFor(blanks));
    out_.Append("\n" + std::string(blanks, ' '), true);
    return Status();
  }

  // For `bytes` more of output, which in all stays below the limit of a text.
  Status SpendFor(size_t bytes) {
    return budget_.SpendBytes(out_.size() > kMaxTemplateText ? out_.size() : bytes);
  }

  // An escape is as trusted as the byte it stands for.
  Status WriteText(const MarkedString& text) {
    constexpr std::string_view kEscaped = "\"\\\n\r\t\b\f", kLetters = "\"\\nrtbf";
    constexpr char kHex[] = "0123456789abcdef";
    RETURN_IF_ERROR(SpendFor(text.size()));
    out_.Append("\"", true);
    for (size_t i = 0; i < text.size(); ++i) {
      const char c = text.bytes()[i];
      if (const size_t known = kEscaped.find(c); known != std::string_view::npos) {
        out_.Append(std::string{'\\', kLetters[known]}, text.is_trusted(i));
      } else if (static_cast<uint8_t>(c) < 0x20) {
        out_.Append(std::string("\\u00") + kHex[c >> 4] + kHex[c & 15], text.is_trusted(i));
      } else {
        out_.AppendSlice(text, i, i + 1);
      }
    }
    out_.Append("\"", true);
    return Status();
  }

  const int indent_;  // negative: all on one line
  Budget& budget_;
  int depth_ = 0;
  MarkedString out_;
};

}  // namespace

StatusOr<MarkedString> ToTemplateJson(const Value& value, int indent, Budget& budget) {
  JsonWriter writer(indent, budget);
  RETURN_IF_ERROR(writer.Write(value));
  MarkedString text = writer.Take();
  RETURN_IF_ERROR(budget.SpendBytes(text.size()));
  return text;
}

}  // namespace terrace
