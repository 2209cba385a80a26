#include "worker/parallel/nccl_communicator.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "worker/parallel/index_range.h"

namespace terrace {
namespace {

constexpr size_t kAlignment = 16;       // bytes, of messages on the device
constexpr size_t kShareElements = 8;    // shares of a sum are of whole vectors
constexpr uint32_t kBusyPolls = 1'000;  // of a wait that may end within microseconds
// How much later than the last one's time for a step is over the roll is closed.
constexpr Duration kRollTime = std::chrono::seconds(1);
constexpr uint64_t kMostTold = 4096;  // bytes of an introduction

size_t RoundUp(size_t value, size_t to) { return (value + to - 1) / to * to; }

void Pause(uint32_t polls) {
  if (polls < kBusyPolls) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

bool IsAccepted(NcclResult result) { return result == kNcclSuccess || result == kNcclInProgress; }

NcclType TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return kNcclFloat32;
    case DType::kBF16:
      return kNcclBFloat16;
    case DType::kF16:
      return kNcclFloat16;
    default:
      break;
  }
  CHECK(false, Info(dtype).name, " is not sent to other devices");
  return kNcclUint8;
}

// What rank `rank` of `ranks` adds up of `count` elements.
IndexRange AlignedShare(size_t count, uint32_t rank, uint32_t ranks) {
  const IndexRange range = ShareOf(RoundUp(count, kShareElements) / kShareElements, rank, ranks);
  return {.begin = std::min(count, range.begin * kShareElements),
          .end = std::min(count, range.end * kShareElements)};
}

// What a rank tells where the group meets: NCCL's version, and of rank 0 the id.
std::string Introduction(int version, const NcclUniqueId* id) {
  std::string text(reinterpret_cast<const char*>(&version), sizeof(version));
  if (id != nullptr) text.append(id->bytes, sizeof(id->bytes));
  return text;
}

Status CheckIntroduction(const std::string& told, uint32_t from, int own_version) {
  int version = 0;
  const size_t expected = sizeof(version) + (from == 0 ? sizeof(NcclUniqueId) : 0);
  if (told.size() != expected) {
    return Unavailable("rank ", from, " told ", told.size(), " bytes where ", expected, " were expected");
  }
  std::memcpy(&version, told.data(), sizeof(version));
  if (version == own_version) return Status();
  return InvalidArgument("rank ", from, " has NCCL ", NcclVersionText(version), ", this one ",
                         NcclVersionText(own_version));
}

Status LibraryError(const NcclApi& nccl, NcclResult result, const char* call) {
  return Unavailable(call, ": ", nccl.GetErrorString(result));
}

StatusOr<NcclUniqueId> MeetForId(const NcclApi& nccl, const Communicator& control,
                                 const Rendezvous& rendezvous) {
  int version = 0;
  NcclUniqueId id = {};
  if (const NcclResult result = nccl.GetVersion(&version); result != kNcclSuccess) {
    return LibraryError(nccl, result, "ncclGetVersion");
  }
  if (control.rank() == 0) {
    const NcclResult result = nccl.GetUniqueId(&id);
    if (result != kNcclSuccess) return LibraryError(nccl, result, "ncclGetUniqueId");
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> all,
                   rendezvous(Introduction(version, control.rank() == 0 ? &id : nullptr)));
  CHECK(all.size() == control.ranks(), all.size(), " told for ", control.ranks(), " ranks");
  for (uint32_t i = 0; i < control.ranks(); ++i) RETURN_IF_ERROR(CheckIntroduction(all[i], i, version));
  std::memcpy(id.bytes, all[0].data() + sizeof(version), sizeof(id.bytes));
  return id;
}

// A rendezvous of ranks that are connected: their sizes first, as those of a gathering are equal.
StatusOr<std::vector<std::string>> TellOver(Communicator& control, const std::string& mine) {
  const uint64_t size = mine.size();
  std::vector<uint64_t> sizes(control.ranks());
  RETURN_IF_ERROR(control.AllGather(std::as_bytes(std::span(&size, 1)),
                                    std::as_writable_bytes(std::span<uint64_t>(sizes))));
  const uint64_t longest = *std::max_element(sizes.begin(), sizes.end());
  if (longest > kMostTold) return Unavailable("a rank tells ", longest, " bytes, limit ", kMostTold);
  std::string padded = mine, all(longest * control.ranks(), '\0');
  padded.resize(longest);
  RETURN_IF_ERROR(control.AllGather(std::as_bytes(std::span<const char>(padded)),
                                    std::as_writable_bytes(std::span<char>(all))));
  std::vector<std::string> told;
  for (uint32_t i = 0; i < control.ranks(); ++i) told.push_back(all.substr(i * longest, sizes[i]));
  return told;
}

}  // namespace

