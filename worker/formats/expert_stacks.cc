#include "worker/formats/expert_stacks.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include "worker/formats/byte_reader.h"
#include "worker/formats/model_config.h"

namespace terrace {
namespace {

constexpr std::string_view kWeight = ".weight", kStack = "_exps.weight";
constexpr size_t kMostSplit = 262'144;  // six times what the largest published models have
constexpr std::string_view kKinds[] = {"ffn_gate", "ffn_up", "ffn_down"};

// What is before `end`, if it is there.
std::optional<std::string_view> Before(std::string_view text, std::string_view end) {
  if (!text.ends_with(end)) return std::nullopt;
  return text.substr(0, text.size() - end.size());
}

// "blk.3.ffn_up" of "blk.3.ffn_up_exps.weight".
std::optional<std::string_view> BaseOfStack(std::string_view name) {
  const auto base = Before(name, kStack);
  const auto ends = [&](std::string_view kind) { return base->ends_with(Concat(".", kind)); };
  return base && base->starts_with("blk.") && std::ranges::any_of(kKinds, ends) ? base : std::nullopt;
}

template <typename... Text>
Status Error(std::string_view reason, const WeightSource::Entry& stack, const Text&... message) {
  return Malformed(reason, "tensor \"", stack.name, "\": ", message..., " (data at byte ", stack.offset, ")");
}

Status Split(const WeightSource::Entry& stack, std::string_view base,
             std::vector<WeightSource::Entry>& entries) {
  const Shape& shape = stack.tensor.shape;
  if (shape.rank != 3) return Error("bad_shape", stack, "is of ", shape.rank, " dimensions, not of 3");
  if (shape[0] < 1 || shape[0] > kMaxExperts)
    return Error("bad_shape", stack, shape[0], " experts are not in 1 to ", kMaxExperts);
  if (entries.size() + shape[0] > kMostSplit)
    return Error("count_limit", stack, "tensors and experts up to it are more than ", kMostSplit);
  const uint64_t bytes = stack.tensor.bytes / shape[0];  // rows are whole blocks
  for (uint64_t expert = 0; expert < shape[0]; ++expert) {
    WeightSource::Entry matrix = stack;
    matrix.name = Concat(base, ".", expert, kWeight);
    matrix.tensor.shape = {shape[1], shape[2]};
    matrix.tensor.data += expert * bytes;
    matrix.tensor.bytes = bytes;
    matrix.offset += expert * bytes;
    entries.push_back(std::move(matrix));
  }
  return Status();
}

}  // namespace

Status SplitStacks(std::vector<WeightSource::Entry>& entries) {
  std::vector<WeightSource::Entry> split;
  bool has_stacks = false;
  for (WeightSource::Entry& entry : entries) {
    const auto base = BaseOfStack(entry.name);
    has_stacks = has_stacks || base.has_value();
    if (base) {
      RETURN_IF_ERROR(Split(entry, *base, split));
    } else {
      split.push_back(std::move(entry));
    }
  }
  entries = std::move(split);
  if (!has_stacks) return Status();
  std::set<std::string_view> names;
  for (const WeightSource::Entry& entry : entries) {
    if (!names.insert(entry.name).second)
      return Error("bad_name", entry, "is there by itself, and in ", StackOf(entry.name));
  }
  return Status();
}

std::string StackOf(std::string_view name) {
  const auto with_expert = Before(name, kWeight);
  if (!with_expert) return "";
  const size_t dot = with_expert->rfind('.');
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (dot == std::string_view::npos || !std::ranges::all_of(with_expert->substr(dot + 1), is_digit))
    return "";
  const std::string stack = Concat(with_expert->substr(0, dot), kStack);
  return dot + 1 < with_expert->size() && BaseOfStack(stack) ? stack : "";
}

}  // namespace terrace
