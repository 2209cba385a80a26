#include "tests/chaos/faulty_flow.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/rng.h"

namespace terrace {
namespace {

// With a rate, bytes go out in pieces of a fiftieth of a second.
size_t PieceSize(uint64_t bytes_per_second) {
  return static_cast<size_t>(std::max<uint64_t>(bytes_per_second / 50, 1));
}

}  // namespace

void FaultyFlow::Set(const Faults& faults) {
  if (faults.corruption != faults_.corruption) corruption_begin_ = offset_;
  if (faults.bytes_per_second != faults_.bytes_per_second) next_send_ = MonoTime::min();
  faults_ = faults;
  if (faults_.delay + faults_.jitter > Duration(0)) return;
  last_due_ = MonoTime::min();
  for (Piece& piece : held_) piece.due = MonoTime::min();
  if (end_.has_value()) end_ = MonoTime::min();
}

bool FaultyFlow::wants_more() const {
  return faults_.passage != Faults::Passage::kStalled && held_bytes_ < kMostHeld;
}

void FaultyFlow::Push(std::string_view bytes, MonoTime now) {
  if (end_.has_value() || has_lost_end_ || bytes.empty()) return;
  if (is_swallowed()) {
    offset_ += bytes.size();
    lost_ += bytes.size();
    return;
  }
  Piece piece{.bytes = std::string(bytes), .due = NextDue(now)};
  Corrupt(piece.bytes);
  offset_ += bytes.size();
  held_bytes_ += bytes.size();
  held_.push_back(std::move(piece));
}

void FaultyFlow::PushEnd(MonoTime now) {
  if (end_.has_value() || has_lost_end_) return;
  if (is_swallowed()) {
    has_lost_end_ = true;
  } else {
    end_ = NextDue(now);
  }
}

FaultyFlow::Next FaultyFlow::Peek(MonoTime now) const {
  if (is_over_ || faults_.passage == Faults::Passage::kStalled) return {};
  if (held_.empty()) {
    if (!end_.has_value()) return {};
    return *end_ > now ? Next{.kind = Next::Kind::kWait, .at = *end_} : Next{.kind = Next::Kind::kEnd};
  }
  const MonoTime due = std::max(held_.front().due, next_send_);
  if (due > now) return {.kind = Next::Kind::kWait, .at = due};
  std::string_view bytes = std::string_view(held_.front().bytes).substr(sent_);
  if (faults_.bytes_per_second > 0) bytes = bytes.substr(0, PieceSize(faults_.bytes_per_second));
  return {.kind = Next::Kind::kSend, .bytes = bytes};
}

void FaultyFlow::Pop(size_t bytes, MonoTime now) {
  sent_ += bytes;
  held_bytes_ -= bytes;
  if (faults_.bytes_per_second > 0) {
    const double seconds = static_cast<double>(bytes) / static_cast<double>(faults_.bytes_per_second);
    next_send_ = std::max(next_send_, now) +
                 std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
  }
  if (sent_ < held_.front().bytes.size()) return;
  held_.pop_front();
  sent_ = 0;
}

MonoTime FaultyFlow::NextDue(MonoTime now) {
  const double draw = RandomUniform(seed_, offset_, 2 * stream_ + 1);
  const Duration jitter(static_cast<Duration::rep>(static_cast<double>(faults_.jitter.count()) * draw));
  last_due_ = std::max(last_due_, now + faults_.delay + jitter);
  return last_due_;
}

void FaultyFlow::Corrupt(std::string& piece) const {
  if (!faults_.corruption.has_value()) return;
  const auto [first, every] = *faults_.corruption;
  const uint64_t begin = offset_ - corruption_begin_, end = begin + piece.size();
  if (begin > first && every == 0) return;
  const uint64_t passed = begin > first ? (begin - first + every - 1) / every : 0;  // of those to be flipped
  for (uint64_t at = first + passed * every; at < end; at += every) {
    piece[at - begin] =
        static_cast<char>(piece[at - begin] ^ (1 << (RandomBits(seed_, at, 2 * stream_) % 8)));
    if (every == 0) return;
  }
}

}  // namespace terrace
