// What commands have in common. Checks of the command line that CLI11 lacks: it reads "" as 0, "010" as 8,
// and "-1" as 2^64 - 1.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/status.h"
#include "tools/bench/length_distribution.h"
#include "tools/cli/kept_channel.h"

namespace terrace {

// The type names of options that take numbers; those that take lists of them begin alike, "N,N,...".
inline constexpr char kWholeNumber[] = "N", kSignedNumber[] = "[-]N", kRealNumber[] = "X";
inline constexpr char kAddress[] = "ADDR";  // host:port

// A check without CLI11's note about it in the help: the option's own text says it.
CLI::Validator Quiet(CLI::Validator check);

// Checks of one finite number, without a note in the help either: CLI11's own let "nan" pass.
CLI::Validator AboveZero();
CLI::Validator Within(double low, double high);  // or one of them

// --device, --compute and --kv-dtype of a model in this process.
std::array<CLI::Option*, 3> AddEngineOptions(CLI::App& command, std::string& device, std::string& compute,
                                             std::string& kv_dtype);

// --drafter and --draft-model of a model that a command opens in its own process.
std::array<CLI::Option*, 2> AddDraftOptions(CLI::App& command, std::string& drafter,
                                            std::string& draft_model);

// --tasks, --limit, --concurrency and --max-tokens: which rows of task files are asked, and how.
struct RowOptions {
  std::vector<std::string>& tasks;
  uint32_t &limit, &concurrency, &max_tokens;
  const char* usual_tasks;  // in the help
};
std::array<CLI::Option*, 4> AddRowOptions(CLI::App& command, const RowOptions& options);

// --api-key-file, --tls-ca and what belongs to it, of a command that connects to a server.
void AddAccessOptions(CLI::App& command, ServerAccess& flags);

// The value, or CLI11's error that `flag` has no good one.
template <typename T>
T ValueOrThrow(const std::string& flag, StatusOr<T> value) {
  if (!value.ok()) throw CLI::ValidationError(Concat(flag, ": ", Message(value.status())));
  return *std::move(value);
}

// A flag for tokens of prompts or answers, as LengthDistribution::Parse reads them.
void AddLengthOption(CLI::App& command, const std::string& flag, LengthDistribution& lengths,
                     const std::string& what);

// Has every option of the commands of `app` check its value, by its type name: numbers are decimal and
// finite, whole and not negative where the name says so, addresses have a port, and only a text may be empty.
// After all options were added.
void CheckOptionValues(CLI::App& app);

}  // namespace terrace
