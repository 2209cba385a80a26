#include "worker/engine/group_executor.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace terrace {
namespace {

constexpr Duration kLongestIdlePeriod = std::chrono::milliseconds(500);
constexpr size_t kFirstWords = 1022, kMostWords = size_t{1} << 28;

// Some may come late.
Duration IdlePeriodOf(const Communicator& communicator) {
  return std::min(communicator.timeout() / 8, kLongestIdlePeriod);
}

// What is told: its first words at once, as most plans are short, then the others.
struct Frame {
  enum class Kind : uint32_t { kPlan, kIdle, kStop };
  Kind kind = Kind::kIdle;
  uint32_t size = 0;  // words
  int32_t first[kFirstWords] = {};
};
static_assert(sizeof(Frame) == 4096);

std::span<std::byte> BytesOf(Frame& frame) { return std::as_writable_bytes(std::span(&frame, 1)); }

Status Tell(Communicator& communicator, Frame::Kind kind, std::span<const int32_t> words) {
  CHECK(words.size() <= kMostWords, words.size(), " words of a plan");
  Frame frame{.kind = kind, .size = static_cast<uint32_t>(words.size())};
  const std::span<const int32_t> first = words.first(std::min(words.size(), kFirstWords));
  std::ranges::copy(first, frame.first);
  RETURN_IF_ERROR(communicator.Broadcast(BytesOf(frame), 0));
  const std::span<const int32_t> rest = words.subspan(first.size());
  if (rest.empty()) return Status();
  // A broadcast only reads what its root lends.
  return communicator.Broadcast(
      std::as_writable_bytes(std::span(const_cast<int32_t*>(rest.data()), rest.size())), 0);
}

// What Tell told; the words go to `words`.
StatusOr<Frame::Kind> Hear(Communicator& communicator, std::vector<int32_t>& words) {
  Frame frame;
  RETURN_IF_ERROR(communicator.Broadcast(BytesOf(frame), 0));
  if (frame.kind > Frame::Kind::kStop || frame.size > kMostWords) {
    return DataLoss("the leader tells kind ", static_cast<uint32_t>(frame.kind), " of ", frame.size,
                    " words");
  }
  words.resize(frame.size);
  const size_t first = std::min<size_t>(frame.size, kFirstWords);
  std::copy_n(frame.first, first, words.begin());
  if (first < words.size()) {
    RETURN_IF_ERROR(communicator.Broadcast(std::as_writable_bytes(std::span(words).subspan(first)), 0));
  }
  return frame.kind;
}

Status RunTold(std::span<const int32_t> words, PlanReader& reader, Executor& own) {
  ASSIGN_OR_RETURN(const StepPlan plan, reader.Read(words));
  return own.Run(plan).device_error;
}

// OK when the leader stops.
Status Follow(Communicator& communicator, Executor& own, const PlanLimits& limits,
              const std::function<bool()>& is_stopped) {
  PlanReader reader(limits);
  std::vector<int32_t> words;
  while (true) {
    if (is_stopped && is_stopped()) return Cancelled("asked to stop");
    ASSIGN_OR_RETURN(const Frame::Kind kind, Hear(communicator, words));
    if (kind == Frame::Kind::kStop) return Status();
    if (kind == Frame::Kind::kPlan) RETURN_IF_ERROR(RunTold(words, reader, own));
  }
}

}  // namespace

GroupExecutor::GroupExecutor(Communicator& communicator, std::unique_ptr<Executor> own)
    : communicator_(communicator),
      own_(std::move(own)),
      idle_period_(IdlePeriodOf(communicator)),
      last_told_(RealClock().Now()) {
  CHECK(communicator.rank() == 0, "rank ", communicator.rank(), " does not lead");
}

GroupExecutor::~GroupExecutor() {
  // On an error nobody is left to be told.
  static_cast<void>(Tell(communicator_, Frame::Kind::kStop, {}));
}

StepResult GroupExecutor::Run(const StepPlan& plan) {
  if (Status told = Tell(communicator_, Frame::Kind::kPlan, writer_.Write(plan)); !told.ok()) {
    return {.outputs = {}, .device_error = std::move(told)};
  }
  StepResult result = own_->Run(plan);
  if (!result.device_error.ok()) communicator_.Abort(result.device_error);
  last_told_ = RealClock().Now();
  return result;
}

// It may be called much more often.
Status GroupExecutor::Idle() {
  const MonoTime now = RealClock().Now();
  if (now - last_told_ < idle_period_ / 2) return Status();
  last_told_ = now;
  return Tell(communicator_, Frame::Kind::kIdle, {});
}

ExecutorBesideGroup::ExecutorBesideGroup(Communicator& communicator, std::unique_ptr<Executor> own)
    : communicator_(communicator),
      own_(std::move(own)),
      least_gap_(IdlePeriodOf(communicator) / 2),
      last_told_(RealClock().Now()) {}

StepResult ExecutorBesideGroup::Run(const StepPlan& plan) {
  TellIdle();
  StepResult result = own_->Run(plan);
  TellIdle();
  return result;
}

// An error is no error of `own_`: the group's next step has it too.
void ExecutorBesideGroup::TellIdle() {
  const MonoTime now = RealClock().Now();
  if (now - last_told_ < least_gap_) return;
  last_told_ = now;
  static_cast<void>(Tell(communicator_, Frame::Kind::kIdle, {}));
}

Status FollowLeader(Communicator& communicator, Executor& own, const PlanLimits& limits,
                    const std::function<bool()>& is_stopped) {
  Status end = Follow(communicator, own, limits, is_stopped);
  communicator.Abort(end.ok() ? Unavailable("the leader has stopped") : end);
  return end;
}

}  // namespace terrace
