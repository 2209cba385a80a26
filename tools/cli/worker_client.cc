#include "tools/cli/worker_client.h"

#include <chrono>

#include "base/grpc_status.h"
#include "tools/cli/kept_channel.h"

namespace terrace {
namespace {

constexpr std::chrono::seconds kDescribeTimeout(10), kFetchTimeout(60);
constexpr size_t kMaxTextBytes = size_t{256} << 20;

}  // namespace

StatusOr<v1::WorkerDescription> DescribeWorker(v1::Worker::Stub& worker, const std::string& address) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDescribeTimeout);
  v1::WorkerDescription description;
  const grpc::Status called = worker.Describe(&context, {}, &description);
  if (!called.ok()) return NoneAnswers("worker", address, FromGrpcStatus(called, context));
  return description;
}

StatusOr<TextAssets> FetchText(v1::Worker::Stub& worker, const std::string& address,
                               const std::string& digest) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kFetchTimeout);
  v1::FetchTextRequest request;
  request.set_digest(digest);
  const auto reader = worker.FetchText(&context, request);
  std::string text;
  for (v1::TextChunk chunk; reader->Read(&chunk) && text.size() <= kMaxTextBytes;) text += chunk.data();
  if (text.size() > kMaxTextBytes) {
    context.TryCancel();
    return DataLoss(address, ": text assets over ", kMaxTextBytes, " bytes");
  }
  const grpc::Status called = reader->Finish();
  RETURN_IF_ERROR(FromGrpcStatus(called, context));
  return ParseTextAssets(text);
}

}  // namespace terrace
