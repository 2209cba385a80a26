// The cluster against workers in this process that the test scripts: real gRPC over loopback.
#include "router/cluster/cluster.h"

#include <atomic>
#include <deque>
#include <functional>
#include <latch>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "router/cluster/cluster_metrics.h"
#include "router/manifest/testing_manifest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kPatience = std::chrono::seconds(30);  // then a test fails; none waits this long

TextAssets LetterText(const std::string& bos) {
  BpeData data;
  data.tokens = {"a", "b", "<end>"};
  data.added = {{2, "<end>", true}};
  data.special.end = {2};
  auto tokenizer = MakeBpeTokenizer(std::move(data));
  CHECK(tokenizer.ok(), Message(tokenizer.status()));
  return {.tokenizer = *std::move(tokenizer), .chat_template = nullptr, .bos_text = bos, .eos_text = ""};
}

std::atomic<int> instances = 0;

// A call at a fake worker. The test's function writes its events, on a thread of its own.
class FakeCall {
 public:
  using Send = std::function<bool(v1::ServeEvent)>;

  FakeCall(uint64_t id, const v1::ServeStart& start, Send send)
      : start_(start), id_(id), send_(std::move(send)), credit_(start.credit()) {}

  const v1::ServeStart& start() const { return start_; }
  bool IsCancelled() const { return is_cancelled_; }
  uint64_t written() const { return written_; }  // events

  // As a worker does, when there is credit. False: the call is cancelled, or its stream over.
  bool Write(const v1::ExecuteEvent& event) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return credit_ > 0 || is_cancelled_; });
      if (is_cancelled_) return false;
      credit_ -= event.tokens().tokens_size();
    }
    return WriteAnyway(event);
  }
  // As no worker should.
  bool WriteAnyway(const v1::ExecuteEvent& event) {
    ++written_;
    v1::ServeEvent out;
    out.set_call(id_);
    *out.mutable_event() = event;
    if (event.has_finished()) has_finished_ = true;
    return send_(std::move(out));
  }

  // Its stream's.
  void End(const Status& status) {
    if (has_finished_ && status.ok()) return;
    v1::ServeEvent out;
    out.set_call(id_);
    v1::ServeError& error = *out.mutable_error();
    error.set_code(static_cast<int32_t>(status.code()));
    error.set_message(Message(status));
    error.set_reason(Reason(status));
    send_(std::move(out));
  }
  void Cancel() {
    std::lock_guard lock(mutex_);
    is_cancelled_ = true;
    changed_.notify_all();
  }
  void AddCredit(uint32_t more) {
    std::lock_guard lock(mutex_);
    credit_ += more;
    changed_.notify_all();
  }

 private:
  const v1::ServeStart start_;
  const uint64_t id_;
  const Send send_;
  std::atomic<bool> is_cancelled_ = false, has_finished_ = false;
  std::atomic<uint64_t> written_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t credit_;  // GUARDED_BY(mutex_)
};

// A worker whose answers the test sets before or while it serves.
class FakeWorker : public v1::Worker::Service {
 public:
  explicit FakeWorker(const TextAssets& text) : text_(Serialize(text)) {
    description.set_protocol(v1::WORKER_PROTOCOL_CURRENT);
    description.set_instance(Concat("worker-", ++instances));
    description.set_model("letters");
    description.set_model_digest("m1");
    description.set_text_digest(Digest(text).Hex());
    description.set_context_length(32);
    description.set_vocab_size(3);
  }
  ~FakeWorker() override { Stop(); }

  void Serve(const std::string& listen = "127.0.0.1:0") {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr && port != 0);
    address = Concat("127.0.0.1:", port);
  }
  void Stop() {
    if (server_ == nullptr) return;
    is_stopped_ = true;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_ = nullptr;
    is_stopped_ = false;
  }

  // Sends one more update on the current Watch stream; `skip` leaves out sequence numbers.
  void Update(v1::WorkerState next, uint64_t skip = 0) {
    std::lock_guard lock(mutex_);
    state_ = next;
    skip_ = skip;
    ++wanted_updates_;
    changed_.notify_all();
  }

  // It says from now on that its engine stalls, or does not.
  void SetStalled(bool is_stalled) {
    std::lock_guard lock(mutex_);
    is_stalled_ = is_stalled;
    ++wanted_updates_;
    changed_.notify_all();
  }

  // Its cache has one block more; `is_wrong`: the next digest is not that of its blocks.
  void Cache(uint64_t key, bool is_wrong = false) {
    std::lock_guard lock(mutex_);
    held_.push_back(key);
    added_.push_back(key);
    digest_error_ = is_wrong ? 1 : 0;
    ++wanted_updates_;
    changed_.notify_all();
  }

  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*,
                        v1::WorkerDescription* out) override {
    ++describes;
    *out = description;
    return grpc::Status::OK;
  }

  grpc::Status FetchText(grpc::ServerContext*, const v1::FetchTextRequest*,
                         grpc::ServerWriter<v1::TextChunk>* writer) override {
    ++text_fetches;
    for (size_t begin = 0; begin < text_.size(); begin += 7) {
      v1::TextChunk chunk;
      chunk.set_data(text_.substr(begin, 7));
      writer->Write(chunk);
    }
    return grpc::Status::OK;
  }

  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest*,
                     grpc::ServerWriter<v1::WorkerUpdate>* writer) override {
    ++watches;
    v1::WorkerUpdate update;
    update.set_epoch(5);
    std::unique_lock lock(mutex_);
    bool is_first = true;
    uint64_t sent = wanted_updates_;
    for (uint64_t sequence = 0;; ++sequence) {
      sequence += std::exchange(skip_, 0);
      update.set_sequence(sequence);
      update.set_state(state_);
      update.set_is_stalled(is_stalled_);
      update.mutable_load()->set_running_sequences(3);
      v1::PrefixDelta& prefixes = *update.mutable_prefixes();
      prefixes.set_is_snapshot(std::exchange(is_first, false));
      *prefixes.mutable_added() = {added_.begin(), added_.end()};
      if (prefixes.is_snapshot()) *prefixes.mutable_added() = {held_.begin(), held_.end()};
      added_.clear();
      prefixes.set_digest(std::accumulate(held_.begin(), held_.end(), digest_error_, std::bit_xor()));
      digest_error_ = 0;
      lock.unlock();
      writer->Write(update);
      lock.lock();
      while (sent == wanted_updates_ && !is_stopped_ && !context->IsCancelled()) {
        changed_.wait_for(lock, std::chrono::milliseconds(5));
      }
      if (is_stopped_ || context->IsCancelled()) return grpc::Status::OK;
      sent = wanted_updates_;
    }
  }

  grpc::Status Serve(grpc::ServerContext* context,
                     grpc::ServerReaderWriter<v1::ServeEvents, v1::ServeCommands>* stream) override {
    ++streams;
    std::mutex writing;
    const auto send = [&](v1::ServeEvent event) {
      v1::ServeEvents events;
      *events.add_events() = std::move(event);
      std::lock_guard lock(writing);
      return stream->Write(events);
    };
    {
      std::lock_guard lock(mutex_);
      contexts_.insert(context);
    }
    std::map<uint64_t, std::unique_ptr<FakeCall>> calls;
    std::vector<std::jthread> threads;  // last: they use the others
    for (v1::ServeCommands commands; stream->Read(&commands);) {
      for (const v1::ServeCommand& command : commands.commands()) {
        const auto found = calls.find(command.call());
        if (command.has_start()) {
          EXPECT_TRUE(calls.empty() || calls.rbegin()->first < command.call()) << "numbers rise";
          calls[command.call()] = std::make_unique<FakeCall>(command.call(), command.start(), send);
          threads.emplace_back([this, call = calls[command.call()].get()] { Run(*call); });
        } else if (command.cancel()) {
          found->second->Cancel();
        } else {
          found->second->AddCredit(command.credit());
        }
      }
    }
    for (const auto& [id, call] : calls) call->Cancel();
    std::lock_guard lock(mutex_);
    contexts_.erase(context);
    return grpc::Status::OK;
  }
  // Cuts the streams of its calls off; nothing else is lost.
  void BreakStreams() {
    std::lock_guard lock(mutex_);
    for (grpc::ServerContext* context : contexts_) context->TryCancel();
  }

  std::string address;
  v1::WorkerDescription description;
  std::atomic<int> text_fetches = 0, watches = 0, describes = 0, streams = 0;
  // Of the calls that begin from now on.
  using Execution = std::function<Status(FakeCall&, const v1::ExecuteRequest&)>;
  void SetExecution(Execution execution) {
    std::lock_guard lock(mutex_);
    execution_ = std::move(execution);
  }

 private:
  void Run(FakeCall& call) {
    v1::ExecuteRequest request;
    EXPECT_TRUE(request.ParseFromString(call.start().request()));
    Execution execution;
    {
      std::lock_guard lock(mutex_);
      execution = execution_;
    }
    call.End(execution(call, request));
  }

  const std::string text_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> is_stopped_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  v1::WorkerState state_ = v1::WORKER_STATE_READY;
  bool is_stalled_ = false;
  uint64_t skip_ = 0, wanted_updates_ = 0;
  std::vector<uint64_t> held_, added_;
  uint64_t digest_error_ = 0;
  Execution execution_;                      // GUARDED_BY(mutex_)
  std::set<grpc::ServerContext*> contexts_;  // of streams of calls; GUARDED_BY(mutex_)
};

