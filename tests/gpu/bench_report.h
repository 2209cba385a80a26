// What the benchmark found: rows of a table, printed as they come, and the same as JSON. Parts have so many
// seconds each; what comes after them is left out, and said to be. One thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/status.h"

namespace terrace {

struct BenchGoal {
  enum class Kind : uint8_t { kNone, kFractionAtLeast, kAtLeast, kAtMost };
  Kind kind = Kind::kNone;
  double value = 0;

  static BenchGoal Fraction(double least) { return {Kind::kFractionAtLeast, least}; }
  static BenchGoal AtLeast(double value) { return {Kind::kAtLeast, value}; }
  static BenchGoal AtMost(double value) { return {Kind::kAtMost, value}; }
};

struct BenchEntry {
  std::string name;
  double value = 0;  // a median
  std::string unit;
  std::optional<double> spread = {};    // see Timing
  std::optional<double> fraction = {};  // of `limit`
  std::string limit = {};
  BenchGoal goal = {};
};

class BenchReport {
 public:
  // What was found so far is written to `json_file`, unless "", whenever a part ends.
  BenchReport(std::string json_file, double time_factor)
      : json_file_(std::move(json_file)), time_factor_(time_factor) {}

  void Begin(std::string_view part, double seconds);
  void End();
  // False, with a row that says so, when the part's time is up.
  bool HasTime(std::string_view name);
  void Add(BenchEntry entry);
  // A row that says why `name` has no value: what is not supported, or does not fit.
  void Skip(std::string_view name, std::string_view why);
  // OK of an error that concerns only `name`: of what is not supported and what finds no memory, with a row
  // that says so. Others are returned: the device may be in any state.
  Status SkipOr(std::string_view name, const Status& error);
  void Device(Json device) { device_ = std::move(device); }
  void Build(Json build) { build_ = std::move(build); }  // what is measured, and when
  size_t missed() const { return missed_; }

 private:
  const std::string json_file_;
  const double time_factor_;
  std::string part_;
  MonoTime begin_, deadline_;
  Json build_ = Json::object(), device_ = Json::object(), entries_ = Json::array(), skipped_ = Json::array(),
       seconds_ = Json::object();
  size_t missed_ = 0;
};

}  // namespace terrace
