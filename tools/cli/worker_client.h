// One worker, asked without a router in front. Calls wait for their answers.
#pragma once

#include <string>

#include "base/status.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "text/text_assets.h"

namespace terrace {

// `address` is for errors: UNAVAILABLE where no worker answers there.
StatusOr<v1::WorkerDescription> DescribeWorker(v1::Worker::Stub& worker, const std::string& address);
// Its tokenizer and chat template. DATA_LOSS for what is none, or too long.
StatusOr<TextAssets> FetchText(v1::Worker::Stub& worker, const std::string& address,
                               const std::string& digest);

}  // namespace terrace