StatusOr<std::unique_ptr<NcclCommunicator>> ConnectNccl(NcclOptions options, const Rendezvous& rendezvous) {
  CHECK(options.control != nullptr && options.device != nullptr, "NCCL needs a control group and a device");
  const uint32_t ranks = options.control->ranks();
  if (options.max_tree_sum_bytes > 0 && ranks > kMaxTreeParts) {
    return InvalidArgument("a tree over the devices of ", ranks, " ranks, limit ", kMaxTreeParts);
  }
  const Duration timeout = options.connect_timeout;
  RETURN_IF_ERROR(options.device->Use());
  ASSIGN_OR_RETURN(const NcclUniqueId id, MeetForId(options.nccl, *options.control, rendezvous));
  std::unique_ptr<NcclCommunicator> made(new NcclCommunicator(std::move(options)));
  RETURN_IF_ERROR(made->Connect(id, {.deadline = RealClock().Now() + timeout, .timeout = timeout}));
  return made;
}

StatusOr<std::unique_ptr<NcclCommunicator>> ConnectNccl(NcclOptions options) {
  CHECK(options.control != nullptr, "NCCL needs a control group");
  Communicator& control = *options.control;  // stays where it is
  return ConnectNccl(std::move(options),
                     [&control](const std::string& mine) { return TellOver(control, mine); });
}

NcclCommunicator::NcclCommunicator(NcclOptions options)
    : Communicator(options.control->rank(), options.control->ranks(), options.control->timeout()),
      nccl_(options.nccl),
      control_(std::move(options.control)),
      device_(std::move(options.device)),
      max_tree_sum_bytes_(options.max_tree_sum_bytes) {}

Status NcclCommunicator::Connect(const NcclUniqueId& id, Limit limit) {
  return RunCall([&]() -> Status {
    NcclConfig config;
    config.blocking = 0;
    const NcclResult begun =
        nccl_.CommInitRankConfig(&comm_, static_cast<int>(ranks()), id, static_cast<int>(rank()), &config);
    if (!IsAccepted(begun)) comm_ = nullptr;  // NCCL has kept nothing
    RETURN_IF_ERROR(Accepted(begun, "ncclCommInitRankConfig"));
    RETURN_IF_ERROR(Settle("ncclCommInitRankConfig", limit));
    if (max_tree_sum_bytes_ == 0 || ranks() == 1) return Status();
    // A sum of the most bytes in shares, or of the most that goes at once.
    const size_t share = max_tree_sum_bytes_ / ranks() + kShareElements * sizeof(float);
    const size_t part = std::max(share, std::min(max_tree_sum_bytes_, kAtOnceBytes));
    ASSIGN_OR_RETURN(scratch_, device_->Allocate(ranks() * RoundUp(part, kAlignment)));
    return Status();
  });
}

