// What `terrace bench` can measure. Targets are opened on the main thread, and outlive neither the requests
// they started nor the process: gRPC calls keep themselves alive, a model in this process stops its engine.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "text/text_assets.h"
#include "tools/bench/bench_target.h"
#include "tools/cli/kept_channel.h"
#include "worker/engine/open_engine.h"

namespace terrace {

// A router's Inference service. `model`: a served name, "" the router's default. UNAVAILABLE when nobody
// answers.
StatusOr<std::unique_ptr<BenchTarget>> OpenRouterBenchTarget(const std::string& address,
                                                             const std::string& model,
                                                             const ChannelSecurity& security = {});

// One worker, without a router in front.
StatusOr<std::unique_ptr<BenchTarget>> OpenWorkerBenchTarget(const std::string& address,
                                                             const ChannelSecurity& security = {});

// An engine in this process.
StatusOr<std::unique_ptr<BenchTarget>> OpenLocalBenchTarget(const OpenEngineOptions& options);

// The ids that stand for text: no control tokens, nothing past the vocabulary of the model.
std::vector<TokenId> TextTokens(const Tokenizer& tokenizer, size_t model_vocabulary);

}  // namespace terrace
