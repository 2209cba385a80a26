// A whole group in one process: a thread for each rank.
#pragma once

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace terrace {

// Runs `run` as every rank at once; returns when all have ended.
inline void OnEachRank(uint32_t ranks, const std::function<void(uint32_t rank)>& run) {
  std::vector<std::jthread> threads;
  for (uint32_t rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank);
}

}  // namespace terrace