class FakeDiscovery : public Discovery {
 public:
  explicit FakeDiscovery(std::vector<std::string> addresses) : addresses_(std::move(addresses)) {}
  void Set(std::vector<std::string> addresses) {
    std::lock_guard lock(mutex_);
    addresses_ = std::move(addresses);
  }

 private:
  Discovered Look() override {
    std::lock_guard lock(mutex_);
    return {.addresses = addresses_};
  }

  std::mutex mutex_;
  std::vector<std::string> addresses_;
};

// Finds the addresses so many times; then it waits for a name server, until Release.
class StuckDiscovery : public Discovery {
 public:
  StuckDiscovery(std::vector<std::string> addresses, int looks)
      : addresses_(std::move(addresses)), looks_(looks) {}
  void Release() { released_.count_down(); }

 private:
  Discovered Look() override {
    if (looks_-- <= 0) released_.wait();
    return {.addresses = addresses_};
  }

  const std::vector<std::string> addresses_;
  int looks_;  // one thread's at a time
  std::latch released_{1};
};

class ClusterTest : public ::testing::Test {
 protected:
  ~ClusterTest() override { cluster_ = nullptr; }  // before the workers it talks to

  void Start(std::vector<std::string> addresses, Duration watch_timeout = std::chrono::seconds(60),
             Duration connect_backoff = std::chrono::milliseconds(5)) {
    discovery_ = std::make_shared<FakeDiscovery>(std::move(addresses));
    Discoveries discoveries = more_discoveries_;
    discoveries[""] = discovery_;
    ClusterOptions options{.connect_backoff = connect_backoff,
                           .watch_timeout = watch_timeout,
                           .discovery_period = std::chrono::milliseconds(5),
                           .ejection = ejection_,
                           .slow_start = slow_start_,
                           .model_kept = model_kept_,
                           .token_cache_bytes = size_t{1} << 20,
                           .seed = 11,
                           .on_change = [this](const ClusterView& view) {
                             std::lock_guard lock(mutex_);
                             views_.push_back(view);
                             changed_.notify_all();
                           }};
    options.tiers.push_back({"letters", std::move(discoveries), gate_});
    cluster_ = std::make_unique<Cluster>(std::move(options), metrics_);
  }
  double Metric(const std::string& series) const {
    const std::string text = "\n" + metrics_.Render();
    const size_t found = text.find("\n" + series + " ");
    return found == std::string::npos ? -1 : std::stod(text.substr(found + series.size() + 2));
  }

  // The next state of the tier of which `is_so` holds. Every state counts, however short it was.
  TierView WaitFor(const std::function<bool(const TierView&)>& is_so) {
    std::unique_lock lock(mutex_);
    for (;;) {
      const bool happened = changed_.wait_for(lock, kPatience, [&] { return !views_.empty(); });
      EXPECT_TRUE(happened);
      if (!happened) return {};
      const TierView tier = views_.front().tiers[0];
      if (is_so(tier)) return tier;
      views_.pop_front();
    }
  }
  TierView WaitForReady(size_t replicas) {
    return WaitFor([&](const TierView& tier) { return tier.ready_replicas() == replicas; });
  }
  // How many of the keys 7, 8 the first replica has.
  static uint32_t Match(const TierView& tier) {
    std::vector<uint32_t> matched;
    tier.prefixes->Match(std::vector<uint64_t>{7, 8}, matched);
    return matched.at(tier.replicas.at(0).prefix_slot);
  }
  void WaitForMatch(uint32_t keys) {
    WaitFor([&](const TierView& tier) { return !tier.replicas.empty() && Match(tier) == keys; });
  }
  TierView WaitForState(size_t replica, ReplicaState state) {
    return WaitFor([&](const TierView& tier) {
      return tier.replicas.size() > replica && tier.replicas[replica].state == state;
    });
  }

