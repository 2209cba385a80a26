// What one tier answered, for the next one to verify: what the next one would have said anyway comes sooner.
// Values; pure.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "router/cluster/cluster_view.h"
#include "text/text_assets.h"
#include "text/tokenizer.h"

namespace terrace {

struct Draft {
  std::vector<TokenId> tokens = {};
  std::shared_ptr<const TextAssets> text = {};  // that they are of
  std::string text_digest = {};
};

// In the tokens of `tier`, whose text is known: the same ones where the tokenizer is, else those of their
// text. It ends before what the tier's model has no token for.
std::vector<TokenId> EncodeDraft(const Draft& draft, const TierView& tier);

}  // namespace terrace
