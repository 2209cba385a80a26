#include "text/jinja/parser.h"

#include <algorithm>
#include <optional>
#include <span>
#include <unordered_map>

#include "text/unicode.h"

namespace terrace {
namespace {

using Expression = TemplateExpression;
using Statement = TemplateStatement;
using Token = TemplateToken;

// A construct that is open while this lives; the parser recurses only under one.
class Nesting {
 public:
  explicit Nesting(int& depth) : depth_(depth) { ++depth_; }
  ~Nesting() { --depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  int& depth_;
};

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) { SlotOf("loop"); }

  StatusOr<TemplateProgram> Run() {
    ASSIGN_OR_RETURN(program_.body, ParseBody({}));
    if (Peek().kind != Token::kEnd) return Error(Concat("unexpected '", tokens_[next_ + 1].text, "'"));
    return std::move(program_);
  }

 private:
  // ---- tokens

  const Token& Peek() const { return tokens_[next_]; }
  const Token& Take() { return tokens_[next_ + 1 < tokens_.size() ? next_++ : next_]; }
  bool IsOperator(std::string_view text) const {
    return Peek().kind == Token::kOperator && Peek().text == text;
  }
  bool IsName(std::string_view text) const { return Peek().kind == Token::kName && Peek().text == text; }
  bool TakeOperator(std::string_view text) { return IsOperator(text) && (Take(), true); }
  bool TakeName(std::string_view text) { return IsName(text) && (Take(), true); }

  Status Error(std::string_view message) const { return TemplateSyntaxError(Peek().position, message); }

  Status Expect(std::string_view op) {
    if (TakeOperator(op)) return Status();
    return Error(Concat("expected '", op, "'"));
  }
  Status ExpectBlockEnd() {
    if (Peek().kind != Token::kBlockEnd) return Error("expected the end of the tag");
    Take();
    return Status();
  }
  StatusOr<std::string> ExpectName() {
    if (Peek().kind != Token::kName) return Error("expected a name");
    return Take().text;
  }

  int SlotOf(const std::string& name) {
    const auto [entry, is_new] = slots_.try_emplace(name, static_cast<int>(program_.names.size()));
    if (is_new) program_.names.push_back(name);
    return entry->second;
  }

  Status CheckNesting() const {
    if (nesting_ <= kMaxTemplateDepth) return Status();
    return Error(Concat("nested deeper than ", kMaxTemplateDepth));
  }

  // ---- statements

  // Statements up to a block that begins with one of `ends`, which is left to be read, or to the end.
  StatusOr<TemplateBody> ParseBody(std::span<const std::string_view> ends) {
    const Nesting nesting(nesting_), block(blocks_);
    RETURN_IF_ERROR(CheckNesting());
    TemplateBody body;
    while (Peek().kind != Token::kEnd) {
      if (Peek().kind == Token::kBlockBegin) {
        const Token& keyword = tokens_[next_ + 1];
        const bool is_end =
            keyword.kind == Token::kName &&
            (keyword.text.starts_with("end") || keyword.text == "elif" || keyword.text == "else");
        if (is_end && (ends.empty() || std::ranges::find(ends, keyword.text) != ends.end())) return body;
      }
      RETURN_IF_ERROR(ParseStatement(body));
    }
    if (!ends.empty()) return Error(Concat("expected {% ", ends.back(), " %}"));
    return body;
  }

  Status ParseStatement(TemplateBody& body) {
    const Token& token = Take();
    if (token.kind == Token::kText) {
      body.push_back(
          {.kind = Statement::kText, .position = token.position, .text = MarkedString(token.text, true)});
      return Status();
    }
    if (token.kind == Token::kOutputBegin) {
      ASSIGN_OR_RETURN(ExpressionPtr expression, ParseExpression());
      if (Peek().kind != Token::kOutputEnd) return Error("expected '}}'");
      Take();
      body.push_back(
          {.kind = Statement::kOutput, .position = token.position, .expression = std::move(expression)});
      return Status();
    }
    const Token keyword = Peek();  // token is kBlockBegin: other kinds stand inside tags
    if (TakeName("if")) return ParseIf(keyword.position, body);
    if (TakeName("for")) return ParseFor(keyword.position, body);
    if (TakeName("set")) return ParseSet(keyword.position, body);
    if (TakeName("generation")) return ParseGeneration(body);
    return Error(keyword.kind == Token::kName ? Concat("the tag '", keyword.text, "' is not supported here")
                                              : "expected the name of a tag");
  }

