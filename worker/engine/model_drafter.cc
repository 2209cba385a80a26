#include "worker/engine/model_drafter.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {

// Nats: a token that is less likely than the drafted one by more is no branch. It would be right less than
// once for seven times that the draft is.
constexpr float kMostMargin = 2;

}  // namespace

ModelDrafter::ModelDrafter(const Options& options, std::unique_ptr<Executor> executor)
    : options_(options),
      executor_(std::move(executor)),
      blocks_({.blocks = options.blocks, .block_tokens = options.block_tokens, .keeps_prefixes = false}) {}

// How many of the computed tokens are the sequence's, now that it has `tokens`. The last one of those is
// always computed again: its logits are wanted.
uint32_t ModelDrafter::OwnTokens(const Sequence& sequence, std::span<const int32_t> tokens) {
  const size_t most = std::min(sequence.tokens.size(), tokens.size() - 1);
  size_t own = std::min<size_t>(sequence.right, most);
  while (own < most && sequence.tokens[own] == tokens[own]) ++own;
  return static_cast<uint32_t>(own);
}

std::optional<uint32_t> ModelDrafter::MissingTokens(const DraftRequest& request) const {
  if (request.tokens.size() > limit()) return std::nullopt;
  const auto found = sequences_.find(request.id);
  const uint32_t own = found == sequences_.end() ? 0 : OwnTokens(found->second, request.tokens);
  return static_cast<uint32_t>(request.tokens.size()) - own;
}

StatusOr<Drafts> ModelDrafter::Propose(std::span<const DraftRequest> requests) {
  ++calls_;
  Drafts drafts;
  drafts.tokens.resize(requests.size());
  drafts.branches.resize(requests.size());
  std::vector<Work> works = Begin(requests, drafts);
  bool tell_costs = true;
  while (std::ranges::any_of(works, [](const Work& work) { return work.chunk > 0; })) {
    ASSIGN_OR_RETURN(const bool tells_costs, RunPass(works, drafts));
    tell_costs = tell_costs && tells_costs;
  }
  if (!tell_costs) drafts.passes.clear();
  CHECK(blocks_.free() + blocks_.held() == blocks_.total());
  return drafts;
}

// Rolls back what was not accepted, and plans the first pass: who has least to catch up on comes first.
std::vector<ModelDrafter::Work> ModelDrafter::Begin(std::span<const DraftRequest> requests, Drafts& drafts) {
  std::vector<Work> works;
  for (size_t i = 0; i < requests.size(); ++i) {
    const DraftRequest& request = requests[i];
    Sequence& sequence = sequences_[request.id];
    sequence.last_call = calls_;
    sequence.right = OwnTokens(sequence, request.tokens);
    sequence.tokens.resize(sequence.right);
    works.push_back({.request = &request,
                     .sequence = &sequence,
                     .draft = &drafts.tokens[i],
                     .branch = &drafts.branches[i]});
  }
  const auto missing = [](const Work& work) {
    return work.request->tokens.size() - work.sequence->tokens.size();
  };
  std::ranges::sort(works, {}, missing);
  uint32_t budget = std::max(options_.max_pass_tokens, 2 * static_cast<uint32_t>(requests.size()));
  for (Work& work : works) {
    if (PlanFirstPass(work, budget)) budget -= work.chunk;
  }
  return works;
}

// False where nothing is to be computed: the context or the pool ends, or there is no budget, or there are no
// blocks.
bool ModelDrafter::PlanFirstPass(Work& work, uint32_t budget) {
  const auto known = static_cast<uint32_t>(work.request->tokens.size());
  const auto computed = static_cast<uint32_t>(work.sequence->tokens.size());
  const uint32_t chunk = known > limit() ? 0 : std::min(known - computed, budget);
  if (chunk == 0) return false;
  // A draft's last token is not computed.
  const auto most = static_cast<uint32_t>(std::min<size_t>(work.request->most, limit() - known + 1));
  if (!TakeBlocks(*work.sequence, known + std::max(most, 1u) - 1)) {
    StartAnew(*work.sequence);
    return false;
  }
  work.chunk = chunk;
  work.most = chunk == known - computed ? most : 0;
  if (work.most > 0 && HasPenalties(*work.request->sampling)) work.counts = *work.request->counts;
  return true;
}

