#include "tools/quality/lookup_probe.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/rng.h"

namespace terrace {
namespace {

constexpr std::array<const char*, 16> kCities = {"Bergen", "Cork",   "Ghent",  "Graz",   "Krakow", "Leeds",
                                                 "Lyon",   "Malaga", "Odense", "Porto",  "Reno",   "Riga",
                                                 "Tartu",  "Turin",  "Varna",  "Vilnius"};
constexpr uint64_t kOrders = 900'000, kFirstOrder = 100'000;  // order numbers of six digits
constexpr size_t kMostFacts = 1 << 16;

// One prompt's facts: order i is in a city. Numbers are walked through by a step that meets each once.
class Facts {
 public:
  Facts(uint64_t seed, uint64_t prompt) : seed_(seed), prompt_(prompt), begin_(RandomBits(seed, prompt)) {}

  uint64_t order(size_t i) const {
    constexpr uint64_t kStep = 620'923;  // has no divisor in common with kOrders
    return kFirstOrder + (begin_ % kOrders + i * kStep) % kOrders;
  }
  const char* city(size_t i) const {
    return kCities[RandomBits(seed_, i, /*stream=*/prompt_ + 1) % kCities.size()];
  }

 private:
  const uint64_t seed_, prompt_, begin_;
};

// Fact 0 is asked for; it stands behind `before` of the others.
std::string PromptText(const Facts& facts, size_t others, size_t before) {
  const auto fact = [&](size_t i) {
    return Concat(" You find order ", facts.order(i), " in ", facts.city(i), ".");
  };
  std::string text = "Desk notes:";
  for (size_t i = 0; i <= others; ++i) {
    if (i == before) text += fact(0);
    if (i < others) text += fact(i + 1);
  }
  return text + Concat("\nAsked: In which city is order ", facts.order(0), "?");
}

// The most other facts with which a prompt has at most `tokens`.
StatusOr<size_t> MostFacts(const Facts& facts, size_t tokens, const CountTokens& count) {
  const auto fits = [&](size_t others) -> StatusOr<bool> {
    ASSIGN_OR_RETURN(const size_t has, count(PromptText(facts, others, 0)));
    return has <= tokens;
  };
  ASSIGN_OR_RETURN(const bool holds_one, fits(0));
  if (!holds_one) return InvalidArgument("a prompt of ", tokens, " tokens holds no fact and its question");
  size_t good = 0, bad = 1;
  for (; bad < kMostFacts; bad *= 2) {
    ASSIGN_OR_RETURN(const bool is_good, fits(bad));
    if (!is_good) break;
    good = bad;
  }
  while (bad - good > 1) {
    const size_t middle = good + (bad - good) / 2;
    ASSIGN_OR_RETURN(const bool is_good, fits(middle));
    (is_good ? good : bad) = middle;
  }
  return good;
}

}  // namespace

StatusOr<std::vector<ProbePrompt>> MakeLookupProbe(const ProbeOptions& options, const CountTokens& count) {
  std::vector<ProbePrompt> out;
  for (uint32_t quarters = 1; quarters <= kProbeLengths; ++quarters) {
    const size_t tokens = size_t{options.longest} * quarters / kProbeLengths;
    for (uint32_t depth = 0; depth < kProbeDepths; ++depth) {
      for (uint32_t repeat = 0; repeat < options.repeats; ++repeat) {
        const Facts facts(options.seed, out.size());
        ASSIGN_OR_RETURN(const size_t others, MostFacts(facts, tokens, count));
        const double share = static_cast<double>(depth) / (kProbeDepths - 1);
        const auto before = static_cast<size_t>(std::lround(share * static_cast<double>(others)));
        out.push_back({.quarters = quarters,
                       .depth = depth,
                       .prompt = PromptText(facts, others, before),
                       .expected = facts.city(0)});
      }
    }
  }
  return out;
}

}  // namespace terrace
