#include "tools/cli/option_values.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/host_port.h"
#include "base/status.h"
#include "tools/cli/model_target.h"

namespace terrace {
namespace {

constexpr std::string_view kText = "TEXT";  // CLI11's own name
constexpr uint32_t kMaxConcurrency = 1024;

template <typename T>
bool IsNumber(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// "" where `text` is a number that `holds`, else that it is not `what`.
template <typename Holds>
std::string RealNumberError(const std::string& text, const Holds& holds, const std::string& what) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return Concat("\"", text, "\" is not a number");
  if (!std::isfinite(value)) return Concat(text, " is not a finite number");
  return holds(value) ? "" : Concat(text, " is not ", what);
}

std::string WholeNumberError(const std::string& text) {
  if (text.find_first_not_of("0123456789") != std::string::npos)
    return Concat("\"", text, "\" is not a whole number, 0 or more");
  if (text.size() > 1 && text.front() == '0') return Concat("\"", text, "\" begins with 0");
  return IsNumber<uint64_t>(text) ? "" : Concat(text, " is more than ", UINT64_MAX);
}

CLI::Validator Named(std::span<const char* const> names) {
  return Quiet(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())));
}

// "" where `text` is a value of the type, else what is wrong.
std::string ValueError(std::string_view type, const std::string& text) {
  if (text.empty()) return "the value is empty";
  type = type.substr(0, type.find(','));
  if (type == kAddress) {
    const auto address = ParseHostPort(text);
    return address.ok() ? "" : Message(address.status());
  }
  if (type == kWholeNumber) return WholeNumberError(text);
  if (type == kSignedNumber && !IsNumber<int64_t>(text))
    return Concat("\"", text, "\" is not a whole number");
  if (type == kRealNumber)
    return RealNumberError(
        text, [](double) { return true; }, "");
  return "";
}

}  // namespace

CLI::Validator Quiet(CLI::Validator check) { return check.description(""); }

CLI::Validator AboveZero() {
  return CLI::Validator(
      [](const std::string& text) {
        return RealNumberError(
            text, [](double value) { return value > 0; }, "above 0");
      },
      /*description=*/"");
}

CLI::Validator Within(double low, double high) {
  return CLI::Validator(
      [low, high](const std::string& text) {
        return RealNumberError(
            text, [low, high](double value) { return value >= low && value <= high; },
            Concat("in [", low, ", ", high, "]"));
      },
      /*description=*/"");
}

std::array<CLI::Option*, 3> AddEngineOptions(CLI::App& command, std::string& device, std::string& compute,
                                             std::string& kv_dtype) {
  return {
      command
          .add_option(
              "--device", device,
              "that a model in this process runs on: auto (CUDA where there is a device that can run it), "
              "cpu, cuda")
          ->type_name("DEVICE")
          ->check(CLI::IsMember({"auto", "cpu", "cuda"}).description(""))
          ->capture_default_str(),
      command
          .add_option(
              "--compute", compute,
              "of a model in this process: auto (16-bit weights by bf16, quantized ones on CPUs by int8, "
              "on CUDA by bf16), f32 (CPUs: exact, slower, up to seven times the memory), fp8 (CUDA: "
              "16-bit weights become FP8)")
          ->type_name("TYPE")
          ->check(Named(kComputeNames))
          ->capture_default_str(),
      command
          .add_option("--kv-dtype", kv_dtype,
                      "of a model in this process: keys and values in f32 (CPUs), f16, bf16, int8, fp8; "
                      "auto: f32, on a device bf16")
          ->type_name("TYPE")
          ->check(Named(kKvDTypeNames))
          ->capture_default_str()};
}

std::array<CLI::Option*, 2> AddDraftOptions(CLI::App& command, std::string& drafter,
                                            std::string& draft_model) {
  auto* const who =
      command
          .add_option("--drafter", drafter,
                      "who guesses tokens for a model in this process to verify, several a pass: none, ngram "
                      "(what followed the same tokens before), model (--draft-model)")
          ->type_name("DRAFTER")
          ->check(CLI::IsMember({"none", "ngram", "model"}).description(""))
          ->capture_default_str();
  auto* const model =
      command
          .add_option("--draft-model", draft_model,
                      "model folder or .gguf of the drafter: smaller, with the same tokenizer")
          ->type_name("MODEL")
          ->needs(who);
  // Checks run when all flags are read.
  who->check(Quiet(CLI::Validator(
      [model](std::string& value) -> std::string {
        return value == "model" && model->count() == 0 ? "model needs --draft-model" : "";
      },
      "")));
  return {who, model};
}

std::array<CLI::Option*, 4> AddRowOptions(CLI::App& command, const RowOptions& options) {
  return {
      command.add_option("--tasks", options.tasks, Concat("task files (default: ", options.usual_tasks, ")"))
          ->type_name("FILE"),
      command.add_option("--limit", options.limit, "rows of each file; 0: all")
          ->type_name(kWholeNumber)
          ->capture_default_str(),
      command.add_option("--concurrency", options.concurrency, "requests at a time, 1 to 1024")
          ->type_name(kWholeNumber)
          ->check(CLI::Range(1u, kMaxConcurrency).description(""))
          ->capture_default_str(),
      command.add_option("--max-tokens", options.max_tokens, "longest answer")
          ->type_name(kWholeNumber)
          ->check(AboveZero())
          ->capture_default_str()};
}

void AddAccessOptions(CLI::App& command, ServerAccess& flags) {
  command.add_option("--api-key-file", flags.api_key_file, "file with the API key that a router asks for")
      ->type_name("FILE");
  auto* const ca = command
                       .add_option("--tls-ca", flags.tls.ca,
                                   "connect with TLS; the file has the authorities that are believed (PEM)")
                       ->type_name("FILE");
  auto* const certificate =
      command.add_option("--tls-cert", flags.tls.certificate, "certificate to show to the server (PEM)")
          ->type_name("FILE")
          ->needs(ca);
  auto* const key = command.add_option("--tls-key", flags.tls.key, "its key (PEM)")->type_name("FILE");
  key->needs(certificate);
  certificate->needs(key);
  command
      .add_option("--tls-name", flags.server_name,
                  "name the server's certificate is for (default: the host of its address)")
      ->type_name("HOST")
      ->needs(ca);
}

void AddLengthOption(CLI::App& command, const std::string& flag, LengthDistribution& lengths,
                     const std::string& what) {
  command
      .add_option_function<std::string>(
          flag,
          [flag, &lengths](const std::string& text) {
            lengths = ValueOrThrow(flag, LengthDistribution::Parse(text));
          },
          what)
      ->type_name("LENGTH")
      ->default_str(lengths.text());
}

void CheckOptionValues(CLI::App& app) {
  for (CLI::Option* const option : app.get_options()) {
    const std::string type = option->get_type_name();
    if (option->get_expected_max() == 0 || type == kText) continue;  // a flag, or any text
    option->check([type](const std::string& text) { return ValueError(type, text); }, /*description=*/"");
  }
  for (CLI::App* const command : app.get_subcommands([](CLI::App*) { return true; }))
    CheckOptionValues(*command);
}

}  // namespace terrace
