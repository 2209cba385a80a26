#include "tools/plan/serving_simulation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>

#include "base/rng.h"
#include "tools/bench/arrivals.h"
#include "tools/bench/streams.h"

namespace terrace {
namespace {

constexpr double kOverload = 0.95;     // share of the asked rate that is served, below which waits grow
constexpr uint64_t kGateStream = 100;  // of random numbers, beside those of a benchmark
constexpr uint64_t kAskEvery = 256;    // steps, whether it is cancelled
constexpr double kNever = std::numeric_limits<double>::infinity();

Duration ToDuration(double seconds) { return Duration(std::llround(seconds * 1e9)); }

struct Sequence {
  uint64_t index = 0;
  double asked = 0;                 // by the client
  double arrived = 0;               // at the worker
  uint32_t prompt = 0, output = 0;  // tokens
  uint32_t read = 0;                // of the prompt: what is cached, then what is computed
  uint32_t written = 0;
  std::string prefix = {};     // of its prompt, by name
  uint32_t prefix_tokens = 0;  // 0: it has none
  double owed = 0;             // of drafts: parts of tokens
  double last_token = 0;       // when it came

  bool is_decoding() const { return read == prompt; }
};

// One worker: its queue, its batch and its clock.
class Worker {
 public:
  Worker(const ServingTier& tier, bool holds_back)
      : tier_(tier), holds_back_(holds_back), free_blocks_(AllBlocks()) {}

  double now() const { return now_; }
  double busy() const { return busy_; }
  double sequence_seconds() const { return sequence_seconds_; }  // that those that ended were here, together
  // Sequences that are here at a time that is not before the last step began: while it lasts, also those that
  // end with it.
  size_t Load(double when) const {
    return waiting_.size() + running_.size() + (when < now_ ? last_ended_ : 0);
  }
  // When its next step begins.
  double NextStep() const {
    if (!running_.empty()) return now_;
    return waiting_.empty() ? kNever : std::max(now_, waiting_.front().arrived);
  }

  // In the order of their arrival.
  Status Add(Sequence sequence) {
    const uint64_t tokens = uint64_t{sequence.prompt} + sequence.output;
    if (tokens > tier_.context_length)
      return InvalidArgument("a request of ", tokens, " tokens is more than the context of ",
                             tier_.context_length);
    if (BlocksOf(sequence) > AllBlocks())
      return InvalidArgument("a request of ", tokens, " tokens is more than the KV memory, which holds ",
                             tier_.settings.kv_tokens);
    const bool is_first = sequence.prefix_tokens > 0 && prefixes_.insert(sequence.prefix).second;
    sequence.read = is_first ? 0 : sequence.prefix_tokens;
    waiting_.push_back(std::move(sequence));
    return {};
  }

  // Those that have ended with it.
  std::vector<Sequence> Step(ServingPrediction& out) {
    now_ = NextStep();
    Admit();
    StepWork work;
    uint32_t room = tier_.settings.max_step_tokens, decoding = 0;
    for (const Sequence& sequence : running_) {
      if (!sequence.is_decoding()) continue;
      ++decoding;
      work.decode_context += sequence.prompt + sequence.written;
    }
    const std::vector<uint32_t> chunks = Chunks(room - decoding, work);
    room -= decoding + work.prefill_tokens;  // for drafts, which have what is left
    const DraftSteps& drafts = tier_.settings.drafts;
    const uint32_t drafted = decoding == 0 ? 0 : std::min(drafts.length, room / decoding);
    work.decode_tokens = decoding * (1 + drafted);
    work.decode_context *= 1 + drafted;
    const double seconds = tier_.cost->Seconds(work) + (drafted > 0 ? drafts.seconds : 0);
    now_ += seconds;
    busy_ += seconds;
    return Commit(chunks, DraftSteps{.acceptance = drafts.acceptance, .length = drafted}, out);
  }

 private:
  uint64_t AllBlocks() const { return tier_.settings.kv_tokens / tier_.settings.block_tokens; }
  uint64_t BlocksOf(const Sequence& sequence) const {
    const uint64_t block = tier_.settings.block_tokens;
    return (uint64_t{sequence.prompt} + sequence.output + block - 1) / block;
  }

  void Admit() {
    while (!waiting_.empty() && waiting_.front().arrived <= now_ &&
           running_.size() < tier_.settings.max_sequences && BlocksOf(waiting_.front()) <= free_blocks_) {
      free_blocks_ -= BlocksOf(waiting_.front());
      running_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
    }
  }

  // What is read of each running sequence's prompt.
  std::vector<uint32_t> Chunks(uint32_t room, StepWork& work) const {
    std::vector<size_t> order;
    for (size_t i = 0; i < running_.size(); ++i) {
      if (!running_[i].is_decoding()) order.push_back(i);
    }
    std::ranges::stable_sort(order, {}, [this](size_t i) { return running_[i].prompt - running_[i].read; });
    std::vector<uint32_t> chunks(running_.size());
    for (const size_t i : order) {
      const Sequence& sequence = running_[i];
      chunks[i] = std::min(room, sequence.prompt - sequence.read);
      room -= chunks[i];
      work.prefill_tokens += chunks[i];
      work.prefill_context += chunks[i] * (sequence.read + chunks[i] / 2.0);
    }
    return chunks;
  }