  // Up to `ends`, whose {% and keyword are taken; gives the keyword.
  StatusOr<std::string> ParseBodyAndKeyword(std::span<const std::string_view> ends, TemplateBody& body) {
    ASSIGN_OR_RETURN(body, ParseBody(ends));
    Take();
    return Take().text;
  }

  Status ParseIf(TemplatePosition position, TemplateBody& body) {
    constexpr std::string_view kEnds[] = {"elif", "else", "endif"};
    Statement statement{.kind = Statement::kIf, .position = position};
    std::string keyword = "if";
    while (keyword != "endif") {
      Statement::Branch branch;
      if (keyword != "else") {
        ASSIGN_OR_RETURN(branch.condition, ParseOr());
      }
      RETURN_IF_ERROR(ExpectBlockEnd());
      const auto ends = std::span(kEnds).subspan(keyword == "else" ? 2 : 0);
      ASSIGN_OR_RETURN(keyword, ParseBodyAndKeyword(ends, branch.body));
      statement.branches.push_back(std::move(branch));
    }
    body.push_back(std::move(statement));
    return ExpectBlockEnd();
  }

  Status ParseFor(TemplatePosition position, TemplateBody& body) {
    constexpr std::string_view kEnds[] = {"else", "endfor"};
    Statement statement{.kind = Statement::kFor, .position = position};
    do {
      ASSIGN_OR_RETURN(const std::string target, ExpectName());
      statement.targets.push_back(SlotOf(target));
    } while (TakeOperator(","));
    if (!TakeName("in")) return Error("expected 'in'");
    ASSIGN_OR_RETURN(statement.expression, ParseOr());
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(statement.condition, ParseExpression());
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    statement.branches.resize(2);
    ASSIGN_OR_RETURN(const std::string keyword, ParseBodyAndKeyword(kEnds, statement.branches[0].body));
    if (keyword == "else") {
      RETURN_IF_ERROR(ExpectBlockEnd());
      RETURN_IF_ERROR(ParseBodyAndKeyword(std::span(kEnds).subspan(1), statement.branches[1].body).status());
    }
    body.push_back(std::move(statement));
    return ExpectBlockEnd();
  }

  Status ParseSet(TemplatePosition position, TemplateBody& body) {
    Statement statement{.kind = Statement::kSet, .position = position};
    ASSIGN_OR_RETURN(const std::string target, ExpectName());
    statement.targets.push_back(SlotOf(target));
    if (TakeOperator(".")) {
      statement.kind = Statement::kSetAttribute;
      ASSIGN_OR_RETURN(statement.name, ExpectName());
    }
    RETURN_IF_ERROR(Expect("="));
    ASSIGN_OR_RETURN(statement.expression, ParseExpression());
    body.push_back(std::move(statement));
    return ExpectBlockEnd();
  }

  // {% generation %} marks what a model writes, for training: here its body is as good as outside.
  Status ParseGeneration(TemplateBody& body) {
    constexpr std::string_view kEnds[] = {"endgeneration"};
    RETURN_IF_ERROR(ExpectBlockEnd());
    TemplateBody inner;
    RETURN_IF_ERROR(ParseBodyAndKeyword(kEnds, inner).status());
    std::ranges::move(inner, std::back_inserter(body));
    return ExpectBlockEnd();
  }

  // ---- expressions, from the loosest binding to the tightest

  ExpressionPtr Make(Expression::Kind kind, TemplatePosition position,
                     std::vector<ExpressionPtr> operands = {}) {
    auto expression = std::make_unique<Expression>();
    expression->kind = kind;
    expression->position = position;
    expression->operands = std::move(operands);
    return expression;
  }