  FakeWorker first_{LetterText("")}, second_{LetterText("")};
  EjectionOptions ejection_ = {.first_time = std::chrono::hours(1), .longest = std::chrono::hours(1)};
  Duration slow_start_ = std::chrono::hours(1), model_kept_ = std::chrono::hours(1);
  std::shared_ptr<const ManifestGate> gate_;
  MetricRegistry metrics_;
  std::shared_ptr<FakeDiscovery> discovery_;
  Discoveries more_discoveries_;  // by other entries
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<ClusterView> views_;  // not looked at yet; GUARDED_BY(mutex_)
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(ClusterTest, AReachedWorkerIsReadyWithItsModelAndText) {
  first_.Serve();
  Start({first_.address});
  const TierView tier = WaitForReady(1);
  EXPECT_EQ(tier.model, "letters");
  EXPECT_EQ(tier.context_length, 32u);
  ASSERT_NE(tier.text, nullptr);
  EXPECT_THAT(tier.text->EncodePrompt("ab"), ElementsAre(0, 1));
  EXPECT_EQ(tier.replicas[0].load.running_sequences, 3u);
  EXPECT_EQ(cluster_->View()->tiers[0].ready_replicas(), 1u);
}

TEST_F(ClusterTest, ANameServerThatDoesNotAnswerHoldsUpNobodyElse) {
  first_.Serve();
  const auto stuck = std::make_shared<StuckDiscovery>(std::vector<std::string>(), /*looks=*/0);
  more_discoveries_ = {{"dns:///stuck", stuck}};
  Start({first_.address});
  WaitForReady(1);
  EXPECT_LE(Metric("terrace_discovery_success_timestamp_seconds{tier=\"letters\"}"), 0) << "not all of it";
  stuck->Release();
}

TEST_F(ClusterTest, WhatAnEarlierClusterFoundIsUsedBeforeTheNextLookEnds) {
  first_.Serve();
  second_.Serve();
  const auto stuck = std::make_shared<StuckDiscovery>(std::vector{first_.address}, /*looks=*/1);
  stuck->Resolve();
  more_discoveries_ = {{"dns:///stuck", stuck}};
  Start({second_.address});
  WaitForReady(2);
  EXPECT_EQ(cluster_->discoveries().at("dns:///stuck"), stuck);
  discovery_->Set({});
  EXPECT_EQ(WaitFor([](const TierView& tier) { return tier.replicas.size() == 1; }).replicas[0].address,
            first_.address);
  stuck->Release();
}

TEST_F(ClusterTest, WhatWasTokenizedOnceIsKnown) {
  first_.Serve();
  Start({first_.address});
  const TierView tier = WaitForReady(1);
  ASSERT_NE(tier.text->token_cache, nullptr);
  const std::string text(100, 'a');
  EXPECT_EQ(tier.text->EncodePrompt(text, "acme"), tier.text->EncodePrompt(text, "acme"));
  tier.text->EncodePrompt(text, "another tenant");
  EXPECT_EQ(tier.text->token_cache->counts().hit, 100u);
  EXPECT_EQ(tier.text->token_cache->counts().missed, 200u);
}

TEST(ClusterMetrics, TheTokenCachesCountsAreThoseOfTheCache) {
  MetricRegistry registry;
  ClusterMetrics metrics(registry, {});
  metrics.OnTokenCache({.hit = 5, .missed = 7});
  metrics.OnTokenCache({.hit = 5, .missed = 9});
  const std::string text = registry.Render();
  EXPECT_THAT(text, HasSubstr("terrace_token_cache_bytes_total{result=\"hit\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("terrace_token_cache_bytes_total{result=\"miss\"} 9\n"));
}

TEST_F(ClusterTest, TextIsFetchedOncePerDigest) {
  first_.Serve();
  second_.Serve();
  Start({first_.address, second_.address});
  WaitForReady(2);
  EXPECT_EQ(first_.text_fetches + second_.text_fetches, 1);
}

TEST_F(ClusterTest, TextOfAnotherDigestIsRefused) {
  first_.description.set_text_digest(Digest(LetterText("other")).Hex());
  first_.Serve();
  Start({first_.address});
  const TierView tier =
      WaitFor([](const TierView& t) { return !t.replicas.empty() && !t.replicas[0].last_error.empty(); });
  EXPECT_THAT(tier.replicas[0].last_error, HasSubstr("digest"));
  EXPECT_EQ(tier.ready_replicas(), 0u);
}

TEST_F(ClusterTest, AReplicaWithAnotherModelThanItsTierIsRefused) {
  first_.Serve();
  second_.description.set_model_digest("m2");
  second_.Serve();
  Start({first_.address});
  WaitForReady(1);
  discovery_->Set({first_.address, second_.address});
  const TierView tier = WaitForState(1, ReplicaState::kMismatch);
  EXPECT_EQ(tier.ready_replicas(), 1u);
  EXPECT_EQ(tier.model_digest, "m1");
  EXPECT_THAT(tier.replicas[1].last_error, HasSubstr("m2"));
}

TEST_F(ClusterTest, ATierWithoutReadyReplicasTakesANewModel) {
  first_.Serve();
  second_.description.set_model_digest("m2");
  second_.Serve();
  Start({first_.address});
  WaitForReady(1);
  discovery_->Set({second_.address});
  const TierView tier =
      WaitFor([](const TierView& t) { return t.ready_replicas() == 1 && t.model_digest == "m2"; });
  EXPECT_EQ(tier.replicas.size(), 1u);
}

TEST_F(ClusterTest, AGapInTheUpdatesMeansANewSnapshot) {
  first_.Serve();
  Start({first_.address});
  WaitForReady(1);
  first_.Update(v1::WORKER_STATE_READY, /*skip=*/1);
  WaitFor([&](const TierView& tier) {
    EXPECT_EQ(tier.ready_replicas(), 1u) << "it keeps its place";
    return first_.watches >= 2;
  });
  EXPECT_EQ(first_.describes, 1);
  EXPECT_EQ(Metric("terrace_prefix_resyncs_total{tier=\"letters\"}"), 1);
}

TEST_F(ClusterTest, TheIndexFollowsTheWorkersPrefixes) {
  first_.Cache(7);
  first_.Serve();
  Start({first_.address});
  WaitForMatch(1);
  first_.Cache(8);
  WaitForMatch(2);
  WaitForReady(1);
  first_.Stop();
  WaitForState(0, ReplicaState::kConnecting);
  discovery_->Set({first_.address, second_.address});  // so that there are further views
  WaitForMatch(0);                                     // nothing is known of a lost worker
}

TEST_F(ClusterTest, AWrongDigestMeansANewSnapshotAndTheReplicaKeepsItsPlace) {
  first_.Serve();
  Start({first_.address});
  first_.Cache(7);
  WaitForMatch(1);
  first_.Cache(8, /*is_wrong=*/true);
  WaitFor([&](const TierView& tier) {
    EXPECT_EQ(tier.ready_replicas(), 1u);
    return first_.watches == 2 && Match(tier) == 2;
  });
  EXPECT_EQ(first_.describes, 1);
}

TEST_F(ClusterTest, AWorkerWhoseDigestsStayWrongIsAFailure) {
  first_.Serve();
  Start({first_.address}, /*watch_timeout=*/std::chrono::hours(1),
        /*connect_backoff=*/std::chrono::minutes(5));
  WaitForReady(1);
  first_.Cache(7, /*is_wrong=*/true);
  WaitFor([&](const TierView& tier) { return first_.watches == 2 && Match(tier) == 1; });
  first_.Cache(8, /*is_wrong=*/true);  // at once again
  const TierView tier = WaitForState(0, ReplicaState::kConnecting);
  EXPECT_THAT(tier.replicas[0].last_error, HasSubstr("digest"));
  EXPECT_EQ(first_.watches, 2);
}

TEST_F(ClusterTest, OnlyAReadyWorkerTakesRequests) {
  first_.Update(v1::WORKER_STATE_STARTING);
  first_.Serve();
  Start({first_.address});
  WaitForState(0, ReplicaState::kStarting);
  first_.Update(v1::WORKER_STATE_READY);
  WaitForState(0, ReplicaState::kReady);
  first_.Update(v1::WORKER_STATE_DRAINING);
  WaitForState(0, ReplicaState::kDraining);
}

TEST_F(ClusterTest, ASilentWorkerIsNotUsedUntilItSpeaksAgain) {
  first_.Serve();
  Start({first_.address}, /*watch_timeout=*/std::chrono::milliseconds(100));
  WaitForState(0, ReplicaState::kSilent);
  first_.Update(v1::WORKER_STATE_READY);
  WaitForState(0, ReplicaState::kReady);
}

TEST_F(ClusterTest, ALostWorkerIsUsedAgainWhenItComesBack) {
  first_.Serve();
  Start({first_.address});
  WaitForReady(1);
  first_.Stop();
  const TierView lost = WaitForState(0, ReplicaState::kConnecting);
  EXPECT_NE(lost.text, nullptr) << "prompts can still be checked";
  first_.Serve(first_.address);
  WaitForReady(1);
}

TEST_F(ClusterTest, AWorkerWithoutAnInstanceIsNotUsed) {
  first_.description.clear_instance();
  first_.Serve();
  Start({first_.address});
  const TierView tier =
      WaitFor([](const TierView& t) { return !t.replicas.empty() && !t.replicas[0].last_error.empty(); });
  EXPECT_THAT(tier.replicas[0].last_error, HasSubstr("tells no instance"));
}

TEST_F(ClusterTest, AWorkerOfAnotherProtocolIsRefused) {
  const int newer = v1::WORKER_PROTOCOL_CURRENT + 1;
  first_.description.set_protocol(static_cast<uint32_t>(newer));
  first_.Serve();
  Start({first_.address});
  const TierView tier = WaitForState(0, ReplicaState::kMismatch);
  EXPECT_EQ(tier.ready_replicas(), 0u);
  EXPECT_THAT(tier.replicas[0].last_error, HasSubstr(Concat("protocol ", newer)));
  EXPECT_EQ(first_.watches, 0);
}

TEST_F(ClusterTest, AProcessAtTwoAddressesIsOneReplica) {
  second_.description.set_instance(first_.description.instance());
  first_.Serve();
  second_.Serve();
  Start({first_.address});
  WaitForReady(1);
  discovery_->Set({first_.address, second_.address});
  const TierView tier = WaitForState(1, ReplicaState::kMismatch);
  EXPECT_EQ(tier.ready_replicas(), 1u);
  EXPECT_THAT(tier.replicas[1].last_error, HasSubstr(first_.address));
}

// The address of a worker that is gone may be given to any other.
class ReusedAddressTest : public ClusterTest {
 protected:
  ReusedAddressTest() {
    other_.description.set_instance("other");
    other_.description.set_model("digits");
    other_.description.set_model_digest("m2");
  }
  // first_ is gone, and at its address answers another.
  void Reuse() {
    first_.Stop();
    WaitForState(0, ReplicaState::kConnecting);
    other_.Serve(first_.address);
  }
  FakeWorker other_{LetterText("other")};
};

TEST_F(ReusedAddressTest, AnotherModelBesideTheTiersOwnIsNotUsed) {
  first_.Serve();
  second_.Serve();
  Start({first_.address, second_.address});
  WaitForReady(2);
  Reuse();
  const TierView tier = WaitForState(0, ReplicaState::kMismatch);
  EXPECT_EQ(tier.ready_replicas(), 1u);
  EXPECT_EQ(tier.model, "letters");
}

TEST_F(ReusedAddressTest, AnotherModelInPlaceOfTheOnlyReplicaIsNotUsed) {
  first_.Serve();
  Start({first_.address});
  WaitForReady(1);
  Reuse();
  const TierView tier = WaitForState(0, ReplicaState::kMismatch);
  EXPECT_EQ(tier.ready_replicas(), 0u);
  EXPECT_EQ(tier.model, "letters");
  EXPECT_THAT(tier.replicas[0].last_error, HasSubstr("digits"));
}

TEST_F(ReusedAddressTest, ATierLeftAloneForLongTakesAnotherModel) {
  model_kept_ = Duration(0);
  first_.Serve();
  Start({first_.address});
  WaitForReady(1);
  Reuse();
  EXPECT_EQ(WaitForReady(1).model, "digits");
}

class GatedTierTest : public ClusterTest {
 protected:
  // Of one manifest.
  std::shared_ptr<const ManifestGate> GateOf(const std::string& model_digest, bool passes = true) {
    Manifest manifest = TestManifest(model_digest, first_.description.text_digest());
    if (!passes) manifest.failures = {"it is worse"};
    const std::string file = ::testing::TempDir() + "/cluster_manifest.json";
    WriteTestFile(file, ManifestText(manifest, signer_.key));
    return ManifestGate::Load({.files = {file}, .key_files = {signer_.file}}).value();
  }

  const TestSigner signer_{::testing::TempDir(), "cluster_signer"};
};

TEST_F(GatedTierTest, ServesAModelThatAManifestLetsIn) {
  gate_ = GateOf("m1");
  first_.Serve();
  Start({first_.address});
  EXPECT_EQ(WaitForReady(1).replicas[0].refusal, "");
}

TEST_F(GatedTierTest, RefusesAnotherModelAndSaysWhy) {
  gate_ = GateOf("m2");
  first_.Serve();
  Start({first_.address});
  const TierView tier = WaitForState(0, ReplicaState::kRefused);
  EXPECT_EQ(tier.ready_replicas(), 0u);
  EXPECT_EQ(tier.model_digest, "") << "the tier serves nothing";
  EXPECT_EQ(tier.replicas[0].refusal, "manifest_other_model");
  EXPECT_THAT(tier.replicas[0].last_error, HasSubstr("m1"));
}

TEST_F(GatedTierTest, TheVerdictMayChangeWhileAWorkerServes) {
  gate_ = GateOf("m1");
  first_.Serve();
  Start({first_.address});
  WaitForReady(1);
  cluster_->SetGates({GateOf("m1", /*passes=*/false)});
  const TierView refused = WaitForState(0, ReplicaState::kRefused);
  EXPECT_EQ(refused.ready_replicas(), 0u);
  EXPECT_EQ(refused.replicas[0].refusal, "manifest_failed");
  cluster_->SetGates({GateOf("m1")});
  first_.Update(v1::WORKER_STATE_READY);
  EXPECT_EQ(WaitForReady(1).replicas[0].last_error, "");
  EXPECT_EQ(first_.describes, 1) << "it stays connected";
}

TEST_F(GatedTierTest, ARefusedReplicaKeepsNoOtherFromServing) {
  gate_ = GateOf("m2");
  first_.Serve();
  second_.description.set_model_digest("m2");
  second_.Serve();
  Start({first_.address});
  WaitForState(0, ReplicaState::kRefused);
  discovery_->Set({first_.address, second_.address});
  const TierView tier = WaitForReady(1);
  EXPECT_EQ(tier.model_digest, "m2");
  EXPECT_EQ(tier.replicas[0].state, ReplicaState::kRefused);
  EXPECT_EQ(tier.replicas[1].state, ReplicaState::kReady);
}

TEST_F(GatedTierTest, AModelOfAnotherNameIsServedAtOnceWhenItIsLetIn) {
  gate_ = GateOf("m1");
  first_.Serve();
  Start({first_.address});
  WaitForReady(1);
  second_.description.set_model("digits");
  second_.description.set_model_digest("m2");
  second_.Serve();
  cluster_->SetGates({GateOf("m2")});
  discovery_->Set({second_.address});
  EXPECT_EQ(WaitFor([](const TierView& tier) {
              return tier.ready_replicas() == 1 && tier.model_digest == "m2";
            }).model,
            "digits");
}

class EjectionTest : public ClusterTest {
 protected:
  void StartTwo() {
    first_.Serve();
    second_.Serve();
    Start({first_.address, second_.address});
    replicas_ = WaitForReady(2).replicas;
  }
  void Fail(size_t replica, int times = 3) {
    for (int i = 0; i < times; ++i) replicas_[replica].observer->OnCallEnd(Unavailable("gone"));
  }
  std::vector<ReplicaView> replicas_;
};

TEST_F(EjectionTest, AReplicaWhoseCallsFailGetsNoRequestsForAWhile) {
  ejection_.first_time = ejection_.longest = std::chrono::milliseconds(1);
  StartTwo();
  Fail(0);
  const TierView tier = WaitForState(0, ReplicaState::kEjected);
  EXPECT_EQ(tier.ready_replicas(), 1u);
  EXPECT_THAT(tier.replicas[0].last_error, HasSubstr("ejected"));
  EXPECT_EQ(Metric("terrace_worker_ejections_total{cause=\"unavailable\",tier=\"letters\"}"), 1);
  WaitForReady(2);
  Fail(0, 1);  // on trial
  WaitForState(0, ReplicaState::kEjected);
  WaitForReady(2);
  replicas_[0].observer->OnCallEnd({});
  Fail(0, 2);
  replicas_[0].observer->OnCallEnd({});
  Fail(1);  // so that there are further views
  EXPECT_EQ(WaitForState(1, ReplicaState::kEjected).ready_replicas(), 1u);
}

TEST_F(EjectionTest, AReplicaThatFailsNowAndThenIsEjectedToo) {
  StartTwo();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(cluster_->View()->tiers[0].replicas[0].state, ReplicaState::kReady) << i;
    replicas_[0].observer->OnCallEnd({});
    replicas_[0].observer->OnCallEnd({});
    Fail(0, 1);
  }
  WaitForState(0, ReplicaState::kEjected);
}

TEST_F(EjectionTest, TheLastOneThatTakesRequestsIsNeverEjected) {
  StartTwo();
  Fail(0);
  WaitForState(0, ReplicaState::kEjected);
  Fail(1, 9);
  discovery_->Set({first_.address, second_.address, "127.0.0.1:1"});
  const TierView later = WaitFor([](const TierView& tier) { return tier.replicas.size() == 3; });
  EXPECT_EQ(later.replicas[0].state, ReplicaState::kEjected);
  EXPECT_EQ(later.replicas[1].state, ReplicaState::kReady);
  EXPECT_EQ(Metric("terrace_worker_ejections_total{cause=\"unavailable\",tier=\"letters\"}"), 1);
}

TEST_F(EjectionTest, TheEjectedAreUsedWhenNobodyElseIsLeft) {
  StartTwo();
  Fail(0);
  WaitForState(0, ReplicaState::kEjected);
  second_.Stop();
  EXPECT_EQ(WaitForState(1, ReplicaState::kConnecting).replicas[0].state, ReplicaState::kReady);
}

TEST_F(EjectionTest, AfterALostConnectionItIsOnTrial) {
  StartTwo();
  Fail(0);
  WaitForState(0, ReplicaState::kEjected);
  first_.Stop();
  WaitForState(0, ReplicaState::kConnecting);
  first_.Serve(first_.address);
  WaitForReady(2);
  Fail(0, 1);
  WaitForState(0, ReplicaState::kEjected);
}

TEST_F(EjectionTest, ANewProcessIsNotPunishedForTheOldOne) {
  StartTwo();
  Fail(0);
  WaitForState(0, ReplicaState::kEjected);
  first_.Stop();
  WaitForState(0, ReplicaState::kConnecting);
  first_.description.set_instance("restarted");
  first_.Serve(first_.address);
  WaitForReady(2);
  Fail(0, 2);
  Fail(1);  // so that there are further views
  EXPECT_EQ(WaitForState(1, ReplicaState::kEjected).ready_replicas(), 1u);
}

TEST(SlowStartWeight, GrowsFromATenthToOne) {
  using std::chrono::seconds;
  EXPECT_FLOAT_EQ(SlowStartWeight(seconds(0), seconds(30)), 0.1f);
  EXPECT_FLOAT_EQ(SlowStartWeight(seconds(15), seconds(30)), 0.55f);
  EXPECT_EQ(SlowStartWeight(seconds(30), seconds(30)), 1);
  EXPECT_EQ(SlowStartWeight(seconds(0), seconds(0)), 1) << "at once";
}

TEST_F(ClusterTest, WhoBeginsToTakeRequestsStartsSlowly) {
  first_.Serve();
  Start({first_.address});
  const TierView tier = WaitForReady(1);
  EXPECT_NEAR(tier.replicas[0].weight, 0.1, 0.01);
  EXPECT_EQ(tier.weights, std::vector{tier.replicas[0].weight});
}

// Collects one call's events.
class Collector : public ExecuteEvents {
 public:
  void OnStarted(uint32_t cached_tokens) override { cached_ = cached_tokens; }
  void OnDraftRecord(const std::string& record) override {
    std::lock_guard lock(mutex_);
    draft_record_ = record;
  }
  void OnTokens(std::vector<WorkerToken> more) override {
    std::lock_guard lock(mutex_);
    if (fills) full = true;
    tokens_.insert(tokens_.end(), more.begin(), more.end());
    changed_.notify_all();
  }
  void OnPromptScores(std::vector<WorkerToken>) override {}
  void OnDone(StatusOr<ExecuteResult> result) override {
    std::lock_guard lock(mutex_);
    result_ = std::move(result);
    changed_.notify_all();
  }
  void WaitForToken() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return !tokens_.empty(); }));
  }
  StatusOr<ExecuteResult> Result() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return result_.has_value(); }));
    return result_.value_or(Internal("no end"));
  }
  size_t tokens() {
    std::lock_guard lock(mutex_);
    return tokens_.size();
  }
  WorkerToken last_token() {
    std::lock_guard lock(mutex_);
    return tokens_.back();
  }
  std::string draft_record() {
    std::lock_guard lock(mutex_);
    return draft_record_;
  }
  uint32_t cached() const { return cached_; }
  bool is_full() const override { return full; }

  void MakeRoom() {
    fills = false;
    full = false;
  }

  std::atomic<bool> full = false;
  std::atomic<bool> fills = false;  // it is full once a token has come

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<uint32_t> cached_ = 0;
  std::vector<WorkerToken> tokens_;                // GUARDED_BY(mutex_)
  std::string draft_record_;                       // GUARDED_BY(mutex_)
  std::optional<StatusOr<ExecuteResult>> result_;  // GUARDED_BY(mutex_)
};

