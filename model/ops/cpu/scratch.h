#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace scone {

/// Memory that is kept from use to use and only grows, aligned to 64 bytes.
class Scratch {
 public:
  /// At least `elements` elements of a trivial type, of any value. Ends what was got before.
  template <class T>
  T* get(std::int64_t elements) {
    const auto bytes = static_cast<std::size_t>(elements) * sizeof(T);
    if (bytes > bytes_) {
      storage_.reset();
      storage_.reset(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kAlignment})));
      bytes_ = bytes;
    }
    return reinterpret_cast<T*>(storage_.get());
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(std::byte* memory) const {
      ::operator delete (memory, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<std::byte, Free> storage_;
  std::size_t bytes_ = 0;
};

}  // namespace scone
