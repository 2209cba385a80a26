// Calls of tools in a model's answer: how its chat template asks it to write them, and a parser that takes
// the text in pieces of any size. Linear in the text; no recursion on it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace terrace {

// A tool that a model may call: a function with named parameters.
struct Tool {
  std::string name = {};
  std::string description = {};  // "": none
  std::string parameters = {};   // JSON Schema, an object; "": none
};

struct ToolCall {
  std::string id = {};
  std::string name = {};
  std::string arguments = {};  // a JSON object
};

enum class ToolCallFormat : uint8_t {
  kNone,     // the template has no tools, or a format that is not known here
  kHermes,   // <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as often as needed (Hermes, Qwen)
  kMistral,  // [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]
  kLlama,    // {"name": ..., "parameters": {...}} from the start or behind <|python_tag|>; ";" between calls
};
ToolCallFormat DetectToolCallFormat(std::string_view template_source);
// Whether `text` is a mark of calls. Where a control token says so, its text belongs to what a parser is
// given.
bool IsToolCallMark(ToolCallFormat format, std::string_view text);

// Owned by one answer; one thread at a time. A call is given when it is whole: a JSON object whose "name" is
// one of the tools and whose "arguments" ("parameters" is as good) are an object or absent. What turns out to
// be none of that is content, to the byte. Marks around calls, and white space beside them, are no content.
class ToolCallParser {
 public:
  // `max_calls` ends the answer: what follows the last one is dropped.
  ToolCallParser(ToolCallFormat format, const std::vector<Tool>& tools, size_t max_calls = SIZE_MAX);

  struct Piece {
    std::string content = {};
    std::vector<ToolCall> calls = {};  // without ids
  };
  // However a text is cut into pieces, contents and calls are the same.
  Piece Push(std::string_view text);
  Piece Finish();  // of the text: what was held back

  size_t calls() const { return calls_; }  // so far
  bool is_full() const { return calls_ == max_calls_; }

 private:
  // What a format looks like.
  struct Syntax {
    std::string_view begin, end;  // marks; no character of `begin` but the first is like its first
    char open = '{';              // of the JSON
    bool is_bare = false;         // JSON may stand at the very start, and behind a ";" after a call
  };
  enum class State : uint8_t {
    kContent,  // held_: white space, then matched_ characters of the begin mark
    kMarked,   // held_: a begin mark and white space
    kJson,     // held_: the same and the JSON so far, from json_begin_ on
    kAfter,    // a call was whole (or a bare one may begin): held_: white space, or a part of the end mark
  };
  static Syntax SyntaxOf(ToolCallFormat format);

  void Step(char next);
  void StepInContent(char next);
  void StepInJson(char next);
  void StepAfter(char next);
  void BeginJson(char next);
  void EndJson();
  void ToContent();        // held_ was no call
  void Reread(char next);  // held_ may begin with something else
  bool TakeCalls(std::string_view json);

  const Syntax syntax_;
  std::vector<std::string> names_;  // of the tools, sorted
  const size_t max_calls_;
  State state_ = State::kContent;
  std::string held_;
  size_t matched_ = 0;     // kContent: of the begin mark; kAfter: of the end mark
  size_t json_begin_ = 0;  // in held_
  size_t depth_ = 0;       // of the JSON
  bool in_string_ = false, is_escaped_ = false;
  bool follows_call_ = false;  // no content since the last call
  size_t calls_ = 0;
  Piece piece_;
};

}  // namespace terrace