NcclCommunicator::~NcclCommunicator() {
  if (comm_ == nullptr) return;
  const Limit limit{.deadline = RealClock().Now() + timeout(), .timeout = timeout()};
  const bool is_flushed =
      device_->Use().ok() && IsAccepted(nccl_.CommFinalize(comm_)) && Settle("ncclCommFinalize", limit).ok();
  if (is_flushed && IsAccepted(nccl_.CommDestroy(comm_))) return;
  Free();
}

void NcclCommunicator::Free() {
  if (comm_ != nullptr) nccl_.CommAbort(std::exchange(comm_, nullptr));
}

void NcclCommunicator::Abort(const Status& why) {
  {
    std::lock_guard lock(mutex_);
    if (ended_.ok()) ended_ = why;
    if (!is_running_) Free();
  }
  control_->Abort(why);
}

template <typename Body>
Status NcclCommunicator::RunCall(Body body) {
  {
    std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(ended_);
    is_running_ = true;
  }
  Status status = device_->Use();
  if (status.ok()) status = body();
  {
    std::lock_guard lock(mutex_);
    is_running_ = false;
    if (ended_.ok()) ended_ = status;
    if (ended_.ok()) return Status();
    status = ended_;
    Free();
  }
  control_->Abort(status);
  return status;
}

template <typename Body>
Status NcclCommunicator::RunInStep(Body body) {
  return RunCall([&]() -> Status {
    CHECK(is_in_step_, "a call on a device before Meet");
    return body();
  });
}

Status NcclCommunicator::Failed(NcclResult result, const char* call, Place at) const {
  std::string text = Concat(at.file_name(), ":", at.line(), ": ", call, " of rank ", rank(), ": ",
                            nccl_.GetErrorString(result));
  const char* const last = nccl_.GetLastError(comm_);
  if (last != nullptr && *last != '\0') text += Concat(": ", last);
  while (text.ends_with('\n')) text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return WithReason(result == kNcclRemoteError ? Unavailable(text) : Internal(text), "device_error");
}

Status NcclCommunicator::Accepted(NcclResult result, const char* call, Place at) const {
  return IsAccepted(result) ? Status() : Failed(result, call, at);
}

Status NcclCommunicator::PollUntil(const char* what, Limit limit, Place at,
                                   const std::function<StatusOr<bool>(NcclResult state)>& is_done) {
  for (uint32_t polls = 0;; ++polls) {
    {
      std::lock_guard lock(mutex_);
      RETURN_IF_ERROR(ended_);
    }
    NcclResult state = kNcclSuccess;
    RETURN_IF_ERROR(Accepted(nccl_.CommGetAsyncError(comm_, &state), "ncclCommGetAsyncError"));
    if (!IsAccepted(state)) return Blamed(Failed(state, what, at));
    ASSIGN_OR_RETURN(const bool done, is_done(state));
    if (done) return Status();
    if (RealClock().Now() >= limit.deadline) {
      return Blamed(DeadlineExceeded(at.file_name(), ":", at.line(), ": ", what, " of rank ", rank(),
                                     ": not done within ", Seconds(limit.timeout),
                                     " s, though every rank had come"));
    }
    Pause(polls);
  }
}

Status NcclCommunicator::Blamed(const Status& status) {
  Status cause = control_->FindEnded();
  if (cause.ok() && is_in_step_ && status.code() == StatusCode::kDeadlineExceeded) cause = CallRoll();
  return cause.ok() ? status : Annotate(status, Message(cause));
}

// Whoever came first to the step is here first, and would be taken for lost by the others if it did not wait
// for them: the last one's time began when all had met. A rank that is in another call than this is not the
// one that hangs.
Status NcclCommunicator::CallRoll() {
  std::vector<Outgoing> tell;
  std::vector<Incoming> hear;
  for (uint32_t i = 0; i < ranks(); ++i) {
    if (i == rank()) continue;
    tell.push_back({.to = i, .data = {}});
    hear.push_back({.from = i, .data = {}});
  }
  const Status status = ExchangeOver(*control_, Call::kBarrier, tell, hear, met_ + timeout() + kRollTime);
  const bool names_one =
      status.code() == StatusCode::kDeadlineExceeded || status.code() == StatusCode::kUnavailable;
  return names_one ? status : Status();
}

