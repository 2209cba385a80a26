// Where two of four elements lie, in three bits: what shuffles the two to their places among four.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace terrace {

struct PairPlaces {
  uint32_t first, second;
};
inline constexpr PairPlaces kPairPlaces[] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

constexpr uint32_t CodeOfPlaces(uint32_t first, uint32_t second) {  // first < second
  uint32_t code = 0;
  while (kPairPlaces[code].first != first || kPairPlaces[code].second != second) ++code;
  return code;
}

// For elements 2 half and 2 half + 1 of four, as bytes of a 32-bit lane: which bytes of a lane with the two
// elements they are, 0x80 for a zero. Entry i + 8 is entry i, for instructions that look at four bits.
constexpr std::array<uint32_t, 16> SpreadControls(uint32_t half) {
  std::array<uint32_t, 16> out{};
  for (uint32_t i = 0; i < 16; ++i) {
    const PairPlaces places = kPairPlaces[i % 8 < 6 ? i % 8 : 0];
    for (uint32_t k = 0; k < 2; ++k) {
      const uint32_t place = 2 * half + k;
      const uint32_t bytes = place == places.first ? 0x0100 : place == places.second ? 0x0302 : 0x8080;
      out[i] |= bytes << (16 * k);
    }
  }
  return out;
}
inline constexpr std::array<uint32_t, 16> kSpreadControls[2] = {SpreadControls(0), SpreadControls(1)};

// For four bytes of which a lane has two, as its bytes 2 half and 2 half + 1 (those of two fours share a
// lane).
constexpr std::array<uint32_t, 16> SpreadCodeControls(uint32_t half) {
  std::array<uint32_t, 16> out{};
  for (uint32_t i = 0; i < 16; ++i) {
    const PairPlaces places = kPairPlaces[i % 8 < 6 ? i % 8 : 0];
    for (uint32_t place = 0; place < 4; ++place) {
      const uint32_t byte = place == places.first ? 2 * half : place == places.second ? 2 * half + 1 : 0x80;
      out[i] |= byte << (8 * place);
    }
  }
  return out;
}
inline constexpr std::array<uint32_t, 16> kSpreadCodeControls[2] = {SpreadCodeControls(0),
                                                                    SpreadCodeControls(1)};

// Where each lane begins in its 16 bytes, for each of its bytes.
inline constexpr std::array<uint32_t, 16> kLaneStarts = [] {
  std::array<uint32_t, 16> out{};
  for (uint32_t lane = 0; lane < 16; ++lane) out[lane] = 0x04040404u * (lane % 4);
  return out;
}();

}  // namespace terrace
