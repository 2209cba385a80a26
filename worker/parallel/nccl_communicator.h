// The Communicator of ranks that have a GPU each, over NCCL, and calls on the memory of their devices.
//
// NCCL does not say who is missing, takes it that ranks agree about sizes, and waits without end. So the
// ranks first meet on their hosts, over another Communicator (`control`, such as TcpCommunicator): who does
// not come within the timeout is named there, and sizes that differ are refused before NCCL is called. NCCL
// works without blocking, and is polled for errors whenever this waits for it or for the device. On an error,
// a deadline or Abort its communicator is aborted, which ends what its kernels still wait for, and `control`
// tells the others.
//
// What goes wrong between a meeting and the end of what it was for names a rank that has ended meanwhile.
// Where none has and the time of a step is over, ranks call the roll over `control`, as every one that still
// runs gets there: who does not answer is named. Where all do, a device or a link hangs, and
// DEADLINE_EXCEEDED says that every rank had come. Errors of
// NCCL are INTERNAL, those of a peer UNAVAILABLE, with file, line and call, reason device_error.
//
// The inherited calls take (pageable) memory of the host and go through the device's: for whatever is no part
// of a step. The calls on devices are made in steps: Meet, calls that queue on streams, Wait. One thread at a
// time makes the calls of both kinds; Abort is for any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <source_location>
#include <span>
#include <vector>

#include "kernels/dtype.h"
#include "worker/parallel/communicator.h"
#include "worker/parallel/nccl_api.h"
#include "worker/parallel/nccl_device.h"
#include "worker/parallel/rendezvous.h"

namespace terrace {

struct NcclOptions {
  NcclApi nccl;                           // LoadNccl
  std::unique_ptr<Communicator> control;  // of the same ranks: says rank, number of ranks and timeout
  std::unique_ptr<NcclDevice> device;
  Duration connect_timeout = std::chrono::seconds(60);  // behind the rendezvous
  size_t max_tree_sum_bytes = 0;                        // of values; the device's memory for it is as large
};

// Values in the memory of a device: F32, BF16 or F16.
struct DeviceValues {
  void* data = nullptr;
  size_t count = 0;
  DType dtype = DType::kF32;
};

class NcclCommunicator final : public Communicator {
 public:
  // Lets what is under way come to its end, within the timeout; then the others hear that this rank has
  // ended.
  ~NcclCommunicator() override;

  // Returns when every rank has come with the same `what`, a number of the step or of its sizes. Until Wait
  // returns, the step has the time of the timeout. INVALID_ARGUMENT at every rank that hears of another
  // `what`.
  Status Meet(uint64_t what);

  // These queue on `stream`, whose order they keep. Every rank makes the same calls in the same order.
  enum class SumOrder {
    kTree,     // as AddTree over the ranks has it: bits that the number of ranks does not change
    kFastest,  // NCCL's choice, which sizes, links and the number of ranks decide
  };
  // values = the sum of all ranks' values, the same bits on each. In a tree 16-bit values are added in f32
  // and rounded once. INVALID_ARGUMENT: a tree over more than max_tree_sum_bytes.
  Status QueueSum(const DeviceValues& values, SumOrder order, CUstream_st* stream);
  // all: [ranks, mine.count]; `mine` may be this rank's place in it.
  Status QueueAllGather(const DeviceValues& mine, void* all, CUstream_st* stream);
  Status QueueBroadcast(const DeviceValues& data, uint32_t root, CUstream_st* stream);
  Status QueueSend(const DeviceValues& data, uint32_t to, CUstream_st* stream);
  Status QueueReceive(const DeviceValues& data, uint32_t from, CUstream_st* stream);

  // Until all that was queued on `stream` is done; the step goes on. For one of many kernels: a launch waits
  // without end where the device's queue is full behind a call that another rank takes no part in.
  Status Drain(CUstream_st* stream);
  // The same, and ends the step.
  Status Wait(CUstream_st* stream);

