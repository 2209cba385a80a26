#include "base/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "base/mapped_file.h"
#include "google/protobuf/descriptor.h"
#include "yaml-cpp/eventhandler.h"
#include "yaml-cpp/yaml.h"

namespace terrace {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Reflection;
using ProtoMessage = google::protobuf::Message;

constexpr size_t kMaxBytes = size_t{1} << 20;
constexpr int kMaxDepth = 32;
constexpr size_t kMaxTypos = 2;

// Where errors are: "file:line:column: ", or just "file: " for text that has no lines of its own (an
// override).
struct Source {
  const std::string& name;
  bool has_lines;
  ConfigValues values = ConfigValues::kShown;

  bool is_secret() const { return values == ConfigValues::kSecret; }

  template <typename... Args>
  Status Error(const YAML::Mark& mark, const Args&... args) const {
    const std::string place =
        has_lines && mark.line >= 0 ? Concat(":", mark.line + 1, ":", mark.column + 1) : "";
    return FailedPrecondition(name, place, ": ", args...);
  }
};

// Looks for what our subset of YAML leaves out, before the parser builds a tree of it.
class SubsetCheck : public YAML::EventHandler {
 public:
  explicit SubsetCheck(const Source& source) : source_(source) {}
  const Status& status() const { return status_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) Refuse(mark, "a second document; one is allowed");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { Value(mark, "", anchor); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Refuse(mark, "aliases (*name) are not supported");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string&) override {
    Value(mark, tag, anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Enter(mark, tag, anchor);
  }
  void OnSequenceEnd() override { --depth_; }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Enter(mark, tag, anchor);
  }
  void OnMapEnd() override { --depth_; }

 private:
  void Enter(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (++depth_ > kMaxDepth) Refuse(mark, Concat("nested more than ", kMaxDepth, " deep"));
    Value(mark, tag, anchor);
  }
  void Value(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) Refuse(mark, "anchors (&name) are not supported");
    if (tag.size() <= 1) return;
    Refuse(mark,
           source_.is_secret() ? "tags are not supported" : Concat("tags (", tag, ") are not supported"));
  }
  void Refuse(const YAML::Mark& mark, const std::string& why) {
    if (status_.ok()) status_ = source_.Error(mark, why);
  }

  const Source& source_;
  Status status_;
  int documents_ = 0, depth_ = 0;
};

StatusOr<YAML::Node> ParseTree(std::string_view text, const Source& source) try {
  if (text.size() > kMaxBytes)
    return source.Error(YAML::Mark::null_mark(), text.size(), " bytes, limit ", kMaxBytes);
  std::istringstream stream{std::string(text)};
  YAML::Parser parser(stream);
  SubsetCheck check(source);
  while (parser.HandleNextDocument(check)) RETURN_IF_ERROR(check.status());
  RETURN_IF_ERROR(check.status());
  return YAML::Load(std::string(text));
} catch (const YAML::Exception& error) {
  // What the parser says may repeat a name of the text.
  return source.Error(error.mark, source.is_secret() ? "it is no YAML that can be read" : error.msg);
}

// Insertions, deletions and replacements that turn `a` into `b`.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// What to tell someone who wrote `word` where only `known` words are understood.
std::string Hint(std::string_view word, const std::vector<std::string>& known) {
  std::string all;
  std::pair<size_t, std::string_view> best = {kMaxTypos + 1, ""};
  for (const std::string& candidate : known) {
    best = std::min(best, {EditDistance(word, candidate), candidate});
    all += Concat(all.empty() ? "" : ", ", candidate);
  }
  return best.first <= kMaxTypos ? Concat("did you mean \"", best.second, "\"?") : Concat("known: ", all);
}

std::string UnknownKey(const std::string& key, const Descriptor& type) {
  std::vector<std::string> known;
  for (int i = 0; i < type.field_count(); ++i) known.push_back(type.field(i)->name());
  return Concat("unknown key, ", Hint(key, known));
}

bool IsPlain(const YAML::Node& node) { return node.IsScalar() && node.Tag() != "!"; }

// The number a plain scalar is; infinite when it is a number too large for a double or one of YAML's .inf and
// .nan.
std::optional<double> PlainNumber(const YAML::Node& node) {
  const std::string text = node.Scalar();
  if (!IsPlain(node)) return std::nullopt;
  for (const char* special : {".inf", "-.inf", ".nan"}) {
    if (text == special) return std::numeric_limits<double>::infinity();
  }
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return error == std::errc() ? value : std::numeric_limits<double>::infinity();
}

