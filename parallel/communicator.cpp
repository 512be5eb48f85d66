#include "parallel/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "parallel/collective.h"

namespace scone {

double Communicator::all_reduce_value(double value, ReduceOp op) {
  all_reduce(std::span<double>(&value, 1), op);
  return value;
}

std::int64_t Communicator::all_reduce_value(std::int64_t value, ReduceOp op) {
  all_reduce(std::span<std::int64_t>(&value, 1), op);
  return value;
}

std::string Communicator::broadcast_string(const std::string& text, int root) {
  auto length = static_cast<std::int64_t>(text.size());
  broadcast(std::as_writable_bytes(std::span(&length, 1)), root);
  std::string result = text;
  result.resize(static_cast<std::size_t>(length));
  broadcast(std::as_writable_bytes(std::span(result)), root);
  return result;
}

std::vector<std::int64_t> Communicator::exchange_counts(std::span<const std::int64_t> send_counts) {
  const auto ranks = static_cast<std::size_t>(size());
  std::vector<std::int64_t> received(ranks);
  const std::vector<std::int64_t> ones(ranks, 1);
  all_to_all(std::as_bytes(send_counts), ones, std::as_writable_bytes(std::span(received)), ones,
             sizeof(std::int64_t));
  return received;
}

namespace {

// Floats that a Bf16 collective holds at a time, over all ranks.
constexpr std::size_t bf16_piece = 1u << 20;

void widen(std::span<const Bf16> from, float* to) {
  std::transform(from.begin(), from.end(), to, [](Bf16 value) { return to_float(value); });
}

void narrow(std::span<const float> from, Bf16* to) {
  std::transform(from.begin(), from.end(), to, to_bf16);
}

}  // namespace

void Communicator::all_reduce_sum(std::span<Bf16> values) {
  for (std::size_t begin = 0; begin < values.size(); begin += bf16_piece) {
    const auto piece = values.subspan(begin, std::min(bf16_piece, values.size() - begin));
    floats_.resize(std::max(floats_.size(), piece.size()));
    const auto floats = std::span(floats_).first(piece.size());
    widen(piece, floats.data());
    all_reduce(floats, ReduceOp::sum);
    narrow(floats, piece.data());
  }
}

void Communicator::reduce_scatter(std::span<const Bf16> values,
                                  std::span<const std::int64_t> counts, std::span<Bf16> slice) {
  check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
  const auto own = static_cast<std::size_t>(rank());
  std::size_t done = 0;
  for (const SlicePiece& piece : slice_pieces(counts, bf16_piece)) {
    floats_.resize(piece.elements);
    float* next = floats_.data();
    for (std::size_t r = 0; r < counts.size(); ++r) {
      const auto width = static_cast<std::size_t>(piece.counts[r]);
      widen(values.subspan(piece.begins[r], width), next);
      next += width;
    }
    float_slice_.resize(static_cast<std::size_t>(piece.counts[own]));
    reduce_scatter(std::span<const float>(floats_), piece.counts, std::span(float_slice_));
    narrow(float_slice_, slice.data() + done);
    done += float_slice_.size();
  }
}

void Communicator::all_gather(std::span<Bf16> values, std::span<const std::int64_t> counts) {
  check_counts(*this, "all_gather", "values", counts, values.size());
  const auto own = static_cast<std::size_t>(rank());
  for (const SlicePiece& piece : slice_pieces(counts, bf16_piece)) {
    floats_.resize(piece.elements);
    auto for_slices = [&](auto&& f) {
      float* next = floats_.data();
      for (std::size_t r = 0; r < counts.size(); ++r) {
        const auto width = static_cast<std::size_t>(piece.counts[r]);
        f(r, std::span(next, width), values.subspan(piece.begins[r], width));
        next += width;
      }
    };
    for_slices([&](std::size_t r, std::span<float> floats, std::span<Bf16> slice) {
      if (r == own) widen(slice, floats.data());
    });
    all_gather(std::span(floats_), piece.counts);
    for_slices([&](std::size_t r, std::span<float> floats, std::span<Bf16> slice) {
      if (r != own) narrow(floats, slice.data());
    });
  }
}

namespace {

class SelfCommunicator final : public Communicator {
 public:
  explicit SelfCommunicator(std::string name) : name_(std::move(name)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string describe() const override { return "self"; }
  const std::string& name() const override { return name_; }
  std::span<const int> members() const override { return std::span(&only_member, 1); }
  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    check_color(*this, color);
    return std::make_unique<SelfCommunicator>(name);
  }
  void cancel() override {}  // nothing waits here
  void barrier() override {}
  void all_reduce(std::span<float>, ReduceOp) override {}
  void all_reduce(std::span<double>, ReduceOp) override {}
  void all_reduce(std::span<std::int64_t>, ReduceOp) override {}
  void broadcast(std::span<std::byte>, int root) override { check_root(*this, root); }
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    return {std::vector<std::byte>(bytes.begin(), bytes.end())};
  }
  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    check_exchange(*this, "all_to_all", send, send_counts, receive, receive_counts, element_bytes);
    if (send.size() != receive.size())
      fail_collective(
          *this, "all_to_all",
          fmt::format("sends {} bytes to itself, expects {}", send.size(), receive.size()));
    if (!send.empty()) std::memcpy(receive.data(), send.data(), send.size());
  }
  void reduce_scatter(std::span<const float> values, std::span<const std::int64_t> counts,
                      std::span<float> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    std::copy(values.begin(), values.end(), slice.begin());
  }
  void all_gather(std::span<float> values, std::span<const std::int64_t> counts) override {
    check_counts(*this, "all_gather", "values", counts, values.size());
  }
  void all_reduce_sum(std::span<Bf16>) override {}
  void reduce_scatter(std::span<const Bf16> values, std::span<const std::int64_t> counts,
                      std::span<Bf16> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    std::copy(values.begin(), values.end(), slice.begin());
  }
  void all_gather(std::span<Bf16> values, std::span<const std::int64_t> counts) override {
    check_counts(*this, "all_gather", "values", counts, values.size());
  }
  std::unique_ptr<PendingCollective> start_all_reduce_sum(std::span<float>) override {
    return std::make_unique<DoneCollective>();
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(std::span<const float> values,
                                                          std::span<const std::int64_t> counts,
                                                          std::span<float> slice) override {
    reduce_scatter(values, counts, slice);
    return std::make_unique<DoneCollective>();
  }
  std::unique_ptr<PendingCollective> start_all_to_all(std::span<const std::byte> send,
                                                      std::span<const std::int64_t> send_counts,
                                                      std::span<std::byte> receive,
                                                      std::span<const std::int64_t> receive_counts,
                                                      std::size_t element_bytes) override {
    all_to_all(send, send_counts, receive, receive_counts, element_bytes);
    return std::make_unique<DoneCollective>();
  }

 private:
  static constexpr int only_member = 0;
  std::string name_;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>("world");
}

}  // namespace scone