  void Abort(const Status& why) override;
  Status FindEnded() override { return control_->FindEnded(); }

  // What ranks tell each other on their hosts anyway, such as a step's plan, needs no device.
  Communicator& control() { return *control_; }
  // The device's own stream; the inherited calls wait for what is queued there.
  CUstream_st* stream() { return device_->stream(); }

 private:
  friend StatusOr<std::unique_ptr<NcclCommunicator>> ConnectNccl(NcclOptions, const Rendezvous&);
  struct Limit {
    MonoTime deadline;
    Duration timeout;
  };
  struct Transfer {
    bool is_sent = false;
    uint32_t peer = 0;
    void* data = nullptr;
    size_t count = 0;
    NcclType type = kNcclUint8;
  };
  using Place = std::source_location;

  explicit NcclCommunicator(NcclOptions options);
  Status Connect(const NcclUniqueId& id, Limit limit);

  Status Exchange(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                  MonoTime deadline) override;
  Status Agree(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
               MonoTime deadline);
  Status MoveBytes(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming, Limit limit);
  Status QueueTreeSum(const DeviceValues& values, CUstream_st* stream);

  // Runs a call, unless this rank has ended; ends it when the call fails.
  template <typename Body>
  Status RunCall(Body body);
  // A call on the device, which belongs into a step.
  template <typename Body>
  Status RunInStep(Body body);
  // Gives NCCL's communicator back, whatever it is doing. Under the mutex, or where no other thread can be.
  void Free();

  // NCCL's answer to `call`, which it may not have carried out yet.
  Status Accepted(NcclResult result, const char* call, Place at = Place::current()) const;
  Status Failed(NcclResult result, const char* call, Place at) const;
  // Until NCCL has carried out what it accepted.
  Status Settle(const char* call, Limit limit, Place at = Place::current());
  Status WaitIdle(CUstream_st* stream, Limit limit, Place at = Place::current());
  Status PollUntil(const char* what, Limit limit, Place at,
                   const std::function<StatusOr<bool>(NcclResult state)>& is_done);
  // Of an error behind a meeting: with the rank that has ended or hangs meanwhile, if one is known to.
  Status Blamed(const Status& status);
  // Of a step whose time is over: with its number, a rank that does not come to say so too, or has ended.
  Status CallRoll();
  // All of it as one operation, which needs no order among ranks.
  Status QueueTransfers(std::span<const Transfer> transfers, CUstream_st* stream, Limit limit);

  const NcclApi nccl_;
  const std::unique_ptr<Communicator> control_;
  const std::unique_ptr<NcclDevice> device_;
  const size_t max_tree_sum_bytes_;
  DeviceBytes scratch_;  // the other ranks' values of a tree
  DeviceBytes staging_;  // of the inherited calls; grows to the largest and stays
  size_t staging_bytes_ = 0;
  bool is_in_step_ = false;
  Limit step_ = {};    // the time that the step has
  MonoTime met_ = {};  // when all ranks had come to it

  std::mutex mutex_;
  Status ended_;             // GUARDED_BY(mutex_): why
  bool is_running_ = false;  // GUARDED_BY(mutex_): a call is under way; it sees ended_ and frees comm_ itself
  ncclComm* comm_ = nullptr;  // of the call that is under way, else GUARDED_BY(mutex_)
};

// Returns when all ranks are connected. Rank 0 makes NCCL's unique id; `rendezvous` takes it to the others.
// DEADLINE_EXCEEDED; INVALID_ARGUMENT when a rank has another version of NCCL, with its number; UNAVAILABLE
// when one told something else; errors of `rendezvous`, NCCL and the device.
StatusOr<std::unique_ptr<NcclCommunicator>> ConnectNccl(NcclOptions options, const Rendezvous& rendezvous);
// Of ranks that come at the same time: they tell each other over `control`.
StatusOr<std::unique_ptr<NcclCommunicator>> ConnectNccl(NcclOptions options);

}  // namespace terrace
