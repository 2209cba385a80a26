#include <chrono>
#include <set>
#include <utility>

#include "base/rng.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "tools/cli/bench_stream.h"
#include "tools/cli/bench_targets.h"
#include "tools/cli/kept_channel.h"
#include "tools/cli/router_client.h"

namespace terrace {
namespace {

constexpr std::chrono::seconds kTimeout(10);
constexpr uint64_t kSampleWords = 4000;

class GenerateStream : public BenchStream<v1::GenerateResponse> {
 public:
  using BenchStream::BenchStream;

 private:
  bool OnResponse(const v1::GenerateResponse& response) override {
    tokens_ += response.tokens_size();
    if (response.has_finished()) {
      finished_ = response.finished();
      is_finished_ = true;
    }
    return response.tokens_size() == 0 || observer().OnTokens(response.tokens_size());
  }

  BenchEnd End(const Status& status) override {
    BenchEnd end;
    end.status = status;
    if (!status.ok()) return end;
    const v1::Usage& usage = finished_.usage();
    if (!is_finished_) {
      end.status = Internal("the router ended the stream without its last message");
    } else if (usage.completion_tokens() != tokens_) {
      end.status =
          WithReason(Internal("the answer has ", usage.completion_tokens(), " tokens, ", tokens_, " came"),
                     "tokens_lost");
    }
    end.prompt_tokens = usage.prompt_tokens();
    end.cached_tokens = usage.cached_tokens();
    end.speculated_tokens = usage.speculated_tokens();
    end.accepted_speculated_tokens = usage.accepted_speculated_tokens();
    return end;
  }

  uint32_t tokens_ = 0;
  bool is_finished_ = false;
  v1::GenerateFinished finished_;
};

// Many different tokens, whatever the tokenizer: words of random letters, and every printable character.
std::string SampleText() {
  std::string text;
  for (char c = '!'; c <= '~'; ++c) text += {c, ' '};
  for (uint64_t word = 0; word < kSampleWords; ++word) {
    const uint64_t bits = RandomBits(/*seed=*/0, word);
    for (uint64_t i = 0; i < 2 + bits % 5; ++i) text += static_cast<char>('a' + (bits >> (8 + 8 * i)) % 26);
    text += ' ';
  }
  return text;
}

class RouterTarget : public BenchTarget {
 public:
  RouterTarget(const std::string& address, const std::string& model, const ChannelSecurity& security)
      : authorization_(security.authorization),
        stub_(v1::Inference::NewStub(MakeKeptChannel(address, security))) {
    description_.kind = "router";
    description_.name = address;
    description_.model = model;
  }

  Status Describe() {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    AddAuthorization(authorization_, context);
    v1::ListModelsResponse response;
    const grpc::Status called = stub_->ListModels(&context, {}, &response);
    const Status status = FromGrpcStatus(called, context);
    if (!status.ok()) return NoneAnswers("router", description_.name, status);
    for (const v1::Model& model : response.models()) {
      if (model.id() != description_.model) continue;
      description_.context_length = model.context_length();
      description_.parameters = model.parameters();
    }
    std::set<TokenId> ids;
    RETURN_IF_ERROR(Tokenize(SampleText(), [&](TokenId id) { ids.insert(id); }));
    RETURN_IF_ERROR(Tokenize(" ", [&](TokenId id) { ids.erase(id); }));  // what every prompt begins with
    vocabulary_.assign(ids.begin(), ids.end());
    return Status();
  }

  const TargetDescription& description() const override { return description_; }
  const std::vector<TokenId>& vocabulary() const override { return vocabulary_; }

  std::unique_ptr<BenchCall> Start(const BenchRequest& request,
                                   std::shared_ptr<BenchObserver> observer) override {
    v1::GenerateRequest message;
    message.set_model(description_.model);
    message.mutable_prompt_tokens()->mutable_ids()->Assign(request.prompt.begin(), request.prompt.end());
    message.set_max_tokens(request.output_tokens);
    message.set_ignore_eos(true);
    message.mutable_sampling()->set_temperature(request.temperature);
    message.mutable_sampling()->set_seed(request.sampling_seed);
    message.set_request_id(request.id);
    message.set_priority(request.priority);
    message.set_cache_salt(request.cache_salt);
    const auto stream = std::make_shared<GenerateStream>(request, std::move(observer));
    AddAuthorization(authorization_, stream->context());
    stub_->async()->Generate(&stream->context(), &message, stream.get());  // serializes the request
    return stream->Begin();
  }

 private:
  template <typename OnId>
  Status Tokenize(const std::string& text, OnId on_id) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    AddAuthorization(authorization_, context);
    v1::TokenizeRequest request;
    request.set_model(description_.model);
    request.set_prompt(text);
    v1::TokenizeResponse response;
    const grpc::Status called = stub_->Tokenize(&context, request, &response);
    for (const TokenId id : response.ids()) on_id(id);
    return FromGrpcStatus(called, context);
  }

  const std::string authorization_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  TargetDescription description_;
  std::vector<TokenId> vocabulary_;
};

}  // namespace

StatusOr<std::unique_ptr<BenchTarget>> OpenRouterBenchTarget(const std::string& address,
                                                             const std::string& model,
                                                             const ChannelSecurity& security) {
  auto target = std::make_unique<RouterTarget>(address, model, security);
  RETURN_IF_ERROR(target->Describe());
  return std::unique_ptr<BenchTarget>(std::move(target));
}

}  // namespace terrace
