// The layer rules of docs/architecture.md, read from its text: which folder may include which, and which text
// only some files may hold. Thread-safe: values only.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace {

class LayerTable {
 public:
  // `document` is the Markdown text; its tables stand between layers:begin/end and bans:begin/end comments.
  static StatusOr<LayerTable> Parse(std::string_view document);

  // What is wrong with one source file; each line names the file, the line, the rule and what would be
  // allowed.
  std::vector<std::string> Check(const std::string& path, std::string_view source) const;

  // The top folders the table knows: includes that start with another word are libraries.
  const std::set<std::string>& top_folders() const { return top_folders_; }

 private:
  struct Row {
    std::string subject;               // a folder or a file
    std::vector<std::string> allowed;  // folders; "worker/*" is every folder below worker
    std::string text;                  // as written, for messages
  };
  struct Ban {
    std::string pattern;
    std::vector<std::string> allowed;  // folders, files, or beginnings of file names
    std::string text;
  };
  const Row* RowFor(const std::string& path) const;
  std::string CheckInclude(const std::string& path, const Row* row, const std::string& included) const;

  std::vector<Row> rows_;
  std::vector<Ban> bans_;
  std::set<std::string> top_folders_;
};

}  // namespace terrace
