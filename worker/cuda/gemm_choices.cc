#include "worker/cuda/gemm_choices.h"

#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

#include "base/hash.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/strict_fields.h"
#include "worker/formats/staged_path.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr char kFormat[] = "terrace-cublaslt-1";
constexpr size_t kMostFileBytes = size_t{8} << 20;
constexpr size_t kWordDigits = 16;

std::string HexOf(const GemmAlgorithm& algorithm) {
  std::string out;
  for (const uint64_t word : algorithm) {
    for (int shift = 60; shift >= 0; shift -= 4) out.push_back("0123456789abcdef"[word >> shift & 15]);
  }
  return out;
}

StatusOr<GemmAlgorithm> AlgorithmOf(std::string_view hex) {
  GemmAlgorithm out = {};
  if (hex.size() != out.size() * kWordDigits) return DataLoss("an algorithm of ", hex.size(), " digits");
  for (size_t i = 0; i < out.size(); ++i) {
    const char* const begin = hex.data() + i * kWordDigits;
    const auto [end, error] = std::from_chars(begin, begin + kWordDigits, out[i], 16);
    if (error != std::errc() || end != begin + kWordDigits) return DataLoss("an algorithm that is not hex");
  }
  return out;
}

// Of a list as it is in the file, behind its members' order.
std::string DigestOf(const Json& choices) { return HashBytes(ToJsonText(choices)).Hex(); }

}  // namespace

GemmChoices::GemmChoices(std::string folder, GemmMachine machine)
    : folder_(std::move(folder)),
      machine_(std::move(machine)),
      path_(folder_.empty() ? "" : Concat(folder_, "/cublaslt-", HashBytes(machine_.device).Hex(), ".json")) {
}

Status GemmChoices::Read() {
  if (path_.empty()) return {};
  std::error_code ignored;
  if (!fs::is_directory(folder_, ignored)) return NotFound(folder_, ": there is no such folder");
  if (!fs::exists(path_, ignored)) return {};
  auto read = ReadChoices();
  if (!read.ok()) return Annotate(read.status(), path_);
  choices_ = *std::move(read);
  return {};
}

StatusOr<GemmChoices::Choices> GemmChoices::ReadChoices() const {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path_, kMostFileBytes));
  const auto parsed = ParseJson(text);
  if (!parsed.ok()) return DataLoss(Message(parsed.status()));
  StrictFields fields(*parsed, "");
  const std::string format = fields.Text("format"), device = fields.Text("device");
  const uint64_t driver = fields.Count("driver"), library = fields.Count("library");
  const std::string digest = fields.Text("digest");
  const Json& list = fields.List("choices");
  if (const Status status = fields.Finish(); !status.ok()) return DataLoss(Message(status));
  if (format != kFormat) return DataLoss("format \"", format, "\", not ", kFormat);
  if (DigestOf(list) != digest) return DataLoss("the choices are not as they were written");
  if (device != machine_.device) return DataLoss("of the device ", device, ", not ", machine_.device);
  if (driver != machine_.driver || library != machine_.library) {
    return WithReason(FailedPrecondition("of driver ", driver, " and cuBLASLt ", library, ", here are ",
                                         machine_.driver, " and ", machine_.library),
                      "stale");
  }
  if (list.size() > kMost) return DataLoss(list.size(), " choices, limit ", kMost);
  Choices choices;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string place = Concat("choices[", i, "]");
    StrictFields each(list[i], place);
    const GemmShape shape{.tokens = each.SmallCount("tokens"),
                          .rows = each.SmallCount("rows"),
                          .columns = each.SmallCount("columns"),
                          .is_e4m3 = each.Flag("is_e4m3"),
                          .out_is_f32 = each.Flag("out_is_f32"),
                          .adds_to_out = each.Flag("adds_to_out")};
    const std::string hex = each.Text("algorithm");
    if (const Status status = each.Finish(); !status.ok()) return DataLoss(Message(status));
    const auto algorithm = AlgorithmOf(hex);
    if (!algorithm.ok()) return Annotate(algorithm.status(), place);
    choices[shape] = *algorithm;
  }
  return choices;
}

const GemmAlgorithm* GemmChoices::Find(const GemmShape& shape) const {
  const auto found = choices_.find(shape);
  return found == choices_.end() ? nullptr : &found->second;
}

Status GemmChoices::Keep(const GemmShape& shape, const GemmAlgorithm& algorithm) {
  choices_[shape] = algorithm;
  if (path_.empty()) return {};
  // What is not there, broken or stale is replaced.
  if (auto there = ReadChoices(); there.ok() && there->size() + choices_.size() <= kMost) {
    choices_.merge(*std::move(there));
  }
  Json list = Json::array();
  for (const auto& [each, its] : choices_) {
    list.push_back({{"tokens", each.tokens},
                    {"rows", each.rows},
                    {"columns", each.columns},
                    {"is_e4m3", each.is_e4m3},
                    {"out_is_f32", each.out_is_f32},
                    {"adds_to_out", each.adds_to_out},
                    {"algorithm", HexOf(its)}});
  }
  Json file = {{"format", kFormat},
               {"device", machine_.device},
               {"driver", machine_.driver},
               {"library", machine_.library},
               {"digest", DigestOf(list)}};
  file["choices"] = std::move(list);
  const std::string text = ToJsonText(file) + "\n";
  return ReplaceFile(path_, Concat(path_, ".", ::getpid(), ".partial"), {std::as_bytes(std::span(text))});
}

}  // namespace terrace
