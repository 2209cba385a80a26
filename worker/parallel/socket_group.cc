#include "worker/parallel/socket_group.h"

#include <barrier>
#include <string>

#include "worker/parallel/on_each_rank.h"

namespace terrace {

StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeSocketGroup(uint32_t ranks, Duration timeout,
                                                                     Transport transport) {
  std::vector<std::string> told(ranks);
  std::vector<Status> errors(ranks);
  std::vector<std::unique_ptr<Communicator>> group(ranks);
  std::barrier all_told(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    bool has_told = false;
    auto made = Connect(transport, {.rank = rank, .ranks = ranks, .timeout = timeout},
                        [&](const std::string& mine) -> StatusOr<std::vector<std::string>> {
                          told[rank] = mine;
                          has_told = true;
                          all_told.arrive_and_wait();
                          return told;
                        });
    if (!has_told) all_told.arrive_and_drop();  // the others find its place empty, instead of waiting for it
    errors[rank] = made.status();
    if (made.ok()) group[rank] = *std::move(made);
  });
  for (const Status& error : errors) RETURN_IF_ERROR(error);
  return group;
}

}  // namespace terrace