  std::vector<Sequence> Commit(const std::vector<uint32_t>& chunks, const DraftSteps& drafts,
                               ServingPrediction& out) {
    std::vector<Sequence> still, ended;
    for (size_t i = 0; i < running_.size(); ++i) {
      Sequence& sequence = running_[i];
      if (!sequence.is_decoding()) {
        sequence.read += chunks[i];
        if (sequence.is_decoding()) Write(sequence, 1, out);
      } else {
        sequence.owed += drafts.TokensPerStep();
        const double whole = std::floor(sequence.owed + 1e-9);
        sequence.owed -= whole;
        Write(sequence, static_cast<uint32_t>(whole), out);
      }
      const bool has_ended = sequence.written == sequence.output;
      if (has_ended) {
        free_blocks_ += BlocksOf(sequence);
        sequence_seconds_ += now_ - sequence.arrived;
      }
      (has_ended ? ended : still).push_back(std::move(sequence));
    }
    running_ = std::move(still);
    last_ended_ = ended.size();
    return ended;
  }

  // Tokens that come together: the first of them has waited, as terrace bench counts it.
  void Write(Sequence& sequence, uint32_t count, ServingPrediction& out) const {
    count = std::min(count, sequence.output - sequence.written);
    if (!holds_back_ && count > 0) {
      sequence.written == 0 ? out.first_token.Record(ToDuration(now_ - sequence.asked))
                            : out.inter_token.Record(ToDuration(now_ - sequence.last_token));
      out.inter_token.Record(Duration(0), count - 1);
      sequence.last_token = now_;
    }
    sequence.written += count;
  }

  const ServingTier& tier_;
  const bool holds_back_;
  uint64_t free_blocks_;
  std::set<std::string> prefixes_;  // that it has read
  size_t last_ended_ = 0;           // with the last step
  double now_ = 0, busy_ = 0, sequence_seconds_ = 0;
  std::deque<Sequence> waiting_;   // by arrival
  std::vector<Sequence> running_;  // by admission
};

class Simulation {
 public:
  Simulation(std::span<const ServingTier> tiers, const Traffic& traffic,
             const std::function<bool()>& is_cancelled)
      : tiers_(tiers), traffic_(traffic), is_cancelled_(is_cancelled) {
    for (size_t i = 0; i < tiers.size(); ++i)
      workers_.emplace_back(tiers[i].workers, Worker(tiers[i], /*holds_back=*/i + 1 < tiers.size()));
  }

  StatusOr<ServingPrediction> Run() {
    RETURN_IF_ERROR(Check());
    if (!traffic_.trace.empty()) {
      for (const TracedRequest& request : traffic_.trace) Plan(request.arrival_seconds);
    } else if (const auto* closed = std::get_if<ClosedLoop>(&traffic_.load)) {
      for (uint32_t i = 0; i < closed->concurrency; ++i) Plan(0);
    } else {
      const auto& open = std::get<OpenLoop>(traffic_.load);
      Arrivals arrivals(open.arrivals, open.rate, RandomBits(traffic_.seed, 0));  // as of a first level
      for (uint64_t i = 0; i < traffic_.requests; ++i) Plan(arrivals.Next());
    }
    for (uint64_t i = 0;; ++i) {
      if (i % kAskEvery == 0 && is_cancelled_ && is_cancelled_()) return Cancelled("interrupted");
      const auto [tier, worker] = Earliest();
      if (!asked_.empty() && (worker == nullptr || asked_.begin()->first <= worker->NextStep())) {
        RETURN_IF_ERROR(Dispatch());
        continue;
      }
      if (worker == nullptr) break;
      for (const Sequence& ended : worker->Step(out_)) OnEnded(tier, ended, worker->now());
    }
    Finish();
    return std::move(out_);
  }

 private:
  Status Check() const {
    if (Requests() == 0) return InvalidArgument("a traffic of no requests");
    for (const ServingTier& tier : tiers_) {
      const ServingSettings& settings = tier.settings;
      if (tier.workers == 0) return InvalidArgument("a tier without workers");
      if (settings.max_sequences == 0 || settings.max_step_tokens < settings.max_sequences)
        return InvalidArgument("steps of ", settings.max_step_tokens, " tokens for ", settings.max_sequences,
                               " sequences");
    }
    return {};
  }

  uint64_t Requests() const { return traffic_.trace.empty() ? traffic_.requests : traffic_.trace.size(); }

  // The next request, if there is one left.
  void Plan(double now) {
    if (planned_ == Requests()) return;
    Sequence sequence{.index = planned_++, .asked = now, .arrived = now};
    traffic_.trace.empty() ? Draw(sequence) : Take(traffic_.trace[sequence.index], sequence);
    Ask(0, std::move(sequence));
  }

