#include "tools/bench/load_run.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <optional>
#include <utility>

#include "base/rng.h"

namespace terrace {
namespace {

constexpr Duration kLongestWait = std::chrono::milliseconds(50);  // how late a Ctrl-C may be noticed

Duration FromSeconds(double seconds) { return Duration(std::llround(seconds * 1e9)); }

// Decides when the next request is sent.
class Pacer {
 public:
  virtual ~Pacer() = default;
  // When the next request is meant to be sent, if that is not after `now`.
  virtual std::optional<MonoTime> Due(MonoTime now) = 0;
  virtual bool IsBefore(MonoTime end, MonoTime now) const = 0;  // whether the next request may be
  virtual bool MustDrop(size_t in_flight) const = 0;
  virtual void OnPlanned() = 0;  // the due request was sent or dropped
  virtual void OnEnded(Outcome outcome, MonoTime now) = 0;
  virtual MonoTime NextChange() const = 0;  // when Due may say something else, if no request ends
};

class ClosedPacer : public Pacer {
 public:
  explicit ClosedPacer(const ClosedLoop& loop) : free_(loop.concurrency) {}

  std::optional<MonoTime> Due(MonoTime now) override {
    for (; !resting_.empty() && resting_.front() <= now; resting_.pop_front()) ++free_;
    if (free_ == 0) return std::nullopt;
    return now;
  }
  bool IsBefore(MonoTime end, MonoTime now) const override { return now < end; }
  bool MustDrop(size_t) const override { return false; }
  void OnPlanned() override { --free_; }
  void OnEnded(Outcome outcome, MonoTime now) override {
    if (outcome == Outcome::kFailed) {
      resting_.push_back(now + kRestAfterFailure);
    } else {
      ++free_;
    }
  }
  MonoTime NextChange() const override { return resting_.empty() ? MonoTime::max() : resting_.front(); }

 private:
  uint32_t free_;                 // places without a request
  std::deque<MonoTime> resting_;  // when each of the other free places may be used again, ascending
};

class OpenPacer : public Pacer {
 public:
  OpenPacer(const OpenLoop& loop, uint64_t seed, MonoTime start)
      : max_in_flight_(loop.max_in_flight), arrivals_(loop.arrivals, loop.rate, seed), start_(start) {
    OnPlanned();
  }

  std::optional<MonoTime> Due(MonoTime now) override {
    if (next_ > now) return std::nullopt;
    return next_;
  }
  bool IsBefore(MonoTime end, MonoTime) const override { return next_ < end; }
  bool MustDrop(size_t in_flight) const override { return in_flight >= max_in_flight_; }
  void OnPlanned() override { next_ = start_ + FromSeconds(arrivals_.Next()); }
  void OnEnded(Outcome, MonoTime) override {}
  MonoTime NextChange() const override { return next_; }

 private:
  const uint32_t max_in_flight_;
  Arrivals arrivals_;
  const MonoTime start_;
  MonoTime next_;
};

std::unique_ptr<Pacer> MakePacer(const LoadShape& shape, uint64_t seed, MonoTime start) {
  if (const auto* closed = std::get_if<ClosedLoop>(&shape)) return std::make_unique<ClosedPacer>(*closed);
  return std::make_unique<OpenPacer>(std::get<OpenLoop>(shape), seed, start);
}

class LoadRun {
 public:
  LoadRun(BenchTarget& target, const Workload& workload, const BenchSettings& settings, LoadPart part,
          std::shared_ptr<BenchTime> time, const LoadHooks& hooks)
      : target_(target),
        workload_(workload),
        settings_(settings),
        part_(part),
        time_(*time),
        hooks_(hooks),
        drafted_before_(target.Speculation()),
        start_(time_.Now()),
        box_(std::make_shared<RecordBox>(std::move(time))),
        pacer_(MakePacer(settings.levels[part.level], ArrivalSeed(), start_)) {
    result_.shape = settings.levels[part.level];
    if (part.is_warmup) {
      requests_ = settings.warmup_requests;
    } else {
      requests_ = settings.requests.value_or(RequestKey::kMaxIndex);
      if (settings.duration_seconds.has_value()) end_ = start_ + FromSeconds(*settings.duration_seconds);
    }
  }

  LevelResult Run() {
    last_event_ = start_;
    while (true) {
      Collect();
      if (!result_.is_interrupted && hooks_.is_interrupted()) Interrupt();
      SendDue();
      hooks_.on_progress(Progress());
      if (IsOver()) break;
      time_.WaitUntil(NextWake());
    }
    result_.unfinished = in_flight_.size();
    result_.seconds = Seconds(last_event_ - start_);
    if (!drafted_before_.has_value()) return std::move(result_);
    if (const auto drafted = target_.Speculation(); drafted.has_value())
      result_.speculation.engine = drafted->Since(*drafted_before_);
    return std::move(result_);
  }

