#include "parallel/traffic.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace scone {

const char* name_of(CollectiveKind kind) {
  constexpr std::array names = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all",
                                "broadcast"};
  return names.at(static_cast<std::size_t>(kind));
}

Traffic::Group& Traffic::group(const std::string& name, int ranks) {
  const auto known = std::find_if(groups_.begin(), groups_.end(),
                                  [&](const Group& group) { return group.name == name; });
  return known != groups_.end() ? *known : groups_.emplace_back(Group{name, ranks, {}});
}

Traffic Traffic::since(const Traffic& before) const {
  Traffic difference = *this;
  for (std::size_t g = 0; g < before.groups_.size(); ++g) {
    for (std::size_t k = 0; k < kCollectiveKinds; ++k) {
      difference.groups_[g].kinds[k].calls -= before.groups_[g].kinds[k].calls;
      difference.groups_[g].kinds[k].bytes -= before.groups_[g].kinds[k].bytes;
    }
  }
  return difference;
}

void Traffic::add(const Traffic& other) {
  for (const Group& from : other.groups_) {
    Group& to = group(from.name, from.ranks);
    for (std::size_t k = 0; k < kCollectiveKinds; ++k) {
      to.kinds[k].calls += from.kinds[k].calls;
      to.kinds[k].bytes += from.kinds[k].bytes;
    }
  }
}

void Traffic::sum_over(Communicator& world) {
  std::vector<std::int64_t> counts;
  for (const Group& group : groups_)
    for (const CollectiveCount& count : group.kinds)
      counts.insert(counts.end(), {count.calls, count.bytes});
  world.all_reduce(std::span(counts), ReduceOp::sum);
  auto next = counts.begin();
  for (Group& group : groups_) {
    for (CollectiveCount& count : group.kinds) {
      count.calls = *next++;
      count.bytes = *next++;
    }
  }
}

nlohmann::json traffic_json(const Traffic& traffic) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Traffic::Group& group : traffic.groups()) {
    for (std::size_t k = 0; k < kCollectiveKinds; ++k) {
      if (group.kinds[k].calls == 0) continue;
      rows.push_back({{"group", group.name},
                      {"ranks", group.ranks},
                      {"kind", name_of(static_cast<CollectiveKind>(k))},
                      {"calls", group.kinds[k].calls},
                      {"bytes", group.kinds[k].bytes}});
    }
  }
  return rows;
}

namespace {

class CountedCommunicator final : public Communicator {
 public:
  CountedCommunicator(Communicator& inner, Traffic& traffic)
      : inner_(inner),
        traffic_(traffic),
        group_(inner.size() > 1 ? &traffic.group(inner.name(), inner.size()) : nullptr) {}
  CountedCommunicator(std::unique_ptr<Communicator> owned, Traffic& traffic)
      : CountedCommunicator(*owned, traffic) {
    owned_ = std::move(owned);
  }

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::string describe() const override { return inner_.describe(); }
  const std::string& name() const override { return inner_.name(); }
  std::span<const int> members() const override { return inner_.members(); }
  bool on_device() const override { return inner_.on_device(); }
  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    return std::make_unique<CountedCommunicator>(inner_.split(color, name), traffic_);
  }
  std::unique_ptr<Communicator> split_on_host(int color, const std::string& name) override {
    return inner_.split_on_host(color, name);
  }
  void cancel() override { inner_.cancel(); }
  void barrier() override { inner_.barrier(); }

  void all_reduce(std::span<float> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<double> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<std::int64_t> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce_sum(std::span<Bf16> values) override {
    count(CollectiveKind::all_reduce, values.size_bytes());
    inner_.all_reduce_sum(values);
  }
  std::unique_ptr<PendingCollective> start_all_reduce_sum(std::span<float> values) override {
    count(CollectiveKind::all_reduce, values.size_bytes());
    return inner_.start_all_reduce_sum(values);
  }

  void reduce_scatter(std::span<const float> values, std::span<const std::int64_t> counts,
                      std::span<float> slice) override {
    count(CollectiveKind::reduce_scatter, values.size_bytes());
    inner_.reduce_scatter(values, counts, slice);
  }
  void reduce_scatter(std::span<const Bf16> values, std::span<const std::int64_t> counts,
                      std::span<Bf16> slice) override {
    count(CollectiveKind::reduce_scatter, values.size_bytes());
    inner_.reduce_scatter(values, counts, slice);
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(std::span<const float> values,
                                                          std::span<const std::int64_t> counts,
                                                          std::span<float> slice) override {
    count(CollectiveKind::reduce_scatter, values.size_bytes());
    return inner_.start_reduce_scatter(values, counts, slice);
  }

  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    count(CollectiveKind::all_gather, bytes.size());
    return inner_.all_gather(bytes);
  }
  void all_gather(std::span<float> values, std::span<const std::int64_t> counts) override {
    count(CollectiveKind::all_gather, values.size_bytes());
    inner_.all_gather(values, counts);
  }
  void all_gather(std::span<Bf16> values, std::span<const std::int64_t> counts) override {
    count(CollectiveKind::all_gather, values.size_bytes());
    inner_.all_gather(values, counts);
  }

  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    count(CollectiveKind::all_to_all, sent_to_others(send, send_counts, element_bytes));
    inner_.all_to_all(send, send_counts, receive, receive_counts, element_bytes);
  }
  std::unique_ptr<PendingCollective> start_all_to_all(std::span<const std::byte> send,
                                                      std::span<const std::int64_t> send_counts,
                                                      std::span<std::byte> receive,
                                                      std::span<const std::int64_t> receive_counts,
                                                      std::size_t element_bytes) override {
    count(CollectiveKind::all_to_all, sent_to_others(send, send_counts, element_bytes));
    return inner_.start_all_to_all(send, send_counts, receive, receive_counts, element_bytes);
  }

  void broadcast(std::span<std::byte> bytes, int root) override {
    count(CollectiveKind::broadcast, bytes.size());
    inner_.broadcast(bytes, root);
  }

 private:
  template <class T>
  void reduce(std::span<T> values, ReduceOp op) {
    count(CollectiveKind::all_reduce, values.size_bytes());
    inner_.all_reduce(values, op);
  }
  void count(CollectiveKind kind, std::size_t bytes) {
    if (group_ == nullptr) return;
    CollectiveCount& counted = group_->kinds[static_cast<std::size_t>(kind)];
    ++counted.calls;
    counted.bytes += static_cast<std::int64_t>(bytes);
  }
  /// send_counts may be unfit, which inner_ then says.
  std::size_t sent_to_others(std::span<const std::byte> send,
                             std::span<const std::int64_t> send_counts,
                             std::size_t element_bytes) const {
    const auto own = static_cast<std::size_t>(rank());
    if (own >= send_counts.size() || send_counts[own] < 0) return send.size();
    return send.size() -
           std::min(send.size(), static_cast<std::size_t>(send_counts[own]) * element_bytes);
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  Traffic& traffic_;
  Traffic::Group* group_;  // null: alone
};

}  // namespace

std::unique_ptr<Communicator> count_traffic(Communicator& inner, Traffic& traffic) {
  return std::make_unique<CountedCommunicator>(inner, traffic);
}

}  // namespace scone
