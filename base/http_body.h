// The body of a request while it is read: text whose memory is leased from what the bodies of all requests
// may have. It grows with what comes, not with what was announced. One thread.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/optional.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/byte_budget.h"

namespace terrace {

class HttpBody {
 public:
  HttpBody() = default;  // without memory
  HttpBody(ByteLease lease, size_t max_bytes) : lease_(std::move(lease)), max_bytes_(max_bytes) {}

  size_t size() const { return text_.size(); }

  // Room for `bytes` in all. False when there is no memory left for them, as of Append.
  bool Reserve(size_t bytes) {
    if (bytes <= text_.capacity()) return true;
    if (!lease_.Resize(bytes)) return false;
    std::string larger;  // of this size; a string that grows by itself may take twice as much
    larger.reserve(bytes);
    larger += text_;
    text_ = std::move(larger);
    return true;
  }
  bool Append(std::string_view bytes) {
    const size_t needed = text_.size() + bytes.size();
    const size_t doubled = std::min(2 * text_.capacity(), max_bytes_);
    if (needed > text_.capacity() && !Reserve(std::max(needed, doubled))) return false;
    text_ += bytes;
    return true;
  }

  // The end: its text, and the lease to be kept for as long.
  std::pair<std::string, ByteLease> Take() { return {std::move(text_), std::move(lease_)}; }

 private:
  std::string text_;
  ByteLease lease_;
  size_t max_bytes_ = 0;
};

// What Beast's parsers need to know of it. A body without memory ends the parsing with kNoMemory.
struct HttpBodyReading {
  static constexpr auto kNoMemory = boost::asio::error::no_memory;

  using value_type = HttpBody;

  class reader {
   public:
    template <bool is_request, class Fields>
    reader(boost::beast::http::header<is_request, Fields>&, HttpBody& body) : body_(body) {}

    void init(const boost::optional<uint64_t>&, boost::system::error_code& error) { error = {}; }
    size_t put(boost::asio::const_buffer bytes, boost::system::error_code& error) {
      const std::string_view text(static_cast<const char*>(bytes.data()), bytes.size());
      error = {};
      if (body_.Append(text)) return text.size();
      error = kNoMemory;
      return 0;
    }
    void finish(boost::system::error_code& error) { error = {}; }

   private:
    HttpBody& body_;
  };
};

}  // namespace terrace