  template <typename... Operands>
  ExpressionPtr MakeOf(Expression::Kind kind, TemplatePosition position, Operands... operands) {
    auto expression = Make(kind, position);
    (expression->operands.push_back(std::move(operands)), ...);
    return expression;
  }

  // `expression` once its depth is known to be within the limit, together with the blocks around it.
  StatusOr<ExpressionPtr> Checked(ExpressionPtr expression) {
    int below = 0;
    const auto look_at = [&](const ExpressionPtr& child) {
      if (child != nullptr) below = std::max(below, child->depth);
    };
    std::ranges::for_each(expression->operands, look_at);
    std::ranges::for_each(expression->arguments, look_at);
    for (const auto& [ignored, argument] : expression->named_arguments) look_at(argument);
    expression->depth = below + 1;
    if (blocks_ + expression->depth > kMaxTemplateDepth) {
      return TemplateSyntaxError(expression->position, Concat("nested deeper than ", kMaxTemplateDepth));
    }
    return expression;
  }

  StatusOr<ExpressionPtr> ParseExpression() {
    const Nesting nesting(nesting_);
    RETURN_IF_ERROR(CheckNesting());
    ASSIGN_OR_RETURN(ExpressionPtr value, ParseOr());
    while (IsName("if")) {
      const TemplatePosition position = Take().position;
      ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
      ExpressionPtr otherwise;
      if (TakeName("else")) {
        ASSIGN_OR_RETURN(otherwise, ParseExpression());
      }
      ASSIGN_OR_RETURN(value, Checked(MakeOf(Expression::kConditional, position, std::move(condition),
                                             std::move(value), std::move(otherwise))));
    }
    return value;
  }

  StatusOr<ExpressionPtr> ParseOr() {
    ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
    while (IsName("or")) {
      const TemplatePosition position = Take().position;
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
      ASSIGN_OR_RETURN(left, Checked(MakeOf(Expression::kOr, position, std::move(left), std::move(right))));
    }
    return left;
  }

  StatusOr<ExpressionPtr> ParseAnd() {
    ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
    while (IsName("and")) {
      const TemplatePosition position = Take().position;
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
      ASSIGN_OR_RETURN(left, Checked(MakeOf(Expression::kAnd, position, std::move(left), std::move(right))));
    }
    return left;
  }

  StatusOr<ExpressionPtr> ParseNot() {
    if (!IsName("not")) return ParseComparison();
    const Nesting nesting(nesting_);
    RETURN_IF_ERROR(CheckNesting());
    const TemplatePosition position = Take().position;
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseNot());
    return Checked(MakeOf(Expression::kNot, position, std::move(operand)));
  }

  std::optional<Comparison> TakeComparison() {
    constexpr std::pair<std::string_view, Comparison> kOperators[] = {
        {"==", Comparison::kEqual},     {"!=", Comparison::kNotEqual}, {"<", Comparison::kLess},
        {"<=", Comparison::kLessEqual}, {">", Comparison::kGreater},   {">=", Comparison::kGreaterEqual}};
    for (const auto& [text, comparison] : kOperators) {
      if (TakeOperator(text)) return comparison;
    }
    if (TakeName("in")) return Comparison::kIn;
    const Token& after = tokens_[std::min(next_ + 1, tokens_.size() - 1)];
    if (IsName("not") && after.kind == Token::kName && after.text == "in") {
      Take();
      Take();
      return Comparison::kNotIn;
    }
    return std::nullopt;
  }

  StatusOr<ExpressionPtr> ParseComparison() {
    ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
    ExpressionPtr chain;
    while (true) {
      const TemplatePosition position = Peek().position;
      const auto comparison = TakeComparison();
      if (!comparison) break;
      if (chain == nullptr) chain = MakeOf(Expression::kCompare, position, std::move(first));
      ASSIGN_OR_RETURN(ExpressionPtr operand, ParseSum());
      chain->operands.push_back(std::move(operand));
      chain->comparisons.push_back(*comparison);
    }
    if (chain == nullptr) return first;
    return Checked(std::move(chain));
  }