std::string Describe(const YAML::Node& node, const Source& source) {
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a mapping";
  if (node.IsNull()) return "nothing";
  if (source.is_secret()) return "a value";
  const std::string text = node.Scalar().substr(0, 64);
  if (!IsPlain(node)) return Concat("the string \"", text, "\"");
  if (text == "true" || text == "false" || PlainNumber(node)) return text;
  return Concat("the string \"", text, "\"");
}

// Copies a YAML tree into a message.
class Filler {
 public:
  explicit Filler(const Source& source) : source_(source) {}

  Status FillMessage(const YAML::Node& node, const YAML::Mark& at, const std::string& path,
                     ProtoMessage& message) {
    if (!node.IsMap()) return Expected("a mapping", node, at, path);
    const Descriptor& type = *message.GetDescriptor();
    std::set<std::string> seen;
    for (const auto& pair : node) {
      const YAML::Node &key = pair.first, &value = pair.second;
      RETURN_IF_ERROR(CheckKey(key, path, seen));
      const FieldDescriptor* field = type.FindFieldByName(key.Scalar());
      if (field == nullptr)
        return source_.Error(key.Mark(), Below(path, Shown(key)), ": ", UnknownKey(key.Scalar(), type));
      RETURN_IF_ERROR(FillField(value, key.Mark(), Below(path, key.Scalar()), message, *field));
    }
    return absl::OkStatus();
  }

  // `at` is the place to blame when the value itself has none (a key with nothing behind it).
  Status FillField(const YAML::Node& node, const YAML::Mark& at, const std::string& path,
                   ProtoMessage& message, const FieldDescriptor& field) {
    const Reflection& reflection = *message.GetReflection();
    if (field.is_map()) return FillMap(node, at, path, message, field);
    if (!field.is_repeated()) return FillOne(node, at, path, message, field);
    if (!node.IsSequence()) return Expected("a list", node, at, path);
    reflection.ClearField(&message, &field);
    for (size_t i = 0; i < node.size(); ++i) {
      RETURN_IF_ERROR(FillOne(node[i], at, Concat(path, "[", i, "]"), message, field));
    }
    return absl::OkStatus();
  }

 private:
  static std::string Below(const std::string& path, const std::string& key) {
    return path.empty() ? key : Concat(path, ".", key);
  }

  // What errors may say of a key or value that no message declares: in a file of secrets it may be one.
  std::string Shown(const YAML::Node& node) const { return source_.is_secret() ? "***" : node.Scalar(); }

  Status Expected(std::string_view what, const YAML::Node& node, const YAML::Mark& at,
                  const std::string& path) {
    const YAML::Mark mark = node.IsNull() ? at : node.Mark();
    return source_.Error(mark, path, path.empty() ? "" : ": ", "expected ", what, ", found ",
                         Describe(node, source_));
  }

  Status CheckKey(const YAML::Node& key, const std::string& path, std::set<std::string>& seen) {
    if (!key.IsScalar()) return Expected("a key", key, key.Mark(), path);
    if (key.Scalar() == "<<") return source_.Error(key.Mark(), "merge keys (<<) are not supported");
    if (seen.insert(key.Scalar()).second) return absl::OkStatus();
    return source_.Error(key.Mark(), Below(path, Shown(key)), ": given twice");
  }

  Status FillMap(const YAML::Node& node, const YAML::Mark& at, const std::string& path, ProtoMessage& message,
                 const FieldDescriptor& field) {
    if (!node.IsMap()) return Expected("a mapping", node, at, path);
    const Reflection& reflection = *message.GetReflection();
    const Descriptor& entry_type = *field.message_type();
    reflection.ClearField(&message, &field);
    std::set<std::string> seen;
    for (const auto& pair : node) {
      const YAML::Node &key = pair.first, &value = pair.second;
      RETURN_IF_ERROR(CheckKey(key, path, seen));
      const std::string entry_path = Below(path, Shown(key));
      ProtoMessage& entry = *reflection.AddMessage(&message, &field);
      RETURN_IF_ERROR(FillOne(key, key.Mark(), entry_path, entry, *entry_type.map_key()));
      RETURN_IF_ERROR(FillOne(value, key.Mark(), entry_path, entry, *entry_type.map_value()));
    }
    return absl::OkStatus();
  }

