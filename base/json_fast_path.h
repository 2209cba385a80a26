// JSON documents that are in order, read several times as fast as by the library: a prompt is a string of
// many kilobytes, and the library looks at its characters one by one. Of every other document, ParseJson
// (json.h) says what is wrong. Pure.
#pragma once

#include <optional>
#include <string_view>

#include "base/json.h"

namespace terrace {

// What the library makes of `text`; nothing when that is an error, not within `limits`, or a rarity (a number
// past what its type holds): ask the library.
std::optional<Json> ReadJsonFast(std::string_view text, const JsonLimits& limits);

}  // namespace terrace
