#include "worker/engine/follower.h"

#include <utility>

#include "worker/engine/group_executor.h"

namespace terrace {

StatusOr<std::unique_ptr<Follower>> Follower::Open(const OpenEngineOptions& options) {
  RETURN_IF_ERROR(ValidateOpenEngineOptions(options));
  CHECK(options.group.rank > 0, "rank 0 leads");
  ASSIGN_OR_RETURN(ModelFiles opened, OpenModel(options.model, OpenModelOptionsOf(options)));
  auto files = std::make_unique<ModelFiles>(std::move(opened));
  ASSIGN_OR_RETURN(LoadedModel loaded, LoadModel(*files, /*draft=*/nullptr, options));
  RETURN_IF_ERROR(loaded.group->AwaitAll());
  return std::unique_ptr<Follower>(new Follower(std::move(files), std::move(loaded)));
}

Status Follower::Run(const std::function<bool()>& is_stopped) {
  const KvShape& kv = loaded_.kv_shape;
  const PlanLimits limits{.blocks = kv.blocks,
                          .host_blocks = kv.host_blocks,
                          .block_tokens = kv.block_tokens,
                          .context_length = files_->config.context_length,
                          .vocab_size = files_->config.vocab_size};
  return FollowLeader(loaded_.group->communicator(), *loaded_.executor, limits, is_stopped);
}

}  // namespace terrace
