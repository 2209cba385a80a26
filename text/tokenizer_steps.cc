#include "text/tokenizer_steps.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "text/pre_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/split_patterns.h"

namespace terrace {
namespace {

template <typename... Text>
Status Unsupported(std::string_view reason, const Text&... text) {
  return WithReason(DataLoss(text...), reason);
}

std::string TypeOf(const JsonReader& reader) { return reader.Text("type").value_or("(none)"); }

bool Flag(const JsonReader& reader, std::string_view name, bool otherwise) {
  return reader.Bool(name).value_or(otherwise);
}

// The member `name` of `root` as steps: none, one, or those of a Sequence in its `list`.
std::vector<JsonReader> StepsOf(const JsonReader& root, std::string_view name, std::string_view list) {
  std::vector<JsonReader> steps;
  const auto whole = root.Object(name);
  if (!whole.ok()) return steps;
  const auto sequence = whole->Array(list);
  if (TypeOf(*whole) != "Sequence" || !sequence.ok()) return {*whole};
  for (size_t i = 0; i < sequence->size(); ++i) {
    if (const auto step = sequence->Object(i); step.ok()) steps.push_back(*step);
  }
  return steps;
}

// Types of `steps`, for messages.
std::string TypesOf(const std::vector<JsonReader>& steps) {
  std::string out;
  for (const JsonReader& step : steps) out += Concat(out.empty() ? "" : ", ", TypeOf(step));
  return out.empty() ? "(none)" : out;
}

// ---- byte-level

// Whether `step` is a ByteLevel step that changes nothing but the alphabet (and cuts as gpt2, if
// `with_regex`).
bool IsByteLevel(const JsonReader& step, bool with_regex) {
  return TypeOf(step) == "ByteLevel" && !Flag(step, "add_prefix_space", true) &&
         Flag(step, "use_regex", true) == with_regex;
}

// The kind of pre_tokenizer.h for a Split step by a known expression, or "". The expressions match every
// character, so that isolating the matches and removing what lies between them are the same.
std::string_view SplitKind(const JsonReader& step, bool ignores_merges) {
  const auto pattern = step.Object("pattern");
  if (TypeOf(step) != "Split" || !pattern.ok()) return "";
  const std::string behavior = step.Text("behavior").value_or("");
  if (behavior != (Flag(step, "invert", false) ? "Removed" : "Isolated")) return "";
  const std::string regex = pattern->Text("Regex").value_or("");
  if (regex == kGpt2Pattern) return "gpt2";
  if (regex == kQwen2Pattern) return "qwen2";
  if (regex == kLlama3Pattern) return ignores_merges ? "llama-bpe" : "dbrx";
  return "";
}

StatusOr<std::string> ByteLevelKind(const JsonReader& root, bool ignores_merges) {
  const std::vector<JsonReader> steps = StepsOf(root, "pre_tokenizer", "pretokenizers");
  std::string_view kind;
  if (steps.size() == 1 && IsByteLevel(steps[0], /*with_regex=*/true)) kind = "gpt2";
  if (steps.size() == 2) {
    const bool splits_digits = TypeOf(steps[0]) == "Digits" && Flag(steps[0], "individual_digits", false);
    if (splits_digits && IsByteLevel(steps[1], /*with_regex=*/true)) kind = "smollm";
    if (IsByteLevel(steps[1], /*with_regex=*/false)) kind = SplitKind(steps[0], ignores_merges);
  }
  if (kind.empty()) {
    return Unsupported("unsupported_pre_tokenizer",
                       "pre_tokenizer: not one of the supported shapes of ByteLevel, Digits and Split");
  }
  if (ignores_merges && kind != "llama-bpe") {
    return Unsupported("unsupported_pre_tokenizer",
                       "model.ignore_merges: only with Llama 3's pre_tokenizer, not ", kind);
  }
  return std::string(kind);
}

StatusOr<TokenizerSteps> ReadByteLevel(const JsonReader& root, const JsonReader& model) {
  TokenizerSteps out;
  const std::vector<JsonReader> normalizers = StepsOf(root, "normalizer", "normalizers");
  out.is_normalized = normalizers.size() == 1 && TypeOf(normalizers[0]) == "NFC";
  const bool is_nothing = normalizers.empty() && (!root.Has("normalizer") || root.Object("normalizer").ok());
  if (!out.is_normalized && !is_nothing) {
    return Unsupported("unsupported_normalizer", "normalizer: type ", TypesOf(normalizers),
                       " is not supported");
  }
  const std::vector<JsonReader> decoders = StepsOf(root, "decoder", "decoders");
  if (root.Has("decoder") && (decoders.size() != 1 || TypeOf(decoders[0]) != "ByteLevel")) {
    return Unsupported("unsupported_tokenizer", "decoder: type ", TypesOf(decoders), " is not supported");
  }
  ASSIGN_OR_RETURN(out.pre, ByteLevelKind(root, Flag(model, "ignore_merges", false)));
  return out;
}

// ---- in the manner of SentencePiece

bool IsReplace(const JsonReader& step, std::string_view from, std::string_view to) {
  const auto pattern = step.Object("pattern");
  return TypeOf(step) == "Replace" && pattern.ok() && pattern->Text("String").value_or("") == from &&
         step.Text("content").value_or("") == to;
}

bool IsPrepend(const JsonReader& step) {
  return TypeOf(step) == "Prepend" && step.Text("prepend").value_or("") == kSpaceMark;
}

// Gemma's: a cut behind spaces, of which none are left when it comes.
bool IsCutBehindSpaces(const JsonReader& step) {
  const auto pattern = step.Object("pattern");
  return TypeOf(step) == "Split" && pattern.ok() && pattern->Text("String").value_or("") == " " &&
         step.Text("behavior").value_or("") == "MergedWithPrevious" && !Flag(step, "invert", false);
}

// The kind of a Metaspace step, or "".
std::string MetaspaceKind(const JsonReader& step) {
  if (TypeOf(step) != "Metaspace" || step.Text("replacement").value_or("") != kSpaceMark) return "";
  std::string scheme = step.Text("prepend_scheme").value_or("always");
  if (!Flag(step, "add_prefix_space", true)) {  // as files had it before there were schemes
    if (step.Has("prepend_scheme") && scheme != "never") return "";
    scheme = "never";
  }
  if (scheme == "never") scheme = "none";
  const std::string kind = Concat("spm-", scheme, Flag(step, "split", true) ? "-words" : "");
  return FindPreTokenizer(kind).has_value() ? kind : "";
}

StatusOr<std::string> SpaceMarkKind(const JsonReader& root) {
  const std::vector<JsonReader> normalizers = StepsOf(root, "normalizer", "normalizers");
  const std::vector<JsonReader> steps = StepsOf(root, "pre_tokenizer", "pretokenizers");
  const bool marks = !normalizers.empty() && IsReplace(normalizers.back(), " ", kSpaceMark);
  const bool prepends = normalizers.size() == 2 && IsPrepend(normalizers[0]);
  if (normalizers.empty() ? root.Has("normalizer") && !root.Object("normalizer").ok()
                          : !marks || (normalizers.size() != 1 && !prepends)) {
    return Unsupported("unsupported_normalizer", "normalizer: type ", TypesOf(normalizers),
                       " is not supported; with model.byte_fallback one of U+2581 for spaces is, perhaps "
                       "with U+2581 put in front before");
  }
  std::string kind;
  if (marks &&
      (steps.empty() ? !root.Has("pre_tokenizer") : steps.size() == 1 && IsCutBehindSpaces(steps[0])))
    kind = prepends ? "spm" : "spm-none";
  if (normalizers.empty() && steps.size() == 1) kind = MetaspaceKind(steps[0]);
  if (!kind.empty()) return kind;
  return Unsupported("unsupported_pre_tokenizer", "pre_tokenizer: type ", TypesOf(steps),
                     " is not supported with model.byte_fallback, or not with this normalizer; Metaspace "
                     "without a normalizer is, and none with one");
}

// What puts bytes together, and takes away the space that the kind puts in front.
bool IsDecoderOf(const PreTokenizer& kind, const std::vector<JsonReader>& steps) {
  const bool strips = kind.prefix != SpacePrefix::kNone;
  if (steps.size() != (strips ? 4 : 3)) return false;
  if (!IsReplace(steps[0], kSpaceMark, " ") || TypeOf(steps[1]) != "ByteFallback") return false;
  if (TypeOf(steps[2]) != "Fuse") return false;
  if (!strips) return true;
  return TypeOf(steps[3]) == "Strip" && steps[3].Text("content").value_or("") == " " &&
         steps[3].value().value("start", Json()) == 1 && steps[3].value().value("stop", Json()) == 0;
}

StatusOr<TokenizerSteps> ReadSpaceMarks(const JsonReader& root, const JsonReader& model) {
  TokenizerSteps out;
  if (Flag(model, "ignore_merges", false)) {
    return Unsupported("unsupported_pre_tokenizer",
                       "model.ignore_merges: not supported with model.byte_fallback");
  }
  ASSIGN_OR_RETURN(out.pre, SpaceMarkKind(root));
  const std::vector<JsonReader> decoders = StepsOf(root, "decoder", "decoders");
  if (IsDecoderOf(*FindPreTokenizer(out.pre), decoders)) return out;
  return Unsupported("unsupported_tokenizer", "decoder: ", TypesOf(decoders),
                     " is not supported; with model.byte_fallback Replace, ByteFallback, Fuse is, and Strip "
                     "of one space where one is put in front");
}

// ---- writing

Json ByteLevel(bool with_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", with_regex}};
}

Json Sequence(std::string_view list, Json steps) {
  return {{"type", "Sequence"}, {std::string(list), std::move(steps)}};
}

Json ByteLevelPreTokenizer(std::string_view pre) {
  if (pre == "gpt2") return ByteLevel(/*with_regex=*/true);
  if (pre == "smollm") {
    return Sequence("pretokenizers", Json::array({{{"type", "Digits"}, {"individual_digits", true}},
                                                  ByteLevel(/*with_regex=*/true)}));
  }
  const bool is_qwen2 = pre == "qwen2";
  CHECK(is_qwen2 || pre == "llama-bpe" || pre == "dbrx", pre);
  const std::string pattern(is_qwen2 ? kQwen2Pattern : kLlama3Pattern);
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  return Sequence("pretokenizers", Json::array({split, ByteLevel(/*with_regex=*/false)}));
}

Json Replace(std::string_view from, std::string_view to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

Json SpaceMarksJson(const PreTokenizer& kind) {
  Json decoders = Json::array({Replace(kSpaceMark, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
  if (kind.prefix != SpacePrefix::kNone)
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  Json out = {{"normalizer", nullptr},
              {"pre_tokenizer", nullptr},
              {"decoder", Sequence("decoders", std::move(decoders))}};
  const Json mark = Replace(" ", kSpaceMark);
  if (kind.prefix == SpacePrefix::kAlways) {
    const Json prepend = {{"type", "Prepend"}, {"prepend", kSpaceMark}};
    out["normalizer"] = Sequence("normalizers", Json::array({prepend, mark}));
  } else if (kind.prefix == SpacePrefix::kNone && !kind.splits_words) {
    out["normalizer"] = mark;
  } else {
    const char* scheme = kind.prefix == SpacePrefix::kMissing ? "always"
                         : kind.prefix == SpacePrefix::kFirst ? "first"
                                                              : "never";
    out["pre_tokenizer"] = {{"type", "Metaspace"},
                            {"replacement", kSpaceMark},
                            {"prepend_scheme", scheme},
                            {"split", kind.splits_words}};
  }
  return out;
}

}  // namespace

StatusOr<TokenizerSteps> ReadSteps(const JsonReader& root, const JsonReader& model) {
  if (model.Has("type") && TypeOf(model) != "BPE") {
    return Unsupported("unsupported_tokenizer", "model.type: ", TypeOf(model), ", supported is BPE");
  }
  for (const std::string_view key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const bool is_empty = !model.Has(key) || model.Text(key).value_or("x").empty() || model.value()[key] == 0;
    if (!is_empty) return Unsupported("unsupported_tokenizer", model.KeyOf(key), ": not supported");
  }
  if (!Flag(model, "byte_fallback", false)) return ReadByteLevel(root, model);
  const auto decoder = root.Object("decoder");
  if (decoder.ok() && TypeOf(*decoder) == "ByteLevel") {
    return Unsupported("unsupported_tokenizer", model.KeyOf("byte_fallback"),
                       ": not supported with a ByteLevel decoder");
  }
  return ReadSpaceMarks(root, model);
}

Json StepsJson(const TokenizerSteps& steps) {
  const auto kind = FindPreTokenizer(steps.pre);
  CHECK(kind.has_value(), steps.pre);
  if (kind->marks_spaces) return SpaceMarksJson(*kind);
  return {{"normalizer", steps.is_normalized ? Json{{"type", "NFC"}} : Json(nullptr)},
          {"pre_tokenizer", ByteLevelPreTokenizer(steps.pre)},
          {"decoder", ByteLevel(/*with_regex=*/true)}};
}

}  // namespace terrace
