#include "tools/cli/status.h"

#include "base/http_server.h"
#include "base/json.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {

constexpr double kTimeoutSeconds = 5;
constexpr double kRefreshSeconds = 1;
constexpr char kClearScreen[] = "\x1b[H\x1b[2J";

StatusOr<Json> Fetch(const std::string& router_ops) {
  const StatusOr<std::string> body = HttpGet(router_ops + "/statusz", kTimeoutSeconds);
  if (!body.ok()) {
    return Unavailable("no router's ops port answers at ", router_ops,
                       " (--router-ops): ", Message(body.status()));
  }
  const StatusOr<Json> json = ParseJson(*body);
  if (!json.ok()) return DataLoss(router_ops, "/statusz: ", Message(json.status()));
  return json;
}

// Nothing in the router's answer needs to be guessed at: a field that is absent shows as "-".
std::string Cell(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return "-";
  return found->is_string() ? found->get<std::string>() : found->dump();
}

// Of a group of ranks their number too, of a pipeline of them also its degrees.
std::string DeviceCell(const Json& replica) {
  const size_t ranks = replica.value("rank_bytes", Json::array()).size();
  const std::string device = Cell(replica, "device");
  if (ranks == 0) return device;
  if (replica.value("pipeline_parallel", 1u) <= 1)  // 0: of a worker that does not tell
    return Concat(device, ", ", ranks, " ranks");
  return Concat(device, ", ", ranks, " ranks (TP ", Cell(replica, "tensor_parallel"), " x PP ",
                Cell(replica, "pipeline_parallel"), ")");
}

std::string Uptime(double seconds) {
  const auto whole = static_cast<uint64_t>(seconds);
  if (whole < 60) return Concat(whole, " s");
  if (whole < 3600) return Concat(whole / 60, " min ", whole % 60, " s");
  return Concat(whole / 3600, " h ", whole / 60 % 60, " min");
}

// What a replica's own drafts come to; "" where nobody drafts.
std::string DraftsLine(const Json& replica) {
  const std::string drafter = replica.value("drafter", "");
  if (drafter.empty()) return "";
  const auto verified = replica.at("speculated_tokens").get<uint64_t>(),
             accepted = replica.at("accepted_speculated_tokens").get<uint64_t>();
  const double percent =
      verified == 0 ? 0 : 100 * static_cast<double>(accepted) / static_cast<double>(verified);
  return Concat("drafts: ", Cell(replica, "address"), ": ", drafter, ", ",
                verified == 0
                    ? "none verified yet"
                    : Concat(FormatFixed(percent, 0), "% of ", FormatCount(verified, "token"), " accepted"),
                "\n");
}

// A tier's price as it is configured, without a double's last digits.
std::string Price(const Json& tier, const char* key) {
  const auto found = tier.find(key);
  return found == tier.end() ? "-" : Concat(found->get<double>());
}

Status Show(const StatusOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const Json statusz, Fetch(options.router_ops));
  if (options.json) {
    context.out << statusz.dump() << "\n" << std::flush;
    return Status();
  }
  ASSIGN_OR_RETURN(const std::string text, FormatStatus(statusz, context));
  context.out << text << std::flush;
  return Status();
}

}  // namespace

StatusOr<std::string> FormatStatus(const Json& statusz, const CommandContext& context) {
  try {
    std::string out = Concat(context.Bold("terrace " + Cell(statusz, "version")), ", up ",
                             Uptime(statusz.at("uptime_seconds").get<double>()), ", ",
                             FormatCount(statusz.at("in_flight").get<uint64_t>(), "request"), " in flight\n");
    std::vector<std::vector<std::string>> rows = {{"tier", "replica", "state", "model", "device",
                                                   "$/M prompt", "$/M answer", "running", "waiting",
                                                   "KV free", "KV cached"}};
    std::string drafts;
    std::vector<std::string> errors;
    for (const Json& tier : statusz.at("tiers")) {
      for (const Json& replica : tier.at("replicas")) {
        const std::string free_blocks = Cell(replica, "free_blocks"),
                          total_blocks = Cell(replica, "total_blocks");
        rows.push_back({Cell(tier, "name"), Cell(replica, "address"), Cell(replica, "state"),
                        Cell(replica, "model"), DeviceCell(replica),
                        Price(tier, "usd_per_million_prompt_tokens"),
                        Price(tier, "usd_per_million_completion_tokens"), Cell(replica, "running"),
                        Cell(replica, "waiting"), Concat(free_blocks, "/", total_blocks),
                        Cell(replica, "cached_blocks")});
        drafts += DraftsLine(replica);
        const std::string error = Cell(replica, "last_error");
        if (error != "-" && !error.empty()) errors.push_back(Concat(Cell(replica, "address"), ": ", error));
      }
      if (tier.at("replicas").empty()) rows.push_back({Cell(tier, "name"), "(none)"});
    }
    out += FormatTable(rows, 5) + drafts;
    for (const std::string& error : errors) out += context.Red(error) + "\n";
    return out;
  } catch (const Json::exception& error) {
    return DataLoss("unexpected /statusz: ", error.what());
  }
}

Status RunStatus(const StatusOptions& options, const CommandContext& context) {
  const bool is_live = options.refresh == StatusOptions::Refresh::kAlways ||
                       (options.refresh == StatusOptions::Refresh::kOnTerminal && context.is_out_terminal);
  if (!is_live) return Show(options, context);
  do {
    if (context.is_out_terminal && !options.json) context.out << kClearScreen;
    RETURN_IF_ERROR(Show(options, context));
  } while (context.shutdown.WaitFor(kRefreshSeconds) == 0);
  return Status();
}

}  // namespace terrace
