#include "router/admission/fair_queue.h"

#include <algorithm>
#include <iterator>

namespace terrace {
namespace {
constexpr int32_t kAnyPriority = std::numeric_limits<int32_t>::min();
}

void FairQueue::Push(Entry entry) {
  Line& line = lines_[entry.tenant];
  if (line.entries.empty()) {
    double least = floor_;
    bool is_anyone_waiting = false;
    for (const auto& [name, other] : lines_) {
      if (other.entries.empty()) continue;
      least = is_anyone_waiting ? std::min(least, other.served) : other.served;
      is_anyone_waiting = true;
    }
    line.served = std::max(line.served, least);
  }
  line.weight = entry.weight;
  line.waiting_tokens[entry.priority] += static_cast<double>(entry.tokens);
  const Order order = {-int64_t{entry.priority}, entry.id};
  where_[entry.id] = {entry.tenant, order};
  line.entries.emplace(order, std::move(entry));
}

std::optional<FairQueue::Entry> FairQueue::Pop() {
  Line* next = nullptr;
  for (auto& [name, line] : lines_) {
    if (!line.entries.empty() && (next == nullptr || line.served < next->served)) next = &line;
  }
  if (next == nullptr) return {};
  floor_ = next->served;
  Entry entry = Take(*next, next->entries.begin());
  next->served += static_cast<double>(entry.tokens) / entry.weight;
  return entry;
}

bool FairQueue::Erase(Id id) {
  const auto found = where_.find(id);
  if (found == where_.end()) return false;
  Line& line = lines_.at(found->second.tenant);
  Take(line, line.entries.find(found->second.order));
  return true;
}

std::vector<FairQueue::Entry> FairQueue::Expire(MonoTime now) {
  std::vector<Entry> out;
  for (auto& [name, line] : lines_) {
    for (auto next = line.entries.begin(); next != line.entries.end();) {
      const auto entry = next++;
      if (entry->second.latest < now) out.push_back(Take(line, entry));
    }
  }
  return out;
}

void FairQueue::Charge(const std::string& tenant, double weight, double tokens) {
  lines_[tenant].served += tokens / weight;
}

std::optional<FairQueue::Entry> FairQueue::MakeRoom(const std::string& tenant, double weight) {
  const std::string longest = LongestBeside(tenant, weight);
  if (longest.empty()) return {};
  Line& line = lines_.at(longest);
  return Take(line, std::prev(line.entries.end()));
}

bool FairQueue::CanMakeRoom(const std::string& tenant, double weight) const {
  return !LongestBeside(tenant, weight).empty();
}

std::string FairQueue::LongestBeside(const std::string& tenant, double weight) const {
  const auto own = lines_.find(tenant);
  double most = static_cast<double>(own == lines_.end() ? 1 : own->second.entries.size() + 1) / weight;
  std::string longest;
  for (const auto& [name, line] : lines_) {
    const double waiting = static_cast<double>(line.entries.size()) / line.weight;
    if (name == tenant || waiting <= most) continue;
    most = waiting;
    longest = name;
  }
  return longest;
}

double FairQueue::TokensAhead(const std::string& tenant, double weight, int32_t priority) const {
  double own = 0, others = 0, weights = weight;
  for (const auto& [name, line] : lines_) {
    if (line.entries.empty()) continue;
    if (name == tenant) {
      own = line.TokensFrom(priority);
    } else {
      others += line.TokensFrom(kAnyPriority);
      weights += line.weight;
    }
  }
  return std::min(own + others, own * weights / weight);
}

double FairQueue::Line::TokensFrom(int32_t priority) const {
  double tokens = 0;
  for (const auto& [of, waiting] : waiting_tokens) {
    if (of < priority) break;
    tokens += waiting;
  }
  return tokens;
}

FairQueue::Entry FairQueue::Take(Line& line, std::map<Order, Entry>::iterator entry) {
  Entry out = std::move(entry->second);
  line.entries.erase(entry);
  line.waiting_tokens.at(out.priority) -= static_cast<double>(out.tokens);
  if (line.entries.empty()) line.waiting_tokens.clear();  // without what rounding left
  where_.erase(out.id);
  return out;
}

}  // namespace terrace
