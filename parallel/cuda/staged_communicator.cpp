#include "parallel/cuda/staged_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <exception>
#include <functional>
#include <utility>
#include <vector>

#include "parallel/collective.h"
#include "parallel/cuda/device.h"

namespace scone {
namespace {

constexpr std::size_t piece_bytes = 16u << 20;

/// Pinned memory on the communication stream: device memory is copied in, the host works on it, and
/// results are copied out. What is copied out last is still on its way when the next user comes;
/// the stream's order keeps the two apart.
class Stage {
 public:
  Stage() = default;
  ~Stage() {
    // The memory may be the target or source of copies still.
    if (memory_.bytes() == 0 || std::uncaught_exceptions() > 0) return;
    try {
      cuda_device().wait(cuda_device().communication());
    } catch (const std::exception&) {
      // Of work that somebody else waits for, and hears of.
    }
  }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  std::size_t bytes() const { return memory_.bytes(); }
  void reserve(std::size_t bytes) {
    if (bytes <= memory_.bytes()) return;
    cuda_device().wait(cuda_device().communication());
    memory_ = cuda::PinnedBuffer();
    memory_ = cuda::PinnedBuffer(bytes);
  }
  template <class T>
  std::span<T> span(std::size_t begin, std::size_t count) const {
    return {reinterpret_cast<T*>(memory_.data()) + begin, count};
  }
  template <class T>
  void copy_in(std::span<T> device, std::size_t begin) {
    if (device.empty()) return;
    cuda::check(
        cudaMemcpyAsync(span<std::remove_const_t<T>>(begin, 1).data(), device.data(),
                        device.size_bytes(), cudaMemcpyDeviceToHost, cuda_device().communication()),
        "cudaMemcpyAsync to the host");
  }
  template <class T>
  void copy_out(std::span<T> device, std::size_t begin) {
    if (device.empty()) return;
    cuda::check(cudaMemcpyAsync(device.data(), span<T>(begin, 1).data(), device.size_bytes(),
                                cudaMemcpyHostToDevice, cuda_device().communication()),
                "cudaMemcpyAsync to the device");
  }
  /// What was copied in so far is awaited by wait_arrived().
  void mark_arrival() { arrived_.record(cuda_device().communication()); }
  void wait_arrived() { cuda_device().wait(arrived_); }

 private:
  cuda::PinnedBuffer memory_;
  cuda::Event arrived_;
};

/// From the compute stream to the communication stream, or back: what `to` is given later comes
/// after what `from` was given.
void order(cudaStream_t from, cudaStream_t to) {
  cuda::Event event;
  event.record(from);
  event.hold(to);
}
void begin_after_compute() { order(cuda_device().compute(), cuda_device().communication()); }
void hold_compute() { order(cuda_device().communication(), cuda_device().compute()); }

class StagedCommunicator final : public Communicator {
 public:
  explicit StagedCommunicator(std::unique_ptr<Communicator> host) : host_(std::move(host)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string describe() const override {
    return fmt::format("{}, device memory staged through the host", host_->describe());
  }
  const std::string& name() const override { return host_->name(); }
  std::span<const int> members() const override { return host_->members(); }
  bool on_device() const override { return true; }

  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    return std::make_unique<StagedCommunicator>(host_->split(color, name));
  }
  std::unique_ptr<Communicator> split_on_host(int color, const std::string& name) override {
    return host_->split(color, name);
  }
  void cancel() override { host_->cancel(); }

  // Of host memory.
  void barrier() override { host_->barrier(); }
  void all_reduce(std::span<double> values, ReduceOp op) override { host_->all_reduce(values, op); }
  void all_reduce(std::span<std::int64_t> values, ReduceOp op) override {
    host_->all_reduce(values, op);
  }
  void broadcast(std::span<std::byte> bytes, int root) override { host_->broadcast(bytes, root); }
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    return host_->all_gather(bytes);
  }
  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    host_->all_to_all(send, send_counts, receive, receive_counts, element_bytes);
  }

  // Of device memory.
  void all_reduce(std::span<float> values, ReduceOp op) override {
    reduce(values, [&](std::span<float> piece) { host_->all_reduce(piece, op); });
  }
  void all_reduce_sum(std::span<Bf16> values) override {
    reduce(values, [&](std::span<Bf16> piece) { host_->all_reduce_sum(piece); });
  }
  void reduce_scatter(std::span<const float> values, std::span<const std::int64_t> counts,
                      std::span<float> slice) override {
    scatter(values, counts, slice);
  }
  void reduce_scatter(std::span<const Bf16> values, std::span<const std::int64_t> counts,
                      std::span<Bf16> slice) override {
    scatter(values, counts, slice);
  }
  void all_gather(std::span<float> values, std::span<const std::int64_t> counts) override {
    gather(values, counts);
  }
  void all_gather(std::span<Bf16> values, std::span<const std::int64_t> counts) override {
    gather(values, counts);
  }