Status NcclCommunicator::Settle(const char* call, Limit limit, Place at) {
  return PollUntil(call, limit, at, [](NcclResult state) -> StatusOr<bool> { return state == kNcclSuccess; });
}

Status NcclCommunicator::WaitIdle(CUstream_st* stream, Limit limit, Place at) {
  return PollUntil("a stream", limit, at, [&](NcclResult) { return device_->IsIdle(stream); });
}

Status NcclCommunicator::QueueTransfers(std::span<const Transfer> transfers, CUstream_st* stream,
                                        Limit limit) {
  RETURN_IF_ERROR(Accepted(nccl_.GroupStart(), "ncclGroupStart"));
  Status status;
  for (const Transfer& each : transfers) {
    const int peer = static_cast<int>(each.peer);
    status = each.is_sent
                 ? Accepted(nccl_.Send(each.data, each.count, each.type, peer, comm_, stream), "ncclSend")
                 : Accepted(nccl_.Recv(each.data, each.count, each.type, peer, comm_, stream), "ncclRecv");
    if (!status.ok()) break;
  }
  const NcclResult ended = nccl_.GroupEnd();  // in any case: until then this thread is in the group
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(Accepted(ended, "ncclGroupEnd"));
  return Settle("ncclGroupEnd", limit);
}

Status NcclCommunicator::Exchange(Call call, std::span<const Outgoing> outgoing,
                                  std::span<const Incoming> incoming, MonoTime deadline) {
  return RunCall([&]() -> Status {
    RETURN_IF_ERROR(Agree(call, outgoing, incoming, deadline));
    return MoveBytes(outgoing, incoming, {.deadline = deadline, .timeout = timeout()});
  });
}

// Each two ranks that have something for each other tell how much they will send and what they expect.
Status NcclCommunicator::Agree(Call call, std::span<const Outgoing> outgoing,
                               std::span<const Incoming> incoming, MonoTime deadline) {
  struct Ticket {
    uint64_t sent_bytes = 0, expected_bytes = 0;
  };
  std::vector<Ticket> mine(ranks()), theirs(ranks());
  std::vector<bool> is_peer(ranks());
  for (const Outgoing& each : outgoing) {
    mine[each.to].sent_bytes = each.data.size();
    is_peer[each.to] = true;
  }
  for (const Incoming& each : incoming) {
    mine[each.from].expected_bytes = each.data.size();
    is_peer[each.from] = true;
  }
  std::vector<Outgoing> tell;
  std::vector<Incoming> hear;
  for (uint32_t i = 0; i < ranks(); ++i) {
    if (!is_peer[i]) continue;
    tell.push_back({.to = i, .data = std::as_bytes(std::span(&mine[i], 1))});
    hear.push_back({.from = i, .data = std::as_writable_bytes(std::span(&theirs[i], 1))});
  }
  RETURN_IF_ERROR(ExchangeOver(*control_, call, tell, hear, deadline));
  for (const Incoming& each : hear) {
    const Ticket &own = mine[each.from], &other = theirs[each.from];
    RETURN_IF_ERROR(CheckMessage(each.from, call, other.sent_bytes, call, own.expected_bytes));
    RETURN_IF_ERROR(CheckMessage(each.from, call, other.expected_bytes, call, own.sent_bytes));
  }
  return Status();
}

