#include "worker/speculative/ngram_drafter.h"

#include <algorithm>

namespace terrace {
namespace {

// `count` tokens as from `place` on, in circles where the sequence ends.
std::vector<int32_t> GoOnLike(std::span<const int32_t> tokens, size_t place, uint32_t count) {
  std::vector<int32_t> draft;
  while (draft.size() < count) {
    const size_t next = place + draft.size();
    draft.push_back(next < tokens.size() ? tokens[next] : draft[next - tokens.size()]);
  }
  return draft;
}

}  // namespace

StatusOr<Drafts> NgramDrafter::Propose(std::span<const DraftRequest> requests) {
  ++calls_;
  Drafts drafts;
  drafts.tokens.resize(requests.size());
  drafts.branches.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    const DraftRequest& request = requests[i];
    const std::span<const int32_t> tokens = request.tokens;
    Index& index = indexes_[request.id];
    index.last_call = calls_;
    if (!Extend(index, tokens)) continue;
    const size_t place = FindPlace(index, tokens, /*without=*/std::nullopt);
    if (place == 0) continue;
    drafts.tokens[i] = GoOnLike(tokens, place, request.most);
    if (request.most_branch == 0) continue;
    const size_t other = FindPlace(index, tokens, /*without=*/tokens[place]);
    if (other > 0) drafts.branches[i] = GoOnLike(tokens, other, request.most_branch);
  }
  return drafts;
}

void NgramDrafter::Forget(uint64_t id) {
  const auto found = indexes_.find(id);
  if (found == indexes_.end()) return;
  indexed_tokens_ -= found->second.previous.size();
  indexes_.erase(found);
}

uint64_t NgramDrafter::HashBefore(std::span<const int32_t> tokens, size_t end) const {
  uint64_t hash = 0;
  for (size_t i = end - options_.min_match; i < end; ++i) {
    hash = (hash ^ static_cast<uint32_t>(tokens[i])) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return hash;
}

// Others give way until so many tokens more may be indexed; never one of this call's.
bool NgramDrafter::MakeRoom(uint64_t tokens) {
  while (indexed_tokens_ + tokens > options_.max_tokens) {
    const auto oldest =
        std::ranges::min_element(indexes_, {}, [](const auto& entry) { return entry.second.last_call; });
    if (oldest->second.last_call == calls_) return false;
    Forget(oldest->first);
  }
  return true;
}

// All places but the end itself, which nothing follows yet. False without room for them.
bool NgramDrafter::Extend(Index& index, std::span<const int32_t> tokens) {
  if (tokens.size() <= index.previous.size()) return true;
  const size_t more = tokens.size() - index.previous.size();
  if (!MakeRoom(more)) return false;
  indexed_tokens_ += more;
  for (size_t place = index.previous.size(); place < tokens.size(); ++place) {
    uint32_t& previous = index.previous.emplace_back(0);
    if (place < options_.min_match) continue;
    uint32_t& newest = index.newest[HashBefore(tokens, place)];
    previous = newest;
    newest = static_cast<uint32_t>(place);
  }
  return true;
}

// The place to go on like, of those that another token than `without` follows, or 0.
size_t NgramDrafter::FindPlace(const Index& index, std::span<const int32_t> tokens,
                               std::optional<int32_t> without) const {
  if (tokens.size() < options_.min_match) return 0;
  const auto newest = index.newest.find(HashBefore(tokens, tokens.size()));
  if (newest == index.newest.end()) return 0;
  size_t best = 0, longest = 0;
  uint32_t place = newest->second;
  for (uint32_t tried = 0; place > 0 && tried < options_.candidates && longest < options_.max_match;
       ++tried, place = index.previous[place]) {
    if (tokens[place] == without) continue;
    const size_t common = CommonBefore(tokens, place);
    if (common < options_.min_match || common <= longest)
      continue;  // another one of the same hash, or no better
    best = place;
    longest = common;
  }
  return best;
}

// So many tokens before `place` are those at the end, up to max_match.
size_t NgramDrafter::CommonBefore(std::span<const int32_t> tokens, size_t place) const {
  const size_t most = std::min<size_t>(place, std::max(options_.max_match, options_.min_match));
  size_t common = 0;
  while (common < most && tokens[place - 1 - common] == tokens[tokens.size() - 1 - common]) ++common;
  return common;
}

}  // namespace terrace
