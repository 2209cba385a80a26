// What reports say of drafts, for people.
#pragma once

#include <string>

#include "tools/bench/speculation_figures.h"

namespace terrace {

// One line without its end: "drafts: 1,234 tokens verified, 812 accepted (65.8%)", and of an engine that
// tells it the tokens that its drafter proposed, acceptance by place, tokens a pass and time saved. "":
// nothing was drafted, or it is not known.
std::string DescribeSpeculation(const SpeculationFigures& figures);

}  // namespace terrace