Status NcclCommunicator::MoveBytes(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                                   Limit limit) {
  size_t bytes = 0;
  for (const Outgoing& each : outgoing) bytes += RoundUp(each.data.size(), kAlignment);
  for (const Incoming& each : incoming) bytes += RoundUp(each.data.size(), kAlignment);
  if (bytes == 0) return Status();
  if (bytes > staging_bytes_) {
    staging_bytes_ = 0;
    ASSIGN_OR_RETURN(staging_, device_->Allocate(bytes));
    staging_bytes_ = bytes;
  }
  CUstream_st* const stream = device_->stream();
  std::vector<Transfer> transfers;
  std::byte* place = staging_.get();
  const auto add = [&](bool is_sent, uint32_t peer, size_t count) {
    if (count > 0) transfers.push_back({.is_sent = is_sent, .peer = peer, .data = place, .count = count});
    place += RoundUp(count, kAlignment);
  };
  for (const Outgoing& each : outgoing) {
    RETURN_IF_ERROR(device_->Copy(place, each.data.data(), each.data.size(), stream));
    add(/*is_sent=*/true, each.to, each.data.size());
  }
  const std::byte* from = place;
  for (const Incoming& each : incoming) add(/*is_sent=*/false, each.from, each.data.size());
  RETURN_IF_ERROR(WaitIdle(stream, limit));  // whatever NCCL does, the caller's memory is no longer read
  RETURN_IF_ERROR(QueueTransfers(transfers, stream, limit));
  RETURN_IF_ERROR(WaitIdle(stream, limit));
  for (const Incoming& each : incoming) {
    RETURN_IF_ERROR(device_->Copy(each.data.data(), from, each.data.size(), stream));
    from += RoundUp(each.data.size(), kAlignment);
  }
  return WaitIdle(stream, limit);
}

Status NcclCommunicator::Meet(uint64_t what) {
  return RunCall([&]() -> Status {
    step_ = {.deadline = RealClock().Now() + timeout(), .timeout = timeout()};
    std::vector<uint64_t> theirs(ranks());
    std::vector<Outgoing> tell;
    std::vector<Incoming> hear;
    for (uint32_t i = 0; i < ranks(); ++i) {
      if (i == rank()) continue;
      tell.push_back({.to = i, .data = std::as_bytes(std::span(&what, 1))});
      hear.push_back({.from = i, .data = std::as_writable_bytes(std::span(&theirs[i], 1))});
    }
    RETURN_IF_ERROR(ExchangeOver(*control_, Call::kBarrier, tell, hear, step_.deadline));
    for (const Incoming& each : hear) {
      if (theirs[each.from] == what) continue;
      return InvalidArgument("rank ", each.from, " came for step ", theirs[each.from], ", this one for ",
                             what);
    }
    is_in_step_ = true;
    met_ = RealClock().Now();
    return Status();
  });
}

Status NcclCommunicator::Drain(CUstream_st* stream) {
  return RunInStep([&] { return WaitIdle(stream, step_); });
}

Status NcclCommunicator::Wait(CUstream_st* stream) {
  return RunInStep([&]() -> Status {
    RETURN_IF_ERROR(WaitIdle(stream, step_));
    is_in_step_ = false;
    return Status();
  });
}

Status NcclCommunicator::QueueSum(const DeviceValues& values, SumOrder order, CUstream_st* stream) {
  return RunInStep([&]() -> Status {
    if (values.count == 0) return Status();
    if (order == SumOrder::kTree) return QueueTreeSum(values, stream);
    RETURN_IF_ERROR(Accepted(nccl_.AllReduce(values.data, values.data, values.count, TypeOf(values.dtype),
                                             kNcclSum, comm_, stream),
                             "ncclAllReduce"));
    return Settle("ncclAllReduce", step_);
  });
}

