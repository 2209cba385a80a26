#include "text/jinja/operators.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "text/unicode.h"

namespace terrace {
namespace {

std::optional<int64_t> AsInteger(const Value& value) {  // true is 1, as in Python
  if (const auto* boolean = value.As<bool>()) return *boolean ? 1 : 0;
  if (const auto* integer = value.As<int64_t>()) return *integer;
  return std::nullopt;
}

std::optional<double> AsNumber(const Value& value) {
  if (const auto integer = AsInteger(value)) return static_cast<double>(*integer);
  if (const auto* number = value.As<double>()) return *number;
  return std::nullopt;
}

StatusOr<Value> IntegerArithmetic(BinaryOperation operation, int64_t left, int64_t right) {
  int64_t result = 0;
  bool overflow = false;
  switch (operation) {
    case BinaryOperation::kAdd:
      overflow = __builtin_add_overflow(left, right, &result);
      break;
    case BinaryOperation::kSubtract:
      overflow = __builtin_sub_overflow(left, right, &result);
      break;
    case BinaryOperation::kMultiply:
      overflow = __builtin_mul_overflow(left, right, &result);
      break;
    default: {  // kFloorDivide or kModulo, rounding down as Python does
      if (right == 0) return TemplateError("division by zero");
      if (right == -1) {  // INT64_MIN / -1 overflows
        overflow =
            operation == BinaryOperation::kFloorDivide && __builtin_sub_overflow(int64_t{0}, left, &result);
        break;
      }
      const int64_t remainder = left % right;
      const bool rounds_up = remainder != 0 && (remainder < 0) != (right < 0);
      result = operation == BinaryOperation::kModulo ? remainder + (rounds_up ? right : 0)
                                                     : left / right - (rounds_up ? 1 : 0);
    }
  }
  if (overflow) return TemplateError("integer overflow");
  return Value{result};
}

StatusOr<Value> FloatArithmetic(BinaryOperation operation, double left, double right) {
  const bool divides = operation != BinaryOperation::kAdd && operation != BinaryOperation::kSubtract &&
                       operation != BinaryOperation::kMultiply;
  if (divides && right == 0) return TemplateError("division by zero");
  switch (operation) {
    case BinaryOperation::kAdd:
      return Value{left + right};
    case BinaryOperation::kSubtract:
      return Value{left - right};
    case BinaryOperation::kMultiply:
      return Value{left * right};
    case BinaryOperation::kDivide:
      return Value{left / right};
    case BinaryOperation::kFloorDivide:
      return Value{std::floor(left / right)};
    default:
      return Value{left - std::floor(left / right) * right};
  }
}

StatusOr<Value> JoinTexts(const MarkedString& left, const MarkedString& right, Budget& budget) {
  RETURN_IF_ERROR(budget.SpendBytes(left.size() + right.size()));
  MarkedString joined = left;
  joined.Append(right);
  return MakeText(std::move(joined));
}

StatusOr<Value> JoinLists(const ListValue& left, const ListValue& right, Budget& budget) {
  RETURN_IF_ERROR(budget.Spend(left.items.size() + right.items.size()));
  ValueList items = left.items;
  items.insert(items.end(), right.items.begin(), right.items.end());
  return MakeList(std::move(items));
}

Status SpendSearch(size_t haystack, size_t needle, Budget& budget) {
  return budget.Spend(haystack / 64 * (1 + needle / 64));  // the worst that a naive search can need
}

StatusOr<bool> IsIn(const Value& item, const Value& container, Budget& budget) {
  if (container.Is<UndefinedValue>()) return false;
  if (const auto* list = container.As<Value::List>()) {
    for (const Value& candidate : list->items) {
      ASSIGN_OR_RETURN(const bool is_same, AreEqual(item, candidate, budget));
      if (is_same) return true;
    }
    return false;
  }
  const auto* text = item.As<Value::Text>();
  if (const auto* dict = container.As<Value::Dict>()) {
    RETURN_IF_ERROR(budget.Spend(dict->items.size()));
    return text != nullptr && FindKey(*dict, text->bytes()) != nullptr;
  }
  const auto* haystack = container.As<Value::Text>();
  if (haystack == nullptr || text == nullptr) {
    return TemplateError("cannot look for ", KindOf(item), " in ", KindOf(container));
  }
  RETURN_IF_ERROR(SpendSearch(haystack->size(), text->size(), budget));
  return haystack->bytes().find(text->bytes()) != std::string::npos;
}

StatusOr<int> Order(const Value& left, const Value& right, Budget& budget) {  // -1, 0 or 1
  const auto a = AsNumber(left), b = AsNumber(right);
  if (a && b) {
    const auto i = AsInteger(left), j = AsInteger(right);
    if (i && j) return *i < *j ? -1 : *i > *j;
    return *a < *b ? -1 : *a > *b;
  }
  const auto *s = left.As<Value::Text>(), *t = right.As<Value::Text>();
  if (s == nullptr || t == nullptr)
    return TemplateError("cannot order ", KindOf(left), " and ", KindOf(right));
  RETURN_IF_ERROR(budget.SpendBytes(std::min(s->size(), t->size())));
  const int order = s->bytes().compare(t->bytes());
  return order < 0 ? -1 : order > 0;
}

StatusOr<bool> AreEqualDicts(const DictValue& left, const DictValue& right, Budget& budget) {
  if (left.items.size() != right.items.size()) return false;
  for (const auto& [key, value] : left.items) {
    RETURN_IF_ERROR(budget.Spend(right.items.size()));
    const Value* other = FindKey(right, key.As<Value::Text>()->bytes());
    if (other == nullptr) return false;
    ASSIGN_OR_RETURN(const bool is_same, AreEqual(value, *other, budget));
    if (!is_same) return false;
  }
  return true;
}

// Python's repr of a float: the shortest digits that read back the same, with a point or an exponent.
std::string FloatText(double number) {
  if (!std::isfinite(number)) return std::isnan(number) ? "nan" : number < 0 ? "-inf" : "inf";
  const double magnitude = std::abs(number);
  const bool is_plain = magnitude == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number,
                                 is_plain ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  if (is_plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

StatusOr<std::optional<int64_t>> Bound(const Value& value) {
  if (value.Is<UndefinedValue>() || value.Is<NoneValue>()) return std::optional<int64_t>();
  const auto integer = AsInteger(value);
  if (!integer) return TemplateError("a slice bound must be an integer, not ", KindOf(value));
  return integer;
}

// Python's rules for value[begin:end:step] over `count` items: the indexes, in order.
StatusOr<std::vector<size_t>> SliceIndexes(const SliceBounds& bounds, int64_t count) {
  ASSIGN_OR_RETURN(const auto begin, Bound(bounds.begin));
  ASSIGN_OR_RETURN(const auto end, Bound(bounds.end));
  ASSIGN_OR_RETURN(const auto step_or_none, Bound(bounds.step));
  const int64_t step = step_or_none.value_or(1);
  if (step == 0) return TemplateError("a slice step must not be 0");
  const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1;
  const auto clamp = [&](int64_t i) { return std::clamp(i < 0 ? i + count : i, low, high); };
  const int64_t first = begin ? clamp(*begin) : (step > 0 ? low : high);
  const int64_t last = end ? clamp(*end) : (step > 0 ? high : low);
  std::vector<size_t> indexes;
  int64_t i = first;
  while (step > 0 ? i < last : i > last) {
    indexes.push_back(static_cast<size_t>(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return indexes;
}

// `index` counted from the front; nothing when there is no such item.
std::optional<size_t> FindIndex(int64_t index, size_t count) {
  const auto size = static_cast<int64_t>(count);
  if (index < -size || index >= size) return std::nullopt;
  return static_cast<size_t>(index < 0 ? index + size : index);
}

Value LoopAttribute(const LoopValue& loop, std::string_view name) {
  const auto index = static_cast<int64_t>(loop.index);
  const auto length = static_cast<int64_t>(loop.items->items.size());
  if (name == "index") return Value{index + 1};
  if (name == "index0") return Value{index};
  if (name == "revindex") return Value{length - index};
  if (name == "revindex0") return Value{length - index - 1};
  if (name == "first") return Value{index == 0};
  if (name == "last") return Value{index + 1 == length};
  if (name == "length") return Value{length};
  if (name == "previtem" && index > 0) return loop.items->items[loop.index - 1];
  if (name == "nextitem" && index + 1 < length) return loop.items->items[loop.index + 1];
  return Value{};
}

}  // namespace

StatusOr<Value> Apply(BinaryOperation operation, const Value& left, const Value& right, Budget& budget) {
  if (operation == BinaryOperation::kConcatenate) {
    ASSIGN_OR_RETURN(const Value::Text first, ToText(left));
    ASSIGN_OR_RETURN(const Value::Text second, ToText(right));
    return JoinTexts(*first, *second, budget);
  }
  const auto i = AsInteger(left), j = AsInteger(right);
  if (i && j && operation != BinaryOperation::kDivide) return IntegerArithmetic(operation, *i, *j);
  const auto a = AsNumber(left), b = AsNumber(right);
  if (a && b) return FloatArithmetic(operation, *a, *b);
  if (operation == BinaryOperation::kAdd) {
    const auto *s = left.As<Value::Text>(), *t = right.As<Value::Text>();
    if (s != nullptr && t != nullptr) return JoinTexts(*s, *t, budget);
    const auto *items = left.As<Value::List>(), *more = right.As<Value::List>();
    if (items != nullptr && more != nullptr) return JoinLists(*items, *more, budget);
  }
  constexpr std::string_view kNames[] = {"add",    "subtract", "multiply",
                                         "divide", "divide",   "take the remainder of"};
  return TemplateError("cannot ", kNames[static_cast<int>(operation)], " ", KindOf(left), " and ",
                       KindOf(right));
}

StatusOr<bool> AreEqual(const Value& left, const Value& right, Budget& budget) {
  RETURN_IF_ERROR(budget.Spend(1));
  const auto a = AsNumber(left), b = AsNumber(right);
  if (a && b) {
    const auto i = AsInteger(left), j = AsInteger(right);
    return i && j ? *i == *j : *a == *b;
  }
  if (left.data.index() != right.data.index()) return false;
  if (const auto* text = left.As<Value::Text>()) {
    const std::string &x = text->bytes(), &y = right.As<Value::Text>()->bytes();
    if (x.size() != y.size()) return false;
    RETURN_IF_ERROR(budget.SpendBytes(x.size()));
    return x == y;
  }
  if (const auto* list = left.As<Value::List>()) {
    const ValueList &x = list->items, &y = right.As<Value::List>()->items;
    if (x.size() != y.size()) return false;
    for (size_t k = 0; k < x.size(); ++k) {
      ASSIGN_OR_RETURN(const bool is_same, AreEqual(x[k], y[k], budget));
      if (!is_same) return false;
    }
    return true;
  }
  if (const auto* dict = left.As<Value::Dict>())
    return AreEqualDicts(*dict, *right.As<Value::Dict>(), budget);
  if (const auto* space = left.As<Value::Namespace>()) return space == right.As<Value::Namespace>();
  if (const auto* loop = left.As<Value::Loop>()) return loop == right.As<Value::Loop>();
  return true;  // none, or undefined
}

StatusOr<bool> Compare(Comparison comparison, const Value& left, const Value& right, Budget& budget) {
  if (comparison == Comparison::kEqual || comparison == Comparison::kNotEqual) {
    ASSIGN_OR_RETURN(const bool is_equal, AreEqual(left, right, budget));
    return is_equal == (comparison == Comparison::kEqual);
  }
  if (comparison == Comparison::kIn || comparison == Comparison::kNotIn) {
    ASSIGN_OR_RETURN(const bool is_in, IsIn(left, right, budget));
    return is_in == (comparison == Comparison::kIn);
  }
  ASSIGN_OR_RETURN(const int order, Order(left, right, budget));
  switch (comparison) {
    case Comparison::kLess:
      return order < 0;
    case Comparison::kLessEqual:
      return order <= 0;
    case Comparison::kGreater:
      return order > 0;
    default:
      return order >= 0;
  }
}

StatusOr<Value> Negate(const Value& value) {
  if (const auto integer = AsInteger(value))
    return IntegerArithmetic(BinaryOperation::kSubtract, 0, *integer);
  if (const auto number = AsNumber(value)) return Value{-*number};
  return TemplateError("cannot negate ", KindOf(value));
}

StatusOr<Value::Text> ToText(const Value& value) {
  if (const auto* text = std::get_if<Value::Text>(&value.data)) return *text;
  std::string out;
  if (value.Is<NoneValue>()) {
    out = "None";
  } else if (const auto* boolean = value.As<bool>()) {
    out = *boolean ? "True" : "False";
  } else if (const auto* integer = value.As<int64_t>()) {
    out = std::to_string(*integer);
  } else if (const auto* number = value.As<double>()) {
    out = FloatText(*number);
  } else if (!value.Is<UndefinedValue>()) {
    return TemplateError(KindOf(value), " is not text; use tojson or join");
  }
  return std::make_shared<const MarkedString>(std::move(out), true);
}

StatusOr<Value::List> ToItems(const Value& value, Budget& budget) {
  if (const auto* list = std::get_if<Value::List>(&value.data)) return *list;
  ValueList items;
  if (const auto* text = value.As<Value::Text>()) {
    RETURN_IF_ERROR(budget.Spend(text->size()));
    const std::vector<size_t> offsets = CharacterOffsets(text->bytes());
    for (size_t i = 0; i + 1 < offsets.size(); ++i)
      items.push_back(MakeText(text->Slice(offsets[i], offsets[i + 1])));
  } else if (const auto* dict = value.As<Value::Dict>()) {
    RETURN_IF_ERROR(budget.Spend(dict->items.size()));
    for (const auto& [key, ignored] : dict->items) items.push_back(key);
  } else if (!value.Is<UndefinedValue>()) {
    return TemplateError(KindOf(value), " has no items");
  }
  return std::make_shared<const ListValue>(ListValue{std::move(items), 1});
}

StatusOr<Value> Attribute(const Value& value, std::string_view name, Budget& budget) {
  if (value.Is<UndefinedValue>()) return TemplateError("'", name, "' of an undefined value");
  if (const auto* loop = value.As<Value::Loop>()) return LoopAttribute(*loop, name);
  const Value* found = nullptr;
  if (const auto* dict = value.As<Value::Dict>()) {
    RETURN_IF_ERROR(budget.Spend(dict->items.size() / 16));
    found = FindKey(*dict, name);
  }
  if (const auto* space = value.As<Value::Namespace>()) {
    const auto entry = space->attributes.find(name);
    if (entry != space->attributes.end()) found = &entry->second;
  }
  return found == nullptr ? Value{} : *found;
}

StatusOr<Value> Item(const Value& value, const Value& index, Budget& budget) {
  if (const auto* name = index.As<Value::Text>()) return Attribute(value, name->bytes(), budget);
  if (value.Is<UndefinedValue>()) return TemplateError("an item of an undefined value");
  const auto integer = AsInteger(index);
  if (!integer) return Value{};
  if (const auto* list = value.As<Value::List>()) {
    const auto found = FindIndex(*integer, list->items.size());
    return found ? list->items[*found] : Value{};
  }
  if (const auto* text = value.As<Value::Text>()) {
    RETURN_IF_ERROR(budget.SpendBytes(text->size()));
    const std::vector<size_t> offsets = CharacterOffsets(text->bytes());
    const auto found = FindIndex(*integer, offsets.size() - 1);
    return found ? MakeText(text->Slice(offsets[*found], offsets[*found + 1])) : Value{};
  }
  return Value{};
}

StatusOr<Value> Slice(const Value& value, const SliceBounds& bounds, Budget& budget) {
  if (const auto* list = value.As<Value::List>()) {
    RETURN_IF_ERROR(budget.Spend(list->items.size()));
    ASSIGN_OR_RETURN(const auto indexes, SliceIndexes(bounds, static_cast<int64_t>(list->items.size())));
    ValueList items;
    for (const size_t i : indexes) items.push_back(list->items[i]);
    return MakeList(std::move(items));
  }
  const auto* text = value.As<Value::Text>();
  if (text == nullptr) return TemplateError("cannot slice ", KindOf(value));
  RETURN_IF_ERROR(budget.SpendBytes(text->size()));
  const std::vector<size_t> offsets = CharacterOffsets(text->bytes());
  ASSIGN_OR_RETURN(const auto indexes, SliceIndexes(bounds, static_cast<int64_t>(offsets.size()) - 1));
  MarkedString slice;
  for (const size_t i : indexes) slice.AppendSlice(*text, offsets[i], offsets[i + 1]);
  return MakeText(std::move(slice));
}

std::vector<size_t> CharacterOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.size(); i += DecodeUtf8(text.substr(i)).length) offsets.push_back(i);
  offsets.push_back(text.size());
  return offsets;
}

}  // namespace terrace
