// Filters ({{ value | name }}) and tests ({{ value is name }}).
#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"

namespace terrace {
namespace {

using Arguments = std::span<const Value>;

// A text function as a filter: other kinds are printed first.
template <TemplateBuiltin::Function function>
StatusOr<Value> OnText(const Value& subject, Arguments arguments, Budget& budget) {
  ASSIGN_OR_RETURN(Value::Text text, ToText(subject));
  return function(Value{std::move(text)}, arguments, budget);
}

StatusOr<Value> Length(const Value& subject, Arguments, Budget& budget) {
  int64_t count = 0;
  if (const auto* text = subject.As<Value::Text>()) {
    RETURN_IF_ERROR(budget.SpendBytes(text->size()));
    count = static_cast<int64_t>(CharacterOffsets(text->bytes()).size()) - 1;
  } else if (const auto* list = subject.As<Value::List>()) {
    count = static_cast<int64_t>(list->items.size());
  } else if (const auto* dict = subject.As<Value::Dict>()) {
    count = static_cast<int64_t>(dict->items.size());
  } else if (!subject.Is<UndefinedValue>()) {
    return TemplateError(KindOf(subject), " has no length");
  }
  return Value{count};
}

StatusOr<Value> Default(const Value& subject, Arguments arguments, Budget&) {
  const bool is_missing = subject.Is<UndefinedValue>() || (IsTrue(arguments[1]) && !IsTrue(subject));
  if (!is_missing) return subject;
  return arguments[0].Is<UndefinedValue>() ? MakeText("") : arguments[0];
}

StatusOr<Value> First(const Value& subject, Arguments, Budget& budget) {
  if (subject.Is<Value::Text>()) return Item(subject, Value{int64_t{0}}, budget);
  ASSIGN_OR_RETURN(const Value::List list, ToItems(subject, budget));
  return list->items.empty() ? Value{} : list->items.front();
}

StatusOr<Value> Last(const Value& subject, Arguments, Budget& budget) {
  if (subject.Is<Value::Text>()) return Item(subject, Value{int64_t{-1}}, budget);
  ASSIGN_OR_RETURN(const Value::List list, ToItems(subject, budget));
  return list->items.empty() ? Value{} : list->items.back();
}

StatusOr<Value> Join(const Value& subject, Arguments arguments, Budget& budget) {
  ASSIGN_OR_RETURN(const Value::List list, ToItems(subject, budget));
  ASSIGN_OR_RETURN(const Value::Text separator, ToText(arguments[0]));
  MarkedString out;
  for (size_t i = 0; i < list->items.size(); ++i) {
    ASSIGN_OR_RETURN(const Value::Text text, ToText(list->items[i]));
    RETURN_IF_ERROR(budget.Spend(1 + (separator->size() + text->size()) / 64));
    if (i > 0) out.Append(*separator);
    out.Append(*text);
    if (out.size() > kMaxTemplateText) return budget.SpendBytes(out.size());
  }
  return MakeText(std::move(out));
}

StatusOr<Value> List(const Value& subject, Arguments, Budget& budget) {
  ASSIGN_OR_RETURN(Value::List list, ToItems(subject, budget));
  return Value{std::move(list)};
}

StatusOr<Value> String(const Value& subject, Arguments, Budget&) {
  ASSIGN_OR_RETURN(Value::Text text, ToText(subject));
  return Value{std::move(text)};
}

StatusOr<Value> Safe(const Value& subject, Arguments, Budget&) { return subject; }

StatusOr<Value> ToJson(const Value& subject, Arguments arguments, Budget& budget) {
  int indent = -1;
  if (const auto* count = arguments[0].As<int64_t>()) {
    if (*count < 0 || *count > kMaxTemplateDepth) return TemplateError("tojson: indent ", *count);
    indent = static_cast<int>(*count);
  }
  ASSIGN_OR_RETURN(MarkedString text, ToTemplateJson(subject, indent, budget));
  return MakeText(std::move(text));
}

// The items that pass (or fail) a test, or whose attribute does; without a test, what is true passes.
struct Selection {
  const Value* attribute;  // null: the item itself
  const Value &test, &argument;
  bool wanted;
};
StatusOr<Value> Select(const Value& subject, const Selection& selection, Budget& budget) {
  ASSIGN_OR_RETURN(const Value::List list, ToItems(subject, budget));
  const TemplateBuiltin* test = nullptr;
  if (!selection.test.Is<UndefinedValue>()) {
    ASSIGN_OR_RETURN(const Value::Text test_name, ToText(selection.test));
    test = FindTest(test_name->bytes());
    if (test == nullptr) return TemplateError("there is no test '", test_name->bytes(), "'");
  }
  ValueList operands;
  if (test != nullptr && !test->parameters.empty()) operands.push_back(selection.argument);
  ValueList selected;
  for (const Value& item : list->items) {
    RETURN_IF_ERROR(budget.Spend(1));
    Value tested = item;
    if (selection.attribute != nullptr) {
      ASSIGN_OR_RETURN(const Value::Text name, ToText(*selection.attribute));
      ASSIGN_OR_RETURN(tested, Attribute(item, name->bytes(), budget));
    }
    if (test != nullptr) {
      ASSIGN_OR_RETURN(tested, test->Call(tested, operands, {}, budget));
    }
    if (IsTrue(tested) == selection.wanted) selected.push_back(item);
  }
  return MakeList(std::move(selected));
}

template <bool wanted>
StatusOr<Value> SelectItems(const Value& subject, Arguments arguments, Budget& budget) {
  return Select(subject, {nullptr, arguments[0], arguments[1], wanted}, budget);
}
template <bool wanted>
StatusOr<Value> SelectByAttribute(const Value& subject, Arguments arguments, Budget& budget) {
  return Select(subject, {&arguments[0], arguments[1], arguments[2], wanted}, budget);
}

template <typename... Kinds>
StatusOr<Value> IsKind(const Value& subject, Arguments, Budget&) {
  return Value{(subject.Is<Kinds>() || ...)};
}
StatusOr<Value> IsDefined(const Value& subject, Arguments, Budget&) {
  return Value{!subject.Is<UndefinedValue>()};
}

template <bool wanted>
StatusOr<Value> IsBoolean(const Value& subject, Arguments, Budget&) {
  const auto* boolean = subject.As<bool>();
  return Value{boolean != nullptr && *boolean == wanted};
}

template <Comparison comparison>
StatusOr<Value> Compares(const Value& subject, Arguments arguments, Budget& budget) {
  ASSIGN_OR_RETURN(const bool holds, Compare(comparison, subject, arguments[0], budget));
  return Value{holds};
}

template <bool is_odd>
StatusOr<Value> HasParity(const Value& subject, Arguments, Budget&) {
  const auto* integer = subject.As<int64_t>();
  if (integer == nullptr) return TemplateError(KindOf(subject), " is neither odd nor even");
  return Value{(*integer % 2 != 0) == is_odd};
}

const TemplateBuiltin* Find(std::span<const TemplateBuiltin> table, std::string_view name) {
  const auto found = std::ranges::find(table, name, &TemplateBuiltin::name);
  return found == table.end() ? nullptr : &*found;
}

}  // namespace

const TemplateBuiltin* FindFilter(std::string_view name) {
  static const TemplateBuiltin kFilters[] = {
      {"trim", &OnText<&StripText>, {"chars"}},
      {"length", &Length},
      {"count", &Length},
      {"upper", &OnText<&UpperText>},
      {"lower", &OnText<&LowerText>},
      {"capitalize", &OnText<&CapitalizeText>},
      {"replace", &OnText<&ReplaceText>, {"old", "new", "count"}, 2},
      {"default", &Default, {"default_value", "boolean"}},
      {"d", &Default, {"default_value", "boolean"}},
      {"first", &First},
      {"last", &Last},
      {"join", &Join, {"d"}},
      {"list", &List},
      {"items", &DictItems},
      {"string", &String},
      {"safe", &Safe},
      {"tojson", &ToJson, {"indent"}},
      {"select", &SelectItems<true>, {"test", "argument"}},
      {"reject", &SelectItems<false>, {"test", "argument"}},
      {"selectattr", &SelectByAttribute<true>, {"attribute", "test", "argument"}, 1},
      {"rejectattr", &SelectByAttribute<false>, {"attribute", "test", "argument"}, 1},
  };
  return Find(kFilters, name);
}

const TemplateBuiltin* FindTest(std::string_view name) {
  static const TemplateBuiltin kTests[] = {
      {"defined", &IsDefined},
      {"undefined", &IsKind<UndefinedValue>},
      {"none", &IsKind<NoneValue>},
      {"string", &IsKind<Value::Text>},
      {"mapping", &IsKind<Value::Dict>},
      {"sequence", &IsKind<Value::Text, Value::List, Value::Dict, UndefinedValue>},
      {"iterable", &IsKind<Value::Text, Value::List, Value::Dict, UndefinedValue>},
      {"number", &IsKind<bool, int64_t, double>},
      {"integer", &IsKind<int64_t>},
      {"float", &IsKind<double>},
      {"boolean", &IsKind<bool>},
      {"true", &IsBoolean<true>},
      {"false", &IsBoolean<false>},
      {"odd", &HasParity<true>},
      {"even", &HasParity<false>},
      {"in", &Compares<Comparison::kIn>, {"seq"}, 1},
      {"eq", &Compares<Comparison::kEqual>, {"other"}, 1},
      {"equalto", &Compares<Comparison::kEqual>, {"other"}, 1},
      {"==", &Compares<Comparison::kEqual>, {"other"}, 1},
      {"ne", &Compares<Comparison::kNotEqual>, {"other"}, 1},
      {"!=", &Compares<Comparison::kNotEqual>, {"other"}, 1},
  };
  return Find(kTests, name);
}

}  // namespace terrace
