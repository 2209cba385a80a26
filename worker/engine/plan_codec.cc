#include "worker/engine/plan_codec.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {

template <typename... Text>
Status Malformed(const Text&... text) {
  return DataLoss("the leader's plan is malformed: ", text...);
}

// What is left of a message.
class Words {
 public:
  explicit Words(std::span<const int32_t> words) : left_(words) {}

  size_t left() const { return left_.size(); }
  StatusOr<uint32_t> Take() {
    ASSIGN_OR_RETURN(const std::span<const int32_t> word, Take(1));
    return static_cast<uint32_t>(word[0]);
  }
  StatusOr<std::span<const int32_t>> Take(size_t count) {
    if (count > left_.size()) return Malformed(count, " words wanted, ", left_.size(), " left");
    const std::span<const int32_t> taken = left_.first(count);
    left_ = left_.subspan(count);
    return taken;
  }

 private:
  std::span<const int32_t> left_;
};

// In place of a block whose positions nothing looks at any more.
constexpr BlockId kDropped = -1;

bool IsBlock(BlockId id, uint32_t blocks) { return id >= 0 && static_cast<uint32_t>(id) < blocks; }

// As KvPool wants them.
Status CheckTransfer(const BlockTransfer& transfer, const PlanLimits& limits) {
  using Kind = BlockTransfer::Kind;
  const auto [kind, from, to, rows] = transfer;
  const bool are_blocks = IsBlock(from, kind == Kind::kFromHost ? limits.host_blocks : limits.blocks) &&
                          IsBlock(to, kind == Kind::kToHost ? limits.host_blocks : limits.blocks);
  const bool can_copy = kind != Kind::kCopyRows || (from != to && rows <= limits.block_tokens);
  if (are_blocks && can_copy) return Status();
  return Malformed("transfer of kind ", static_cast<uint32_t>(kind), " from block ", from, " to ", to, ", ",
                   rows, " rows");
}

// As the model wants them. `fresh`: of its blocks, those that were not looked at before.
Status CheckPart(const PlannedSequence& part, std::span<const BlockId> fresh, const PlanLimits& limits) {
  for (const int32_t token : part.tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= limits.vocab_size) return Malformed("token ", token);
  }
  const uint64_t first = part.first_position, end = first + part.tokens.size();
  if (end > limits.context_length) return Malformed("position ", end, " of ", limits.context_length);
  if (part.blocks.size() < BlocksFor(end, limits.block_tokens))
    return Malformed(part.blocks.size(), " blocks for ", end, " positions");
  for (const BlockId block : fresh) {
    if (block != kDropped && !IsBlock(block, limits.blocks)) return Malformed("block ", block);
  }
  const auto written = part.blocks.subspan(first / limits.block_tokens);
  if (std::ranges::find(written, kDropped) != written.end())
    return Malformed("a dropped block at position ", first, " or behind");
  return Status();
}

StatusOr<BlockTransfer> ReadTransfer(Words& words, const PlanLimits& limits) {
  ASSIGN_OR_RETURN(const std::span<const int32_t> fields, words.Take(4));
  constexpr auto kLast = static_cast<int32_t>(BlockTransfer::Kind::kFromHost);
  if (fields[0] < 0 || fields[0] > kLast) return Malformed("transfer of kind ", fields[0]);
  const BlockTransfer transfer{.kind = static_cast<BlockTransfer::Kind>(fields[0]),
                               .from = fields[1],
                               .to = fields[2],
                               .rows = static_cast<uint32_t>(fields[3])};
  RETURN_IF_ERROR(CheckTransfer(transfer, limits));
  return transfer;
}

// Moves the part's table of `before`, if there is one, to `tables`. The second: it was not there already.
std::pair<BlockTable*, bool> MoveTable(const PlannedSequence& part, PlanTables& before, PlanTables& tables) {
  const std::pair key(part.id, part.is_branch);
  auto node = before.extract(key);
  const auto [place, is_new] =
      tables.try_emplace(key, node.empty() ? BlockTable() : std::move(node.mapped()));
  return {&place->second, is_new};
}

