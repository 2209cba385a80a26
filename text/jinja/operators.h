// The operators of the template language: Python's, on the kinds of value there are. Pure but for the budget
// they spend; all errors are TemplateError.
#pragma once

#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/jinja/value.h"

namespace terrace {

enum class BinaryOperation { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kConcatenate };
enum class Comparison { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };

StatusOr<Value> Apply(BinaryOperation operation, const Value& left, const Value& right, Budget& budget);
StatusOr<bool> Compare(Comparison comparison, const Value& left, const Value& right, Budget& budget);
StatusOr<bool> AreEqual(const Value& left, const Value& right, Budget& budget);
StatusOr<Value> Negate(const Value& value);

// What {{ value }} prints: none as "None", true as "True"; a list or dictionary has no text of its own.
StatusOr<Value::Text> ToText(const Value& value);

// The items of a list, the characters of a text, the keys of a dictionary, nothing for an undefined value.
StatusOr<Value::List> ToItems(const Value& value, Budget& budget);

// value[index]; undefined where there is no such item.
StatusOr<Value> Item(const Value& value, const Value& index, Budget& budget);
// value.name; undefined where there is no such attribute.
StatusOr<Value> Attribute(const Value& value, std::string_view name, Budget& budget);
// value[begin:end:step] of a list or text; undefined bounds are left out.
struct SliceBounds {
  Value begin, end, step;
};
StatusOr<Value> Slice(const Value& value, const SliceBounds& bounds, Budget& budget);

// Where each character of `text` begins, and its size at the end. A byte that is not UTF-8 is a character.
std::vector<size_t> CharacterOffsets(std::string_view text);

}  // namespace terrace