v1::ExecuteEvent TokenEvent(uint32_t index, int32_t token) {
  v1::ExecuteEvent event;
  event.mutable_tokens()->set_first_index(index);
  event.mutable_tokens()->add_tokens()->set_token(token);
  return event;
}

v1::ExecuteEvent StartedEvent(uint32_t cached_tokens) {
  v1::ExecuteEvent event;
  event.mutable_started()->set_cached_tokens(cached_tokens);
  return event;
}

v1::ExecuteEvent FinishedEvent(uint32_t tokens) {
  v1::ExecuteEvent event;
  event.mutable_finished()->set_reason(v1::FINISH_REASON_LENGTH);
  event.mutable_finished()->set_prompt_tokens(2);
  event.mutable_finished()->set_generated_tokens(tokens);
  return event;
}

class ExecuteTest : public ::testing::Test {
 protected:
  std::shared_ptr<CallHandle> Execute(double timeout_seconds = 60) {
    worker_.Serve();
    connection_ = WorkerConnection::Make(worker_.address);
    spec_.sampling.seed = 9;
    spec_.priority = -3;
    spec_.cache_salt = "tenant";
    spec_.deadline = RealClock().Now() +
                     std::chrono::duration_cast<Duration>(std::chrono::duration<double>(timeout_seconds));
    return connection_->Execute(spec_, events_);
  }
  // A call that runs until its client has gone.
  void RunUntilCancelled() {
    worker_.SetExecution([this](FakeCall& call, auto&) {
      for (uint32_t i = 0; !call.IsCancelled(); ++i) {
        if (!call.Write(TokenEvent(i, 0))) break;
      }
      saw_cancel_ = true;
      return Cancelled("by its caller");
    });
  }

