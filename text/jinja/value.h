// The values of the template language, and the budget that bounds what a template may do with them. A Value
// is a few words and cheap to copy: text, lists and dictionaries are shared and never change. Only a
// namespace can be changed, by {% set namespace.attribute = ... %}.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.h"
#include "text/jinja/marked_string.h"

namespace terrace {

inline constexpr int kMaxTemplateDepth = 64;  // of syntax, and of lists in lists
inline constexpr int64_t kMaxTemplateSteps = 1'000'000;
inline constexpr size_t kMaxTemplateText = size_t{8} << 20;  // bytes of the output and of any value

struct Value;
using ValueList = std::vector<Value>;
using ValueDict =
    std::vector<std::pair<Value, Value>>;  // keys are text, all different, in order of insertion

struct UndefinedValue {};
struct NoneValue {};
struct ListValue {
  ValueList items;
  int depth = 1;
};
struct DictValue {
  ValueDict items;
  int depth = 1;
};
struct NamespaceValue {
  std::map<std::string, Value, std::less<>> attributes;
};
struct LoopValue {  // of a running {% for %}: the variable `loop`
  std::shared_ptr<const ListValue> items;
  size_t index = 0;  // from 0
};

struct Value {
  using Text = std::shared_ptr<const MarkedString>;
  using List = std::shared_ptr<const ListValue>;
  using Dict = std::shared_ptr<const DictValue>;
  using Namespace = std::shared_ptr<NamespaceValue>;
  using Loop = std::shared_ptr<const LoopValue>;

  std::variant<UndefinedValue, NoneValue, bool, int64_t, double, Text, List, Dict, Namespace, Loop> data;

  template <typename T>
  bool Is() const {
    return std::holds_alternative<T>(data);
  }
  // The pointee for the shared kinds, the value for the others; null when this is of another kind.
  template <typename T>
  const auto* As() const {
    if constexpr (requires(T value) { value.get(); }) {
      const auto* pointer = std::get_if<T>(&data);
      return pointer == nullptr ? nullptr : pointer->get();
    } else {
      return std::get_if<T>(&data);
    }
  }
};

// An error of the running template: INVALID_ARGUMENT, reason template_error.
template <typename... Args>
Status TemplateError(const Args&... args) {
  return WithReason(InvalidArgument(args...), "template_error");
}

Value MakeText(MarkedString text);
Value MakeText(std::string trusted);
// Errors: deeper than kMaxTemplateDepth, or a namespace or loop inside (which could hold itself).
StatusOr<Value> MakeList(ValueList items);
StatusOr<Value> MakeDict(ValueDict items);

std::string_view KindOf(const Value& value);  // for messages: "a list"
bool IsTrue(const Value& value);
// The dictionary's value for `key`, null when absent.
const Value* FindKey(const DictValue& dict, std::string_view key);

// Bounds the work of one rendering. A step is an evaluated expression, an element looked at or 64 bytes made.
class Budget {
 public:
  Status Spend(size_t steps);
  // For text of `bytes` that is about to be made or looked through.
  Status SpendBytes(size_t bytes);

 private:
  int64_t steps_left_ = kMaxTemplateSteps;
};

}  // namespace terrace