 private:
  struct InFlight {
    std::shared_ptr<RequestRecorder> recorder;
    std::unique_ptr<BenchCall> call;
  };

  uint64_t ArrivalSeed() const {
    return RandomBits(settings_.workload.seed, 2 * uint64_t{part_.level} + (part_.is_warmup ? 1 : 0));
  }

  bool MayPlan(MonoTime now) const {
    return !result_.is_interrupted && result_.planned < requests_ && pacer_->IsBefore(end_, now);
  }

  void SendDue() {
    for (MonoTime now = time_.Now(); MayPlan(now); now = time_.Now()) {
      const std::optional<MonoTime> due = pacer_->Due(now);
      if (!due.has_value()) return;
      pacer_->OnPlanned();
      const uint64_t index = result_.planned++;
      if (pacer_->MustDrop(in_flight_.size())) {
        ++result_.dropped;
        last_event_ = std::max(last_event_, *due);
      } else {
        Send(index, *due);
      }
    }
  }

  void Send(uint64_t index, MonoTime intended) {
    PlannedRequest planned =
        workload_.Plan({.level = part_.level, .is_warmup = part_.is_warmup, .index = index});
    const MonoTime sent = time_.Now();
    // A closed loop means to send when its request is ready; an open one has its time from outside.
    if (std::holds_alternative<ClosedLoop>(result_.shape)) intended = sent;
    BenchRequest request;
    request.id = Concat("bench-", part_.level, part_.is_warmup ? "w-" : "-", index);
    request.prompt = std::move(planned.prompt);
    request.output_tokens = planned.output_tokens;
    request.temperature = settings_.temperature;
    request.sampling_seed = planned.sampling_seed;
    request.priority = settings_.priority;
    request.cache_salt = settings_.cache_salt;
    if (settings_.deadline_seconds.has_value())
      request.deadline = intended + FromSeconds(*settings_.deadline_seconds);

    RequestRecord record;
    record.index = index;
    record.prompt_tokens = static_cast<uint32_t>(request.prompt.size());
    record.wanted_tokens = planned.output_tokens;
    record.is_cut = planned.is_cut;
    record.intended = intended;
    record.sent = sent;
    InFlight& in_flight = in_flight_[index];
    in_flight.recorder = std::make_shared<RequestRecorder>(std::move(record), planned.cancel_after, box_);
    in_flight.call = target_.Start(request, in_flight.recorder);
  }

  void Collect() {
    for (const RequestRecord& record : box_->TakeAll()) {
      in_flight_.erase(record.index);
      last_event_ = std::max(last_event_, record.ended);
      pacer_->OnEnded(record.outcome, time_.Now());
      result_.Add(record);
    }
  }

  void Interrupt() {
    result_.is_interrupted = true;
    give_up_ = time_.Now() + kInterruptGrace;
    for (auto& [index, in_flight] : in_flight_) {
      in_flight.recorder->SetCancelled();
      in_flight.call->Cancel();
    }
  }

  bool IsOver() const {
    const MonoTime now = time_.Now();
    return (!MayPlan(now) && in_flight_.empty()) || now >= give_up_;
  }

  MonoTime NextWake() const {
    const MonoTime now = time_.Now();
    MonoTime wake = now + kLongestWait;
    if (MayPlan(now)) wake = std::min({wake, pacer_->NextChange(), end_});
    return wake;
  }

  LoadProgress Progress() const {
    const MonoTime now = time_.Now();
    const uint64_t done = result_.planned - in_flight_.size();
    double share = static_cast<double>(done) / static_cast<double>(requests_);
    if (end_ < MonoTime::max()) share = std::max(share, Seconds(now - start_) / Seconds(end_ - start_));
    return {.share = std::min(share, 1.0),
            .done = done,
            .tokens = box_->tokens(),
            .seconds = Seconds(now - start_)};
  }

  BenchTarget& target_;
  const Workload& workload_;
  const BenchSettings& settings_;
  const LoadPart part_;
  BenchTime& time_;  // box_'s
  const LoadHooks& hooks_;
  const std::optional<SpeculationStats> drafted_before_;  // asked for before the clock runs
  const MonoTime start_;
  const std::shared_ptr<RecordBox> box_;
  const std::unique_ptr<Pacer> pacer_;
  uint64_t requests_ = 0;           // to plan
  MonoTime end_ = MonoTime::max();  // nothing is planned from here on
  MonoTime give_up_ = MonoTime::max();
  MonoTime last_event_;
  std::map<uint64_t, InFlight> in_flight_;  // by index
  LevelResult result_;
};

}  // namespace

LevelResult RunLoad(BenchTarget& target, const Workload& workload, const BenchSettings& settings,
                    LoadPart part, const std::shared_ptr<BenchTime>& time, const LoadHooks& hooks) {
  return LoadRun(target, workload, settings, part, time, hooks).Run();
}

}  // namespace terrace