  // One value: a singular field, or one more element of a list.
  Status FillOne(const YAML::Node& node, const YAML::Mark& at, const std::string& path, ProtoMessage& message,
                 const FieldDescriptor& field) {
    const Reflection& reflection = *message.GetReflection();
    const auto store = [&](auto value, auto set, auto add) -> Status {
      RETURN_IF_ERROR(value.status());
      (reflection.*(field.is_repeated() ? add : set))(&message, &field, *std::move(value));
      return absl::OkStatus();
    };
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return FillMessage(node, at, path,
                           field.is_repeated() ? *reflection.AddMessage(&message, &field)
                                               : *reflection.MutableMessage(&message, &field));
      case FieldDescriptor::CPPTYPE_STRING:
        return store(String(node, at, path), &Reflection::SetString, &Reflection::AddString);
      case FieldDescriptor::CPPTYPE_BOOL:
        return store(Bool(node, at, path), &Reflection::SetBool, &Reflection::AddBool);
      case FieldDescriptor::CPPTYPE_INT32:
        return store(Integer<int32_t>(node, at, path), &Reflection::SetInt32, &Reflection::AddInt32);
      case FieldDescriptor::CPPTYPE_INT64:
        return store(Integer<int64_t>(node, at, path), &Reflection::SetInt64, &Reflection::AddInt64);
      case FieldDescriptor::CPPTYPE_UINT32:
        return store(Integer<uint32_t>(node, at, path), &Reflection::SetUInt32, &Reflection::AddUInt32);
      case FieldDescriptor::CPPTYPE_UINT64:
        return store(Integer<uint64_t>(node, at, path), &Reflection::SetUInt64, &Reflection::AddUInt64);
      case FieldDescriptor::CPPTYPE_FLOAT:
        return store(Number<float>(node, at, path), &Reflection::SetFloat, &Reflection::AddFloat);
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return store(Number<double>(node, at, path), &Reflection::SetDouble, &Reflection::AddDouble);
      case FieldDescriptor::CPPTYPE_ENUM:
        return store(Enum(node, at, path, *field.enum_type()), &Reflection::SetEnum, &Reflection::AddEnum);
    }
    CHECK(false, path, ": unknown kind of field");
    return absl::OkStatus();
  }

  StatusOr<std::string> String(const YAML::Node& node, const YAML::Mark& at, const std::string& path) {
    if (!node.IsScalar())
      return Expected(node.IsNull() ? "a string (\"\" for an empty one)" : "a string", node, at, path);
    const std::string text = node.Scalar();
    if (IsPlain(node) && (text == "true" || text == "false" || PlainNumber(node))) {
      return Expected(source_.is_secret() ? "a string" : Concat("a string (write \"", text, "\")"), node, at,
                      path);
    }
    return text;
  }

  StatusOr<bool> Bool(const YAML::Node& node, const YAML::Mark& at, const std::string& path) {
    if (!IsPlain(node) || (node.Scalar() != "true" && node.Scalar() != "false")) {
      return Expected("true or false", node, at, path);
    }
    return node.Scalar() == "true";
  }

  template <typename T>
  StatusOr<T> Integer(const YAML::Node& node, const YAML::Mark& at, const std::string& path) {
    if (!IsPlain(node)) return Expected("a whole number", node, at, path);
    const std::string text = node.Scalar();
    const std::string_view digits = std::string_view(text).substr(text.starts_with("-") ? 1 : 0);
    const bool is_whole = !digits.empty() &&
                          digits.find_first_not_of("0123456789") == std::string_view::npos &&
                          (digits == "0" || digits[0] != '0');  // 010 is octal to some readers of YAML
    if (!is_whole) return Expected("a whole number", node, at, path);
    T value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() ||
        end != text.data() + text.size()) {  // an unsigned type stops at the minus sign
      using Limits = std::numeric_limits<T>;
      return source_.Error(node.Mark(), path, ": ", Shown(node), " is out of range, ", Limits::min(), " to ",
                           Limits::max());
    }
    return value;
  }

  template <typename T>
  StatusOr<T> Number(const YAML::Node& node, const YAML::Mark& at, const std::string& path) {
    const std::optional<double> value = node.IsScalar() ? PlainNumber(node) : std::nullopt;
    if (!value) return Expected("a number", node, at, path);
    if (!(std::abs(*value) <= std::numeric_limits<T>::max())) {
      return source_.Error(node.Mark(), path, ": ", Shown(node), " is not a finite number");
    }
    return static_cast<T>(*value);
  }

  StatusOr<const EnumValueDescriptor*> Enum(const YAML::Node& node, const YAML::Mark& at,
                                            const std::string& path,
                                            const google::protobuf::EnumDescriptor& type) {
    if (!node.IsScalar()) return Expected("a name", node, at, path);
    if (const auto* value = type.FindValueByName(node.Scalar())) return value;
    std::vector<std::string> known;
    for (int i = 0; i < type.value_count(); ++i) known.push_back(type.value(i)->name());
    return source_.Error(node.Mark(), path, ": unknown name \"", Shown(node), "\", ",
                         Hint(node.Scalar(), known));
  }

  const Source& source_;
};

