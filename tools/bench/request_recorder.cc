#include "tools/bench/request_recorder.h"

#include <utility>

namespace terrace {

void RecordBox::Add(RequestRecord record) {
  {
    std::lock_guard lock(mutex_);
    records_.push_back(std::move(record));
  }
  time_->Wake();
}

std::vector<RequestRecord> RecordBox::TakeAll() {
  std::lock_guard lock(mutex_);
  return std::exchange(records_, {});
}

bool RequestRecorder::OnTokens(uint32_t count) {
  if (is_cancelled_) {
    has_refused_ = true;
    return false;
  }
  const MonoTime now = box_->time().Now();
  for (uint32_t i = 0; i < count; ++i) {
    if (record_.tokens == 0) {
      record_.first_token = now;
    } else {
      record_.gaps.push_back(now - last_token_);
    }
    last_token_ = now;
    ++record_.tokens;
  }
  box_->CountTokens(count);
  if (cancel_after_.has_value() && record_.tokens >= *cancel_after_) is_cancelled_ = true;
  return !is_cancelled_;
}

void RequestRecorder::OnEnd(const BenchEnd& end) {
  record_.ended = box_->time().Now();
  record_.end = end;
  if (end.status.ok() && !has_refused_) {
    record_.outcome = Outcome::kOk;
  } else {
    record_.outcome = is_cancelled_ ? Outcome::kCancelled : Outcome::kFailed;
  }
  box_->Add(std::move(record_));
}

}  // namespace terrace
