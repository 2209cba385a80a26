// The syntax tree of a template: data only, made by the parser, read by the evaluator. No tree is deeper than
// kMaxTemplateDepth, so walking it by recursion is safe.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/builtins.h"
#include "text/jinja/lexer.h"
#include "text/jinja/operators.h"
#include "text/jinja/value.h"

namespace terrace {

struct TemplateExpression;
using ExpressionPtr = std::unique_ptr<TemplateExpression>;

struct TemplateExpression {
  enum Kind {
    kLiteral,      // literal
    kVariable,     // slot, name
    kList,         // operands: the items
    kDict,         // operands: key, value, key, value, ...
    kNot,          // operands[0]
    kNegate,       // operands[0]
    kAnd,          // operands[0], operands[1]
    kOr,           // operands[0], operands[1]
    kBinary,       // operation; operands[0], operands[1]
    kCompare,      // operands[0] comparisons[0] operands[1] comparisons[1] operands[2] ...
    kConditional,  // operands: condition, value if true, value if false (or null: undefined)
    kAttribute,    // operands[0].name
    kItem,         // operands[0][operands[1]]
    kSlice,        // operands[0][operands[1]:operands[2]:operands[3]], null where left out
    kCall,         // name(arguments), with slot
    kMethod,       // operands[0].name(arguments)
    kFilter,       // operands[0] | name(arguments), with builtin
    kTest,         // operands[0] is name(arguments), with builtin
  };
  Kind kind = kLiteral;
  TemplatePosition position;
  int depth = 1;
  Value literal;
  std::string name;
  int slot = -1;
  BinaryOperation operation = BinaryOperation::kAdd;
  std::vector<Comparison> comparisons;
  const TemplateBuiltin* builtin = nullptr;
  std::vector<ExpressionPtr> operands;
  std::vector<ExpressionPtr> arguments;
  std::vector<std::pair<std::string, ExpressionPtr>> named_arguments;
};

struct TemplateStatement;
using TemplateBody = std::vector<TemplateStatement>;

struct TemplateStatement {
  enum Kind {
    kText,          // text
    kOutput,        // expression
    kIf,            // branches: the first whose condition holds (null: {% else %})
    kFor,           // targets in expression, if condition: branches[0]; without any item: branches[1]
    kSet,           // targets[0] = expression
    kSetAttribute,  // targets[0].name = expression
  };
  struct Branch {
    ExpressionPtr condition;
    TemplateBody body;
  };
  Kind kind = kText;
  TemplatePosition position;
  MarkedString text = {};
  ExpressionPtr expression = nullptr, condition = nullptr;
  std::vector<int> targets = {};  // slots; two or more unpack each item
  std::string name = {};
  std::vector<Branch> branches = {};
};

inline constexpr int kLoopSlot = 0;  // of the variable `loop`

struct TemplateProgram {
  TemplateBody body;
  std::vector<std::string> names;  // of the variables, by slot; kLoopSlot is there always
};

}  // namespace terrace