StatusOr<PlannedSequence> ReadPart(Words& words, const PlanLimits& limits, PlanTables& before,
                                   PlanTables& tables) {
  ASSIGN_OR_RETURN(const uint32_t low, words.Take());
  ASSIGN_OR_RETURN(const uint32_t high, words.Take());
  PlannedSequence part{.id = uint64_t{high} << 32 | low};
  ASSIGN_OR_RETURN(const uint32_t is_branch, words.Take());
  if (is_branch > 1) return Malformed("a branch of kind ", is_branch);
  part.is_branch = is_branch == 1;
  ASSIGN_OR_RETURN(part.first_position, words.Take());
  ASSIGN_OR_RETURN(const uint32_t logits, words.Take());
  ASSIGN_OR_RETURN(const uint32_t kept, words.Take());
  ASSIGN_OR_RETURN(const uint32_t tokens, words.Take());
  ASSIGN_OR_RETURN(const uint32_t fresh, words.Take());
  ASSIGN_OR_RETURN(part.tokens, words.Take(tokens));
  ASSIGN_OR_RETURN(const std::span<const int32_t> blocks, words.Take(fresh));
  const auto [table, is_new] = MoveTable(part, before, tables);
  if (!is_new) return Malformed("sequence ", part.id, " twice");
  if (kept > table->size()) return Malformed(kept, " blocks kept of ", table->size());
  if (logits > tokens) return Malformed(logits, " logits of ", tokens, " tokens");
  table->resize(kept);
  table->insert(table->end(), blocks.begin(), blocks.end());
  part.blocks = *table;
  RETURN_IF_ERROR(CheckPart(part, blocks, limits));
  part.sample = logits > 0;  // as WantedLogits has it
  part.proposed = logits > 0 ? logits - 1 : 0;
  return part;
}

}  // namespace

std::span<const int32_t> PlanWriter::Write(const StepPlan& plan) {
  words_.clear();
  Put(plan.transfers.size());
  for (const BlockTransfer& transfer : plan.transfers) {
    Put(static_cast<uint64_t>(transfer.kind));
    words_.push_back(transfer.from);
    words_.push_back(transfer.to);
    Put(transfer.rows);
  }
  Put(plan.sequences.size());
  PlanTables before = std::exchange(tables_, {});
  for (const PlannedSequence& part : plan.sequences) {
    const auto [table, is_new] = MoveTable(part, before, tables_);
    CHECK(is_new, "sequence ", part.id, " twice in a step");
    WritePart(part, *table);
  }
  return words_;
}

// `table`: what the readers have of it.
void PlanWriter::WritePart(const PlannedSequence& part, BlockTable& table) {
  const auto same = std::ranges::mismatch(table, part.blocks);
  const auto kept = static_cast<size_t>(same.in1 - table.begin());
  Put(part.id);
  Put(part.id >> 32);
  Put(part.is_branch ? 1 : 0);
  Put(part.first_position);
  Put(WantedLogits(part));
  Put(kept);
  Put(part.tokens.size());
  Put(part.blocks.size() - kept);
  words_.insert(words_.end(), part.tokens.begin(), part.tokens.end());
  words_.insert(words_.end(), same.in2, part.blocks.end());
  table.resize(kept);
  table.insert(table.end(), same.in2, part.blocks.end());
}

StatusOr<StepPlan> PlanReader::Read(std::span<const int32_t> message) {
  Words words(message);
  StepPlan plan;
  ASSIGN_OR_RETURN(const uint32_t transfers, words.Take());
  for (uint32_t i = 0; i < transfers; ++i) {
    ASSIGN_OR_RETURN(const BlockTransfer transfer, ReadTransfer(words, limits_));
    plan.transfers.push_back(transfer);
  }
  ASSIGN_OR_RETURN(const uint32_t sequences, words.Take());
  PlanTables before = std::exchange(tables_, {});
  for (uint32_t i = 0; i < sequences; ++i) {
    ASSIGN_OR_RETURN(PlannedSequence part, ReadPart(words, limits_, before, tables_));
    plan.sequences.push_back(part);
  }
  if (words.left() > 0) return Malformed(words.left(), " words too many");
  return plan;
}

}  // namespace terrace
