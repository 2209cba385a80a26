#include "tests/chaos/fault_commands.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <sstream>
#include <vector>

#include "base/json.h"

namespace terrace {
namespace {

using Words = std::vector<std::string>;
using Numbers = std::vector<uint64_t>;
using Passage = Faults::Passage;

constexpr uint64_t kMostNumber = uint64_t{1} << 40;  // milliseconds of it still fit into a Duration

// A command that changes the faults of its directions: its name, how many numbers it takes, what it does.
struct FaultChange {
  std::string_view name;
  size_t least_numbers, most_numbers;
  void (*apply)(const Numbers& numbers, Faults& faults);
};

const FaultChange kFaultChanges[] = {
    {"delay", 1, 2,
     [](const Numbers& numbers, Faults& faults) {
       faults.delay = std::chrono::milliseconds(numbers[0]);
       faults.jitter = std::chrono::milliseconds(numbers.size() > 1 ? numbers[1] : 0);
     }},
    {"rate", 1, 1, [](const Numbers& numbers, Faults& faults) { faults.bytes_per_second = numbers[0]; }},
    {"corrupt", 1, 2,
     [](const Numbers& numbers, Faults& faults) {
       faults.corruption =
           Faults::Corruption{.first = numbers[0], .every = numbers.size() > 1 ? numbers[1] : 0};
     }},
    {"stall", 0, 0, [](const Numbers&, Faults& faults) { faults.passage = Passage::kStalled; }},
    {"swallow", 0, 0, [](const Numbers&, Faults& faults) { faults.passage = Passage::kSwallowed; }},
    {"pass", 0, 0, [](const Numbers&, Faults& faults) { faults.passage = Passage::kOpen; }},
};

StatusOr<std::vector<Direction>> ParseDirections(const std::string& word) {
  if (word == "c2s") return std::vector{Direction::kToServer};
  if (word == "s2c") return std::vector{Direction::kToClient};
  if (word == "both") return std::vector(kDirections.begin(), kDirections.end());
  return InvalidArgument("\"", word, "\" is not c2s, s2c or both");
}

StatusOr<uint64_t> ParseNumber(const std::string& word) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc() || end != word.data() + word.size() || number > kMostNumber)
    return InvalidArgument("\"", word, "\" is not a number in [0, ", kMostNumber, "]");
  return number;
}

// Of the words from the third on.
StatusOr<Numbers> ParseNumbers(const Words& words, size_t least, size_t most) {
  const size_t given = words.size() - 2;
  if (given < least || given > most)
    return InvalidArgument(words[0], " takes ", least, " to ", most, " numbers, got ", given);
  Numbers numbers;
  for (auto word = words.begin() + 2; word != words.end(); ++word) {
    ASSIGN_OR_RETURN(const uint64_t number, ParseNumber(*word));
    numbers.push_back(number);
  }
  return numbers;
}

// The commands with a direction.
Status RunOnDirections(FaultProxy& proxy, Words words) {
  ASSIGN_OR_RETURN(const std::vector<Direction> directions, ParseDirections(words[1]));
  if (words[0] == "half-close" && words.size() == 2) {
    for (const Direction direction : directions) proxy.HalfClose(direction);
    return {};
  }
  if (words[0] == "cut") {
    const bool with_reset = words.back() == "reset";
    if (with_reset) words.pop_back();
    ASSIGN_OR_RETURN(const Numbers numbers, ParseNumbers(words, 1, 1));
    for (const Direction direction : directions)
      proxy.Arm(direction, {.bytes = numbers[0], .with_reset = with_reset});
    return {};
  }
  const auto change = std::find_if(std::begin(kFaultChanges), std::end(kFaultChanges),
                                   [&](const FaultChange& known) { return known.name == words[0]; });
  if (change == std::end(kFaultChanges))
    return InvalidArgument("no command \"", words[0], "\" of a direction");
  ASSIGN_OR_RETURN(const Numbers numbers, ParseNumbers(words, change->least_numbers, change->most_numbers));
  for (const Direction direction : directions) {
    Faults faults = proxy.faults(direction);
    change->apply(numbers, faults);
    proxy.SetFaults(direction, faults);
  }
  return {};
}

std::string CountersJson(const ProxyCounters& counters) {
  const auto bytes = [](const PerDirection<uint64_t>& counts) {
    return Json{{"c2s", counts.to_server}, {"s2c", counts.to_client}};
  };
  return ToJsonText({{"connections", counters.connections},
                     {"open", counters.open},
                     {"passed", bytes(counters.passed)},
                     {"lost", bytes(counters.lost)}});
}

}  // namespace

StatusOr<std::string> RunFaultCommand(FaultProxy& proxy, const std::string& line) {
  std::istringstream text(line);
  Words words;
  for (std::string word; text >> word;) words.push_back(std::move(word));
  Status done;
  if (words.size() > 1) {
    done = RunOnDirections(proxy, std::move(words));
  } else if (line == "reset") {
    proxy.Reset();
  } else if (line == "refuse" || line == "accept") {
    done = proxy.SetRefusing(line == "refuse");
  } else if (line == "clear") {
    done = proxy.Heal();
  } else if (line == "stats") {
    return CountersJson(proxy.counters());
  } else {
    done = InvalidArgument("no command \"", line, "\"");
  }
  if (!done.ok()) return done;
  return std::string();
}

}  // namespace terrace
