#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/tensor.h"

namespace scone {

/// A box of a global tensor, in this rank's memory.
struct TensorSlice {
  std::string name;    // "parameters/main.token_embedding", "adam_m/..", "adam_v/.."
  Shape global_shape;  // of the whole tensor
  Shape begin;         // first global index on each axis; the extent is values.shape()
  Tensor values;       // fp32, on the host
};

/// Indices [begin, begin + extent) on each axis of a tensor.
struct Box {
  Shape begin, extent;
};

/// Product of the extents. Throws std::overflow_error where one is negative or the product is
/// 2^60 or more.
std::int64_t elements_of(const Shape& shape);

/// "[3, 4]", for messages.
std::string describe(const Shape& shape);

/// True where the box has the shape's axes and does not reach beyond them.
bool is_inside(const Box& box, const Shape& shape);

/// The indices that both hold; nullopt where there are none. The boxes have as many axes.
std::optional<Box> overlap_of(const Box& a, const Box& b);

/// What keeps the boxes from holding each index of a tensor of this shape exactly once: a box of
/// other axes or beyond the shape, an overlap, missing elements. Empty: they do.
std::string cover_problem(const Shape& shape, std::vector<Box> boxes);

/// The elements of `part`, a box inside both `a` and `b`, as runs that are contiguous in row-major
/// memory of a and of b, in ascending order of both.
class BoxRuns {
 public:
  BoxRuns(const Box& a, const Box& b, const Box& part);
  std::int64_t run_elements() const { return run_; }
  /// Elements of a between the end of a run and the next, where several lie in one row of a.
  std::int64_t gap_in_a() const { return gap_; }

  /// visit(offset in a, offset in b), in elements, of each run.
  template <class Visit>
  void for_each(const Visit& visit) const {
    std::vector<std::int64_t> index(outer_.size(), 0);
    std::int64_t in_a = first_a_, in_b = first_b_;
    for (;;) {
      visit(in_a, in_b);
      std::size_t axis = outer_.size();
      for (;;) {
        if (axis == 0) return;
        --axis;
        in_a += outer_[axis].stride_a;
        in_b += outer_[axis].stride_b;
        if (++index[axis] < outer_[axis].count) break;
        in_a -= outer_[axis].count * outer_[axis].stride_a;
        in_b -= outer_[axis].count * outer_[axis].stride_b;
        index[axis] = 0;
      }
    }
  }

 private:
  struct Axis {
    std::int64_t count, stride_a, stride_b;
  };
  std::vector<Axis> outer_;
  std::int64_t first_a_ = 0, first_b_ = 0, run_ = 1, gap_ = 0;
};

}  // namespace scone
