// A rank of a group that does not lead it: opens its part of a model, then runs the leader's steps on it.
// Made and run by one thread.
#pragma once

#include <functional>
#include <memory>

#include "base/status.h"
#include "worker/engine/loaded_model.h"
#include "worker/engine/open_engine.h"

namespace terrace {

class Follower {
 public:
  // For options.group.rank > 0. Errors of OpenEngine.
  static StatusOr<std::unique_ptr<Follower>> Open(const OpenEngineOptions& options);

  // As FollowLeader (worker/engine/group_executor.h). Called once.
  Status Run(const std::function<bool()>& is_stopped);

  const ModelFiles& files() const { return *files_; }
  const LoadedModel& loaded() const { return loaded_; }

 private:
  Follower(std::unique_ptr<ModelFiles> files, LoadedModel loaded)
      : files_(std::move(files)), loaded_(std::move(loaded)) {}

  const std::unique_ptr<ModelFiles> files_;
  const LoadedModel loaded_;
};

}  // namespace terrace
