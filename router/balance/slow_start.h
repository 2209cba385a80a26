// A choice while some of the candidates start slowly: a new replica, or one that failed, gets its share of
// requests little by little. Pure.
#pragma once

#include <cstddef>
#include <span>

#include "router/balance/balancer.h"

namespace terrace {

// Like balancer.Pick, with a weight in (0, 1] for each candidate; what counts is its ratio to the greatest
// one, so equal weights change nothing. A candidate of the ratio w is left out of 1 - w of the picks: what an
// idle tier would give it. In the others it takes part while it has fewer than its share of all sequences, w
// to 1: what a policy that looks for the least loaded would not stop at. One sequence it may always have. A
// ratio of nearly 1 is 1.
size_t PickBySlowStart(const Balancer& balancer, const Arrival& arrival,
                       std::span<const Candidate> candidates, std::span<const float> weights);

}  // namespace terrace
