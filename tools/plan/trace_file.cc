#include "tools/plan/trace_file.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/json.h"
#include "base/strict_fields.h"
#include "tools/bench/length_distribution.h"

namespace terrace {
namespace {

constexpr uint32_t kMostTokens = LengthDistribution::kMaxLength;
constexpr double kMostSeconds = 1e10;  // from any moment: 300 years

Status CheckTokens(std::string_view key, uint32_t tokens) {
  if (tokens >= 1 && tokens <= kMostTokens) return {};
  return InvalidArgument(key, " is ", tokens, ", not in [1, ", kMostTokens, "]");
}

StatusOr<TracedRequest> ParseRequest(std::string_view line) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  StrictFields fields(json, "");
  TracedRequest request;
  request.arrival_seconds = fields.Number("arrival");
  request.prompt_tokens = fields.SmallCount("prompt_tokens");
  request.output_tokens = fields.SmallCount("output_tokens");
  const bool has_prefix = json.is_object() && json.contains("prefix");
  if (has_prefix) {
    request.prefix = fields.Text("prefix");
    request.prefix_tokens = fields.SmallCount("prefix_tokens");
  }
  RETURN_IF_ERROR(fields.Finish());
  RETURN_IF_ERROR(CheckTokens("prompt_tokens", request.prompt_tokens));
  RETURN_IF_ERROR(CheckTokens("output_tokens", request.output_tokens));
  if (!(request.arrival_seconds >= -kMostSeconds && request.arrival_seconds <= kMostSeconds))
    return InvalidArgument("arrival is ", request.arrival_seconds, ", not in [-", kMostSeconds, ", ",
                           kMostSeconds, "]");
  if (has_prefix && (request.prefix_tokens == 0 || request.prefix_tokens >= request.prompt_tokens))
    return InvalidArgument("prefix_tokens is ", request.prefix_tokens, ", not in [1, ",
                           request.prompt_tokens - 1, "] as of a prompt of ", request.prompt_tokens);
  return request;
}

class Trace {
 public:
  Status Add(TracedRequest request) {
    if (requests_.size() == kMostTracedRequests)
      return InvalidArgument("more than ", kMostTracedRequests, " requests");
    if (requests_.empty()) first_arrival_ = request.arrival_seconds;
    request.arrival_seconds -= first_arrival_;
    if (!requests_.empty() && request.arrival_seconds < requests_.back().arrival_seconds)
      return InvalidArgument("arrives ", requests_.back().arrival_seconds - request.arrival_seconds,
                             " s before the request above it");
    if (request.prefix_tokens > 0) {
      const auto [same, is_new] = prefixes_.emplace(request.prefix, request.prefix_tokens);
      if (!is_new && same->second != request.prefix_tokens)
        return InvalidArgument("the prefix \"", request.prefix, "\" has ", request.prefix_tokens,
                               " tokens, and ", same->second, " above");
    }
    requests_.push_back(std::move(request));
    return {};
  }

  std::vector<TracedRequest> Finish() { return std::move(requests_); }

 private:
  double first_arrival_ = 0;
  std::vector<TracedRequest> requests_;
  std::map<std::string, uint32_t> prefixes_;  // tokens by name
};

}  // namespace

StatusOr<std::vector<TracedRequest>> ParseTrace(std::string_view text, const std::string& file) {
  Trace trace;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto request = ParseRequest(line);
    const Status added = request.ok() ? trace.Add(*std::move(request)) : request.status();
    if (!added.ok()) return DataLoss(file, ":", number, ": ", Message(added));
  }
  std::vector<TracedRequest> requests = trace.Finish();
  if (requests.empty()) return DataLoss(file, ": no request");
  return requests;
}

}  // namespace terrace
