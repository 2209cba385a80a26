// One HTTP response while it is made: the handler's threads add to it through a responder, the connection
// takes its bytes out and sends them. Shared by both sides. Thread-safe. The connection must call Close
// before it dies.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "base/http_server.h"

namespace terrace {

struct HttpAnswerOptions {
  bool keep_alive = false;
  bool is_http_1_1 = true;  // else a stream ends with the connection
  bool is_head = false;     // HEAD: the head of the answer alone
  size_t buffer_bytes = 0;  // unsent bytes past which it is full
  std::function<std::string(int status, std::string_view message)> error_body;
  std::function<HttpHeaders()> error_headers = {};
};

class HttpAnswer {
 public:
  // `wake` is called when there is something to take; under a lock, so it only schedules.
  HttpAnswer(HttpAnswerOptions options, std::function<void()> wake);

  // The connection's side.
  struct Taken {
    std::string bytes;
    bool is_last = false;     // nothing comes after `bytes`
    bool is_aborted = false;  // after `bytes`, close the connection
  };
  Taken Take();
  void Sent(size_t bytes);                    // of what was taken
  void Close();                               // the peer went away or the server stops
  void SetTooSlow() { is_too_slow_ = true; }  // and is hung up on therefore
  void Continue();                            // "100 Continue", before anything else
  // Both for an answer whose head is not made yet.
  void KeepAlive();
  void EndKeepAlive();
  bool keep_alive() const;
  HttpHeaders SendError(int status, std::string_view message, HttpHeaders headers = {});  // those it has

  // The responder's side: see HttpResponder.
  void Send(int status, std::string_view body, std::string_view content_type, const HttpHeaders& headers);
  void StartStream(int status, std::string_view content_type, const HttpHeaders& headers);
  bool Write(std::string_view chunk);
  void Finish();
  void Abort();
  bool is_full() const { return is_full_; }
  void OnRoom(std::function<void()> on_room);
  void OnClose(std::function<void()> on_close);
  bool is_too_slow() const { return is_too_slow_; }
  void Drop();  // the responder is gone: ends what was not ended

 private:
  enum class Phase { kNew, kStreaming, kDone };
  struct Callbacks {
    std::function<void()> on_close, on_room;
  };
  std::string Head(int status, std::string_view content_type, const HttpHeaders& headers,
                   std::string_view framing) const;
  void End(bool aborted, Callbacks& dropped);
  void Wake();

  const HttpAnswerOptions options_;
  const std::function<void()> wake_;
  std::atomic<bool> is_full_ = false, is_too_slow_ = false;
  mutable std::mutex mutex_;
  // GUARDED_BY(mutex_), all below.
  Phase phase_ = Phase::kNew;
  bool keep_alive_;
  bool closed_ = false;
  bool aborted_ = false;
  bool woken_ = false;   // since the last Take
  std::string pending_;  // not taken yet
  size_t taken_ = 0;     // taken, not sent yet
  Callbacks callbacks_;
};

std::shared_ptr<HttpResponder> MakeResponder(std::shared_ptr<HttpAnswer> answer);

}  // namespace terrace
