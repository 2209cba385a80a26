// Ranks of a group as threads of one process, connected over TCP.
#pragma once

#include <barrier>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "worker/parallel/gloo_communicator.h"

namespace terrace {

// Runs `run` as every rank at once; returns when all have ended.
inline void OnEachRank(uint32_t ranks, const std::function<void(uint32_t rank)>& run) {
  std::vector<std::jthread> threads;
  for (uint32_t rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank);
}

inline std::vector<std::unique_ptr<Communicator>> GlooGroup(uint32_t ranks, Duration timeout) {
  std::vector<std::string> told(ranks);
  std::barrier all_told(ranks);
  std::vector<std::unique_ptr<Communicator>> group(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    auto made = ConnectGloo({.rank = rank, .ranks = ranks, .timeout = timeout},
                            [&](const std::string& mine) -> StatusOr<std::vector<std::string>> {
                              told[rank] = mine;
                              all_told.arrive_and_wait();
                              return told;
                            });
    CHECK(made.ok(), Message(made.status()));
    group[rank] = *std::move(made);
  });
  return group;
}

}  // namespace terrace
