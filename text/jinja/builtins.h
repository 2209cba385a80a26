// The filters, tests and methods of the template language. Pure but for the budget they spend.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/jinja/value.h"

namespace terrace {

struct TemplateBuiltin {
  // `arguments` has one value for each parameter, undefined where none was given.
  using Function = StatusOr<Value> (*)(const Value& subject, std::span<const Value> arguments,
                                       Budget& budget);

  std::string_view name;
  Function function;
  std::vector<std::string_view> parameters = {};
  size_t required = 0;  // of the parameters, in front

  // Binds arguments to parameters as Python does, then calls.
  StatusOr<Value> Call(const Value& subject, const ValueList& positional,
                       const std::vector<std::pair<std::string, Value>>& named, Budget& budget) const;
};

// Null when there is none of that name.
const TemplateBuiltin* FindFilter(std::string_view name);
const TemplateBuiltin* FindTest(std::string_view name);
// A method of `subject`, by its kind: text and dictionaries have some.
const TemplateBuiltin* FindMethod(const Value& subject, std::string_view name);

// json.dumps(value, ensure_ascii=False, indent=indent); a negative indent is none.
StatusOr<MarkedString> ToTemplateJson(const Value& value, int indent, Budget& budget);

// Functions on text, as methods and (after ToText) as filters: the subject is text.
StatusOr<Value> StripText(const Value& subject, std::span<const Value> arguments, Budget& budget);
StatusOr<Value> UpperText(const Value& subject, std::span<const Value> arguments, Budget& budget);
StatusOr<Value> LowerText(const Value& subject, std::span<const Value> arguments, Budget& budget);
StatusOr<Value> CapitalizeText(const Value& subject, std::span<const Value> arguments, Budget& budget);
StatusOr<Value> ReplaceText(const Value& subject, std::span<const Value> arguments, Budget& budget);
StatusOr<Value> DictItems(const Value& subject, std::span<const Value> arguments, Budget& budget);

}  // namespace terrace