  // Lengths as terrace bench draws them.
  void Draw(Sequence& sequence) const {
    sequence.prompt =
        std::max(traffic_.prompt_tokens.Draw(traffic_.seed, sequence.index, kPromptLengthStream),
                 traffic_.shared_prefix_tokens + 1);
    sequence.output = traffic_.output_tokens.Draw(traffic_.seed, sequence.index, kOutputLengthStream);
    sequence.prefix_tokens = traffic_.shared_prefix_tokens;
  }

  static void Take(const TracedRequest& request, Sequence& sequence) {
    sequence.prompt = request.prompt_tokens;
    sequence.output = request.output_tokens;
    sequence.prefix = request.prefix;
    sequence.prefix_tokens = request.prefix_tokens;
  }

  void Ask(size_t tier, Sequence sequence) {
    const double arrived = sequence.arrived;
    asked_.emplace(arrived, std::pair(tier, std::move(sequence)));
  }

  // Gives what was asked first to a worker, when all that happens before is known.
  Status Dispatch() {
    auto [tier, sequence] = asked_.extract(asked_.begin()).mapped();
    const auto load = [when = sequence.arrived](const Worker& worker) { return worker.Load(when); };
    return std::ranges::min_element(workers_[tier], {}, load)->Add(std::move(sequence));
  }

  // Whose step begins first: nothing that happens later can change it.
  std::pair<size_t, Worker*> Earliest() {
    std::pair<size_t, Worker*> first = {0, nullptr};
    double when = kNever;
    for (size_t tier = 0; tier < workers_.size(); ++tier) {
      for (Worker& worker : workers_[tier]) {
        if (worker.NextStep() >= when) continue;
        when = worker.NextStep();
        first = {tier, &worker};
      }
    }
    return first;
  }

  void OnEnded(size_t tier, const Sequence& sequence, double now) {
    const bool is_last = tier + 1 == tiers_.size();
    if (!is_last && RandomUniform(traffic_.seed, sequence.index, kGateStream + tier) >= tiers_[tier].kept) {
      Sequence next{.index = sequence.index, .asked = sequence.asked, .arrived = now};
      next.prompt = sequence.prompt;
      next.output = sequence.output;
      next.prefix = sequence.prefix;
      next.prefix_tokens = sequence.prefix_tokens;
      Ask(tier + 1, std::move(next));
      return;
    }
    if (!is_last) {  // it was held back, and comes whole
      out_.first_token.Record(ToDuration(now - sequence.asked));
      out_.inter_token.Record(Duration(0), sequence.output - 1);
    }
    out_.end_to_end.Record(ToDuration(now - sequence.asked));
    out_.prompt_tokens += sequence.prompt;
    out_.output_tokens += sequence.output;
    out_.seconds = std::max(out_.seconds, now);
    if (traffic_.trace.empty() && std::holds_alternative<ClosedLoop>(traffic_.load)) Plan(now);
  }

  void Finish() {
    for (const std::vector<Worker>& tier : workers_) {
      double busy = 0, sequences = 0;
      for (const Worker& worker : tier) {
        busy += worker.busy();
        sequences += worker.sequence_seconds();
      }
      const double time = std::max(out_.seconds, 1e-9) * static_cast<double>(tier.size());
      out_.busy_shares.push_back(busy / time);
      out_.sequences.push_back(sequences / time);
    }
    const auto* const open = std::get_if<OpenLoop>(&traffic_.load);
    if (open == nullptr || out_.seconds == 0 || !traffic_.trace.empty()) return;
    // A short run ends with its last answer: that alone makes its rate low.
    const bool is_busy = std::ranges::max(out_.busy_shares) > kOverload;
    out_.is_overloaded =
        is_busy && static_cast<double>(traffic_.requests) / out_.seconds < kOverload * open->rate;
  }

  const std::span<const ServingTier> tiers_;
  const Traffic& traffic_;
  const std::function<bool()>& is_cancelled_;
  std::vector<std::vector<Worker>> workers_;  // by tier
  uint64_t planned_ = 0;
  std::multimap<double, std::pair<size_t, Sequence>> asked_;  // by arrival: of a tier, not yet of a worker
  ServingPrediction out_;
};

}  // namespace

uint64_t Traffic::longest() const {
  uint64_t most = 0;
  for (const TracedRequest& request : trace)
    most = std::max<uint64_t>(most, uint64_t{request.prompt_tokens} + request.output_tokens);
  return trace.empty() ? uint64_t{prompt_tokens.max()} + output_tokens.max() : most;
}

double DraftSteps::TokensPerStep() const {
  double sum = 1, power = 1;
  for (uint32_t i = 0; i < length; ++i) sum += power *= acceptance;
  return sum;
}

StatusOr<ServingPrediction> SimulateServing(std::span<const ServingTier> tiers, const Traffic& traffic,
                                            const std::function<bool()>& is_cancelled) {
  CHECK(!tiers.empty());
  return Simulation(tiers, traffic, is_cancelled).Run();
}

}  // namespace terrace
