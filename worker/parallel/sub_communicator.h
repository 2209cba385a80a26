// Neighbouring ranks of a group as a group of their own: what they say goes over the connections of the whole
// group. The ranks of one stage of a pipeline add up their parts of a layer so.
#pragma once

#include <cstdint>
#include <memory>

#include "worker/parallel/communicator.h"

namespace terrace {

// The `ranks` ranks of `group` from `first` on, of which this one is one; numbered from 0. It borrows
// `group`, whose thread makes the calls of both, and has its timeout. An error of either ends this rank in
// both, and names ranks as `group` numbers them.
std::unique_ptr<Communicator> MakeSubCommunicator(Communicator& group, uint32_t first, uint32_t ranks);

}  // namespace terrace
