// Requests that wait, shared out among tenants by a virtual token counter (Sheng et al., "Fairness in Serving
// Large Language Models", OSDI 2024): whoever has been served the fewest tokens for its weight is next. A
// tenant that begins to wait starts from the least of those that do, so that nobody saves up while away.
// Within a tenant the higher priority comes first, then who came first. Pure; one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace terrace {

class FairQueue {
 public:
  using Id = uint64_t;  // the caller's; ascending in the order of arrival
  struct Entry {
    Id id = 0;
    std::string tenant = {};
    double weight = 1;
    int32_t priority = 0;
    uint64_t tokens = 0;   // that it is expected to cost
    MonoTime latest = {};  // when it is of no use any more
  };

  void Push(Entry entry);
  std::optional<Entry> Pop();
  bool Erase(Id id);  // false when it is not here
  // Removes and returns those whose `latest` is before `now`.
  std::vector<Entry> Expire(MonoTime now);
  // Service of `tenant` beside its own entries': more, or less (negative), than they were expected to cost.
  void Charge(const std::string& tenant, double weight, double tokens);

  // Removes and returns the last entry of whoever has the most of them for its weight, to make room for one
  // of `tenant`; nothing when nobody has more than the tenant would.
  std::optional<Entry> MakeRoom(const std::string& tenant, double weight);
  bool CanMakeRoom(const std::string& tenant, double weight) const;

  size_t size() const { return where_.size(); }
  // The tokens that will be served before an entry that is pushed now, if those who wait go on waiting.
  double TokensAhead(const std::string& tenant, double weight, int32_t priority) const;

 private:
  using Order = std::pair<int64_t, Id>;  // (-priority, id)
  struct Line {
    double served = 0;  // tokens over weight
    double weight = 1;
    std::map<int32_t, double, std::greater<>> waiting_tokens = {};  // by priority
    std::map<Order, Entry> entries = {};
    double TokensFrom(int32_t priority) const;  // of entries of at least that
  };
  Entry Take(Line& line, std::map<Order, Entry>::iterator entry);
  // Who gives way to one of `tenant`; "" is nobody.
  std::string LongestBeside(const std::string& tenant, double weight) const;

  std::map<std::string, Line> lines_;  // by tenant; kept when empty: as many as are configured
  struct Place {
    std::string tenant = {};
    Order order = {};
  };
  std::map<Id, Place> where_;
  double floor_ = 0;  // `served` of the line that was popped last
};

}  // namespace terrace
