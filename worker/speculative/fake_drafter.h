// A Drafter that knows the answers and is right as often as it is told, for tests and benchmarks. One thread.
#pragma once

#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "worker/speculative/drafter.h"

namespace terrace {

class FakeDrafter : public Drafter {
 public:
  struct Options {
    // The token at `index` of the sequence's answer.
    std::function<int32_t(const DraftRequest&, uint32_t index)> answer;
    std::function<double(const DraftRequest&)> right = nullptr;  // each token's chance; absent: 1
    // The chance that a branch is right where its draft's first token is wrong; absent: there are none.
    std::function<double(const DraftRequest&)> branch_right = nullptr;
    uint32_t vocab_size = 1000;
    bool is_cheap = true;
    uint32_t calls_before_error = std::numeric_limits<uint32_t>::max();
    std::function<bool(const DraftRequest&)> cannot_draft = nullptr;
    std::function<void(std::span<const DraftRequest>)> on_propose = nullptr;
    std::function<void(uint64_t id)> on_forget = nullptr;
  };

  explicit FakeDrafter(Options options) : options_(std::move(options)) {}

  std::string_view name() const override { return "fake"; }
  bool is_cheap() const override { return options_.is_cheap; }
  std::optional<uint32_t> MissingTokens(const DraftRequest& request) const override {
    if (options_.cannot_draft && options_.cannot_draft(request)) return std::nullopt;
    return options_.is_cheap ? 0 : 1;
  }
  uint32_t max_pass_tokens() const override { return 1; }

  StatusOr<Drafts> Propose(std::span<const DraftRequest> requests) override {
    if (calls_++ >= options_.calls_before_error) return Internal("the drafter is broken");
    if (options_.on_propose) options_.on_propose(requests);
    Drafts drafts;
    for (const DraftRequest& request : requests) {
      std::vector<int32_t>& draft = drafts.tokens.emplace_back();
      const double right = options_.right ? options_.right(request) : 1;
      for (uint32_t index = request.generated(); draft.size() < request.most; ++index) {
        const int32_t token = options_.answer(request, index);
        const bool is_right = RandomUniform(request.sampling->seed, index, kStream) < right;
        draft.push_back(is_right ? token : Other(token, 1));
      }
      if (options_.branch_right) drafts.branches.push_back(Branch(request, draft));
    }
    return drafts;
  }

  void Forget(uint64_t id) override {
    if (options_.on_forget) options_.on_forget(id);
  }

 private:
  static constexpr uint64_t kStream = 77, kBranchStream = 78;  // not that of the answers' draws

  int32_t Other(int32_t token, int32_t by) const {
    return (token + by) % static_cast<int32_t>(options_.vocab_size);
  }

  // Right to its end, or from its first token on not.
  std::vector<int32_t> Branch(const DraftRequest& request, const std::vector<int32_t>& draft) const {
    std::vector<int32_t> branch;
    const uint32_t first = request.generated();
    if (draft.empty()) return branch;
    const bool is_right =
        draft[0] != options_.answer(request, first) &&
        RandomUniform(request.sampling->seed, first, kBranchStream) < options_.branch_right(request);
    while (branch.size() < request.most_branch) {
      const int32_t token = options_.answer(request, first + static_cast<uint32_t>(branch.size()));
      branch.push_back(is_right ? token : Other(token, 2));
    }
    return branch;
  }

  const Options options_;
  uint32_t calls_ = 0;
};

}  // namespace terrace
