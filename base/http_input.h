// What a connection has read and not parsed yet. One thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace terrace {

// As `text = {}` does not.
inline void FreeMemory(std::string& text) { std::string().swap(text); }

// What was taken from its front is moved out of the way once it is the larger part, so that a byte moves
// once, on average, however small the pieces are.
class HttpInput {
 public:
  std::string_view bytes() const { return std::string_view(text_).substr(taken_); }
  size_t size() const { return text_.size() - taken_; }
  void Append(std::string_view more) { text_.append(more); }
  void Take(size_t count) {
    taken_ += count;
    if (taken_ < text_.size() - taken_) return;
    text_.erase(0, taken_);
    taken_ = 0;
  }
  void Clear() {
    FreeMemory(text_);
    taken_ = 0;
  }
  // Memory that is mostly unused.
  void FreeUnused() {
    if (4 * size() > text_.capacity()) return;
    text_.erase(0, taken_);
    taken_ = 0;
    text_.shrink_to_fit();
  }

 private:
  std::string text_;
  size_t taken_ = 0;
};

}  // namespace terrace