// As Communicator does it with messages: all of all ranks' values at once, or shares that their owners add.
Status NcclCommunicator::QueueTreeSum(const DeviceValues& values, CUstream_st* stream) {
  const size_t element = Info(values.dtype).block_bytes;
  if (values.count > max_tree_sum_bytes_ / element) {
    return InvalidArgument("a tree over ", values.count, " values of ", element, " bytes, limit ",
                           max_tree_sum_bytes_, " bytes");
  }
  if (ranks() == 1) return Status();
  const bool is_at_once = values.count * element <= kAtOnceBytes;
  const auto share = [&](uint32_t of) {
    return is_at_once ? IndexRange{.end = values.count} : AlignedShare(values.count, of, ranks());
  };
  const auto place = [&](size_t index) { return static_cast<std::byte*>(values.data) + index * element; };
  const NcclType type = TypeOf(values.dtype);
  const IndexRange mine = share(rank());
  std::vector<Transfer> transfers;
  const auto add = [&](bool is_sent, uint32_t peer, void* data, size_t count) {
    if (count > 0) transfers.push_back({is_sent, peer, data, count, type});
  };
  GpuTreeSumArgs sum = {
      .part_count = ranks(), .count = mine.size(), .dtype = values.dtype, .out = place(mine.begin)};
  for (uint32_t other = 0; other < ranks(); ++other) {
    if (other == rank()) {
      sum.parts[other] = sum.out;
      continue;
    }
    std::byte* const theirs = scratch_.get() + other * RoundUp(mine.size() * element, kAlignment);
    sum.parts[other] = theirs;
    add(/*is_sent=*/true, other, place(share(other).begin), share(other).size());
    add(/*is_sent=*/false, other, theirs, mine.size());
  }
  RETURN_IF_ERROR(QueueTransfers(transfers, stream, step_));
  if (mine.size() > 0) RETURN_IF_ERROR(device_->AddTree(sum, stream));
  if (is_at_once) return Status();
  transfers.clear();
  for (uint32_t other = 0; other < ranks(); ++other) {
    if (other == rank()) continue;
    add(/*is_sent=*/true, other, place(mine.begin), mine.size());
    add(/*is_sent=*/false, other, place(share(other).begin), share(other).size());
  }
  return QueueTransfers(transfers, stream, step_);
}

Status NcclCommunicator::QueueAllGather(const DeviceValues& mine, void* all, CUstream_st* stream) {
  return RunInStep([&]() -> Status {
    if (mine.count == 0) return Status();
    RETURN_IF_ERROR(Accepted(nccl_.AllGather(mine.data, all, mine.count, TypeOf(mine.dtype), comm_, stream),
                             "ncclAllGather"));
    return Settle("ncclAllGather", step_);
  });
}

Status NcclCommunicator::QueueBroadcast(const DeviceValues& data, uint32_t root, CUstream_st* stream) {
  CHECK(root < ranks(), "root ", root, " of ", ranks());
  return RunInStep([&]() -> Status {
    if (data.count == 0) return Status();
    RETURN_IF_ERROR(Accepted(nccl_.Broadcast(data.data, data.data, data.count, TypeOf(data.dtype),
                                             static_cast<int>(root), comm_, stream),
                             "ncclBroadcast"));
    return Settle("ncclBroadcast", step_);
  });
}

Status NcclCommunicator::QueueSend(const DeviceValues& data, uint32_t to, CUstream_st* stream) {
  CHECK(to < ranks() && to != rank(), "rank ", rank(), " sends to ", to, " of ", ranks());
  return RunInStep([&]() -> Status {
    if (data.count == 0) return Status();
    const Transfer transfer{
        .is_sent = true, .peer = to, .data = data.data, .count = data.count, .type = TypeOf(data.dtype)};
    return QueueTransfers({&transfer, 1}, stream, step_);
  });
}

Status NcclCommunicator::QueueReceive(const DeviceValues& data, uint32_t from, CUstream_st* stream) {
  CHECK(from < ranks() && from != rank(), "rank ", rank(), " receives from ", from, " of ", ranks());
  return RunInStep([&]() -> Status {
    if (data.count == 0) return Status();
    const Transfer transfer{.peer = from, .data = data.data, .count = data.count, .type = TypeOf(data.dtype)};
    return QueueTransfers({&transfer, 1}, stream, step_);
  });
}

}  // namespace terrace