  ExecuteSpec spec_{.request_id = "r", .prompt = std::make_shared<const std::vector<TokenId>>(2, 0)};
  FakeWorker worker_{LetterText("")};
  std::shared_ptr<WorkerConnection> connection_;
  std::shared_ptr<Collector> events_ = std::make_shared<Collector>();
  std::atomic<bool> saw_cancel_ = false;
};

TEST_F(ExecuteTest, TokensComeInOrderAndThenTheResult) {
  worker_.SetExecution([](FakeCall& call, const auto& request) {
    EXPECT_EQ(request.sampling().seed(), 9u);
    EXPECT_EQ(request.priority(), -3);
    EXPECT_EQ(request.cache_salt(), "tenant");
    EXPECT_EQ(request.prompt_tokens_size(), 2);
    EXPECT_FALSE(request.has_speculation()) << "as the worker is configured";
    call.Write(StartedEvent(1));
    for (uint32_t i = 0; i < 5; ++i) call.Write(TokenEvent(i, 1));
    call.Write(FinishedEvent(5));
    return Status();
  });
  const auto handle = Execute();
  const auto result = events_->Result();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(events_->cached(), 1u);
  EXPECT_EQ(events_->tokens(), 5u);
  EXPECT_EQ(result->end, AnswerEnd::kLength);
  EXPECT_EQ(result->usage, (TokenUsage{2, 0, 5}));
}

