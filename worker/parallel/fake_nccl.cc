#include "worker/parallel/fake_nccl.h"

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/scalar_convert.h"
#include "worker/parallel/tree_sum.h"

// True once it is done; asked again until then.
struct CUstream_st {
  std::deque<std::function<bool()>> operations;
};

namespace terrace {
namespace {

constexpr int kVersion = 22809;

size_t BytesOf(NcclType type) {
  switch (type) {
    case kNcclUint8:
      return 1;
    case kNcclFloat32:
      return 4;
    case kNcclFloat16:
    case kNcclBFloat16:
      return 2;
  }
  CHECK(false, "NCCL has no type ", static_cast<int>(type));
  return 0;
}

DType DTypeOf(NcclType type) {
  CHECK(type != kNcclUint8, "bytes are not added");
  return type == kNcclFloat32 ? DType::kF32 : type == kNcclFloat16 ? DType::kF16 : DType::kBF16;
}

std::vector<float> Widen(const void* from, size_t count, DType dtype) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) {
    if (dtype == DType::kF32) {
      out[i] = static_cast<const float*>(from)[i];
    } else {
      const uint16_t bits = static_cast<const uint16_t*>(from)[i];
      out[i] = dtype == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
    }
  }
  return out;
}

void Narrow(const std::vector<float>& from, DType dtype, void* to) {
  for (size_t i = 0; i < from.size(); ++i) {
    if (dtype == DType::kF32) {
      static_cast<float*>(to)[i] = from[i];
    } else {
      static_cast<uint16_t*>(to)[i] = dtype == DType::kF16 ? F16FromFloat(from[i]) : BF16FromFloat(from[i]);
    }
  }
}

struct Posted {
  const void* data = nullptr;
  size_t bytes = 0;
  std::shared_ptr<bool> is_taken;
};

enum class Kind { kAllReduce, kAllGather, kBroadcast };
// One rank's part in a collective.
struct Part {
  Kind kind = Kind::kAllReduce;
  const void* in = nullptr;
  void* out = nullptr;
  size_t count = 0;
  NcclType type = kNcclUint8;
  int root = 0;
};

void CarryOut(const std::vector<Part>& parts) {
  for (const Part& part : parts) {
    const Part& first = parts[0];
    CHECK(part.kind == first.kind && part.count == first.count && part.type == first.type &&
              part.root == first.root,
          "ranks are in collectives that differ");
  }
  const size_t bytes = parts[0].count * BytesOf(parts[0].type);
  if (parts[0].kind == Kind::kBroadcast) {
    const Part& root = parts[static_cast<size_t>(parts[0].root)];
    for (const Part& part : parts) std::memmove(part.out, root.in, bytes);
  } else if (parts[0].kind == Kind::kAllGather) {
    for (const Part& to : parts) {
      for (size_t i = 0; i < parts.size(); ++i) {
        std::memmove(static_cast<std::byte*>(to.out) + i * bytes, parts[i].in, bytes);
      }
    }
  } else {  // from the last rank to the first, an order that no tree has
    const DType dtype = DTypeOf(parts[0].type);
    std::vector<float> sum(parts[0].count);
    for (size_t i = parts.size(); i-- > 0;) {
      const std::vector<float> values = Widen(parts[i].in, sum.size(), dtype);
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += values[k];
    }
    for (const Part& part : parts) Narrow(sum, dtype, part.out);
  }
}

// What the ranks of one unique id share.
struct World {
  explicit World(int size) : ranks(size) {}

  struct Collective {
    std::vector<Part> parts;
    size_t came = 0;
  };

  const int ranks;
  std::mutex mutex;
  int connected = 0;                                           // GUARDED_BY(mutex), as the rest
  bool is_broken = false;                                      // a rank was aborted
  std::map<std::pair<int, int>, std::deque<Posted>> messages;  // by sender and receiver
  std::map<uint64_t, Collective> collectives;                  // by number
};

// Of this process.
struct Registry {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<World>> worlds;  // GUARDED_BY(mutex), as the rest: by unique id
  std::set<ncclComm*> live;
  uint64_t ids = 0;
};
Registry& TheRegistry() {
  static Registry registry;
  return registry;
}
std::atomic<size_t> calls = 0;

}  // namespace
}  // namespace terrace

struct ncclComm {
  std::shared_ptr<terrace::World> world;
  int rank = 0;
  bool is_accepted_only = false;  // a call, which is not carried out yet
  uint64_t collectives = 0;       // so far
};

namespace terrace {
namespace {

struct GroupedMessage {
  bool is_sent = false;
  void* data = nullptr;
  size_t bytes = 0;
  int peer = 0;
};
// What a thread has called since GroupStart.
struct Group {
  bool is_open = false;
  ncclComm* comm = nullptr;
  CUstream_st* stream = nullptr;
  std::vector<GroupedMessage> messages;
};
thread_local Group group;

// Sends and receives that go on together.
class Messages {
 public:
  Messages(std::shared_ptr<World> world, int rank, std::vector<GroupedMessage> messages)
      : world_(std::move(world)), rank_(rank), messages_(std::move(messages)) {}

