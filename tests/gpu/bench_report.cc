#include "tests/gpu/bench_report.h"

#include <cstdio>

namespace terrace {
namespace {

bool IsMet(const BenchEntry& entry) {
  switch (entry.goal.kind) {
    case BenchGoal::Kind::kNone:
      return true;
    case BenchGoal::Kind::kFractionAtLeast:
      return entry.fraction.value_or(0) >= entry.goal.value;
    case BenchGoal::Kind::kAtLeast:
      return entry.value >= entry.goal.value;
    case BenchGoal::Kind::kAtMost:
      return entry.value <= entry.goal.value;
  }
  return false;
}

const char* SignOf(BenchGoal::Kind kind) { return kind == BenchGoal::Kind::kAtMost ? "<=" : ">="; }

}  // namespace

void BenchReport::Begin(std::string_view part, double seconds) {
  part_ = part;
  begin_ = RealClock().Now();
  deadline_ =
      begin_ + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds * time_factor_));
  std::printf("\n%-58s %10s %-8s %7s %9s %-16s %s\n", std::string(part).c_str(), "median", "", "spread",
              "fraction", "of", "goal");
}

void BenchReport::End() {
  seconds_[part_] = Seconds(RealClock().Now() - begin_);
  std::fflush(stdout);
  if (json_file_.empty()) return;
  std::FILE* file = std::fopen(json_file_.c_str(), "w");
  if (file == nullptr) {
    std::fprintf(stderr, "%s: cannot be written\n", json_file_.c_str());
    return;
  }
  const Json all = {{"build", build_},
                    {"device", device_},
                    {"entries", entries_},
                    {"skipped", skipped_},
                    {"seconds", seconds_}};
  std::fputs((all.dump(1) + "\n").c_str(), file);
  std::fclose(file);
}

bool BenchReport::HasTime(std::string_view name) {
  if (RealClock().Now() < deadline_) return true;
  Skip(name, "the part's time is up");
  return false;
}

void BenchReport::Add(BenchEntry entry) {
  const bool is_met = IsMet(entry), has_goal = entry.goal.kind != BenchGoal::Kind::kNone;
  missed_ += is_met ? 0 : 1;
  char spread[16] = "", fraction[16] = "", goal[48] = "";
  if (entry.spread) std::snprintf(spread, sizeof(spread), "%.1f%%", 100 * *entry.spread);
  if (entry.fraction) std::snprintf(fraction, sizeof(fraction), "%.3f", *entry.fraction);
  if (has_goal) {
    std::snprintf(goal, sizeof(goal), "%s %g%s", SignOf(entry.goal.kind), entry.goal.value,
                  is_met ? "" : "  missed");
  }
  std::printf("%-58s %10.4g %-8s %7s %9s %-16s %s\n", entry.name.c_str(), entry.value, entry.unit.c_str(),
              spread, fraction, entry.limit.c_str(), goal);
  std::fflush(stdout);
  Json json = {{"part", part_},
               {"name", entry.name},
               {"value", entry.value},
               {"unit", entry.unit},
               {"spread", OrNull(entry.spread)},
               {"fraction", OrNull(entry.fraction)},
               {"limit", entry.limit.empty() ? Json() : Json(entry.limit)},
               {"goal", Json()},
               {"met", Json()}};
  if (has_goal) {
    json["goal"] = {{"of", entry.goal.kind == BenchGoal::Kind::kFractionAtLeast ? "fraction" : "value"},
                    {"sign", SignOf(entry.goal.kind)},
                    {"value", entry.goal.value}};
    json["met"] = is_met;
  }
  entries_.push_back(std::move(json));
}

void BenchReport::Skip(std::string_view name, std::string_view why) {
  std::printf("%-58s -- %s\n", std::string(name).c_str(), std::string(why).c_str());
  std::fflush(stdout);
  skipped_.push_back({{"part", part_}, {"name", std::string(name)}, {"why", std::string(why)}});
}

Status BenchReport::SkipOr(std::string_view name, const Status& error) {
  if (error.ok()) return error;
  if (error.code() != StatusCode::kUnimplemented && error.code() != StatusCode::kResourceExhausted) {
    return Annotate(error, name);
  }
  Skip(name, Message(error));
  return {};
}

}  // namespace terrace
