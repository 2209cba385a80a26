#include "worker/server/options.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include "base/host_port.h"
#include "base/tls.h"
#include "worker/engine/max_ranks.h"

namespace terrace {
namespace {

template <typename... Text>
Status Bad(std::string_view path, const Text&... text) {
  return FailedPrecondition(path, ": ", text...);
}

Status CheckAddress(std::string_view path, const std::string& address) {
  const auto parsed = ParseHostPort(address);
  return parsed.ok() ? Status() : Bad(path, Message(parsed.status()));
}

Status SetListen(const v1::WorkerConfig& config, WorkerServerOptions& out) {
  out.grpc = config.has_grpc() ? config.grpc() : "127.0.0.1:8101";
  out.ops = config.has_ops() ? config.ops() : "127.0.0.1:9091";
  RETURN_IF_ERROR(CheckAddress("grpc", out.grpc));
  return out.ops.empty() ? Status() : CheckAddress("ops", out.ops);
}

Status SetTls(const v1::WorkerConfig& config, WorkerServerOptions& out) {
  if (!config.has_tls()) return {};
  const v1::TlsConfig& tls = config.tls();
  if (tls.certificate_file().empty()) return Bad("tls.certificate_file", "is needed");
  if (tls.key_file().empty()) return Bad("tls.key_file", "is needed");
  out.tls = {.certificate = tls.certificate_file(), .key = tls.key_file(), .ca = tls.client_ca_file()};
  return {};
}

// `path`: of the setting.
Status SetClientTls(const std::string& path, const v1::ClientTlsConfig& tls, std::optional<TlsFiles>& files,
                    std::string& server_name) {
  if (tls.certificate_file().empty() != tls.key_file().empty())
    return Bad(path, "certificate_file and key_file are needed together");
  files = {.certificate = tls.certificate_file(), .key = tls.key_file(), .ca = tls.ca_file()};
  server_name = tls.server_name();
  return {};
}

// An address that other machines reach: whoever is there may use the model, or look at it.
Status CheckReach(const v1::WorkerConfig& config, const WorkerServerOptions& out) {
  constexpr char kOpen[] = " can be reached by other machines: needs ";
  if (config.insecure()) return {};
  if (!out.tls.has_value() && !ParseHostPort(out.grpc)->is_loopback()) {
    return Bad("grpc", out.grpc, kOpen, "tls, or insecure: true");
  }
  if (out.ops.empty() || ParseHostPort(out.ops)->is_loopback()) return {};
  return Bad("ops", out.ops, kOpen, "insecure: true, as it asks nobody for a key");
}

Status SetCount(std::string_view path, bool is_set, uint32_t value, uint32_t& out) {
  if (!is_set)
    return {};  // the default is OpenEngineOptions's, where 0 leaves it to the machine or the device
  if (value == 0) return Bad(path, "must be at least 1");
  out = value;
  return {};
}

Status SetSpeculation(const v1::SpeculationConfig& config, SpeculationOptions& out) {
  if (config.has_drafter()) out.drafter = config.drafter();
  if (config.has_model()) out.model = config.model();
  if (config.has_device()) out.device = config.device();
  RETURN_IF_ERROR(SetCount("engine.speculation.max_tokens", config.has_max_tokens(), config.max_tokens(),
                           out.max_tokens));
  RETURN_IF_ERROR(
      SetCount("engine.speculation.min_match", config.has_min_match(), config.min_match(), out.min_match));
  if (config.has_max_branch_tokens()) out.max_branch_tokens = config.max_branch_tokens();
  if (config.has_kv_pool_bytes() && config.kv_pool_bytes() == 0)
    return Bad("engine.speculation.kv_pool_bytes", "must be at least 1");
  if (config.has_kv_pool_bytes()) out.kv_pool_bytes = config.kv_pool_bytes();
  return {};
}

// What a drafter that is not there would take is a mistake. Of one that is known.
Status CheckDrafterSettings(const v1::SpeculationConfig& config, const std::string& drafter) {
  const bool drafts = drafter != "none";
  const struct {
    const char* name;
    bool is_set, is_used;
    const char* drafters;
  } settings[] = {
      {"max_tokens", config.has_max_tokens(), drafts, "ngram, model or remote"},
      // 0, none, is what a remote one has.
      {"max_branch_tokens", config.has_max_branch_tokens(), drafts, "ngram or model"},
      {"min_match", config.has_min_match(), drafter == "ngram", "ngram"},
      {"kv_pool_bytes", config.has_kv_pool_bytes(), drafter == "model", "model"},
      {"remote", config.has_remote(), drafter == "remote", "remote"},
  };
  for (const auto& setting : settings) {
    if (setting.is_set && !setting.is_used)
      return Bad(Concat("engine.speculation.", setting.name), "is for drafter: ", setting.drafters, ", not ",
                 drafter);
  }
  return {};
}

// Whether who connects to `address` reaches who listens on `own`, as far as their texts tell.
bool Reaches(const HostPort& address, const HostPort& own) {
  const auto host_of = [](const HostPort& of) { return of.host == "localhost" ? "127.0.0.1" : of.host; };
  const bool is_everywhere = own.host == "0.0.0.0" || own.host == "::";
  return address.port == own.port &&
         (host_of(address) == host_of(own) || (is_everywhere && address.is_loopback()));
}

// Behind CheckDrafterSettings.
Status SetRemoteDrafter(const v1::SpeculationConfig& config, WorkerServerOptions& out) {
  constexpr char kAddress[] = "engine.speculation.remote.address";
  if (out.engine.speculation.drafter != "remote") return {};
  const v1::RemoteDrafterConfig& remote = config.remote();
  if (remote.address().empty()) return Bad(kAddress, "is needed with drafter: remote");
  RETURN_IF_ERROR(CheckAddress(kAddress, remote.address()));
  const HostPort address = ParseHostPort(remote.address()).value();
  if (address.port == 0) return Bad(kAddress, "port 0 has no meaning here");
  const bool serves = out.engine.group.rank == 0;
  if (serves && Reaches(address, ParseHostPort(out.grpc).value()))
    return Bad(kAddress, remote.address(), " is this worker's own grpc: another one is to draft");
  out.remote_drafter = {.address = remote.address()};
  if (!remote.has_tls()) return {};
  return SetClientTls("engine.speculation.remote.tls", remote.tls(), out.remote_drafter->tls,
                      out.remote_drafter->server_name);
}

constexpr uint16_t kLeaderPort = 8201;  // of a group, where only the leader's host is told
// The least leaves a leader that stops the time to end its calls before it tells the others.
constexpr double kLeastGroupTimeout = 5, kMostGroupTimeout = 60;

StatusOr<uint32_t> ParseNumber(std::string_view name, std::string_view text) {
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  return Bad("group.environment", name, " is \"", text, "\", not a number");
}

Status ApplyLws(const GroupEnvironment& environment, v1::GroupConfig& group) {
  if (group.has_ranks() || group.has_rank())
    return Bad("group.environment", "lws tells rank and ranks: leave group.rank and group.ranks out");
  if (environment.leader_address.empty())
    return Bad("group.environment", "lws: there is no LWS_LEADER_ADDRESS");
  ASSIGN_OR_RETURN(const uint32_t ranks, ParseNumber("LWS_GROUP_SIZE", environment.group_size));
  ASSIGN_OR_RETURN(const uint32_t rank, ParseNumber("LWS_WORKER_INDEX", environment.worker_index));
  group.set_ranks(ranks);
  group.set_rank(rank);
  if (ranks > 1 && !group.has_leader())
    group.set_leader(Concat(environment.leader_address, ":", kLeaderPort));
  if (ranks == 1) {  // the file is that of any size, and one pod meets nobody
    group.clear_leader();
    group.clear_tls();
    group.clear_follower_ops();
  }
  return {};
}

Status ApplyStatefulSet(const GroupEnvironment& environment, v1::GroupConfig& group) {
  if (group.has_rank()) return Bad("group.environment", "statefulset tells the rank: leave group.rank out");
  const std::string& name = environment.host_name;
  const size_t dash = name.rfind('-');
  if (dash == std::string::npos)
    return Bad("group.environment", "statefulset: the host's name, \"", name,
               "\", does not end with -NUMBER");
  ASSIGN_OR_RETURN(const uint32_t rank, ParseNumber("the end of the host's name", name.substr(dash + 1)));
  group.set_rank(rank);
  return {};
}

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "::"; }

// Of a group; `ranks` are valid.
Status SetLeader(const v1::GroupConfig& config, GroupEndpoint& out) {
  constexpr char kLeader[] = "group.leader";
  if (!config.has_leader()) return Bad(kLeader, "is needed with several ranks");
  out.leader = config.leader();
  RETURN_IF_ERROR(CheckAddress(kLeader, out.leader));
  const HostPort leader = *ParseHostPort(out.leader);
  if (leader.port == 0) return Bad(kLeader, "port 0 has no meaning here");
  if (!leader.is_loopback() && !config.insecure()) {
    return Bad(kLeader, out.leader,
               " can be reached by other machines, and steps go between ranks in plain text",
               config.has_tls() ? ", which group.tls does not change" : "", ": needs group.insecure: true");
  }
  if (config.rank() > 0 && IsWildcard(leader.host))
    return Bad(kLeader, out.leader, " is no address that a rank could connect to");
  if (config.rank() == 0 && IsWildcard(leader.host) && config.host().empty())
    return Bad("group.host", "is needed where group.leader is ", out.leader);
  if (IsWildcard(config.host()))
    return Bad("group.host", config.host(), " is no address that a rank could connect to");
  out.host = config.host();
  return {};
}

// How many ranks there are, and stages that they form. ValidateOpenEngineOptions says what else has to hold.
Status SetDegrees(const v1::GroupConfig& config, GroupOptions& out) {
  uint32_t tensor = 1;
  RETURN_IF_ERROR(
      SetCount("group.tensor_parallel", config.has_tensor_parallel(), config.tensor_parallel(), tensor));
  RETURN_IF_ERROR(SetCount("group.pipeline_parallel", config.has_pipeline_parallel(),
                           config.pipeline_parallel(), out.stages));
  if (!std::has_single_bit(tensor)) return Bad("group.tensor_parallel", tensor, " is not a power of two");
  const uint64_t product = uint64_t{tensor} * out.stages;
  if (!config.has_ranks() && product > kMaxRanks) {
    return Bad("group", "tensor_parallel ", tensor, " x pipeline_parallel ", out.stages, " is ", product,
               ", not in [1, ", kMaxRanks, "]");
  }
  out.ranks = static_cast<uint32_t>(std::min<uint64_t>(product, std::numeric_limits<uint32_t>::max()));
  RETURN_IF_ERROR(SetCount("group.ranks", config.has_ranks(), config.ranks(), out.ranks));
  if (!config.has_tensor_parallel() || out.ranks == product) return {};
  return Bad("group.ranks", out.ranks, " is not group.tensor_parallel, ", tensor,
             ", times group.pipeline_parallel, ", out.stages);
}

// Of a group: the leader listens with what `tls` has, the others connect with what group.tls has.
Status SetGroupTls(const v1::GroupConfig& config, WorkerServerOptions& out) {
  constexpr char kTls[] = "group.tls";
  if (!config.has_tls()) return {};
  RETURN_IF_ERROR(SetClientTls(kTls, config.tls(), out.group.tls, out.group.server_name));
  if (config.rank() > 0) return {};
  if (!out.tls.has_value()) return Bad(kTls, "needs tls, whose certificate the leader shows");
  if (!out.tls->ca.empty() && config.tls().certificate_file().empty())
    return Bad("group.tls.certificate_file", "is needed, as tls.client_ca_file has the leader ask for one");
  out.group.tls = out.tls;
  return {};
}

// The ops listener of a rank that does not lead.
Status SetFollowerOps(const v1::WorkerConfig& config, std::string& out) {
  constexpr char kPath[] = "group.follower_ops";
  out = config.group().follower_ops();
  if (out.empty()) return {};
  RETURN_IF_ERROR(CheckAddress(kPath, out));
  if (config.insecure() || ParseHostPort(out)->is_loopback()) return {};
  return Bad(kPath, out,
             " can be reached by other machines: needs insecure: true, as it asks nobody for a key");
}

Status SetGroup(const v1::WorkerConfig& config, WorkerServerOptions& out) {
  const v1::GroupConfig& group = config.group();
  RETURN_IF_ERROR(SetDegrees(group, out.engine.group));
  out.engine.group.rank = group.rank();
  if (out.engine.group.ranks == 1) {
    for (const auto& [path, is_set] :
         {std::pair{"group.leader", group.has_leader()}, std::pair{"group.tls", group.has_tls()},
          std::pair{"group.follower_ops", group.has_follower_ops()}}) {
      if (is_set) return Bad(path, "is for several ranks, but group.ranks is 1");
    }
    return {};
  }
  RETURN_IF_ERROR(SetLeader(group, out.group));
  RETURN_IF_ERROR(SetGroupTls(group, out));
  std::string follower_ops;
  RETURN_IF_ERROR(SetFollowerOps(config, follower_ops));
  if (group.rank() > 0) out.ops = std::move(follower_ops);
  out.engine.group.shares_machine = ParseHostPort(out.group.leader)->is_loopback();
  if (group.has_transport()) {
    const auto transport = ParseTransport(group.transport());
    if (!transport.ok()) return Bad("group.transport", Message(transport.status()));
    out.group.transport = *transport;
  }
  if (!group.has_timeout_seconds()) return {};
  const double timeout = group.timeout_seconds();
  if (!(timeout >= kLeastGroupTimeout && timeout <= kMostGroupTimeout)) {
    return Bad("group.timeout_seconds", timeout, " is not in [", kLeastGroupTimeout, ", ", kMostGroupTimeout,
               "]");
  }
  out.group.timeout = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(timeout));
  return {};
}