  bool operator()() {
    std::lock_guard lock(world_->mutex);
    if (NcclFaults().never_finishes || world_->is_broken) return false;
    for (GroupedMessage& each : messages_) {
      if (each.is_sent && !is_posted_) {
        taken_.push_back(std::make_shared<bool>(false));
        world_->messages[{rank_, each.peer}].push_back({each.data, each.bytes, taken_.back()});
      } else if (!each.is_sent && each.data != nullptr) {
        TryToTake(each);
      }
    }
    is_posted_ = true;
    bool is_done = true;
    for (const auto& taken : taken_) is_done = is_done && *taken;
    for (const GroupedMessage& each : messages_) is_done = is_done && (each.is_sent || each.data == nullptr);
    return is_done;
  }

 private:
  void TryToTake(GroupedMessage& wanted) {
    std::deque<Posted>& queue = world_->messages[{wanted.peer, rank_}];
    if (queue.empty()) return;
    CHECK(queue.front().bytes == wanted.bytes, "NCCL was called to receive ", wanted.bytes, " bytes, of ",
          queue.front().bytes);
    std::memcpy(wanted.data, queue.front().data, wanted.bytes);
    *queue.front().is_taken = true;
    queue.pop_front();
    wanted.data = nullptr;
  }

  const std::shared_ptr<World> world_;
  const int rank_;
  std::vector<GroupedMessage> messages_;
  bool is_posted_ = false;
  std::vector<std::shared_ptr<bool>> taken_;
};

NcclResult Begin(ncclComm* comm) {
  ++calls;
  return comm->is_accepted_only ? kNcclInvalidArgument : kNcclSuccess;
}

NcclResult QueueCollective(ncclComm* comm, CUstream_st* stream, Part part) {
  CHECK(!group.is_open, "collectives are not grouped here");
  if (const NcclResult result = Begin(comm); result != kNcclSuccess) return result;
  comm->is_accepted_only = true;
  const uint64_t number = comm->collectives++;
  bool is_posted = false;
  stream->operations.push_back([world = comm->world, rank = comm->rank, number, part, is_posted]() mutable {
    std::lock_guard lock(world->mutex);
    if (NcclFaults().never_finishes || world->is_broken) return false;
    World::Collective& collective = world->collectives[number];
    collective.parts.resize(static_cast<size_t>(world->ranks));
    if (!std::exchange(is_posted, true)) {
      collective.parts[static_cast<size_t>(rank)] = part;
      if (++collective.came == collective.parts.size()) CarryOut(collective.parts);
    }
    return collective.came == collective.parts.size();
  });
  return kNcclInProgress;
}

NcclResult AddToGroup(ncclComm* comm, CUstream_st* stream, const GroupedMessage& message) {
  CHECK(group.is_open, "a message outside of a group");
  if (const NcclResult result = Begin(comm); result != kNcclSuccess) return result;
  CHECK(message.peer >= 0 && message.peer < comm->world->ranks && message.peer != comm->rank, "peer ",
        message.peer);
  group.comm = comm;
  group.stream = stream;
  group.messages.push_back(message);
  return kNcclSuccess;
}

void Forget(ncclComm* comm, bool is_aborted) {
  {
    std::lock_guard lock(TheRegistry().mutex);
    CHECK(TheRegistry().live.erase(comm) == 1, "a communicator that is not there");
  }
  if (is_aborted) {
    std::lock_guard lock(comm->world->mutex);
    comm->world->is_broken = true;
  }
  delete comm;
}

class FakeNcclDevice final : public NcclDevice {
 public:
  Status Use() override { return Status(); }
  StatusOr<DeviceBytes> Allocate(size_t bytes) override {
    DeviceBytes memory(new std::byte[bytes], [](std::byte* each) { delete[] each; });
    std::memset(memory.get(), 0xff, bytes);  // NaN
    return memory;
  }
  CUstream_st* stream() override { return &stream_; }
  Status Copy(void* to, const void* from, size_t bytes, CUstream_st* stream) override {
    stream->operations.push_back([=] {
      if (bytes > 0) std::memcpy(to, from, bytes);
      return true;
    });
    return Status();
  }
  Status AddTree(const GpuTreeSumArgs& args, CUstream_st* stream) override {
    stream->operations.push_back([args] {
      std::vector<std::vector<float>> parts;
      std::vector<float*> pointers;
      for (uint32_t i = 0; i < args.part_count; ++i) {
        parts.push_back(Widen(args.parts[i], args.count, args.dtype));
      }
      for (auto& part : parts) pointers.push_back(part.data());
      terrace::AddTree(pointers, 0, args.count);
      Narrow(parts[0], args.dtype, args.out);
      return true;
    });
    return Status();
  }
  StatusOr<bool> IsIdle(CUstream_st* stream) override {
    while (!stream->operations.empty()) {
      if (!stream->operations.front()()) return false;
      stream->operations.pop_front();
    }
    return true;
  }