  struct Level {
    std::string_view text;
    BinaryOperation operation;
  };

  // Left-associative operators of one level, over operands of the next.
  StatusOr<ExpressionPtr> ParseBinary(std::span<const Level> level,
                                      StatusOr<ExpressionPtr> (Parser::*next)()) {
    ASSIGN_OR_RETURN(ExpressionPtr left, (this->*next)());
    while (true) {
      const auto op =
          std::ranges::find_if(level, [&](const Level& candidate) { return IsOperator(candidate.text); });
      if (op == level.end()) return left;
      const TemplatePosition position = Take().position;
      ASSIGN_OR_RETURN(ExpressionPtr right, (this->*next)());
      auto expression = MakeOf(Expression::kBinary, position, std::move(left), std::move(right));
      expression->operation = op->operation;
      ASSIGN_OR_RETURN(left, Checked(std::move(expression)));
    }
  }

  StatusOr<ExpressionPtr> ParseSum() {
    static constexpr Level kLevel[] = {{"+", BinaryOperation::kAdd}, {"-", BinaryOperation::kSubtract}};
    return ParseBinary(kLevel, &Parser::ParseConcatenation);
  }
  StatusOr<ExpressionPtr> ParseConcatenation() {
    static constexpr Level kLevel[] = {{"~", BinaryOperation::kConcatenate}};
    return ParseBinary(kLevel, &Parser::ParseProduct);
  }
  StatusOr<ExpressionPtr> ParseProduct() {
    static constexpr Level kLevel[] = {{"*", BinaryOperation::kMultiply},
                                       {"/", BinaryOperation::kDivide},
                                       {"//", BinaryOperation::kFloorDivide},
                                       {"%", BinaryOperation::kModulo}};
    return ParseBinary(kLevel, &Parser::ParseUnary);
  }