TEST_F(ExecuteTest, LostRepeatedMissingOrSenselessEventsAreTheWorkersError) {
  using Events = std::vector<v1::ExecuteEvent>;
  v1::ExecuteEvent more_than_drafted = FinishedEvent(0);
  more_than_drafted.mutable_finished()->set_accepted_speculated_tokens(1);
  v1::ExecuteEvent large_record = TokenEvent(0, 0);
  large_record.mutable_tokens()->set_draft_record(std::string(257, 'r'));
  for (const Events& events :
       {Events{TokenEvent(1, 0)}, Events{TokenEvent(0, 0), TokenEvent(0, 0)},
        Events{TokenEvent(0, 0), FinishedEvent(2)}, Events{TokenEvent(0, 0)}, Events{StartedEvent(3)},
        Events{StartedEvent(0), StartedEvent(0)}, Events{more_than_drafted}, Events{large_record}}) {
    events_ = std::make_shared<Collector>();
    worker_.SetExecution([&](FakeCall& call, auto&) {
      for (const auto& event : events) call.Write(event);
      return Status();
    });
    const auto handle = Execute();
    EXPECT_EQ(Reason(events_->Result().status()), "worker_protocol");
    worker_.Stop();
  }
}

TEST_F(ExecuteTest, AResumedAnswersTokensAndCountsGoOnWhereItWas) {
  spec_.instance = "first";
  spec_.resume = {1, 0};
  spec_.draft = {1, 1};
  spec_.signals = true;
  spec_.speculation_max_tokens = 0;
  spec_.draft_record = "known";
  worker_.SetExecution([](FakeCall& call, const auto& request) {
    EXPECT_EQ(request.instance(), "first");
    EXPECT_THAT(request.resume_tokens(), ElementsAre(1, 0));
    EXPECT_THAT(request.draft_tokens(), ElementsAre(1, 1));
    EXPECT_TRUE(request.signals());
    EXPECT_TRUE(request.speculation().has_max_tokens());
    EXPECT_EQ(request.draft_record(), "known");
    EXPECT_EQ(request.speculation().max_tokens(), 0u) << "none, and not the worker's own limit";
    call.Write(StartedEvent(2));
    v1::ExecuteEvent event = TokenEvent(2, 1);
    event.mutable_tokens()->mutable_tokens(0)->set_margin(0.5f);
    event.mutable_tokens()->mutable_tokens(0)->set_entropy(0.25f);
    event.mutable_tokens()->set_draft_record("learned");
    call.Write(event);
    event = FinishedEvent(3);
    event.mutable_finished()->set_cached_tokens(2);
    event.mutable_finished()->set_speculated_tokens(7);
    event.mutable_finished()->set_accepted_speculated_tokens(4);
    call.Write(event);
    return Status();
  });
  const auto handle = Execute();
  const auto result = events_->Result();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(events_->cached(), 2u);
  EXPECT_EQ(events_->tokens(), 1u);
  EXPECT_EQ(events_->last_token().margin, 0.5f);
  EXPECT_EQ(events_->last_token().entropy, 0.25f);
  EXPECT_EQ(events_->draft_record(), "learned");
  EXPECT_EQ(result->usage, (TokenUsage{2, 2, 3, 7, 4}));
}

TEST_F(ExecuteTest, AWorkerThatBeginsAResumedAnswerAnewIsWrong) {
  spec_.resume = {1, 0};
  for (const v1::ExecuteEvent& event :
       {TokenEvent(0, 1), TokenEvent(3, 1), FinishedEvent(0), StartedEvent(3)}) {
    events_ = std::make_shared<Collector>();
    worker_.SetExecution([&](FakeCall& call, auto&) {
      call.Write(event);
      return Status();
    });
    const auto handle = Execute();
    EXPECT_EQ(Reason(events_->Result().status()), "worker_protocol");
    worker_.Stop();
  }
}

TEST_F(ExecuteTest, CallsThatAreGivenUpEndWithTheReasonAlsoWhereTheyArePaused) {
  for (const bool full : {false, true}) {
    events_ = std::make_shared<Collector>();
    events_->fills = full;
    saw_cancel_ = false;
    RunUntilCancelled();
    const auto handle = Execute();
    events_->WaitForToken();
    for (int i = 0; i < 2; ++i) connection_->EndCalls(WithReason(Unavailable("no update"), kSilentReason));
    const Status end = events_->Result().status();
    EXPECT_EQ(end.code(), StatusCode::kUnavailable);
    EXPECT_EQ(Reason(end), kSilentReason);
    connection_->EndCalls(Unavailable("none is left"));
    worker_.Stop();
    EXPECT_TRUE(saw_cancel_);
  }
}

TEST_F(ExecuteTest, AConnectionThatIsLostIsNotOneThatNeverWas) {
  std::atomic<bool> is_running = false;
  worker_.SetExecution([&](FakeCall& call, auto&) {  // it says nothing
    is_running = true;
    while (!call.IsCancelled()) std::this_thread::yield();
    return Cancelled("by its caller");
  });
  const auto handle = Execute();
  while (!is_running) std::this_thread::yield();
  worker_.Stop();  // cuts it off
  EXPECT_NE(Reason(events_->Result().status()), kUnreachedReason);

  events_ = std::make_shared<Collector>();
  const auto refused = connection_->Execute(spec_, events_);
  const Status end = events_->Result().status();
  EXPECT_EQ(end.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(end), kUnreachedReason);
}

TEST_F(ClusterTest, TheCallsOfASilentWorkerEndWhenNobodyPicksItAnyMore) {
  first_.SetExecution([](FakeCall& call, auto&) {
    for (uint32_t i = 0; !call.IsCancelled(); ++i) {
      if (!call.Write(TokenEvent(i, 0))) break;
    }
    return Cancelled("by its caller");
  });
  first_.Serve();
  Start({first_.address}, /*watch_timeout=*/std::chrono::milliseconds(100));
  const TierView tier = WaitForReady(1);
  const auto events = std::make_shared<Collector>();
  ExecuteSpec spec;
  spec.request_id = "r";
  spec.instance = tier.replicas[0].description.instance;
  spec.prompt = std::make_shared<const std::vector<TokenId>>(2, 0);
  spec.deadline = RealClock().Now() + kPatience;
  const auto handle = tier.replicas[0].client->Execute(spec, events);
  EXPECT_EQ(Reason(events->Result().status()), kSilentReason);
  EXPECT_EQ(cluster_->View()->tiers[0].ready_replicas(), 0u);
}

