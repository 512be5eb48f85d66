#include "checkpoint/tensor_slice.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace scone {

std::int64_t elements_of(const Shape& shape) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 60;
  std::int64_t elements = 1;
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) throw std::overflow_error(fmt::format("negative shape {}", describe(shape)));
    if (extent == 0) {
      empty = true;  // the others must still be in range
      continue;
    }
    if (extent >= kLimit / elements) {
      throw std::overflow_error(fmt::format("shape {} of 2^60 elements or more", describe(shape)));
    }
    elements *= extent;
  }
  return empty ? 0 : elements;
}

std::string describe(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

bool is_inside(const Box& box, const Shape& shape) {
  bool inside = box.begin.size() == shape.size() && box.extent.size() == shape.size();
  for (std::size_t axis = 0; inside && axis < shape.size(); ++axis) {
    inside = box.begin[axis] >= 0 && box.extent[axis] >= 0 && box.extent[axis] <= shape[axis] &&
             box.begin[axis] <= shape[axis] - box.extent[axis];
  }
  return inside;
}

std::optional<Box> overlap_of(const Box& a, const Box& b) {
  Box part;
  for (std::size_t axis = 0; axis < a.begin.size(); ++axis) {
    const std::int64_t begin = std::max(a.begin[axis], b.begin[axis]);
    const std::int64_t end =
        std::min(a.begin[axis] + a.extent[axis], b.begin[axis] + b.extent[axis]);
    if (begin >= end) return std::nullopt;
    part.begin.push_back(begin);
    part.extent.push_back(end - begin);
  }
  return part;
}

std::string cover_problem(const Shape& shape, std::vector<Box> boxes) {
  const auto text = [](const Box& box) {
    return fmt::format("box at {} of extent {}", describe(box.begin), describe(box.extent));
  };
  std::int64_t covered = 0;
  const std::int64_t whole = elements_of(shape);
  for (const Box& box : boxes) {
    if (!is_inside(box, shape)) {
      return fmt::format("{} is not inside its shape {}", text(box), describe(shape));
    }
    const std::int64_t elements = elements_of(box.extent);
    if (elements > whole - covered) {
      return fmt::format("its boxes hold more than its {} elements: they overlap", whole);
    }
    covered += elements;
  }
  std::erase_if(boxes, [](const Box& box) { return elements_of(box.extent) == 0; });
  std::sort(boxes.begin(), boxes.end(),
            [](const Box& a, const Box& b) { return a.begin < b.begin; });
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    for (std::size_t j = i + 1; j < boxes.size(); ++j) {
      if (!shape.empty() && boxes[j].begin[0] >= boxes[i].begin[0] + boxes[i].extent[0]) break;
      if (overlap_of(boxes[i], boxes[j])) {
        return fmt::format("{} and {} overlap", text(boxes[i]), text(boxes[j]));
      }
    }
  }
  if (covered != whole) {
    return fmt::format("its boxes hold {} of its {} elements", covered, whole);
  }
  return "";
}

BoxRuns::BoxRuns(const Box& a, const Box& b, const Box& part) {
  std::int64_t stride_a = 1, stride_b = 1;
  bool contiguous = true;  // the axes so far, from the last, are whole in both
  for (std::size_t axis = part.begin.size(); axis-- > 0;) {
    first_a_ += (part.begin[axis] - a.begin[axis]) * stride_a;
    first_b_ += (part.begin[axis] - b.begin[axis]) * stride_b;
    if (contiguous) {
      run_ *= part.extent[axis];
      contiguous = part.extent[axis] == a.extent[axis] && part.extent[axis] == b.extent[axis];
      gap_ = (a.extent[axis] - part.extent[axis]) * stride_a;
    } else {
      outer_.insert(outer_.begin(), {part.extent[axis], stride_a, stride_b});
    }
    stride_a *= a.extent[axis];
    stride_b *= b.extent[axis];
  }
}

}  // namespace scone
