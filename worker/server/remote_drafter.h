// Drafts of another worker's model, over gRPC (terrace.v1.Drafts). The engine never waits for them: a call
// sends what is new of the sequences, and takes what has come. The other worker drafts ahead of what it
// knows, so that the drafts of the next step come while this one runs. They hold as long as the answer goes
// on like them; when it does not, or leaves them behind, drafting begins anew behind the newest token (an
// attempt). What comes late is used from where it fits.
//
// Without a stream there are no drafts; it is opened again after a while. Owned by the Engine's Speculation,
// whose loop thread calls it; what comes is brought by gRPC's threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "grpcpp/alarm.h"
#include "grpcpp/channel.h"
#include "proto/terrace/v1/drafts.grpc.pb.h"
#include "worker/server/worker_metrics.h"
#include "worker/speculative/drafter.h"

namespace terrace {

class RemoteDrafter : public Drafter {
 public:
  struct Options {
    std::shared_ptr<grpc::Channel> channel = {};
    std::string address = "";           // for the log
    std::string tokenizer_digest = "";  // of the model that is drafted for (TokenizerDigest)
    uint32_t vocab_size = 0;
    // From the end of a stream to the next one, doubling; the longest at once where the two do not fit.
    Duration first_wait = std::chrono::milliseconds(250), longest_wait = std::chrono::seconds(30);
  };

  // `metrics` outlives the drafter.
  RemoteDrafter(Options options, WorkerMetrics& metrics);
  ~RemoteDrafter();  // not on a thread of gRPC's: waits for the end of the stream, which it cancels

  std::string_view name() const override { return "remote"; }
  bool is_cheap() const override { return true; }  // to this worker: what it costs is the call itself
  // 0, or none without a stream and for a sequence that the other worker has no room for.
  std::optional<uint32_t> MissingTokens(const DraftRequest& request) const override;
  uint32_t max_pass_tokens() const override { return 1; }
  StatusOr<Drafts> Propose(std::span<const DraftRequest> requests) override;
  void Forget(uint64_t id) override;

  RemoteDrafterState state() const;  // any thread

 private:
  class Call;
  struct Sequence {
    size_t sent = 0;       // of its tokens
    uint32_t attempt = 0;  // the current one
    bool is_told = false;  // the attempt was sent
    bool is_over = false;  // nothing more will come
    // Of the attempt: what has come and is not known yet, from position `begin` on.
    bool has_draft = false;
    uint64_t begin = 0;
    std::vector<int32_t> draft;
    uint64_t offered = 0;  // up to here (a position) it was counted as offered
    // At the last call: tokens of the sequence, and of those behind the draft's end.
    uint64_t known = 0, behind = 0;
  };

  // All with mutex_ held.
  bool is_connected() const { return call_ != nullptr && state_ == RemoteDrafterState::kConnected; }
  void SetState(RemoteDrafterState state);
  void Connect();
  void ConnectIn(Duration wait);
  static void Follow(Sequence& sequence, std::span<const int32_t> tokens, RemoteTokens& counted);
  static std::vector<int32_t> Offer(Sequence& sequence, const DraftRequest& request, RemoteTokens& counted);
  static size_t Add(Sequence& sequence, const v1::Draft& draft);
  void AddNews(std::span<const DraftRequest> requests);
  void Write();

  // Of the call, on gRPC's threads.
  void OnResponse(const v1::ProposeResponse& response);
  void OnWritten();
  void OnStreamOver();
  void OnDone(const Status& end);
  void OnAlarm();

  const Options options_;
  WorkerMetrics& metrics_;
  const std::unique_ptr<v1::Drafts::Stub> stub_;

  mutable std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  RemoteDrafterState state_ = RemoteDrafterState::kConnecting;
  Call* call_ = nullptr;  // gRPC's; null once its stream is over
  bool is_writing_ = false;
  std::unordered_map<uint64_t, Sequence> sequences_;  // that were asked for, of this stream
  std::vector<uint64_t> ended_;                       // of those that were sent: still to be told
  Duration wait_;
  std::optional<StatusCode> last_end_;  // of a stream, since one was accepted: what was logged
  std::unique_ptr<grpc::Alarm> alarm_;
  bool has_call_ = false, is_armed_ = false, is_stopped_ = false;
  std::condition_variable idle_;
};

}  // namespace terrace