  StatusOr<ExpressionPtr> ParseUnary() {
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseSigned());
    return ParseFilters(std::move(operand));
  }

  StatusOr<ExpressionPtr> ParseSigned() {
    const TemplatePosition position = Peek().position;
    if (IsOperator("-") || IsOperator("+")) {
      const Nesting nesting(nesting_);
      RETURN_IF_ERROR(CheckNesting());
      const bool is_negative = Take().text == "-";
      ASSIGN_OR_RETURN(ExpressionPtr operand, ParseSigned());
      if (!is_negative) return operand;
      return Checked(MakeOf(Expression::kNegate, position, std::move(operand)));
    }
    ASSIGN_OR_RETURN(ExpressionPtr primary, ParsePrimary());
    return ParsePostfix(std::move(primary));
  }

  // ---- primaries

  StatusOr<ExpressionPtr> ParsePrimary() {
    const Token token = Take();
    auto literal = Make(Expression::kLiteral, token.position);
    switch (token.kind) {
      case Token::kString: {
        std::string text = token.text;
        while (Peek().kind == Token::kString) text += Take().text;  // adjacent strings are one
        literal->literal = MakeText(std::move(text));
        return literal;
      }
      case Token::kInteger:
        literal->literal = Value{token.integer};
        return literal;
      case Token::kFloat:
        literal->literal = Value{token.number};
        return literal;
      case Token::kName:
        return ParseName(token, std::move(literal));
      default:
        break;
    }
    if (token.kind == Token::kOperator && token.text == "(") return ParseParentheses(token.position);
    if (token.kind == Token::kOperator && token.text == "[") {
      auto list = Make(Expression::kList, token.position);
      RETURN_IF_ERROR(ParseItems("]", list->operands));
      return Checked(std::move(list));
    }
    if (token.kind == Token::kOperator && token.text == "{") return ParseDict(token.position);
    return TemplateSyntaxError(token.position, "expected a value");
  }

  StatusOr<ExpressionPtr> ParseName(const Token& token, ExpressionPtr literal) {
    const std::string& name = token.text;
    if (name == "true" || name == "True") {
      literal->literal = Value{true};
    } else if (name == "false" || name == "False") {
      literal->literal = Value{false};
    } else if (name == "none" || name == "None") {
      literal->literal = Value{NoneValue()};
    } else if (name == "not" || name == "and" || name == "or" || name == "if" || name == "else" ||
               name == "in" || name == "is") {
      return TemplateSyntaxError(token.position, Concat("unexpected '", name, "'"));
    } else {
      literal->kind = Expression::kVariable;
      literal->name = name;
      literal->slot = SlotOf(name);
    }
    return literal;
  }

  // Comma-separated values up to `close`, which is taken; a comma may end them.
  Status ParseItems(std::string_view close, std::vector<ExpressionPtr>& items) {
    while (!TakeOperator(close)) {
      ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
      items.push_back(std::move(item));
      if (!IsOperator(close)) RETURN_IF_ERROR(Expect(","));
    }
    return Status();
  }

  StatusOr<ExpressionPtr> ParseParentheses(TemplatePosition position) {
    if (TakeOperator(")")) return Checked(Make(Expression::kList, position));  // an empty tuple
    ASSIGN_OR_RETURN(ExpressionPtr first, ParseExpression());
    if (TakeOperator(")")) return first;
    RETURN_IF_ERROR(Expect(","));
    auto tuple = MakeOf(Expression::kList, position, std::move(first));
    RETURN_IF_ERROR(ParseItems(")", tuple->operands));
    return Checked(std::move(tuple));
  }

  StatusOr<ExpressionPtr> ParseDict(TemplatePosition position) {
    auto dict = Make(Expression::kDict, position);
    while (!TakeOperator("}")) {
      ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression());
      RETURN_IF_ERROR(Expect(":"));
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      dict->operands.push_back(std::move(key));
      dict->operands.push_back(std::move(value));
      if (!IsOperator("}")) RETURN_IF_ERROR(Expect(","));
    }
    return Checked(std::move(dict));
  }

  // ---- what follows a primary

  StatusOr<ExpressionPtr> ParsePostfix(ExpressionPtr value) {
    while (true) {
      const TemplatePosition position = Peek().position;
      if (TakeOperator(".")) {
        ASSIGN_OR_RETURN(value, ParseAttribute(position, std::move(value)));
      } else if (TakeOperator("[")) {
        ASSIGN_OR_RETURN(value, ParseSubscript(position, std::move(value)));
      } else if (IsOperator("(")) {
        ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
      } else {
        return value;
      }
    }
  }

  StatusOr<ExpressionPtr> ParseAttribute(TemplatePosition position, ExpressionPtr value) {
    if (Peek().kind == Token::kInteger) {  // items.0
      auto index = Make(Expression::kLiteral, position);
      index->literal = Value{Take().integer};
      return Checked(MakeOf(Expression::kItem, position, std::move(value), std::move(index)));
    }
    auto attribute = MakeOf(Expression::kAttribute, position, std::move(value));
    ASSIGN_OR_RETURN(attribute->name, ExpectName());
    return Checked(std::move(attribute));
  }

  // value[index] or value[begin:end:step], behind the bracket.
  StatusOr<ExpressionPtr> ParseSubscript(TemplatePosition position, ExpressionPtr value) {
    auto subscript = MakeOf(Expression::kItem, position, std::move(value));
    bool is_slice = false;
    for (int part = 0; part < 3; ++part) {
      ExpressionPtr bound;
      if (!IsOperator(":") && !IsOperator("]")) {
        ASSIGN_OR_RETURN(bound, ParseExpression());
      }
      subscript->operands.push_back(std::move(bound));
      if (part == 2 || !TakeOperator(":")) break;
      is_slice = true;
    }
    RETURN_IF_ERROR(Expect("]"));
    if (is_slice) {
      subscript->kind = Expression::kSlice;
      subscript->operands.resize(4);
    } else if (subscript->operands[1] == nullptr) {
      return TemplateSyntaxError(position, "expected an index");
    }
    return Checked(std::move(subscript));
  }

  StatusOr<ExpressionPtr> ParseCall(ExpressionPtr callee) {
    if (callee->kind == Expression::kAttribute) {
      callee->kind = Expression::kMethod;
    } else if (callee->kind == Expression::kVariable) {
      callee->kind = Expression::kCall;
    } else {
      return Error("only names and methods can be called");
    }
    RETURN_IF_ERROR(ParseArguments(*callee));
    return Checked(std::move(callee));
  }

  // (value, ..., name=value, ...)
  Status ParseArguments(Expression& call) {
    RETURN_IF_ERROR(Expect("("));
    while (!TakeOperator(")")) {
      const Token& after = tokens_[std::min(next_ + 1, tokens_.size() - 1)];
      std::string name;
      if (Peek().kind == Token::kName && after.kind == Token::kOperator && after.text == "=") {
        name = Take().text;
        Take();
      } else if (!call.named_arguments.empty()) {
        return Error("an argument without name after one with a name");
      }
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      if (name.empty()) {
        call.arguments.push_back(std::move(value));
      } else {
        call.named_arguments.emplace_back(std::move(name), std::move(value));
      }
      if (!IsOperator(")")) RETURN_IF_ERROR(Expect(","));
    }
    return Status();
  }

  // value | filter(arguments) is test(arguments) ...
  StatusOr<ExpressionPtr> ParseFilters(ExpressionPtr value) {
    while (true) {
      const TemplatePosition position = Peek().position;
      if (TakeOperator("|")) {
        ASSIGN_OR_RETURN(value, ParseFilter(position, std::move(value)));
      } else if (TakeName("is")) {
        ASSIGN_OR_RETURN(value, ParseTest(position, std::move(value)));
      } else {
        return value;
      }
    }
  }

  StatusOr<ExpressionPtr> ParseFilter(TemplatePosition position, ExpressionPtr value) {
    auto filter = MakeOf(Expression::kFilter, position, std::move(value));
    ASSIGN_OR_RETURN(filter->name, ExpectName());
    filter->builtin = FindFilter(filter->name);
    if (filter->builtin == nullptr) {
      return TemplateSyntaxError(position, Concat("the filter '", filter->name, "' is not supported"));
    }
    if (IsOperator("(")) RETURN_IF_ERROR(ParseArguments(*filter));
    return Checked(std::move(filter));
  }

  StatusOr<ExpressionPtr> ParseTest(TemplatePosition position, ExpressionPtr value) {
    const bool is_negated = TakeName("not");
    auto test = MakeOf(Expression::kTest, position, std::move(value));
    ASSIGN_OR_RETURN(test->name, ExpectName());
    test->builtin = FindTest(test->name);
    if (test->builtin == nullptr) {
      return TemplateSyntaxError(position, Concat("the test '", test->name, "' is not supported"));
    }
    if (IsOperator("(")) {
      RETURN_IF_ERROR(ParseArguments(*test));
    } else if (test->builtin->required > 0) {  // x is equalto y
      ASSIGN_OR_RETURN(ExpressionPtr argument, ParseSigned());
      test->arguments.push_back(std::move(argument));
    }
    ASSIGN_OR_RETURN(test, Checked(std::move(test)));
    if (!is_negated) return test;
    return Checked(MakeOf(Expression::kNot, position, std::move(test)));
  }

  const std::vector<Token> tokens_;  // kEnd last, and never taken
  size_t next_ = 0;
  int nesting_ = 0;  // constructs open
  int blocks_ = 0;   // of them, bodies of statements
  TemplateProgram program_;
  std::unordered_map<std::string, int> slots_;
};

}  // namespace

StatusOr<TemplateProgram> ParseTemplate(std::string_view source) {
  if (source.size() > kMaxTemplateSource) {
    return TemplateSyntaxError({}, Concat(source.size(), " bytes, limit ", kMaxTemplateSource));
  }
  if (!IsValidUtf8(source)) return TemplateSyntaxError({}, "not UTF-8");
  ASSIGN_OR_RETURN(std::vector<TemplateToken> tokens, LexTemplate(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace terrace