Status SetEngine(const v1::WorkerConfig& config, OpenEngineOptions& out) {
  const v1::EngineConfig& engine = config.engine();
  RETURN_IF_ERROR(SetCount("engine.threads", engine.has_threads(), engine.threads(), out.threads));
  RETURN_IF_ERROR(SetCount("engine.max_sequences", engine.has_max_sequences(), engine.max_sequences(),
                           out.max_sequences));
  RETURN_IF_ERROR(SetCount("engine.max_step_tokens", engine.has_max_step_tokens(), engine.max_step_tokens(),
                           out.max_step_tokens));
  RETURN_IF_ERROR(SetCount("engine.inbox", engine.has_inbox(), engine.inbox(), out.inbox));
  out.virtual_shards = std::max(out.group.ranks / out.group.stages, 1u);
  RETURN_IF_ERROR(SetCount("engine.virtual_shards", engine.has_virtual_shards(), engine.virtual_shards(),
                           out.virtual_shards));
  if (engine.has_kernels()) out.kernels = engine.kernels();
  if (engine.has_compute()) out.compute = engine.compute();
  if (engine.has_pin_threads()) out.pin_threads = engine.pin_threads();
  if (engine.has_device()) out.device = engine.device();
  if (engine.has_numerics()) out.numerics = engine.numerics();
  if (engine.has_tuning_folder()) out.tuning.folder = engine.tuning_folder();
  if (engine.has_max_prefill_wait_seconds()) out.max_prefill_wait_seconds = engine.max_prefill_wait_seconds();
  RETURN_IF_ERROR(SetSpeculation(engine.speculation(), out.speculation));
  if (config.has_drain_seconds()) out.drain_seconds = config.drain_seconds();
  const v1::KvConfig& kv = config.kv();
  RETURN_IF_ERROR(SetCount("kv.block_tokens", kv.has_block_tokens(), kv.block_tokens(), out.block_tokens));
  if (kv.has_pool_bytes() && kv.pool_bytes() == 0) return Bad("kv.pool_bytes", "must be at least 1");
  if (kv.has_pool_bytes()) out.kv_pool_bytes = kv.pool_bytes();
  if (kv.has_dtype()) out.kv_dtype = kv.dtype();
  if (kv.has_prefix_cache()) out.prefix_cache = kv.prefix_cache();
  if (kv.has_host_swap_bytes()) out.host_swap_bytes = kv.host_swap_bytes();
  const Status valid = ValidateOpenEngineOptions(out);
  return valid.ok() ? valid : FailedPrecondition(Message(valid));
}

