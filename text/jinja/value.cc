#include "text/jinja/value.h"

#include <algorithm>

namespace terrace {
namespace {

// The depth of `value`, or an error for what no container may hold.
StatusOr<int> DepthInContainer(const Value& value) {
  if (value.Is<Value::Namespace>() || value.Is<Value::Loop>()) {
    return TemplateError(KindOf(value), " cannot be stored in a value");
  }
  if (const auto* list = value.As<Value::List>()) return list->depth;
  if (const auto* dict = value.As<Value::Dict>()) return dict->depth;
  return 0;
}

Status CheckDepth(int depth) {
  if (depth < kMaxTemplateDepth) return Status();
  return TemplateError("values nested deeper than ", kMaxTemplateDepth);
}

}  // namespace

Value MakeText(MarkedString text) { return {std::make_shared<const MarkedString>(std::move(text))}; }
Value MakeText(std::string trusted) { return MakeText(MarkedString(std::move(trusted), true)); }

StatusOr<Value> MakeList(ValueList items) {
  int depth = 0;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const int below, DepthInContainer(item));
    depth = std::max(depth, below);
  }
  RETURN_IF_ERROR(CheckDepth(depth));
  return Value{std::make_shared<const ListValue>(ListValue{std::move(items), depth + 1})};
}

StatusOr<Value> MakeDict(ValueDict items) {
  int depth = 0;
  for (const auto& [key, value] : items) {
    if (!key.Is<Value::Text>()) return TemplateError("a key must be text, not ", KindOf(key));
    ASSIGN_OR_RETURN(const int below, DepthInContainer(value));
    depth = std::max(depth, below);
  }
  RETURN_IF_ERROR(CheckDepth(depth));
  return Value{std::make_shared<const DictValue>(DictValue{std::move(items), depth + 1})};
}

std::string_view KindOf(const Value& value) {
  constexpr std::string_view kKinds[] = {
      "an undefined value", "none",        "a boolean", "an integer", "a float", "text", "a list",
      "a dictionary",       "a namespace", "a loop"};
  return kKinds[value.data.index()];
}

bool IsTrue(const Value& value) {
  if (value.Is<UndefinedValue>() || value.Is<NoneValue>()) return false;
  if (const auto* boolean = value.As<bool>()) return *boolean;
  if (const auto* integer = value.As<int64_t>()) return *integer != 0;
  if (const auto* number = value.As<double>()) return *number != 0;
  if (const auto* text = value.As<Value::Text>()) return text->size() > 0;
  if (const auto* list = value.As<Value::List>()) return !list->items.empty();
  if (const auto* dict = value.As<Value::Dict>()) return !dict->items.empty();
  return true;
}

const Value* FindKey(const DictValue& dict, std::string_view key) {
  for (const auto& [name, value] : dict.items) {
    if (name.As<Value::Text>()->bytes() == key) return &value;
  }
  return nullptr;
}

Status Budget::Spend(size_t steps) {
  const auto limit = static_cast<size_t>(kMaxTemplateSteps);
  steps_left_ -= static_cast<int64_t>(std::min(steps, limit + 1));
  if (steps_left_ >= 0) return Status();
  return TemplateError("more than ", kMaxTemplateSteps, " steps");
}

Status Budget::SpendBytes(size_t bytes) {
  if (bytes > kMaxTemplateText) return TemplateError("text of ", bytes, " bytes, limit ", kMaxTemplateText);
  return Spend(bytes / 64);
}

}  // namespace terrace