TEST_F(ClusterTest, AWorkerWhoseEngineStallsIsNotUsedAndItsCallsEnd) {
  first_.SetExecution([](FakeCall& call, auto&) {
    for (uint32_t i = 0; !call.IsCancelled(); ++i) {
      if (!call.Write(TokenEvent(i, 0))) break;
    }
    return Cancelled("by its caller");
  });
  first_.Serve();
  Start({first_.address});
  const TierView tier = WaitForReady(1);
  const auto events = std::make_shared<Collector>();
  ExecuteSpec spec;
  spec.request_id = "r";
  spec.instance = tier.replicas[0].description.instance;
  spec.prompt = std::make_shared<const std::vector<TokenId>>(2, 0);
  spec.deadline = RealClock().Now() + kPatience;
  const auto handle = tier.replicas[0].client->Execute(spec, events);
  first_.SetStalled(true);
  const TierView stalled = WaitForState(0, ReplicaState::kStalled);
  EXPECT_EQ(stalled.ready_replicas(), 0u);
  EXPECT_THAT(stalled.replicas[0].last_error, HasSubstr("engine"));
  EXPECT_EQ(Reason(events->Result().status()), kSilentReason);
  first_.SetStalled(false);
  EXPECT_EQ(WaitForReady(1).replicas[0].last_error, "");
  first_.Update(v1::WORKER_STATE_STARTING);
  WaitForState(0, ReplicaState::kStarting);
  first_.SetStalled(true);  // its first step may take long
  first_.SetStalled(false);
  first_.Update(v1::WORKER_STATE_READY);
  EXPECT_EQ(WaitFor([](const TierView& t) { return t.replicas[0].state != ReplicaState::kStarting; })
                .replicas[0]
                .state,
            ReplicaState::kReady);
}

TEST_F(ExecuteTest, CancelReachesTheWorker) {
  RunUntilCancelled();
  const auto handle = Execute();
  events_->WaitForToken();
  handle->Cancel();
  EXPECT_EQ(events_->Result().status().code(), StatusCode::kCancelled);
  worker_.Stop();  // waits for the call's end
  EXPECT_TRUE(saw_cancel_);
}

TEST_F(ExecuteTest, WhileItsEventsAreFullACallTellsNothing) {
  constexpr uint32_t kTokens = 50;
  worker_.SetExecution([](FakeCall& call, auto&) {
    for (uint32_t i = 0; i < kTokens; ++i) call.Write(TokenEvent(i, 0));
    call.Write(FinishedEvent(kTokens));
    return Status();
  });
  events_->fills = true;
  const auto handle = Execute();
  events_->WaitForToken();
  handle->Resume();  // there is still no room
  EXPECT_EQ(events_->tokens(), 1u) << "what filled it";
  events_->MakeRoom();
  handle->Resume();
  const auto result = events_->Result();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(events_->tokens(), kTokens);
  handle->Resume();  // the call is over
}

TEST_F(ExecuteTest, EventsThatAreFullNowAndThenGetAllTokens) {
  constexpr uint32_t kTokens = 2000;
  worker_.SetExecution([](FakeCall& call, auto&) {
    for (uint32_t i = 0; i < kTokens; ++i) call.Write(TokenEvent(i, 0));
    call.Write(FinishedEvent(kTokens));
    return Status();
  });
  const auto handle = Execute();
  std::atomic<bool> is_over = false;
  std::jthread reader([&] {  // full and free again, at any moment of the call
    while (!is_over) {
      events_->full = true;
      std::this_thread::yield();
      events_->full = false;
      handle->Resume();
    }
  });
  const auto result = events_->Result();
  is_over = true;
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(events_->tokens(), kTokens);
}

TEST_F(ExecuteTest, APausedCallCanBeCancelled) {
  RunUntilCancelled();
  events_->fills = true;
  const auto handle = Execute();
  events_->WaitForToken();
  handle->Cancel();
  EXPECT_EQ(events_->Result().status().code(), StatusCode::kCancelled);
  worker_.Stop();
  EXPECT_TRUE(saw_cancel_);
}

TEST_F(ExecuteTest, TheDeadlineEndsTheCallOnBothSides) {
  RunUntilCancelled();
  const auto handle = Execute(/*timeout_seconds=*/0.05);
  EXPECT_EQ(events_->Result().status().code(), StatusCode::kDeadlineExceeded);
  worker_.Stop();
  EXPECT_TRUE(saw_cancel_ || events_->tokens() == 0);
}

TEST_F(ExecuteTest, APausedCallHearsOfItsDeadline) {
  RunUntilCancelled();
  events_->full = true;
  const auto handle = Execute(/*timeout_seconds=*/0.05);
  EXPECT_EQ(events_->Result().status().code(), StatusCode::kDeadlineExceeded);
  worker_.Stop();
  EXPECT_TRUE(saw_cancel_ || events_->tokens() == 0);
}

// Many calls at once, which share a stream.
class SharedStreamTest : public ExecuteTest {
 protected:
  struct Running {
    std::shared_ptr<Collector> events = std::make_shared<Collector>();
    std::shared_ptr<CallHandle> handle = {};
  };
  SharedStreamTest() {
    worker_.Serve();
    connection_ = WorkerConnection::Make(worker_.address);
    spec_.sampling.seed = 9;
    spec_.deadline = RealClock().Now() + kPatience;
  }
  // As many tokens as the request asks for.
  static Status Answer(FakeCall& call, const v1::ExecuteRequest& request) {
    for (uint32_t i = 0; i < request.max_tokens(); ++i) {
      if (!call.Write(TokenEvent(i, static_cast<int32_t>(i)))) return Cancelled("by its caller");
    }
    call.Write(FinishedEvent(request.max_tokens()));
    return Status();
  }
  Running Start(uint32_t tokens, bool fills = false) {
    Running out;
    out.events->fills = fills;
    spec_.max_tokens = tokens;
    out.handle = connection_->Execute(spec_, out.events);
    return out;
  }
};

TEST_F(SharedStreamTest, EachCallGetsItsOwnTokensAndEnd) {
  worker_.SetExecution(Answer);
  std::vector<Running> calls;
  for (uint32_t i = 0; i < 50; ++i) calls.push_back(Start(10 * i));
  for (uint32_t i = 0; i < 50; ++i) {
    const auto result = calls[i].events->Result();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->usage.completion_tokens, 10 * i);
    EXPECT_EQ(calls[i].events->tokens(), 10 * i);
  }
  EXPECT_EQ(worker_.streams, 1);
}

TEST_F(SharedStreamTest, ASlowReaderHoldsNobodyUpAndItsWorkerSendsNoMoreThanItsCredit) {
  constexpr uint32_t kMany = 5000;
  std::atomic<FakeCall*> first = nullptr;
  worker_.SetExecution([&](FakeCall& call, const auto& request) {
    if (first == nullptr) first = &call;
    return Answer(call, request);
  });
  const Running slow = Start(kMany, /*fills=*/true);
  slow.events->WaitForToken();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Start(kMany).events->Result().ok());
  EXPECT_EQ(slow.events->tokens(), 1u);
  EXPECT_LE(first.load()->written(), 1024u);
  slow.events->MakeRoom();
  slow.handle->Resume();
  EXPECT_TRUE(slow.events->Result().ok());
  EXPECT_EQ(slow.events->tokens(), kMany);
}

TEST_F(SharedStreamTest, AWorkerThatSendsMoreThanItsCreditIsWrongAndOtherCallsGoOn) {
  worker_.SetExecution([](FakeCall& call, const auto& request) {
    for (uint32_t i = 0; request.max_tokens() == 1 && i < 2000; ++i) call.WriteAnyway(TokenEvent(i, 0));
    return Answer(call, request);
  });
  const Running wrong = Start(1, /*fills=*/true), right = Start(100);
  EXPECT_EQ(Reason(wrong.events->Result().status()), "worker_protocol") << "also of a reader that is full";
  EXPECT_TRUE(right.events->Result().ok());
}