 private:
  CUstream_st stream_;
};

}  // namespace

FakeNcclFaults& NcclFaults() {
  static FakeNcclFaults faults;
  return faults;
}

size_t LiveFakeNcclComms() {
  std::lock_guard lock(TheRegistry().mutex);
  return TheRegistry().live.size();
}

size_t FakeNcclCalls() { return calls; }

std::unique_ptr<NcclDevice> MakeFakeNcclDevice() { return std::make_unique<FakeNcclDevice>(); }

NcclApi FakeNccl() {
  NcclApi api;
  api.GetVersion = [](int* version) {
    *version = kVersion;
    return kNcclSuccess;
  };
  api.GetUniqueId = [](NcclUniqueId* id) {
    std::lock_guard lock(TheRegistry().mutex);
    std::memset(id->bytes, 0, sizeof(id->bytes));
    std::memcpy(id->bytes, &++TheRegistry().ids, sizeof(uint64_t));
    return kNcclSuccess;
  };
  api.CommInitRankConfig = [](ncclComm** comm, int ranks, NcclUniqueId id, int rank, NcclConfig* config) {
    CHECK(config->size == sizeof(NcclConfig) && config->blocking == 0, "not without blocking");
    if (NcclFaults().connect_result != kNcclSuccess) return NcclFaults().connect_result.load();
    std::lock_guard lock(TheRegistry().mutex);
    std::shared_ptr<World>& world = TheRegistry().worlds[std::string(id.bytes, sizeof(id.bytes))];
    if (world == nullptr) world = std::make_shared<World>(ranks);
    CHECK(world->ranks == ranks && rank >= 0 && rank < ranks, "rank ", rank, " of ", ranks);
    *comm = new ncclComm{.world = world, .rank = rank};
    TheRegistry().live.insert(*comm);
    std::lock_guard world_lock(world->mutex);
    ++world->connected;
    return kNcclInProgress;
  };
  api.CommFinalize = [](ncclComm* comm) {
    comm->is_accepted_only = true;
    return kNcclInProgress;
  };
  api.CommDestroy = [](ncclComm* comm) {
    Forget(comm, /*is_aborted=*/false);
    return kNcclSuccess;
  };
  api.CommAbort = [](ncclComm* comm) {
    Forget(comm, /*is_aborted=*/true);
    return kNcclSuccess;
  };
  api.CommGetAsyncError = [](ncclComm* comm, NcclResult* state) {
    std::lock_guard lock(comm->world->mutex);
    const bool is_connected = comm->world->connected == comm->world->ranks && !NcclFaults().never_connects;
    if (is_connected && NcclFaults().async_error != kNcclSuccess) {
      *state = NcclFaults().async_error;
    } else if (!is_connected || std::exchange(comm->is_accepted_only, false)) {
      *state = kNcclInProgress;
    } else {
      *state = kNcclSuccess;
    }
    return kNcclSuccess;
  };
  api.GetErrorString = [](NcclResult result) {
    return result == kNcclRemoteError ? "a peer went away" : "a fault of the test";
  };
  api.GetLastError = [](ncclComm*) { return "its last error\n"; };
  api.AllReduce = [](const void* in, void* out, size_t count, NcclType type, NcclOp, ncclComm* comm,
                     CUstream_st* stream) {
    return QueueCollective(comm, stream, {Kind::kAllReduce, in, out, count, type, 0});
  };
  api.AllGather = [](const void* mine, void* all, size_t count, NcclType type, ncclComm* comm,
                     CUstream_st* stream) {
    return QueueCollective(comm, stream, {Kind::kAllGather, mine, all, count, type, 0});
  };
  api.Broadcast = [](const void* in, void* out, size_t count, NcclType type, int root, ncclComm* comm,
                     CUstream_st* stream) {
    return QueueCollective(comm, stream, {Kind::kBroadcast, in, out, count, type, root});
  };
  api.Send = [](const void* data, size_t count, NcclType type, int peer, ncclComm* comm,
                CUstream_st* stream) {
    return AddToGroup(comm, stream, {true, const_cast<void*>(data), count * BytesOf(type), peer});
  };
  api.Recv = [](void* data, size_t count, NcclType type, int peer, ncclComm* comm, CUstream_st* stream) {
    return AddToGroup(comm, stream, {false, data, count * BytesOf(type), peer});
  };
  api.GroupStart = [] {
    CHECK(!std::exchange(group.is_open, true), "a group in a group");
    return kNcclSuccess;
  };
  api.GroupEnd = [] {
    const Group ended = std::exchange(group, {});
    CHECK(ended.is_open, "the end of no group");
    if (ended.messages.empty()) return kNcclSuccess;
    ended.comm->is_accepted_only = true;
    ended.stream->operations.push_back(Messages(ended.comm->world, ended.comm->rank, ended.messages));
    return kNcclInProgress;
  };
  return api;
}

}  // namespace terrace