  std::unique_ptr<PendingCollective> start_all_reduce_sum(std::span<float> values) override {
    auto stage = take_stage(values.size_bytes());
    copy_in_all(*stage, values);
    const auto staged = stage->span<float>(0, values.size());
    return std::make_unique<Pending>(*this, std::move(stage), host_->start_all_reduce_sum(staged),
                                     [values](Stage& results) { results.copy_out(values, 0); });
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(std::span<const float> values,
                                                          std::span<const std::int64_t> counts,
                                                          std::span<float> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    auto stage = take_stage(values.size_bytes() + slice.size_bytes());
    copy_in_all(*stage, values);
    const auto staged = stage->span<const float>(0, values.size());
    const auto staged_slice = stage->span<float>(values.size(), slice.size());
    return std::make_unique<Pending>(
        *this, std::move(stage), host_->start_reduce_scatter(staged, counts, staged_slice),
        [slice, begin = values.size()](Stage& results) { results.copy_out(slice, begin); });
  }
  std::unique_ptr<PendingCollective> start_all_to_all(std::span<const std::byte> send,
                                                      std::span<const std::int64_t> send_counts,
                                                      std::span<std::byte> receive,
                                                      std::span<const std::int64_t> receive_counts,
                                                      std::size_t element_bytes) override {
    check_exchange(*this, "all_to_all", send, send_counts, receive, receive_counts, element_bytes);
    auto stage = take_stage(send.size() + receive.size());
    copy_in_all(*stage, send);
    const auto sent = stage->span<const std::byte>(0, send.size());
    const auto received = stage->span<std::byte>(send.size(), receive.size());
    return std::make_unique<Pending>(
        *this, std::move(stage),
        host_->start_all_to_all(sent, send_counts, received, receive_counts, element_bytes),
        [receive, begin = send.size()](Stage& results) { results.copy_out(receive, begin); });
  }

 private:
  /// The host's collective, and then the copy of its results to the device.
  class Pending final : public PendingCollective {
   public:
    Pending(StagedCommunicator& group, std::unique_ptr<Stage> stage,
            std::unique_ptr<PendingCollective> of_host, std::function<void(Stage&)> copy_out)
        : group_(group),
          stage_(std::move(stage)),
          of_host_(std::move(of_host)),
          copy_out_(std::move(copy_out)) {}
    ~Pending() override {
      if (std::uncaught_exceptions() == 0) {
        wait();
        return;
      }
      // Where the host's collective cannot end, its messages still find the memory, leaked.
      of_host_.reset();
      static_cast<void>(stage_.release());
    }
    Pending(const Pending&) = delete;
    Pending& operator=(const Pending&) = delete;

    bool done() override {
      if (stage_ == nullptr) return true;
      if (!of_host_->done()) return false;
      finish();
      return true;
    }
    void wait() override {
      if (stage_ == nullptr) return;
      of_host_->wait();
      finish();
    }

   private:
    void finish() {
      of_host_.reset();
      copy_out_(*stage_);
      hold_compute();
      group_.stages_.push_back(std::move(stage_));
    }
    StagedCommunicator& group_;
    std::unique_ptr<Stage> stage_;  // null: done
    std::unique_ptr<PendingCollective> of_host_;
    std::function<void(Stage&)> copy_out_;
  };

  /// The smallest stage at hand that is large enough, or the largest, enlarged.
  std::unique_ptr<Stage> take_stage(std::size_t bytes) {
    if (stages_.empty()) stages_.push_back(std::make_unique<Stage>());
    const auto worse = [bytes](const auto& a, const auto& b) {
      const bool a_fits = a->bytes() >= bytes, b_fits = b->bytes() >= bytes;
      if (a_fits != b_fits) return a_fits;
      return a_fits ? a->bytes() < b->bytes() : a->bytes() > b->bytes();
    };
    const auto best = std::min_element(stages_.begin(), stages_.end(), worse);
    auto stage = std::move(*best);
    stages_.erase(best);
    stage->reserve(bytes);
    return stage;
  }

  template <class T>
  static void copy_in_all(Stage& stage, std::span<T> device) {
    begin_after_compute();
    stage.copy_in(device, 0);
    stage.mark_arrival();
    stage.wait_arrived();
  }

  /// work(stage, piece) for every piece on the host, while the next piece's copy_in(stage, piece)
  /// is under way on the device; then copy_out(stage, piece).
  template <class CopyIn, class Work, class CopyOut>
  void in_pieces(std::size_t pieces, std::size_t bytes, CopyIn&& copy_in, Work&& work,
                 CopyOut&& copy_out) {
    if (pieces == 0) return;
    const std::size_t used = std::min<std::size_t>(pieces, piece_stages_.size());
    for (std::size_t s = 0; s < used; ++s) piece_stages_[s].reserve(bytes);
    begin_after_compute();
    auto fill = [&](std::size_t piece) {
      Stage& stage = piece_stages_[piece % piece_stages_.size()];
      copy_in(stage, piece);
      stage.mark_arrival();
    };
    fill(0);
    for (std::size_t piece = 0; piece < pieces; ++piece) {
      if (piece + 1 < pieces) fill(piece + 1);
      Stage& stage = piece_stages_[piece % piece_stages_.size()];
      stage.wait_arrived();
      work(stage, piece);
      copy_out(stage, piece);
    }
    hold_compute();
  }

  template <class T, class Reduce>
  void reduce(std::span<T> values, Reduce&& reduce_on_host) {
    constexpr std::size_t width = piece_bytes / sizeof(T);
    auto part = [&](std::size_t piece) {
      return values.subspan(piece * width, std::min(width, values.size() - piece * width));
    };
    in_pieces((values.size() + width - 1) / width, std::min(piece_bytes, values.size_bytes()),
              [&](Stage& stage, std::size_t piece) { stage.copy_in(part(piece), 0); },
              [&](Stage& stage, std::size_t piece) {
                reduce_on_host(stage.span<T>(0, part(piece).size()));
              },
              [&](Stage& stage, std::size_t piece) { stage.copy_out(part(piece), 0); });
  }

  static std::size_t most_elements(const std::vector<SlicePiece>& pieces) {
    std::size_t most = 0;
    for (const auto& piece : pieces) most = std::max(most, piece.elements);
    return most;
  }

  /// Half of a stage holds the pieces of all ranks, the other one the sum.
  template <class T>
  void scatter(std::span<const T> values, std::span<const std::int64_t> counts,
               std::span<T> slice) {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    const auto pieces = slice_pieces(counts, piece_bytes / sizeof(T) / 2);
    const std::size_t most = most_elements(pieces);
    const auto own = static_cast<std::size_t>(rank());
    std::size_t done = 0;
    in_pieces(
        pieces.size(), 2 * most * sizeof(T),
        [&](Stage& stage, std::size_t piece) { copy_slices(stage, values, pieces[piece]); },
        [&](Stage& stage, std::size_t piece) {
          const auto own_count = static_cast<std::size_t>(pieces[piece].counts[own]);
          host_->reduce_scatter(stage.span<const T>(0, pieces[piece].elements),
                                pieces[piece].counts, stage.span<T>(most, own_count));
        },
        [&](Stage& stage, std::size_t piece) {
          const auto own_count = static_cast<std::size_t>(pieces[piece].counts[own]);
          stage.copy_out(slice.subspan(done, own_count), most);
          done += own_count;
        });
  }

  template <class T>
  static void copy_slices(Stage& stage, std::span<const T> values, const SlicePiece& piece) {
    std::size_t begin = 0;
    for (std::size_t r = 0; r < piece.counts.size(); ++r) {
      const auto count = static_cast<std::size_t>(piece.counts[r]);
      stage.copy_in(values.subspan(piece.begins[r], count), begin);
      begin += count;
    }
  }

  template <class T>
  void gather(std::span<T> values, std::span<const std::int64_t> counts) {
    check_counts(*this, "all_gather", "values", counts, values.size());
    const auto pieces = slice_pieces(counts, piece_bytes / sizeof(T));
    const auto own = static_cast<std::size_t>(rank());
    auto for_slices = [&](std::size_t piece, auto&& f) {
      std::size_t begin = 0;
      for (std::size_t r = 0; r < counts.size(); ++r) {
        const auto count = static_cast<std::size_t>(pieces[piece].counts[r]);
        f(r, values.subspan(pieces[piece].begins[r], count), begin);
        begin += count;
      }
    };
    in_pieces(
        pieces.size(), most_elements(pieces) * sizeof(T),
        [&](Stage& stage, std::size_t piece) {
          for_slices(piece, [&](std::size_t r, std::span<T> device, std::size_t begin) {
            if (r == own) stage.copy_in(device, begin);
          });
        },
        [&](Stage& stage, std::size_t piece) {
          host_->all_gather(stage.span<T>(0, pieces[piece].elements), pieces[piece].counts);
        },
        [&](Stage& stage, std::size_t piece) {
          for_slices(piece, [&](std::size_t r, std::span<T> device, std::size_t begin) {
            if (r != own) stage.copy_out(device, begin);
          });
        });
  }

  std::unique_ptr<Communicator> host_;
  std::array<Stage, 2> piece_stages_;
  std::vector<std::unique_ptr<Stage>> stages_;  // of start_*, free
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host) {
  return std::make_unique<StagedCommunicator>(std::move(host));
}

}  // namespace scone