// Blocks for so many tokens, no more and no less. Others of this call keep theirs.
bool ModelDrafter::TakeBlocks(Sequence& sequence, size_t tokens) {
  const size_t blocks = BlocksFor(tokens, options_.block_tokens);
  while (sequence.blocks.size() > blocks) {
    blocks_.Release(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  while (blocks - sequence.blocks.size() > blocks_.available()) {
    const auto oldest =
        std::ranges::min_element(sequences_, {}, [](const auto& entry) { return entry.second.last_call; });
    if (oldest->second.last_call == calls_) return false;
    Release(oldest->first);
  }
  CHECK(blocks_.Allocate(blocks - sequence.blocks.size(), sequence.blocks).ok());
  return true;
}

void ModelDrafter::StartAnew(Sequence& sequence) {
  blocks_.Release(sequence.blocks);
  sequence.tokens.clear();
  sequence.right = 0;
}

// All that take part compute their next tokens, behind those that are there. Whether what it took is what
// passes like it take.
StatusOr<bool> ModelDrafter::RunPass(std::span<Work> works, Drafts& drafts) {
  StepPlan plan;
  std::vector<Work*> parts;
  uint32_t computed = 0;
  for (Work& work : works) {
    if (work.chunk == 0) continue;
    std::vector<int32_t>& tokens = work.sequence->tokens;
    const std::span<const int32_t> known = work.request->tokens;
    const size_t first = tokens.size();
    if (work.draft->empty()) {
      const auto next = known.subspan(first, work.chunk);
      tokens.insert(tokens.end(), next.begin(), next.end());
      work.sequence->right = static_cast<uint32_t>(tokens.size());
    } else {
      tokens.push_back(work.draft->back());
    }
    const bool counts_draft = HasPenalties(*work.request->sampling);
    const std::span<const int32_t> all(tokens);
    PlannedSequence part;
    part.id = work.request->id;
    part.context = all.first(first);
    part.tokens = all.subspan(first);
    part.first_position = static_cast<uint32_t>(first);
    part.blocks = work.sequence->blocks;
    part.is_decode = work.chunk == 1;
    part.sample = work.most > 0;
    part.sampling = work.request->sampling;
    part.counts = counts_draft ? &work.counts : work.request->counts;
    part.sample_index = work.request->generated() + work.draft->size();
    if (part.sample && work.draft->empty() && work.request->most_branch > 0) part.top_logprobs = 2;
    plan.sequences.push_back(part);
    parts.push_back(&work);
    computed += work.chunk;
  }
  const StepResult result = executor_->Run(plan);
  RETURN_IF_ERROR(result.device_error);
  drafts.passes.push_back(computed);
  for (size_t i = 0; i < parts.size(); ++i) TakeToken(*parts[i], result.outputs[i]);
  return !result.is_first_of_its_kind;
}

// A sequence whose logits are wrong is none to draft for: it starts anew when it is asked for again.
void ModelDrafter::TakeToken(Work& work, const SequenceOutput& output) {
  work.chunk = 0;
  if (!output.error.ok()) return StartAnew(*work.sequence);
  if (output.tokens.empty()) return;
  const int32_t token = output.tokens[0].token;
  if (work.draft->empty() && work.request->most_branch > 0) TakeBranch(output.tokens[0], *work.branch);
  work.draft->push_back(token);
  if (HasPenalties(*work.request->sampling)) work.counts.AddGenerated(token);
  work.chunk = work.draft->size() < work.most ? 1 : 0;
}

void ModelDrafter::TakeBranch(const SampledToken& first, std::vector<int32_t>& branch) {
  const auto other = std::ranges::find_if(
      first.top, [&](const TokenLogprob& likely) { return likely.token != first.token; });
  if (other != first.top.end() && first.logprob - other->logprob <= kMostMargin)
    branch.push_back(other->token);
}

void ModelDrafter::Forget(uint64_t id) { Release(id); }

void ModelDrafter::Release(uint64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  blocks_.Release(found->second.blocks);
  sequences_.erase(found);
}

}  // namespace terrace
