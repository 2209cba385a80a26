#include "text/jinja/evaluator.h"

#include <algorithm>

namespace terrace {
namespace {

using Expression = TemplateExpression;
using Statement = TemplateStatement;

Status Located(TemplatePosition position, const Status& status) {
  return Annotate(status, Concat("chat template: line ", position.line, ", column ", position.column));
}
template <typename T>
StatusOr<T> Located(TemplatePosition position, StatusOr<T> result) {
  if (result.ok()) return result;
  return Located(position, result.status());
}

StatusOr<int64_t> RangeArgument(const Value& value) {
  if (const auto* integer = value.As<int64_t>()) return *integer;
  return TemplateError("range needs integers, not ", KindOf(value));
}

// range(end), range(begin, end) or range(begin, end, step)
StatusOr<Value> MakeRange(const ValueList& arguments, Budget& budget) {
  if (arguments.empty() || arguments.size() > 3) return TemplateError("range takes one to three arguments");
  int64_t bounds[3] = {0, 0, 1};
  for (size_t i = 0; i < arguments.size(); ++i) {
    ASSIGN_OR_RETURN(bounds[arguments.size() == 1 ? 1 : i], RangeArgument(arguments[i]));
  }
  const auto [begin, end, step] = bounds;
  if (step == 0) return TemplateError("range with a step of 0");
  ValueList items;
  int64_t i = begin;
  while (step > 0 ? i < end : i > end) {
    RETURN_IF_ERROR(budget.Spend(1));
    items.push_back(Value{i});
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return MakeList(std::move(items));
}

class Evaluator {
 public:
  explicit Evaluator(const TemplateProgram& program) : program_(program), slots_(program.names.size()) {}

  void Define(const std::string& name, const Value& value) {
    const auto found = std::ranges::find(program_.names, name);
    if (found != program_.names.end()) slots_[found - program_.names.begin()] = value;
  }

  StatusOr<MarkedString> Run() {
    RETURN_IF_ERROR(RunBody(program_.body));
    return std::move(output_);
  }

 private:
  // ---- variables: those set inside a loop end with the turn

  void Set(int slot, Value value) {
    if (loops_ > 0) undo_.emplace_back(slot, slots_[slot]);
    slots_[slot] = std::move(value);
  }
  void UndoTo(size_t mark) {
    for (; undo_.size() > mark; undo_.pop_back()) slots_[undo_.back().first] = std::move(undo_.back().second);
  }

  // ---- statements

  Status RunBody(const TemplateBody& body) {
    for (const Statement& statement : body) {
      RETURN_IF_ERROR(Located(statement.position, budget_.Spend(1)));
      RETURN_IF_ERROR(RunStatement(statement));
    }
    return Status();
  }

  Status RunStatement(const Statement& statement) {
    switch (statement.kind) {
      case Statement::kText:
        return Located(statement.position, Output(statement.text));
      case Statement::kOutput: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
        ASSIGN_OR_RETURN(const Value::Text text, Located(statement.position, ToText(value)));
        return Located(statement.position, Output(*text));
      }
      case Statement::kIf:
        for (const auto& branch : statement.branches) {
          if (branch.condition == nullptr) return RunBody(branch.body);
          ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition));
          if (IsTrue(condition)) return RunBody(branch.body);
        }
        return Status();
      case Statement::kFor:
        return RunFor(statement);
      case Statement::kSet: {
        ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expression));
        Set(statement.targets[0], std::move(value));
        return Status();
      }
      case Statement::kSetAttribute: {
        ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expression));
        return Located(statement.position, SetAttribute(statement, std::move(value)));
      }
    }
    return Status();
  }

  Status Output(const MarkedString& text) {
    RETURN_IF_ERROR(budget_.SpendBytes(text.size()));
    if (output_.size() + text.size() > kMaxTemplateText) {
      return TemplateError("more than ", kMaxTemplateText, " bytes of output");
    }
    output_.Append(text);
    return Status();
  }

  Status SetAttribute(const Statement& statement, Value value) {
    const auto* target = std::get_if<Value::Namespace>(&slots_[statement.targets[0]].data);
    if (target == nullptr) return TemplateError("only a namespace's attributes can be set");
    if (value.Is<Value::Namespace>() || value.Is<Value::Loop>()) {
      return TemplateError(KindOf(value), " cannot be stored in a value");
    }
    (*target)->attributes[statement.name] = std::move(value);
    return Status();
  }

  Status RunFor(const Statement& statement) {
    ASSIGN_OR_RETURN(const Value iterated, Evaluate(*statement.expression));
    ASSIGN_OR_RETURN(Value::List items, Located(statement.position, ToItems(iterated, budget_)));
    ++loops_;
    const size_t mark = undo_.size();
    if (statement.condition != nullptr) {
      ASSIGN_OR_RETURN(items, SelectItems(statement, *items));
    }
    for (size_t i = 0; i < items->items.size(); ++i) {
      RETURN_IF_ERROR(Located(statement.position, budget_.Spend(1)));
      RETURN_IF_ERROR(Bind(statement, items->items[i]));
      Set(kLoopSlot, Value{std::make_shared<const LoopValue>(LoopValue{items, i})});
      RETURN_IF_ERROR(RunBody(statement.branches[0].body));
      UndoTo(mark);
    }
    --loops_;
    return items->items.empty() ? RunBody(statement.branches[1].body) : Status();
  }

  // The items for which the loop's condition holds.
  StatusOr<Value::List> SelectItems(const Statement& statement, const ListValue& items) {
    ListValue selected{.items = {}, .depth = items.depth};
    const size_t mark = undo_.size();
    for (const Value& item : items.items) {
      RETURN_IF_ERROR(Bind(statement, item));
      ASSIGN_OR_RETURN(const Value holds, Evaluate(*statement.condition));
      if (IsTrue(holds)) selected.items.push_back(item);
      UndoTo(mark);
    }
    return std::make_shared<const ListValue>(std::move(selected));
  }

  Status Bind(const Statement& statement, const Value& item) {
    if (statement.targets.size() == 1) {
      Set(statement.targets[0], item);
      return Status();
    }
    const auto* parts = item.As<Value::List>();
    if (parts == nullptr || parts->items.size() != statement.targets.size()) {
      return Located(statement.position, TemplateError("cannot unpack ", KindOf(item), " into ",
                                                       statement.targets.size(), " names"));
    }
    for (size_t i = 0; i < parts->items.size(); ++i) Set(statement.targets[i], parts->items[i]);
    return Status();
  }

  // ---- expressions

  StatusOr<Value> Evaluate(const Expression& expression) {
    RETURN_IF_ERROR(Located(expression.position, budget_.Spend(1)));
    const auto& operands = expression.operands;
    switch (expression.kind) {
      case Expression::kLiteral:
        return expression.literal;
      case Expression::kVariable:
        return slots_[expression.slot];
      case Expression::kList: {
        ASSIGN_OR_RETURN(ValueList items, EvaluateAll(operands));
        return Located(expression.position, MakeList(std::move(items)));
      }
      case Expression::kDict:
        return EvaluateDict(expression);
      case Expression::kNot: {
        ASSIGN_OR_RETURN(const Value operand, Evaluate(*operands[0]));
        return Value{!IsTrue(operand)};
      }
      case Expression::kNegate: {
        ASSIGN_OR_RETURN(const Value operand, Evaluate(*operands[0]));
        return Located(expression.position, Negate(operand));
      }
      case Expression::kAnd:
      case Expression::kOr: {
        ASSIGN_OR_RETURN(Value left, Evaluate(*operands[0]));
        if (IsTrue(left) == (expression.kind == Expression::kOr)) return left;
        return Evaluate(*operands[1]);
      }
      case Expression::kBinary: {
        ASSIGN_OR_RETURN(const Value left, Evaluate(*operands[0]));
        ASSIGN_OR_RETURN(const Value right, Evaluate(*operands[1]));
        return Located(expression.position, Apply(expression.operation, left, right, budget_));
      }
      case Expression::kCompare:
        return EvaluateComparison(expression);
      case Expression::kConditional: {
        ASSIGN_OR_RETURN(const Value condition, Evaluate(*operands[0]));
        const ExpressionPtr& chosen = operands[IsTrue(condition) ? 1 : 2];
        return chosen == nullptr ? Value{} : Evaluate(*chosen);
      }
      case Expression::kAttribute: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*operands[0]));
        return Located(expression.position, Attribute(value, expression.name, budget_));
      }
      case Expression::kItem: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*operands[0]));
        ASSIGN_OR_RETURN(const Value index, Evaluate(*operands[1]));
        return Located(expression.position, Item(value, index, budget_));
      }
      case Expression::kSlice: {
        ASSIGN_OR_RETURN(const ValueList parts, EvaluateAll(operands));
        return Located(expression.position, Slice(parts[0], {parts[1], parts[2], parts[3]}, budget_));
      }
      case Expression::kCall:
      case Expression::kMethod:
      case Expression::kFilter:
      case Expression::kTest:
        return EvaluateCall(expression);
    }
    return Value{};
  }

  // Null expressions give undefined values.
  StatusOr<ValueList> EvaluateAll(const std::vector<ExpressionPtr>& expressions) {
    ValueList values;
    for (const ExpressionPtr& expression : expressions) {
      if (expression == nullptr) {
        values.emplace_back();
        continue;
      }
      ASSIGN_OR_RETURN(Value value, Evaluate(*expression));
      values.push_back(std::move(value));
    }
    return values;
  }

  StatusOr<Value> EvaluateDict(const Expression& expression) {
    ASSIGN_OR_RETURN(const ValueList parts, EvaluateAll(expression.operands));
    ValueDict items;
    std::map<std::string_view, size_t> index;  // by key: a later value replaces an earlier one
    for (size_t i = 0; i < parts.size(); i += 2) {
      const auto* key = parts[i].As<Value::Text>();
      if (key == nullptr) {
        return Located(expression.position, TemplateError("a key must be text, not ", KindOf(parts[i])));
      }
      const auto [entry, is_new] = index.try_emplace(key->bytes(), items.size());
      if (is_new) {
        items.emplace_back(parts[i], parts[i + 1]);
      } else {
        items[entry->second].second = parts[i + 1];
      }
    }
    return Located(expression.position, MakeDict(std::move(items)));
  }

  StatusOr<Value> EvaluateComparison(const Expression& expression) {
    ASSIGN_OR_RETURN(Value left, Evaluate(*expression.operands[0]));
    for (size_t i = 0; i < expression.comparisons.size(); ++i) {
      ASSIGN_OR_RETURN(Value right, Evaluate(*expression.operands[i + 1]));
      ASSIGN_OR_RETURN(const bool holds, Located(expression.position,
                                                 Compare(expression.comparisons[i], left, right, budget_)));
      if (!holds) return Value{false};
      left = std::move(right);
    }
    return Value{true};
  }

  StatusOr<Value> EvaluateCall(const Expression& expression) {
    Value subject;
    if (!expression.operands.empty()) {
      ASSIGN_OR_RETURN(subject, Evaluate(*expression.operands[0]));
    }
    ASSIGN_OR_RETURN(const ValueList positional, EvaluateAll(expression.arguments));
    std::vector<std::pair<std::string, Value>> named;
    for (const auto& [name, argument] : expression.named_arguments) {
      ASSIGN_OR_RETURN(Value value, Evaluate(*argument));
      named.emplace_back(name, std::move(value));
    }
    if (expression.kind == Expression::kCall) {
      if (expression.name == "raise_exception") return RaiseException(positional);
      return Located(expression.position, CallFunction(expression, positional, named));
    }
    const TemplateBuiltin* builtin =
        expression.kind == Expression::kMethod ? FindMethod(subject, expression.name) : expression.builtin;
    if (builtin == nullptr) {
      return Located(expression.position,
                     TemplateError(KindOf(subject), " has no method '", expression.name, "'"));
    }
    return Located(expression.position, builtin->Call(subject, positional, named, budget_));
  }

  StatusOr<Value> CallFunction(const Expression& expression, const ValueList& positional,
                               const std::vector<std::pair<std::string, Value>>& named) {
    if (expression.name == "range" && named.empty()) return MakeRange(positional, budget_);
    if (expression.name != "namespace" || !positional.empty()) {
      return TemplateError("there is no function '", expression.name, "' for these arguments");
    }
    auto space = std::make_shared<NamespaceValue>();
    for (const auto& [name, value] : named) {
      if (value.Is<Value::Namespace>() || value.Is<Value::Loop>()) {
        return TemplateError(KindOf(value), " cannot be stored in a value");
      }
      space->attributes[name] = value;
    }
    return Value{std::move(space)};
  }

  // The template's own words, without a position.
  StatusOr<Value> RaiseException(const ValueList& arguments) {
    if (arguments.size() != 1) return TemplateError("chat template: raise_exception takes one argument");
    ASSIGN_OR_RETURN(const Value::Text text, ToText(arguments[0]));
    return TemplateError("chat template: ", text->bytes().substr(0, 1024));
  }

  const TemplateProgram& program_;
  ValueList slots_;                          // the variables
  std::vector<std::pair<int, Value>> undo_;  // what to restore at the end of a turn of the innermost loop
  int loops_ = 0;                            // loops running
  Budget budget_;
  MarkedString output_;
};

}  // namespace

StatusOr<MarkedString> RenderTemplate(const TemplateProgram& program,
                                      const std::vector<std::pair<std::string, Value>>& variables) {
  Evaluator evaluator(program);
  for (const auto& [name, value] : variables) evaluator.Define(name, value);
  return evaluator.Run();
}

}  // namespace terrace