// Steps from `message` along all but the last name of "a.b[1].c" and fills that last field.
Status FillPath(std::string_view path, const YAML::Node& value, const Source& source, ProtoMessage* message) {
  std::string walked;
  while (true) {
    const size_t dot = path.find('.');
    const std::string_view step = path.substr(0, dot);
    const size_t bracket = step.find('[');
    const std::string name(step.substr(0, bracket));
    walked += Concat(walked.empty() ? "" : ".", step);
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(name);
    if (field == nullptr) return source.Error({}, walked, ": ", UnknownKey(name, *message->GetDescriptor()));
    const Reflection& reflection = *message->GetReflection();
    const bool is_last = dot == std::string_view::npos;
    if (is_last && bracket == std::string_view::npos)
      return Filler(source).FillField(value, {}, walked, *message, *field);
    if (is_last) return source.Error({}, walked, ": set a field of the element, or the whole list");
    path.remove_prefix(dot + 1);
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) {
      return source.Error({}, walked, ": has no fields to step into");
    }
    if (field->is_repeated() != (bracket != std::string_view::npos)) {
      return source.Error({}, walked,
                          field->is_repeated() ? ": is a list, name an element: [0]" : ": is not a list");
    }
    if (!field->is_repeated()) {
      message = reflection.MutableMessage(message, field);
      continue;
    }
    const int size = reflection.FieldSize(*message, field);
    int index = -1;
    const auto [end, error] = std::from_chars(step.data() + bracket + 1, step.data() + step.size(), index);
    if (error != std::errc() || end != step.data() + step.size() - 1 || *end != ']' || index < 0 ||
        index >= size) {
      return source.Error({}, walked, ": no such element, the list has ", size);
    }
    message = reflection.MutableRepeatedMessage(message, field, index);
  }
}

}  // namespace

Status ParseYaml(std::string_view yaml, const std::string& file, google::protobuf::Message& message,
                 ConfigValues values) {
  const Source source = {.name = file, .has_lines = true, .values = values};
  ASSIGN_OR_RETURN(const YAML::Node root, ParseTree(yaml, source));
  if (root.IsNull()) return absl::OkStatus();  // nothing but comments
  const std::unique_ptr<google::protobuf::Message> filled(message.New());
  filled->CopyFrom(message);
  RETURN_IF_ERROR(Filler(source).FillMessage(root, root.Mark(), "", *filled));
  message.CopyFrom(*filled);
  return absl::OkStatus();
}

StatusOr<std::string> ReadConfigFile(const std::string& path, size_t limit) {
  auto bytes = ReadFile(path, limit);
  if (bytes.status().code() != StatusCode::kResourceExhausted) return bytes;
  return FailedPrecondition(Message(bytes.status()));
}

Status LoadYamlFile(const std::string& file, google::protobuf::Message& message, ConfigValues values) {
  ASSIGN_OR_RETURN(const std::string text, ReadConfigFile(file, kMaxBytes));
  return ParseYaml(text, file, message, values);
}

Status ApplyOverride(std::string_view assignment, google::protobuf::Message& message) {
  const std::string name = Concat("--set ", assignment);
  const Source source = {.name = name, .has_lines = false};
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos) return source.Error({}, "expected name=value");
  ASSIGN_OR_RETURN(const YAML::Node value, ParseTree(assignment.substr(equals + 1), source));
  const std::unique_ptr<google::protobuf::Message> filled(message.New());
  filled->CopyFrom(message);
  RETURN_IF_ERROR(FillPath(assignment.substr(0, equals), value, source, filled.get()));
  message.CopyFrom(*filled);
  return absl::OkStatus();
}

}  // namespace terrace
