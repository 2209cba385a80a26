// Python's methods of str and dict. Letters are mapped to upper and lower case in ASCII only.
#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/lexer.h"
#include "text/jinja/operators.h"
#include "text/unicode.h"

namespace terrace {
namespace {

using Arguments = std::span<const Value>;

const MarkedString& TextOf(const Value& value) {
  const auto* text = value.As<Value::Text>();
  CHECK(text != nullptr, "a text function was called on ", KindOf(value));
  return *text;
}

StatusOr<const MarkedString*> TextArgument(const Value& value, std::string_view name) {
  if (const auto* text = value.As<Value::Text>()) return text;
  return TemplateError("the argument '", name, "' must be text, not ", KindOf(value));
}

bool IsMissing(const Value& value) { return value.Is<UndefinedValue>() || value.Is<NoneValue>(); }

// A count argument; negative and missing mean no limit.
StatusOr<size_t> CountArgument(const Value& value, std::string_view name) {
  if (IsMissing(value)) return SIZE_MAX;
  const auto* count = value.As<int64_t>();
  if (count == nullptr)
    return TemplateError("the argument '", name, "' must be an integer, not ", KindOf(value));
  return *count < 0 ? SIZE_MAX : static_cast<size_t>(*count);
}

bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
char Upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

size_t LeadingOf(std::string_view text, std::string_view characters) {
  size_t i = 0;
  while (i < text.size()) {
    const size_t length = DecodeUtf8(text.substr(i)).length;
    if (characters.find(text.substr(i, length)) == std::string_view::npos) break;
    i += length;
  }
  return i;
}

size_t TrailingOf(std::string_view text, std::string_view characters) {
  size_t end = text.size();
  while (end > 0) {
    const size_t length = LastCharacterLength(text.substr(0, end));
    if (characters.find(text.substr(end - length, length)) == std::string_view::npos) break;
    end -= length;
  }
  return text.size() - end;
}

// strip, lstrip and rstrip: white space, or the characters of the argument.
StatusOr<Value> Strip(const Value& subject, const Value& characters, bool left, bool right, Budget& budget) {
  const MarkedString& text = TextOf(subject);
  std::string_view rest = text.bytes();
  size_t begin = 0;
  if (IsMissing(characters)) {
    RETURN_IF_ERROR(budget.SpendBytes(rest.size()));
    if (left) begin = LeadingSpace(rest);
    rest.remove_prefix(begin);
    if (right) rest.remove_suffix(TrailingSpace(rest));
  } else {
    ASSIGN_OR_RETURN(const MarkedString* set, TextArgument(characters, "chars"));
    RETURN_IF_ERROR(budget.Spend(rest.size() / 64 * (1 + set->size() / 64)));
    if (left) begin = LeadingOf(rest, set->bytes());
    rest.remove_prefix(begin);
    if (right) rest.remove_suffix(TrailingOf(rest, set->bytes()));
  }
  return MakeText(text.Slice(begin, begin + rest.size()));
}

StatusOr<Value> StripLeft(const Value& subject, Arguments arguments, Budget& budget) {
  return Strip(subject, arguments[0], /*left=*/true, /*right=*/false, budget);
}
StatusOr<Value> StripRight(const Value& subject, Arguments arguments, Budget& budget) {
  return Strip(subject, arguments[0], /*left=*/false, /*right=*/true, budget);
}

StatusOr<Value> TitleText(const Value& subject, Arguments, Budget& budget) {
  RETURN_IF_ERROR(budget.SpendBytes(TextOf(subject).size()));
  bool in_word = false;
  return MakeText(TextOf(subject).MapBytes([&](char c) {
    const char mapped = in_word ? Lower(c) : Upper(c);
    in_word = IsAsciiLetter(c) || static_cast<uint8_t>(c) >= 0x80;
    return mapped;
  }));
}

StatusOr<Value> StartsWith(const Value& subject, Arguments arguments, Budget& budget) {
  ASSIGN_OR_RETURN(const MarkedString* prefix, TextArgument(arguments[0], "prefix"));
  RETURN_IF_ERROR(budget.SpendBytes(prefix->size()));
  return Value{TextOf(subject).bytes().starts_with(prefix->bytes())};
}

StatusOr<Value> EndsWith(const Value& subject, Arguments arguments, Budget& budget) {
  ASSIGN_OR_RETURN(const MarkedString* suffix, TextArgument(arguments[0], "suffix"));
  RETURN_IF_ERROR(budget.SpendBytes(suffix->size()));
  return Value{TextOf(subject).bytes().ends_with(suffix->bytes())};
}

// Cuts at runs of white space, and drops it at both ends.
StatusOr<Value> SplitAtSpace(const MarkedString& text, size_t limit) {
  ValueList pieces;
  const std::string_view bytes = text.bytes();
  size_t i = LeadingSpace(bytes);
  while (i < bytes.size()) {
    size_t end = i;
    while (end < bytes.size() && LeadingSpace(bytes.substr(end, 4)) == 0)
      end += DecodeUtf8(bytes.substr(end)).length;
    if (pieces.size() == limit) end = bytes.size() - TrailingSpace(bytes);
    pieces.push_back(MakeText(text.Slice(i, end)));
    i = end + LeadingSpace(bytes.substr(end));
  }
  return MakeList(std::move(pieces));
}

StatusOr<Value> SplitText(const Value& subject, Arguments arguments, Budget& budget) {
  const MarkedString& text = TextOf(subject);
  ASSIGN_OR_RETURN(const size_t limit, CountArgument(arguments[1], "maxsplit"));
  RETURN_IF_ERROR(budget.SpendBytes(text.size()));
  if (IsMissing(arguments[0])) {
    RETURN_IF_ERROR(budget.Spend(text.size() / 2));  // pieces there may be
    return SplitAtSpace(text, limit);
  }
  ASSIGN_OR_RETURN(const MarkedString* separator, TextArgument(arguments[0], "sep"));
  if (separator->size() == 0) return TemplateError("split by an empty text");
  RETURN_IF_ERROR(budget.Spend(text.size() / 64 * (separator->size() / 64)));
  ValueList pieces;
  size_t begin = 0;
  while (pieces.size() < limit) {
    const size_t end = text.bytes().find(separator->bytes(), begin);
    if (end == std::string::npos) break;
    RETURN_IF_ERROR(budget.Spend(1));
    pieces.push_back(MakeText(text.Slice(begin, end)));
    begin = end + separator->size();
  }
  pieces.push_back(MakeText(text.Slice(begin, text.size())));
  return MakeList(std::move(pieces));
}

StatusOr<Value> DictKeys(const Value& subject, Arguments, Budget& budget) {
  ASSIGN_OR_RETURN(Value::List keys, ToItems(subject, budget));
  return Value{std::move(keys)};
}

StatusOr<Value> DictValues(const Value& subject, Arguments, Budget& budget) {
  const auto& items = subject.As<Value::Dict>()->items;
  RETURN_IF_ERROR(budget.Spend(items.size()));
  ValueList values;
  for (const auto& [ignored, value] : items) values.push_back(value);
  return MakeList(std::move(values));
}

StatusOr<Value> DictGet(const Value& subject, Arguments arguments, Budget& budget) {
  const DictValue& dict = *subject.As<Value::Dict>();
  RETURN_IF_ERROR(budget.Spend(dict.items.size() / 16));
  const auto* key = arguments[0].As<Value::Text>();
  const Value* found = key == nullptr ? nullptr : FindKey(dict, key->bytes());
  if (found != nullptr) return *found;
  return arguments[1].Is<UndefinedValue>() ? Value{NoneValue()} : arguments[1];
}

}  // namespace

StatusOr<Value> StripText(const Value& subject, Arguments arguments, Budget& budget) {
  return Strip(subject, arguments[0], /*left=*/true, /*right=*/true, budget);
}

StatusOr<Value> UpperText(const Value& subject, Arguments, Budget& budget) {
  RETURN_IF_ERROR(budget.SpendBytes(TextOf(subject).size()));
  return MakeText(TextOf(subject).MapBytes(&Upper));
}

StatusOr<Value> LowerText(const Value& subject, Arguments, Budget& budget) {
  RETURN_IF_ERROR(budget.SpendBytes(TextOf(subject).size()));
  return MakeText(TextOf(subject).MapBytes(&Lower));
}

StatusOr<Value> CapitalizeText(const Value& subject, Arguments, Budget& budget) {
  RETURN_IF_ERROR(budget.SpendBytes(TextOf(subject).size()));
  bool is_first = true;
  return MakeText(TextOf(subject).MapBytes([&](char c) {
    const char mapped = is_first ? Upper(c) : Lower(c);
    is_first = false;
    return mapped;
  }));
}

// What stands in for text of a message is no more trusted than the text was: else a message could make the
// template write a control token of its choosing.
StatusOr<Value> ReplaceText(const Value& subject, Arguments arguments, Budget& budget) {
  const MarkedString& text = TextOf(subject);
  ASSIGN_OR_RETURN(const MarkedString* old_text, TextArgument(arguments[0], "old"));
  ASSIGN_OR_RETURN(const MarkedString* new_text, TextArgument(arguments[1], "new"));
  ASSIGN_OR_RETURN(const size_t limit, CountArgument(arguments[2], "count"));
  if (old_text->size() == 0) return TemplateError("replace of an empty text");
  RETURN_IF_ERROR(budget.Spend(text.size() / 64 * (1 + old_text->size() / 64)));
  MarkedString out;
  size_t begin = 0;
  for (size_t count = 0; count < limit; ++count) {
    const size_t found = text.bytes().find(old_text->bytes(), begin);
    if (found == std::string::npos) break;
    RETURN_IF_ERROR(budget.Spend(1));
    RETURN_IF_ERROR(budget.SpendBytes(out.size() > kMaxTemplateText ? out.size() : new_text->size()));
    const size_t end = found + old_text->size();
    out.AppendSlice(text, begin, found);
    if (text.is_trusted(found, end)) {
      out.Append(*new_text);
    } else {
      out.Append(new_text->bytes(), /*trusted=*/false);
    }
    begin = end;
  }
  out.AppendSlice(text, begin, text.size());
  RETURN_IF_ERROR(budget.SpendBytes(out.size()));
  return MakeText(std::move(out));
}

StatusOr<Value> DictItems(const Value& subject, Arguments, Budget& budget) {
  const auto* dict = subject.As<Value::Dict>();
  if (dict == nullptr) return TemplateError(KindOf(subject), " has no items()");
  RETURN_IF_ERROR(budget.Spend(2 * dict->items.size()));
  ValueList pairs;
  for (const auto& [key, value] : dict->items) {
    ASSIGN_OR_RETURN(Value pair, MakeList({key, value}));
    pairs.push_back(std::move(pair));
  }
  return MakeList(std::move(pairs));
}

const TemplateBuiltin* FindMethod(const Value& subject, std::string_view name) {
  static const TemplateBuiltin kTextMethods[] = {
      {"strip", &StripText, {"chars"}},
      {"lstrip", &StripLeft, {"chars"}},
      {"rstrip", &StripRight, {"chars"}},
      {"startswith", &StartsWith, {"prefix"}, 1},
      {"endswith", &EndsWith, {"suffix"}, 1},
      {"upper", &UpperText},
      {"lower", &LowerText},
      {"capitalize", &CapitalizeText},
      {"title", &TitleText},
      {"split", &SplitText, {"sep", "maxsplit"}},
      {"replace", &ReplaceText, {"old", "new", "count"}, 2},
  };
  static const TemplateBuiltin kDictMethods[] = {{"items", &DictItems},
                                                 {"keys", &DictKeys},
                                                 {"values", &DictValues},
                                                 {"get", &DictGet, {"key", "default"}, 1}};
  const auto find = [&](std::span<const TemplateBuiltin> methods) {
    const auto found = std::ranges::find(methods, name, &TemplateBuiltin::name);
    return found == methods.end() ? nullptr : &*found;
  };
  if (subject.Is<Value::Text>()) return find(kTextMethods);
  if (subject.Is<Value::Dict>()) return find(kDictMethods);
  return nullptr;
}

}  // namespace terrace
