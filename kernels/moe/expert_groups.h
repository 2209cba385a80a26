// Which rows an expert multiplies: the pairs of a token and a slot, brought together by expert so that each
// expert's matrix meets all of its tokens at once, however many they are (Gale et al., "MegaBlocks", 2022: no
// token is dropped and none is padded to a capacity).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace terrace {

// A pair is token * per_token + slot. Expert e has places [begin[e], begin[e + 1]), in rising order of pairs.
struct ExpertGroups {
  std::vector<uint32_t> begin;   // [experts + 1]
  std::vector<uint32_t> pairs;   // [pairs]: of each place
  std::vector<uint32_t> places;  // [pairs]: of each pair

  size_t experts() const { return begin.size() - 1; }
  size_t TokensOf(size_t expert) const { return begin[expert + 1] - begin[expert]; }
};

// A stable counting sort of `chosen` [tokens, per_token], experts below `experts`; uses the memory that
// `groups` has.
void GroupPairs(std::span<const uint32_t> chosen, size_t experts, ExpertGroups& groups);

}  // namespace terrace
