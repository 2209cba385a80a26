#include "worker/speculative/best_trees.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace terrace {
namespace {

// What is worth less for a token of the step is not verified.
constexpr double kLeastWorth = 0.02;
// More tokens a second than chains give have to be expected: what is measured is not exact.
constexpr double kLeastGain = 1.02;

// Tokens of a guess that go together.
struct Piece {
  double worth = 0;      // tokens of the answer
  double rank = 0;       // the larger ones go first
  uint32_t cost = 1;     // tokens of the step
  uint32_t tokens = 1;   // of the guess
  uint32_t index = 0;    // of the first of them in the guess
  size_t candidate = 0;  // its number
  bool is_branch = false;
};

void AddChain(size_t number, const DraftCandidate& candidate, double rate, uint32_t most,
              std::vector<Piece>& pieces) {
  const uint32_t length = std::min(candidate.most, most);
  double worth = rate;
  for (uint32_t index = 0; index < length && worth >= kLeastWorth; ++index, worth *= rate)
    pieces.push_back({.worth = worth, .rank = worth, .index = index, .candidate = number});
}

// Its first tokens go together, as only several make up for the one that is computed again: so many that they
// are worth most for a token of the step. Then none behind them is worth more than they are.
void AddBranch(size_t number, const DraftCandidate& candidate, double rate, double first,
               std::vector<Piece>& pieces) {
  Piece best{.candidate = number, .is_branch = true};
  double sum = 0, worth = first;
  for (uint32_t tokens = 1; tokens <= candidate.most_branch; ++tokens, worth *= rate) {
    sum += worth;
    const double rank = sum / (tokens + 1);
    if (rank <= best.rank) break;
    best.worth = sum;
    best.rank = rank;
    best.cost = tokens + 1;
    best.tokens = tokens;
  }
  if (best.rank < kLeastWorth) return;
  for (uint32_t index = best.tokens; index < candidate.most_branch && worth >= kLeastWorth;
       ++index, worth *= rate) {
    pieces.push_back({.worth = worth, .rank = worth, .index = index, .candidate = number, .is_branch = true});
  }
  best.rank = std::min(best.rank, rate);  // the draft's first token goes before
  pieces.push_back(best);
}

std::vector<Piece> Pieces(const DraftableStep& step, std::span<const DraftCandidate> candidates) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const DraftCandidate& candidate = candidates[i];
    if (candidate.most == 0) continue;
    const double rate = candidate.acceptance->Rate(step.prior);
    if (rate < kLeastWorth) continue;
    AddChain(i, candidate, rate, step.max_tokens, pieces);
    if (candidate.most_branch == 0) continue;
    AddBranch(i, candidate, rate, candidate.branch->Rate(step.branch_prior), pieces);
  }
  std::ranges::sort(pieces, [](const Piece& a, const Piece& b) {
    return std::tuple(-a.rank, a.is_branch, a.index, a.candidate) <
           std::tuple(-b.rank, b.is_branch, b.index, b.candidate);
  });
  return pieces;
}

// Tokens a second of a step that verifies so many, worth so much.
double Rate(const DraftableStep& step, double worth, uint32_t tokens) {
  return (step.load.decodes + worth) / (step.seconds() + step.costs->ExtraSeconds(step.load, tokens));
}

double ChainRate(const DraftableStep& step, std::span<const DraftCandidate> candidates,
                 std::span<const uint32_t> chains) {
  double worth = 0;
  uint32_t tokens = 0;
  for (size_t i = 0; i < chains.size(); ++i) {
    if (chains[i] == 0) continue;
    const double rate = candidates[i].acceptance->Rate(step.prior);
    double right = rate;
    for (uint32_t index = 0; index < chains[i]; ++index, right *= rate) worth += right;
    tokens += chains[i];
  }
  return Rate(step, worth, tokens);
}

}  // namespace

DraftLengths BestTrees(const DraftableStep& step, std::span<const DraftCandidate> candidates,
                       std::vector<uint32_t> chains) {
  DraftLengths out{.chains = std::move(chains), .branches = std::vector<uint32_t>(candidates.size(), 0)};
  const auto is_taken = [](uint32_t length) { return length > 0; };
  const auto has_branch = [](const DraftCandidate& candidate) { return candidate.most_branch > 0; };
  if (std::ranges::none_of(out.chains, is_taken) || std::ranges::none_of(candidates, has_branch)) return out;
  const std::vector<Piece> pieces = Pieces(step, candidates);
  double worth = 0, best = kLeastGain * ChainRate(step, candidates, out.chains);
  uint32_t tokens = 0;
  size_t taken = 0;
  for (size_t i = 0; i < pieces.size() && tokens + pieces[i].cost <= step.room; ++i) {
    worth += pieces[i].worth;
    tokens += pieces[i].cost;
    const double rate = Rate(step, worth, tokens);
    if (rate <= best) continue;
    best = rate;
    taken = i + 1;
  }
  const auto trees = std::span(pieces).first(taken);
  if (std::ranges::none_of(trees, &Piece::is_branch)) return out;
  out.chains.assign(candidates.size(), 0);
  for (const Piece& piece : trees)
    (piece.is_branch ? out.branches : out.chains)[piece.candidate] += piece.tokens;
  return out;
}

}  // namespace terrace