TEST_F(SharedStreamTest, WhatStillComesOfACancelledCallIsNobodys) {
  std::atomic<bool> is_late = false;
  worker_.SetExecution([&](FakeCall& call, const auto& request) {
    if (request.max_tokens() == 2) return Answer(call, request);
    call.Write(TokenEvent(0, 0));
    while (!call.IsCancelled()) std::this_thread::yield();
    for (uint32_t i = 1; i < 100; ++i) call.WriteAnyway(TokenEvent(i, 0));
    call.WriteAnyway(FinishedEvent(100));
    is_late = true;
    return Status();
  });
  const Running gone = Start(1);
  gone.events->WaitForToken();
  gone.handle->Cancel();
  EXPECT_EQ(gone.events->Result().status().code(), StatusCode::kCancelled);
  while (!is_late) std::this_thread::yield();
  const Running next = Start(2);
  EXPECT_TRUE(next.events->Result().ok());
  EXPECT_EQ(next.events->tokens(), 2u);
  EXPECT_EQ(gone.events->tokens(), 1u);
  EXPECT_EQ(worker_.streams, 1);
}

TEST_F(SharedStreamTest, ABrokenStreamLosesItsCallsOfWhichOneCountsAndTheNextCallHasAnother) {
  worker_.SetExecution([](FakeCall& call, const auto& request) {
    if (request.max_tokens() == 2) return Answer(call, request);
    for (uint32_t i = 0; call.Write(TokenEvent(i, 0)); ++i) std::this_thread::yield();
    return Cancelled("by its caller");
  });
  std::vector<Running> calls;
  for (int i = 0; i < 6; ++i) calls.push_back(Start(1, /*fills=*/i % 2 == 0));
  for (const Running& call : calls) call.events->WaitForToken();
  worker_.BreakStreams();
  for (const Running& call : calls) {
    call.events->MakeRoom();  // who has none hears of it when there is some
    call.handle->Resume();
  }
  int faults = 0;
  for (const Running& call : calls) {
    const Status lost = call.events->Result().status();
    EXPECT_EQ(lost.code(), StatusCode::kCancelled);
    if (!FaultOf(lost).empty()) ++faults;
  }
  EXPECT_EQ(faults, 1);
  EXPECT_TRUE(Start(2).events->Result().ok());
  EXPECT_EQ(worker_.streams, 2);
}

TEST_F(SharedStreamTest, TheFailureOfABrokenStreamIsCountedByTheFirstThatHearsOfIt) {
  worker_.SetExecution([](FakeCall& call, const auto&) {
    for (uint32_t i = 0; call.Write(TokenEvent(i, 0)); ++i) std::this_thread::yield();
    return Cancelled("by its caller");
  });
  std::vector<Running> full;
  for (int i = 0; i < 20; ++i) full.push_back(Start(1, /*fills=*/true));
  const Running first = Start(1);
  for (const Running& call : full) call.events->WaitForToken();
  first.events->WaitForToken();
  worker_.BreakStreams();
  EXPECT_NE(FaultOf(first.events->Result().status()), "") << "the others have not heard of it";
  for (const Running& call : full) {
    call.events->MakeRoom();
    call.handle->Resume();
    EXPECT_EQ(FaultOf(call.events->Result().status()), "");
  }
}

TEST_F(SharedStreamTest, EndsAreToldByOtherThreadsThanTheOneThatReadsForAll) {
  class Threads : public Collector {
   public:
    void OnTokens(std::vector<WorkerToken> more) override {
      of_tokens = std::this_thread::get_id();
      Collector::OnTokens(std::move(more));
    }
    void OnDone(StatusOr<ExecuteResult> result) override {
      of_end = std::this_thread::get_id();
      Collector::OnDone(std::move(result));
    }
    std::thread::id of_tokens, of_end;
  };
  worker_.SetExecution([](FakeCall& call, const auto& request) {
    if (request.max_tokens() == 1) return Answer(call, request);
    call.Write(TokenEvent(0, 0));
    if (request.max_tokens() == 2) return Internal("no more");
    call.Write(TokenEvent(7, 0));  // a gap
    return Status();
  });
  for (const uint32_t tokens : {1, 2, 3}) {
    const auto threads = std::make_shared<Threads>();
    spec_.max_tokens = tokens;
    const auto handle = connection_->Execute(spec_, threads);
    EXPECT_EQ(threads->Result().ok(), tokens == 1);
    EXPECT_NE(threads->of_tokens, std::thread::id());
    EXPECT_NE(threads->of_end, threads->of_tokens);
  }
}

TEST_F(SharedStreamTest, CallsThatEndBeforeTheyAreSentLeaveTheOthersAsTheyAre) {
  worker_.SetExecution(Answer);
  for (int i = 0; i < 200; ++i) {
    const Running gone = Start(1);
    gone.handle->Cancel();
  }
  EXPECT_TRUE(Start(2).events->Result().ok());
  EXPECT_EQ(worker_.streams, 1);
}

TEST_F(SharedStreamTest, AnEarlierDeadlineBehindALaterOneIsKept) {
  worker_.SetExecution([](FakeCall& call, const auto&) {
    EXPECT_LE(call.start().timeout_seconds(), Seconds(kPatience));
    while (!call.IsCancelled()) std::this_thread::yield();
    return Cancelled("by its caller");
  });
  const Running later = Start(1);
  spec_.deadline = RealClock().Now() + std::chrono::milliseconds(30);
  EXPECT_EQ(Start(1).events->Result().status().code(), StatusCode::kDeadlineExceeded);
  later.handle->Cancel();
  EXPECT_EQ(later.events->Result().status().code(), StatusCode::kCancelled);
}

TEST_F(SharedStreamTest, CallsOutliveTheirConnection) {
  std::atomic<bool> is_gone = false;
  worker_.SetExecution([&](FakeCall& call, const auto& request) {
    call.Write(TokenEvent(0, 0));
    while (!is_gone) std::this_thread::yield();
    for (uint32_t i = 1; i < request.max_tokens(); ++i) call.Write(TokenEvent(i, 0));
    call.Write(FinishedEvent(request.max_tokens()));
    return Status();
  });
  const Running call = Start(3000);
  call.events->WaitForToken();
  connection_ = nullptr;
  is_gone = true;
  EXPECT_TRUE(call.events->Result().ok());
  EXPECT_EQ(call.events->tokens(), 3000u);
}

TEST_F(SharedStreamTest, ARequestTooLongForAMessageIsItsOwnError) {
  worker_.SetExecution(Answer);
  spec_.prompt = std::make_shared<const std::vector<TokenId>>(4'000'000, 1 << 30);
  const Status refused = Start(1).events->Result().status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(refused), HasSubstr("limit 15000000"));
  spec_.prompt = std::make_shared<const std::vector<TokenId>>(2, 0);
  EXPECT_TRUE(Start(1).events->Result().ok());
}

TEST_F(SharedStreamTest, TheTraceGoesWithTheCall) {
  worker_.SetExecution([](FakeCall& call, const auto& request) {
    EXPECT_EQ(call.start().traceparent(), "00-1-2-01");
    EXPECT_EQ(call.start().tracestate(), "a=\xff");
    return Answer(call, request);
  });
  spec_.traceparent = "00-1-2-01";
  spec_.tracestate = "a=\xff";
  EXPECT_TRUE(Start(1).events->Result().ok());
}

TEST_F(ExecuteTest, TheWorkersErrorComesWithItsReason) {
  worker_.SetExecution(
      [](FakeCall&, auto&) { return WithReason(ResourceExhausted("inbox \xff full"), "overloaded"); });
  const auto handle = Execute();
  const auto result = events_->Result();
  EXPECT_EQ(result.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(result.status()), "overloaded");
}

}  // namespace
}  // namespace terrace