Status SetLog(const v1::LogConfig& config, LogOptions& out) {
  out.component = "worker";
  if (config.has_level()) {
    const auto level = ParseLogLevel(config.level());
    if (!level.ok()) return Bad("log.level", Message(level.status()));
    out.level = *level;
  }
  if (config.has_format()) {
    if (config.format() != "json" && config.format() != "text") {
      return Bad("log.format", "must be json or text, got \"", config.format(), "\"");
    }
    out.as_json = config.format() == "json";
  }
  return {};
}

}  // namespace

Status ApplyGroupEnvironment(const GroupEnvironment& environment, v1::WorkerConfig& config) {
  const std::string& from = config.group().environment();
  if (from.empty() || from == "none") return {};
  if (from == "lws") return ApplyLws(environment, *config.mutable_group());
  if (from == "statefulset") return ApplyStatefulSet(environment, *config.mutable_group());
  return Bad("group.environment", "\"", from, "\", not one of none, lws, statefulset");
}

StatusOr<WorkerOptions> MakeWorkerOptions(const v1::WorkerConfig& config) {
  if (config.model().empty())
    return InvalidArgument("no model: give --model PATH, or `model` in the file of --config");
  WorkerOptions out;
  out.server.engine.model = config.model();
  out.server.served_name = config.served_name();
  RETURN_IF_ERROR(SetListen(config, out.server));
  RETURN_IF_ERROR(SetTls(config, out.server));
  RETURN_IF_ERROR(CheckReach(config, out.server));
  RETURN_IF_ERROR(SetGroup(config, out.server));
  RETURN_IF_ERROR(SetEngine(config, out.server.engine));
  RETURN_IF_ERROR(CheckDrafterSettings(config.engine().speculation(), out.server.engine.speculation.drafter));
  RETURN_IF_ERROR(SetRemoteDrafter(config.engine().speculation(), out.server));
  RETURN_IF_ERROR(SetLog(config.log(), out.log));
  return out;
}

Status CheckFiles(const WorkerServerOptions& options) {
  const std::pair<const char*, const std::string&> models[] = {
      {"model", options.engine.model}, {"engine.speculation.model", options.engine.speculation.model}};
  for (const auto& [setting, model] : models) {
    std::error_code error;
    if (!model.empty() && !std::filesystem::exists(model, error))
      return NotFound(setting, ": no model folder or file ", model);
  }
  RETURN_IF_ERROR(CheckShards(options.engine));
  RETURN_IF_ERROR(CheckDraftModel(options.engine));
  if (options.tls.has_value()) RETURN_IF_ERROR(Annotate(LoadTls(*options.tls).status(), "tls"));
  if (options.group.tls.has_value())
    RETURN_IF_ERROR(Annotate(LoadTls(*options.group.tls).status(), "group.tls"));
  if (!options.remote_drafter.has_value() || !options.remote_drafter->tls.has_value()) return {};
  return Annotate(LoadTls(*options.remote_drafter->tls).status(), "engine.speculation.remote.tls");
}

}  // namespace terrace
