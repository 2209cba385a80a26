// The worker's configuration, checked and with its defaults filled in: the only reader of WorkerConfig. Pure,
// but for CheckFiles.
#pragma once

#include <string>

#include "base/log.h"
#include "base/status.h"
#include "proto/terrace/v1/config.pb.h"
#include "worker/server/worker_server.h"

namespace terrace {

// What Kubernetes tells a process of a group; "" for what is not told.
struct GroupEnvironment {
  std::string leader_address = {}, group_size = {}, worker_index = {};  // LWS_LEADER_ADDRESS and its like
  std::string host_name = {};
};
// Fills in what config.group.environment says. FAILED_PRECONDITION "group.environment: ..." where something
// is missing or malformed, or is set too.
Status ApplyGroupEnvironment(const GroupEnvironment& environment, v1::WorkerConfig& config);

struct WorkerOptions {
  WorkerServerOptions server;
  LogOptions log;
};

// INVALID_ARGUMENT without a model; FAILED_PRECONDITION "engine.inbox: ..." for the first value that cannot
// be used.
StatusOr<WorkerOptions> MakeWorkerOptions(const v1::WorkerConfig& config);

// Whether the files that the options name are there, certificates can be used, a group or virtual shards suit
// the model, and so does a draft model with its pool; other models are not read. NOT_FOUND; errors of
// OpenWeights, OpenText, PlanShard, CheckDraftModel and LoadTls.
Status CheckFiles(const WorkerServerOptions& options);

}  // namespace terrace
