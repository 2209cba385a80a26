// The worker's configuration, checked and with its defaults filled in: the only reader of WorkerConfig. Pure,
// but for CheckFiles.
#pragma once

#include "base/log.h"
#include "base/status.h"
#include "proto/terrace/v1/config.pb.h"
#include "worker/server/worker_server.h"

namespace terrace {

struct WorkerOptions {
  WorkerServerOptions server;
  LogOptions log;
};

// INVALID_ARGUMENT without a model; FAILED_PRECONDITION "engine.inbox: ..." for the first value that cannot
// be used.
StatusOr<WorkerOptions> MakeWorkerOptions(const v1::WorkerConfig& config);

// Whether the files that the options name are there, and certificates can be used. Models are not read.
// NOT_FOUND; errors of LoadTls.
Status CheckFiles(const WorkerServerOptions& options);

}  // namespace terrace
