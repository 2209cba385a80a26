#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "proto/terrace/v1/worker.grpc.pb.h"
#include "tools/cli/bench_stream.h"
#include "tools/cli/bench_targets.h"
#include "tools/cli/kept_channel.h"
#include "tools/cli/worker_client.h"

namespace terrace {
namespace {

class ExecuteStream : public BenchStream<v1::ExecuteEvent> {
 public:
  using BenchStream::BenchStream;

 private:
  bool OnResponse(const v1::ExecuteEvent& event) override {
    if (event.has_finished()) {
      finished_ = event.finished();
      is_finished_ = true;
    }
    if (!event.has_tokens()) return true;
    if (event.tokens().first_index() != tokens_) has_gap_ = true;
    tokens_ += event.tokens().tokens_size();
    return observer().OnTokens(event.tokens().tokens_size());
  }

  BenchEnd End(const Status& status) override {
    BenchEnd end;
    end.status = status;
    if (!status.ok()) return end;
    if (!is_finished_) {
      end.status = Internal("the worker ended the stream without its last message");
    } else if (has_gap_ || finished_.generated_tokens() != tokens_) {
      end.status = WithReason(Internal("the answer has ", finished_.generated_tokens(), " tokens, ", tokens_,
                                       " came, in order: ", !has_gap_),
                              "tokens_lost");
    }
    end.prompt_tokens = finished_.prompt_tokens();
    end.cached_tokens = finished_.cached_tokens();
    end.queue_seconds = finished_.queue_seconds();
    end.speculated_tokens = finished_.speculated_tokens();
    end.accepted_speculated_tokens = finished_.accepted_speculated_tokens();
    return end;
  }

  uint32_t tokens_ = 0;
  bool has_gap_ = false, is_finished_ = false;
  v1::ExecuteFinished finished_;
};

// SpeculationStats keeps no text of its own.
std::string_view DrafterName(const std::string& name) {
  for (const std::string_view known : {"ngram", "model", "remote"}) {
    if (name == known) return known;
  }
  return "unknown";  // of a newer worker
}

SpeculationStats FromProto(const v1::SpeculationTotals& in) {
  const auto tokens = [](const google::protobuf::RepeatedField<uint64_t>& counts) {
    SpeculationStats::Tokens out{};
    const auto known = std::min<ptrdiff_t>(counts.size(), SpeculationStats::kPositions);
    std::copy_n(counts.begin(), known, out.begin());
    return out;
  };
  return {.drafter = DrafterName(in.drafter()),
          .proposed = tokens(in.proposed()),
          .verified = tokens(in.verified()),
          .accepted = tokens(in.accepted()),
          .branch_proposed = in.branch_proposed(),
          .branch_verified = in.branch_verified(),
          .branch_accepted = in.branch_accepted(),
          .passes = in.passes(),
          .failures = in.failures(),
          .drafting_seconds = in.drafting_seconds(),
          .saved_seconds = in.saved_seconds()};
}

class WorkerTarget : public BenchTarget {
 public:
  WorkerTarget(const std::string& address, const ChannelSecurity& security)
      : address_(address), stub_(v1::Worker::NewStub(MakeKeptChannel(address, security))) {}

  Status Describe() {
    ASSIGN_OR_RETURN(const v1::WorkerDescription worker, DescribeWorker(*stub_, address_));
    instance_ = worker.instance();
    description_.kind = "worker";
    description_.name = address_;
    description_.model = worker.model();
    description_.version = worker.version();
    description_.device = worker.device();
    description_.weight_dtype = worker.weight_dtype();
    description_.kv_dtype = worker.kv_dtype();
    description_.parameters = worker.parameters();
    description_.context_length = worker.context_length();
    description_.max_sequences = worker.max_sequences();
    ASSIGN_OR_RETURN(const TextAssets text, FetchText(*stub_, address_, worker.text_digest()));
    vocabulary_ = TextTokens(*text.tokenizer, worker.vocab_size());
    return Status();
  }

  const TargetDescription& description() const override { return description_; }
  const std::vector<TokenId>& vocabulary() const override { return vocabulary_; }
  // Absent, too, where the worker does not answer or is another one by now: its requests fail for it.
  std::optional<SpeculationStats> Speculation() const override {
    const StatusOr<v1::WorkerDescription> worker = DescribeWorker(*stub_, address_);
    if (!worker.ok() || worker->instance() != instance_ || !worker->has_speculation()) return std::nullopt;
    return FromProto(worker->speculation());
  }

  std::unique_ptr<BenchCall> Start(const BenchRequest& request,
                                   std::shared_ptr<BenchObserver> observer) override {
    v1::ExecuteRequest message;
    message.set_request_id(request.id);
    message.mutable_prompt_tokens()->Assign(request.prompt.begin(), request.prompt.end());
    message.set_max_tokens(request.output_tokens);
    message.set_ignore_eos(true);
    message.mutable_sampling()->set_temperature(request.temperature);
    message.mutable_sampling()->set_seed(request.sampling_seed);
    message.set_priority(request.priority);
    message.set_cache_salt(request.cache_salt);
    message.set_instance(instance_);
    const auto stream = std::make_shared<ExecuteStream>(request, std::move(observer));
    stub_->async()->Execute(&stream->context(), &message, stream.get());  // serializes the request
    return stream->Begin();
  }

 private:
  const std::string address_;
  const std::unique_ptr<v1::Worker::Stub> stub_;
  std::string instance_;
  TargetDescription description_;
  std::vector<TokenId> vocabulary_;
};

}  // namespace

StatusOr<std::unique_ptr<BenchTarget>> OpenWorkerBenchTarget(const std::string& address,
                                                             const ChannelSecurity& security) {
  auto target = std::make_unique<WorkerTarget>(address, security);
  RETURN_IF_ERROR(target->Describe());
  return std::unique_ptr<BenchTarget>(std::move(target));
}

}  // namespace terrace
