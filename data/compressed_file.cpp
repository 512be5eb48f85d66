#include "data/compressed_file.h"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "parallel/error.h"

namespace scone {
namespace {

using Path = std::filesystem::path;

[[noreturn]] void cannot_open(const Path& path) {
  throw InputError(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
}

/// A file opened for reading with the C library.
class RawFile {
 public:
  explicit RawFile(const Path& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
    if (!file_) cannot_open(path);
  }
  ~RawFile() { std::fclose(file_); }
  RawFile(const RawFile&) = delete;
  RawFile& operator=(const RawFile&) = delete;
  const Path& path() const { return path_; }
  std::int64_t position() const { return position_; }
  void seek(std::int64_t offset) {
    if (::fseeko(file_, offset, SEEK_SET) != 0) {
      throw InputError(fmt::format("{}: cannot be read at byte {}: {}", path_.string(), offset,
                                   std::strerror(errno)));
    }
    position_ = offset;
  }
  std::size_t read(std::span<char> out) {
    const std::size_t bytes = std::fread(out.data(), 1, out.size(), file_);
    if (bytes < out.size() && std::ferror(file_)) {
      throw InputError(fmt::format("{}: cannot be read at byte {}: {}", path_.string(), position_,
                                   std::strerror(errno)));
    }
    position_ += static_cast<std::int64_t>(bytes);
    return bytes;
  }

 private:
  Path path_;
  std::FILE* file_;
  std::int64_t position_ = 0;
};

class PlainDecoder : public CompressedFile::Decoder {
 public:
  explicit PlainDecoder(const Path& path) : file_(path) {}
  std::size_t read(std::span<char> out) override { return file_.read(out); }
  std::int64_t file_position() const override { return file_.position(); }
  bool seek(std::int64_t offset) override {
    file_.seek(offset);
    return true;
  }

 private:
  RawFile file_;
};

class GzipDecoder : public CompressedFile::Decoder {
 public:
  explicit GzipDecoder(const Path& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (!file_) cannot_open(path);
    gzbuffer(file_, 1 << 18);
  }
  ~GzipDecoder() override { gzclose_r(file_); }
  GzipDecoder(const GzipDecoder&) = delete;
  GzipDecoder& operator=(const GzipDecoder&) = delete;

  std::size_t read(std::span<char> out) override {
    std::size_t done = 0;
    while (done < out.size()) {
      const auto wanted = static_cast<unsigned>(std::min<std::size_t>(out.size() - done, 1u << 30));
      const int got = gzread(file_, out.data() + done, wanted);
      int error = Z_OK;
      const char* message = gzerror(file_, &error);
      if (got < 0 || (error != Z_OK && error != Z_STREAM_END)) {
        throw InputError(
            fmt::format("{}: damaged or cut gzip data near byte {} ({}); expected a "
                        "whole file, make or fetch it again",
                        path_.string(), file_position(),
                        error == Z_BUF_ERROR ? "unexpected end of file" : message));
      }
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    return done;
  }
  std::int64_t file_position() const override { return gzoffset(file_); }

 private:
  Path path_;
  gzFile file_;
};

class ZstandardDecoder : public CompressedFile::Decoder {
 public:
  explicit ZstandardDecoder(const Path& path)
      : file_(path), stream_(ZSTD_createDStream()), input_(ZSTD_DStreamInSize()) {
    // Files made with `zstd --long` need more than the library's default window.
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, 31);
  }
  ~ZstandardDecoder() override { ZSTD_freeDStream(stream_); }
  ZstandardDecoder(const ZstandardDecoder&) = delete;
  ZstandardDecoder& operator=(const ZstandardDecoder&) = delete;

  std::size_t read(std::span<char> out) override {
    ZSTD_outBuffer target{out.data(), out.size(), 0};
    while (target.pos < target.size) {
      if (pending_.pos == pending_.size && !flushing_) {
        pending_ = {input_.data(), file_.read(input_), 0};
        if (pending_.size == 0) {
          if (!frame_done_) fail("unexpected end of file");
          break;
        }
      }
      const std::size_t before = target.pos;
      const std::size_t result = ZSTD_decompressStream(stream_, &target, &pending_);
      if (ZSTD_isError(result)) fail(ZSTD_getErrorName(result));
      frame_done_ = result == 0;
      // A full output may hide bytes that the decoder still holds.
      flushing_ = !frame_done_ && target.pos == target.size && target.pos > before;
    }
    return target.pos;
  }
  std::int64_t file_position() const override { return file_.position(); }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw InputError(
        fmt::format("{}: damaged or cut Zstandard data near byte {} ({}); expected a "
                    "whole file, make or fetch it again",
                    file_.path().string(), file_.position(), what));
  }

  RawFile file_;
  ZSTD_DStream* stream_;
  std::vector<char> input_;
  ZSTD_inBuffer pending_{nullptr, 0, 0};
  bool frame_done_ = true;
  bool flushing_ = false;
};

std::unique_ptr<CompressedFile::Decoder> decoder_of(const Path& path) {
  using namespace std::string_view_literals;
  std::array<char, 4> first{};
  const std::string_view magic(first.data(), RawFile(path).read(first));
  if (magic.substr(0, 2) == "\x1F\x8B"sv) return std::make_unique<GzipDecoder>(path);
  // The second form is a skippable frame, with which some writers begin.
  if (magic == "\x28\xB5\x2F\xFD"sv ||
      (magic.size() == 4 && (magic[0] & 0xF0) == 0x50 && magic.substr(1) == "\x2A\x4D\x18"sv)) {
    return std::make_unique<ZstandardDecoder>(path);
  }
  const std::string extension = path.extension().string();
  if (extension == ".gz" || extension == ".zst") {
    throw InputError(
        fmt::format("{}: expected {} data, as its name says, found other bytes{}; "
                    "make or fetch it again, or rename it",
                    path.string(), extension == ".gz" ? "gzip" : "Zstandard",
                    magic.empty() ? " (the file is empty)" : ""));
  }
  return std::make_unique<PlainDecoder>(path);
}

}  // namespace

CompressedFile::CompressedFile(const Path& path)
    : decoder_(decoder_of(path)),
      compressed_(dynamic_cast<PlainDecoder*>(decoder_.get()) == nullptr) {}
CompressedFile::~CompressedFile() = default;
std::size_t CompressedFile::read(std::span<char> out) { return decoder_->read(out); }
std::int64_t CompressedFile::file_position() const { return decoder_->file_position(); }
bool CompressedFile::is_compressed() const { return compressed_; }
void CompressedFile::seek(std::int64_t offset) {
  if (!decoder_->seek(offset)) throw std::logic_error("seek in a compressed file");
}

}  // namespace scone
