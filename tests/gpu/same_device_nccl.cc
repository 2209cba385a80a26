#include "tests/gpu/same_device_nccl.h"

#include <cuda_runtime_api.h>

#include <barrier>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/status.h"

namespace terrace {
namespace {

// What the ranks of one unique id share.
struct World {
  explicit World(int size)
      : meeting(size),
        in(static_cast<size_t>(size)),
        out(static_cast<size_t>(size)),
        sent(static_cast<size_t>(size)) {}

  std::barrier<> meeting;
  // Each written by its rank before a meeting, and read by the others until the next one.
  std::vector<const void*> in;
  std::vector<void*> out;
  std::vector<std::map<int, const void*>> sent;  // by receiver
};

}  // namespace
}  // namespace terrace

struct ncclComm {
  std::shared_ptr<terrace::World> world;
  int rank = 0;
};

namespace terrace {
namespace {

std::mutex worlds_mutex;
std::map<uint64_t, std::weak_ptr<World>> worlds;  // GUARDED_BY(worlds_mutex), as the next one: by unique id
uint64_t last_id = 0;

struct Message {
  bool is_sent = false;
  const void* from = nullptr;
  void* to = nullptr;
  size_t bytes = 0;
  int peer = 0;
};
// What a thread has called since GroupStart.
thread_local std::vector<Message> messages;
thread_local ncclComm* grouped = nullptr;
thread_local cudaStream_t grouped_stream = nullptr;

void Must(cudaError_t error) { CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

size_t BytesOf(NcclType type) { return type == kNcclFloat32 ? 4 : type == kNcclUint8 ? 1 : 2; }

void Copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  Must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
  Must(cudaStreamSynchronize(stream));
}

NcclResult GetVersion(int* version) {
  *version = 22809;
  return kNcclSuccess;
}

NcclResult GetUniqueId(NcclUniqueId* id) {
  std::lock_guard lock(worlds_mutex);
  ++last_id;
  std::memcpy(id->bytes, &last_id, sizeof(last_id));
  return kNcclSuccess;
}

NcclResult Connect(ncclComm** comm, int ranks, NcclUniqueId id, int rank, NcclConfig*) {
  uint64_t number = 0;
  std::memcpy(&number, id.bytes, sizeof(number));
  std::lock_guard lock(worlds_mutex);
  std::shared_ptr<World> world = worlds[number].lock();
  if (world == nullptr) worlds[number] = world = std::make_shared<World>(ranks);
  *comm = new ncclComm{std::move(world), rank};
  return kNcclSuccess;
}

NcclResult End(ncclComm* comm) {
  delete comm;
  return kNcclSuccess;
}

NcclResult AllReduce(const void* in, void* out, size_t count, NcclType type, NcclOp, ncclComm* comm,
                     cudaStream_t stream) {
  CHECK(type == kNcclFloat32, "sums of another type");
  World& world = *comm->world;
  const auto rank = static_cast<size_t>(comm->rank);
  Must(cudaStreamSynchronize(stream));
  world.in[rank] = in;
  world.out[rank] = out;
  world.meeting.arrive_and_wait();
  if (rank == 0) {
    std::vector<float> sum(count), one(count);
    for (const void* each : world.in) {
      Copy(one.data(), each, count * sizeof(float), stream);
      for (size_t i = 0; i < count; ++i) sum[i] += one[i];
    }
    for (void* each : world.out) Copy(each, sum.data(), count * sizeof(float), stream);
  }
  world.meeting.arrive_and_wait();
  return kNcclSuccess;
}

NcclResult AllGather(const void* mine, void* all, size_t count, NcclType type, ncclComm* comm,
                     cudaStream_t stream) {
  World& world = *comm->world;
  Must(cudaStreamSynchronize(stream));
  world.in[static_cast<size_t>(comm->rank)] = mine;
  world.meeting.arrive_and_wait();
  const size_t bytes = count * BytesOf(type);
  for (size_t i = 0; i < world.in.size(); ++i)
    Copy(static_cast<std::byte*>(all) + i * bytes, world.in[i], bytes, stream);
  world.meeting.arrive_and_wait();
  return kNcclSuccess;
}

NcclResult Send(const void* data, size_t count, NcclType type, int peer, ncclComm* comm,
                cudaStream_t stream) {
  grouped = comm;
  grouped_stream = stream;
  messages.push_back({.is_sent = true, .from = data, .bytes = count * BytesOf(type), .peer = peer});
  return kNcclSuccess;
}

NcclResult Recv(void* data, size_t count, NcclType type, int peer, ncclComm* comm, cudaStream_t stream) {
  grouped = comm;
  grouped_stream = stream;
  messages.push_back({.to = data, .bytes = count * BytesOf(type), .peer = peer});
  return kNcclSuccess;
}

NcclResult GroupStart() {
  messages.clear();
  grouped = nullptr;
  return kNcclSuccess;
}

// Every rank sends something to every other one, as in a sum.
NcclResult GroupEnd() {
  CHECK(grouped != nullptr, "an empty group");
  World& world = *grouped->world;
  auto& sent = world.sent[static_cast<size_t>(grouped->rank)];
  Must(cudaStreamSynchronize(grouped_stream));
  sent.clear();
  for (const Message& each : messages) {
    if (each.is_sent) sent[each.peer] = each.from;
  }
  world.meeting.arrive_and_wait();
  for (const Message& each : messages) {
    if (each.is_sent) continue;
    Copy(each.to, world.sent[static_cast<size_t>(each.peer)].at(grouped->rank), each.bytes, grouped_stream);
  }
  world.meeting.arrive_and_wait();
  return kNcclSuccess;
}

}  // namespace

NcclApi SameDeviceNccl() {
  return {.GetVersion = GetVersion,
          .GetUniqueId = GetUniqueId,
          .CommInitRankConfig = Connect,
          .CommFinalize = [](ncclComm*) { return kNcclSuccess; },
          .CommDestroy = End,
          .CommAbort = End,
          .CommGetAsyncError =
              [](ncclComm*, NcclResult* state) {
                *state = kNcclSuccess;
                return kNcclSuccess;
              },
          .GetErrorString = [](NcclResult) { return "an error of the test's NCCL"; },
          .GetLastError = [](ncclComm*) { return ""; },
          .AllReduce = AllReduce,
          .AllGather = AllGather,
          .Send = Send,
          .Recv = Recv,
          .GroupStart = GroupStart,
          .GroupEnd = GroupEnd};
}

}  // namespace terrace
