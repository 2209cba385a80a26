// Hidden states of tests: in their folder, of values that are at hand.
#pragma once

#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tools/optimize/hidden_states.h"

namespace terrace {

inline HiddenStates StatesOf(const std::vector<float>& values, size_t width) {
  auto states = HiddenStates::Create(testing::TempDir(), values.size() / width, width);
  CHECK(states.ok(), Message(states.status()));
  const Status written = states->Write(0, values);
  CHECK(written.ok(), Message(written));
  return *std::move(states);
}

inline std::vector<float> ValuesOf(const HiddenStates& states) {
  std::vector<float> values(states.tokens() * states.width());
  const Status read = states.Read(0, values);
  CHECK(read.ok(), Message(read));
  return values;
}

}  // namespace terrace
