#include "router/request/trace_context.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "base/crypto.h"

namespace terrace {
namespace {

constexpr size_t kHeaderBytes = 55;  // "00-" 32 "-" 16 "-" 2
constexpr size_t kMaxStateBytes = 512, kMaxStateMembers = 32, kMaxStateKeyBytes = 256;

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

std::string_view WithoutBlanks(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") + 1 - begin);
}

// "key=value"; empty ones are allowed.
bool IsStateMember(std::string_view member) {
  if (member.empty()) return true;
  const auto is_of_key = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
           std::string_view("_-*/@").find(c) != std::string_view::npos;
  };
  const auto is_of_value = [](char c) { return c >= ' ' && c <= '~' && c != '='; };
  const size_t equals = member.find('=');
  if (equals == 0 || equals == std::string_view::npos || equals > kMaxStateKeyBytes) return false;
  const std::string_view value = member.substr(equals + 1);
  return std::ranges::all_of(member.substr(0, equals), is_of_key) && !value.empty() &&
         std::ranges::all_of(value, is_of_value);
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

std::string ParseTraceState(std::string_view header) {
  if (header.size() > kMaxStateBytes) return "";
  size_t members = 0;
  std::string out;  // of the members alone: between them there may be tabs, which gRPC's metadata cannot have
  for (std::string_view rest = header; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view member = WithoutBlanks(rest.substr(0, comma));
    if (!IsStateMember(member) || ++members > kMaxStateMembers) return "";
    if (!out.empty() && !member.empty()) out += ',';
    out += member;
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return out;
}

TraceContext ContinueTrace(std::string_view parent, std::string_view state,
                           const std::array<uint8_t, 24>& random) {
  TraceContext out;
  if (auto parsed = ParseTraceParent(parent); parsed.has_value()) {
    out = *std::move(parsed);
    out.state = ParseTraceState(state);
  } else {
    std::copy_n(random.begin() + 8, out.trace_id.size(), out.trace_id.begin());
    out.trace_id.back() |= IsZero(out.trace_id);
  }
  std::copy_n(random.begin(), out.span_id.size(), out.span_id.begin());
  out.span_id.back() |= IsZero(out.span_id);
  return out;
}

}  // namespace terrace
