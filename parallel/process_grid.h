#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace scone {

/// The ranks of a world as a grid tensor-parallel x data-parallel for one model: world rank =
/// data_rank * tensor_size + tensor_rank, so that tensor-parallel groups are neighbours.
class ProcessGrid {
 public:
  /// Collective over world. model: "main" or "fgram", for names and messages. Throws InputError
  /// where tensor_parallel does not divide the world's size, naming the key parallel.<model>.tp and
  /// the nearest valid values.
  ProcessGrid(Communicator& world, int tensor_parallel, const std::string& model);

  Communicator& tensor() const { return *tensor_; }  // shares every layer of one replica
  Communicator& data() const { return *data_; }      // holds the same shard, of other replicas
  int tensor_rank() const { return tensor_->rank(); }
  int tensor_size() const { return tensor_->size(); }
  int data_rank() const { return data_->rank(); }
  int data_size() const { return data_->size(); }
  const std::string& model() const { return model_; }
  /// Whether some tensor-parallel group has ranks on several nodes (the same on every rank).
  bool tensor_crosses_nodes() const { return crosses_nodes_; }

 private:
  std::string model_;
  std::unique_ptr<Communicator> tensor_, data_;
  bool crosses_nodes_ = false;
};

}  // namespace scone
