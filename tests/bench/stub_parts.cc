#include "tests/bench/stub_parts.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

namespace terrace {
namespace {

constexpr auto kLongestWithoutPause = std::chrono::milliseconds(1);

}  // namespace

void Alarms::At(MonoTime when, std::function<void()> call) {
  const bool is_next = [&] {
    std::lock_guard lock(mutex_);
    const auto added = calls_.emplace(when, std::move(call));
    return added == calls_.begin();
  }();
  if (is_next) changed_.notify_one();
}

void Alarms::Run(const std::stop_token& stop) {
  std::optional<MonoTime> called;  // the first time since the last pause
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    const MonoTime now = RealClock().Now();
    const bool is_idle = calls_.empty() || calls_.begin()->first > now;
    if (called.has_value() && (is_idle || now - *called >= kLongestWithoutPause)) {
      called.reset();
      lock.unlock();
      on_pause_();
      lock.lock();
    } else if (calls_.empty()) {
      changed_.wait(lock, stop, [this] { return !calls_.empty(); });
    } else if (const MonoTime due = calls_.begin()->first; due > RealClock().Now()) {
      changed_.wait_until(lock, stop, due, [&] { return calls_.begin()->first < due; });
    } else {
      const std::function<void()> call = std::move(calls_.begin()->second);
      calls_.erase(calls_.begin());
      lock.unlock();
      call();
      if (!called.has_value()) called = now;
      lock.lock();
    }
  }
}

bool Places::Enter(const void* who, uint32_t prompt_tokens, std::function<void()> begin) {
  {
    std::lock_guard lock(mutex_);
    if (load_.running >= places_) {
      if (waiting_.size() >= inbox_) return false;
      waiting_.push_back({who, prompt_tokens, std::move(begin)});
      ++load_.waiting;
      load_.waiting_prompt_tokens += prompt_tokens;
      return true;
    }
    ++load_.running;
  }
  begin();
  return true;
}

void Places::Leave() {
  std::function<void()> begin;
  {
    std::lock_guard lock(mutex_);
    if (waiting_.empty()) {
      --load_.running;
      return;
    }
    begin = std::move(waiting_.front().begin);
    load_.waiting_prompt_tokens -= waiting_.front().prompt_tokens;
    --load_.waiting;
    waiting_.pop_front();
  }
  begin();
}

bool Places::LeaveQueue(const void* who) {
  std::function<void()> dropped;  // without the lock: it may hold the last reference to `who`
  std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(waiting_, who, &Waiting::who);
  if (found == waiting_.end()) return false;
  dropped = std::move(found->begin);
  load_.waiting_prompt_tokens -= found->prompt_tokens;
  --load_.waiting;
  waiting_.erase(found);
  return true;
}

Places::Load Places::load() const {
  std::lock_guard lock(mutex_);
  return load_;
}

uint32_t StubCache::Use(const std::string& salt, std::span<const int32_t> prompt) {
  if (blocks_ == 0) return 0;
  BlockKeyScope scope = scope_;
  scope.salt = salt;
  Hash128 key = RootBlockKey(scope);
  std::vector<PrefixChange> added;
  uint32_t cached = 0;
  std::lock_guard lock(mutex_);
  // The last token is always computed.
  for (size_t begin = 0; begin + kBlockTokens < prompt.size(); begin += kBlockTokens) {
    key = BlockKey(key, prompt.subspan(begin, kBlockTokens));
    const uint64_t short_key = ShortKey(key);
    if (held_.contains(short_key)) {
      if (added.empty()) cached += kBlockTokens;
      continue;
    }
    if (held_.size() >= blocks_) break;
    held_.insert(short_key);
    added.push_back({.key = short_key, .is_added = true});
  }
  journal_.Append(added);
  return cached;
}

size_t StubCache::size() const {
  std::lock_guard lock(mutex_);
  return held_.size();
}

}  // namespace terrace
