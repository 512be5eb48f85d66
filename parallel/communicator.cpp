#include "parallel/communicator.h"

#include <fmt/format.h>

#include <cstring>
#include <stdexcept>

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

class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string describe() const override { return "self"; }
  void barrier() override {}
  void all_reduce(std::span<float>, ReduceOp) override {}
  void all_reduce(std::span<double>, ReduceOp) override {}
  void all_reduce(std::span<std::int64_t>, ReduceOp) override {}
  void broadcast(std::span<std::byte>, int root) override {
    if (root != 0) throw std::out_of_range(fmt::format("broadcast: root {} of 1 rank", root));
  }
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    return {std::vector<std::byte>(bytes.begin(), bytes.end())};
  }
  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t>,
                  std::span<std::byte> receive, std::span<const std::int64_t>,
                  std::size_t) override {
    if (send.size() != receive.size())
      throw std::invalid_argument(fmt::format("all_to_all: sends {} bytes to itself, expects {}",
                                              send.size(), receive.size()));
    if (!send.empty()) std::memcpy(receive.data(), send.data(), send.size());
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>();
}

}  // namespace scone
