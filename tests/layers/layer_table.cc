#include "tests/layers/layer_table.h"

#include <algorithm>
#include <optional>
#include <sstream>

namespace terrace {
namespace {

// The lines of the fenced block between `<!-- name:begin -->` and `<!-- name:end -->`.
StatusOr<std::vector<std::string>> Block(std::string_view document, std::string_view name) {
  const size_t begin = document.find(Concat("<!-- ", name, ":begin -->"));
  const size_t end = document.find(Concat("<!-- ", name, ":end -->"));
  if (begin == std::string_view::npos || end == std::string_view::npos || end < begin) {
    return InvalidArgument("no block \"", name, "\"");
  }
  std::istringstream text{std::string(document.substr(begin, end - begin))};
  std::vector<std::string> lines;
  std::string line;
  std::getline(text, line);  // the rest of the marker's own line
  while (std::getline(text, line)) {
    if (!line.empty() && !line.starts_with("```")) lines.push_back(line);
  }
  if (lines.empty()) return InvalidArgument("block \"", name, "\" is empty");
  return lines;
}

// "worker/{kv,parallel}" -> both; anything else stands for itself.
std::vector<std::string> Expand(const std::string& word) {
  const size_t open = word.find('{'), close = word.find('}');
  if (open == std::string::npos || close == std::string::npos) return {word};
  std::vector<std::string> words;
  std::istringstream inner(word.substr(open + 1, close - open - 1));
  for (std::string part; std::getline(inner, part, ',');) {
    words.push_back(word.substr(0, open) + part + word.substr(close + 1));
  }
  return words;
}

std::vector<std::string> ExpandAll(const std::string& text) {
  std::vector<std::string> all;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    for (std::string& one : Expand(word)) all.push_back(std::move(one));
  }
  return all;
}

// A row has two columns, at least two spaces apart.
StatusOr<std::pair<std::string, std::string>> Columns(const std::string& line) {
  const size_t gap = line.find("  ");
  const size_t second = gap == std::string::npos ? gap : line.find_first_not_of(' ', gap);
  if (gap == 0 || second == std::string::npos) return InvalidArgument("not two columns: \"", line, "\"");
  return std::pair(line.substr(0, gap), line.substr(second));
}

bool IsWithin(std::string_view path, std::string_view folder) {
  return path.starts_with(folder) && (path.size() == folder.size() || path[folder.size()] == '/');
}

// `entry` may be a folder, a file, or the beginning of a file's name ("base/parallel_for").
bool IsCoveredBy(std::string_view path, std::string_view entry) {
  if (!path.starts_with(entry)) return false;
  return path.size() == entry.size() ||
         std::string_view("/._").find(path[entry.size()]) != std::string_view::npos;
}

bool IsTest(std::string_view path) {
  const std::string_view name = path.substr(path.rfind('/') + 1);
  return name.ends_with("_test.cc") || name.starts_with("testing_");
}

// `line` without a // comment (one in a string literal does not matter here).
std::string_view WithoutComment(std::string_view line) { return line.substr(0, line.find("//")); }

std::optional<std::string> QuotedInclude(std::string_view line) {
  const size_t start = line.find_first_not_of(" \t");
  if (start == std::string_view::npos || !line.substr(start).starts_with("#include \"")) return std::nullopt;
  const size_t open = line.find('"'), close = line.find('"', open + 1);
  return std::string(line.substr(open + 1, close - open - 1));
}

// A use that makes a thread, or any use of another pattern: "std::thread::id" makes none.
bool Holds(std::string_view line, std::string_view pattern) {
  for (size_t at = line.find(pattern); at != std::string_view::npos; at = line.find(pattern, at + 1)) {
    if (!pattern.starts_with("std::") || !line.substr(at + pattern.size()).starts_with("::")) return true;
  }
  return false;
}

}  // namespace

StatusOr<LayerTable> LayerTable::Parse(std::string_view document) {
  LayerTable table;
  ASSIGN_OR_RETURN(const std::vector<std::string> layers, Block(document, "layers"));
  for (const std::string& line : layers) {
    ASSIGN_OR_RETURN(const auto columns, Columns(line));
    const bool is_nothing = columns.second == "(nothing)";
    for (const std::string& subject : Expand(columns.first)) {
      const auto allowed = is_nothing ? std::vector<std::string>() : ExpandAll(columns.second);
      table.rows_.push_back({subject, allowed, columns.second});
      table.top_folders_.insert(subject.substr(0, subject.find('/')));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> bans, Block(document, "bans"));
  for (const std::string& line : bans) {
    ASSIGN_OR_RETURN(const auto columns, Columns(line));
    table.bans_.push_back({columns.first, ExpandAll(columns.second), columns.second});
  }
  return table;
}

// The most specific one.
const LayerTable::Row* LayerTable::RowFor(const std::string& path) const {
  const Row* best = nullptr;
  for (const Row& row : rows_) {
    if (IsWithin(path, row.subject) && (best == nullptr || row.subject.size() > best->subject.size()))
      best = &row;
  }
  return best;
}

std::string LayerTable::CheckInclude(const std::string& path, const Row* row,
                                     const std::string& included) const {
  const size_t slash = included.find('/');
  if (slash == std::string::npos || included.starts_with(".")) {
    return Concat("includes \"", included, "\": name headers from the root");
  }
  if (!top_folders_.contains(included.substr(0, slash))) return "";  // a library
  const Row* own = RowFor(included);
  const bool is_own_folder = row == own || IsWithin(included, path.substr(0, path.rfind('/')));
  const bool is_allowed =
      std::any_of(row->allowed.begin(), row->allowed.end(), [&](const std::string& folder) {
        return IsWithin(included, folder.ends_with("/*") ? folder.substr(0, folder.size() - 2) : folder);
      });
  if (is_own_folder || is_allowed) return "";
  return Concat("includes \"", included, "\", but ", row->subject, " may include: ", row->text);
}

std::vector<std::string> LayerTable::Check(const std::string& path, std::string_view source) const {
  const Row* row = RowFor(path);
  if (row == nullptr) return {Concat(path, ": no row of the layer table covers this file")};
  std::vector<std::string> problems;
  std::istringstream lines{std::string(source)};
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    const std::string place = Concat(path, ":", ++number, ": ");
    const auto included = QuotedInclude(line);
    const std::string problem = included ? CheckInclude(path, row, *included) : "";
    if (!problem.empty()) problems.push_back(place + problem);
    for (const Ban& ban : bans_) {
      const bool is_about_threads = ban.pattern.starts_with("std::");
      const bool is_allowed = (is_about_threads && IsTest(path)) ||
                              std::any_of(ban.allowed.begin(), ban.allowed.end(),
                                          [&](const auto& entry) { return IsCoveredBy(path, entry); });
      if (is_allowed || !Holds(WithoutComment(line), ban.pattern)) continue;
      problems.push_back(Concat(place, "holds ", ban.pattern, ", which only these may: ", ban.text));
    }
  }
  return problems;
}

}  // namespace terrace
