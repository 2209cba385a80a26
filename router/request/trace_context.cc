#include "router/request/trace_context.h"

#include <algorithm>
#include <cstddef>
#include <span>

#include "base/crypto.h"

namespace terrace {
namespace {

constexpr size_t kHeaderBytes = 55;  // "00-" 32 "-" 16 "-" 2

// Lower-case digits alone.
bool ParseHex(std::string_view hex, std::span<uint8_t> out) {
  const auto value = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < out.size(); ++i) {
    const int high = value(hex[2 * i]), low = value(hex[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    out[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

std::string Hex(std::span<const uint8_t> bytes) {
  return ToHex({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

bool IsZero(std::span<const uint8_t> bytes) {
  return std::ranges::all_of(bytes, [](uint8_t byte) { return byte == 0; });
}

}  // namespace

std::string TraceContext::TraceIdHex() const { return Hex(trace_id); }
std::string TraceContext::SpanIdHex() const { return Hex(span_id); }
std::string TraceContext::Header() const {
  return "00-" + TraceIdHex() + "-" + SpanIdHex() + "-" + Hex({&flags, 1});
}

std::optional<TraceContext> ParseTraceParent(std::string_view header) {
  if (header.size() < kHeaderBytes) return {};
  uint8_t version = 0;
  TraceContext out;
  const bool is_hex =
      ParseHex(header.substr(0, 2), {&version, 1}) && ParseHex(header.substr(3, 32), out.trace_id) &&
      ParseHex(header.substr(36, 16), out.span_id) && ParseHex(header.substr(53, 2), {&out.flags, 1});
  const bool is_split = header[2] == '-' && header[35] == '-' && header[52] == '-';
  if (!is_hex || !is_split || version == 0xff) return {};
  if (header.size() > kHeaderBytes && (version == 0 || header[kHeaderBytes] != '-')) return {};
  if (IsZero(out.trace_id) || IsZero(out.span_id)) return {};
  out.flags &= 1;  // version 00 knows no other
  return out;
}

TraceContext ContinueTrace(std::string_view parent, const std::array<uint8_t, 24>& random) {
  TraceContext out;
  if (const auto parsed = ParseTraceParent(parent); parsed.has_value()) {
    out = *parsed;
  } else {
    std::copy_n(random.begin() + 8, out.trace_id.size(), out.trace_id.begin());
    out.trace_id.back() |= IsZero(out.trace_id);
  }
  std::copy_n(random.begin(), out.span_id.size(), out.span_id.begin());
  out.span_id.back() |= IsZero(out.span_id);
  return out;
}

}  // namespace terrace
