// gRPC's handshake over loopback, with credentials of a TlsSource on both sides.
#include "base/grpc_tls.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include "base/descriptor.h"
#include "base/testing_tls.h"
#include "base/tls_probe.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

class GrpcTlsTest : public ::testing::Test {
 protected:
  static std::string Folder() {
    const std::string folder =
        ::testing::TempDir() + "/" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder);
    return folder;
  }
  std::shared_ptr<TlsSource> Open(const TlsFiles& files) {
    auto source = TlsSource::Open(files, {.use = "listen", .metrics = nullptr, .period_seconds = 1e6});
    CHECK(source.ok(), Message(source.status()));
    sources_.push_back(*source);
    return *source;
  }
  void Serve(const TlsSource* tls) {
    server_ = nullptr;
    service_ = std::make_unique<grpc::CallbackGenericService>();  // one is of one server
    grpc::ServerBuilder builder;
    builder.RegisterCallbackGenericService(service_.get());
    builder.AddListeningPort("127.0.0.1:0", MakeServerCredentials(tls), &port_);
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr && port_ != 0);
  }
  // One attempt at a connection.
  bool Connects(const TlsSource* tls, const std::string& server_name = "") const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    if (!server_name.empty()) arguments.SetSslTargetNameOverride(server_name);
    const auto channel =
        grpc::CreateCustomChannel(Concat("127.0.0.1:", port_), MakeChannelCredentials(tls), arguments);
    for (;;) {
      const grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
      if (state == GRPC_CHANNEL_READY) return true;
      if (state == GRPC_CHANNEL_TRANSIENT_FAILURE) return false;
      channel->WaitForStateChange(state, std::chrono::system_clock::now() + std::chrono::seconds(30));
    }
  }

  const std::string folder_ = Folder();
  TestAuthority ours_{folder_, "ours"}, theirs_{folder_, "theirs"};
  std::vector<std::shared_ptr<TlsSource>> sources_;
  std::unique_ptr<grpc::CallbackGenericService> service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(GrpcTlsTest, AClientBelievesItsAuthoritiesAndTheNameItAskedFor) {
  Serve(Open(ours_.Issue("server", 30, "worker.internal")).get());
  const auto ours = Open({.ca = ours_.ca_path()}), theirs = Open({.ca = theirs_.ca_path()});
  EXPECT_TRUE(Connects(ours.get()));
  EXPECT_TRUE(Connects(ours.get(), "worker.internal"));
  EXPECT_FALSE(Connects(ours.get(), "router.internal"));
  EXPECT_FALSE(Connects(theirs.get()));
  EXPECT_FALSE(Connects(Open({}).get())) << "the system does not know our authority";
  EXPECT_FALSE(Connects(nullptr)) << "plain text";
}

TEST_F(GrpcTlsTest, WithAuthoritiesAServerWantsACertificateOfThem) {
  TlsFiles server = ours_.Issue("server");
  server.ca = ours_.ca_path();
  Serve(Open(server).get());
  TlsFiles friends = ours_.Issue("friend"), stranger = theirs_.Issue("stranger");
  friends.ca = stranger.ca = ours_.ca_path();
  EXPECT_TRUE(Connects(Open(friends).get()));
  EXPECT_FALSE(Connects(Open(stranger).get()));
  EXPECT_FALSE(Connects(Open({.ca = ours_.ca_path()}).get()));
}

TEST_F(GrpcTlsTest, WhetherAServerSpeaksTlsCanBeAsked) {
  std::signal(SIGPIPE, SIG_IGN);  // the server may close before the probe does
  const auto asked = [this] { return SpeaksTls(Concat("127.0.0.1:", port_)); };
  Serve(nullptr);
  ASSERT_TRUE(asked().ok()) << asked().status();
  EXPECT_FALSE(*asked());
  TlsFiles files = ours_.Issue("server");
  for (const std::string& ca : {std::string(), ours_.ca_path()}) {  // who asks shows no certificate
    files.ca = ca;
    Serve(Open(files).get());
    ASSERT_TRUE(asked().ok()) << ca << ": " << asked().status();
    EXPECT_TRUE(*asked()) << ca;
  }
  server_ = nullptr;
  EXPECT_EQ(asked().status().code(), StatusCode::kUnavailable);
}

// For whoever says nothing it would wait.
TEST_F(GrpcTlsTest, WhoAsksWhetherItSpeaksTlsCanBeCancelled) {
  const Descriptor silent(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(silent.number(), any, size), 0);
  ASSERT_EQ(getsockname(silent.number(), any, &size), 0);
  ASSERT_EQ(listen(silent.number(), 1), 0);
  int asked = 0;
  const Status status =
      SpeaksTls(Concat("127.0.0.1:", ntohs(address.sin_port)), [&asked] { return ++asked == 3; }).status();
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
  EXPECT_EQ(asked, 3);
}

TEST_F(GrpcTlsTest, NewConnectionsUseTheNewCertificates) {
  const TlsFiles files = ours_.Issue("server");
  const auto server = Open(files);
  Serve(server.get());
  const auto ours = Open({.ca = ours_.ca_path()}), theirs = Open({.ca = theirs_.ca_path()});
  ASSERT_TRUE(Connects(ours.get()));
  ASSERT_FALSE(Connects(theirs.get()));
  EXPECT_EQ(theirs_.Issue("server").certificate, files.certificate) << "in their place";
  server->Refresh();
  while (!Connects(theirs.get())) std::this_thread::yield();
  EXPECT_FALSE(Connects(ours.get()));
}

}  // namespace
}  // namespace terrace
