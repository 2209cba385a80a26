// For tests that use gRPC under ThreadSanitizer: Debian's gRPC and Abseil are not instrumented, so their own
// synchronisation is invisible and reported as races. Each called_from_lib entry may match one library only.
// A server's call frees itself through the std::function named below. Races whose stack passes through a gRPC
// callback are hidden too: code with threads of its own is also tested without gRPC.
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libgrpc.so.29\n"
         "called_from_lib:libgrpc++.so.1.51\n"
         "called_from_lib:libgpr.so.29\n"
         "called_from_lib:libabsl_synchronization.so\n"
         "called_from_lib:libabsl_graphcycles_internal.so\n"
         "race:grpc::internal\n"
         "race:std::_Function_handler<void (), grpc::Server::CallbackRequest\n"
         "race:grpc_core\n";
}
