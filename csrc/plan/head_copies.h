/// What split, concat, send and receive come to: views of a row's columns, and copies of parts of heads or rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan/buffer_plan.h"

namespace sterna {

/// n floats of each of `heads` parts of a row, which lie apart; a row of rank 2 is one part.
struct HeadCopy {
  Place from, to;
  std::int64_t n, heads, from_apart, to_apart;
};

/// Between places that are parts of the heads of such shapes.
inline HeadCopy head_copy(const Place& from, const Shape& from_shape, const Place& to, const Shape& to_shape) {
  return {from,
          to,
          std::min(from_shape.back().size, to_shape.back().size),
          from_shape.size() == 3 ? from_shape[1].size : 1,
          from_shape.back().size,
          to_shape.back().size};
}

/// Parts of the last dimension become places: views of a matrix's columns, or what `copy` copies out of heads.
template <class Copy>
void split_places(BufferPlan& buffers, const Node& node, Copy copy) {
  const ValueId x = node.input("x");
  const Shape& shape = buffers.program().value(x).shape;
  Place part = buffers.place_of(x);
  for (const ValueId output : node.outputs) {
    const Shape& part_shape = buffers.program().value(output).shape;
    if (shape.size() == 2) {
      buffers.alias(output, part);
    } else {
      copy(head_copy(part, shape, buffers.define(output), part_shape));
    }
    part.offset += part_shape.back().size;
  }
}

/// Calls `copy` for each part of the result.
template <class Copy>
void concat_places(BufferPlan& buffers, const Node& node, Copy copy) {
  const Shape& shape = buffers.program().value(node.outputs[0]).shape;
  Place target = buffers.define(node.outputs[0]);
  for (const ValueId part : node.input_list("x")) {
    const Shape& part_shape = buffers.program().value(part).shape;
    copy(head_copy(buffers.place_of(part), part_shape, target, shape));
    target.offset += part_shape.back().size;
  }
}

/// Calls `copy` for each value that is sent: they lie side by side in a row of the result.
template <class Copy>
void send_places(BufferPlan& buffers, const Node& node, Copy copy) {
  Place target = buffers.define(node.outputs[0]);
  for (const ValueId x : node.input_list("x")) {
    const std::int64_t n = buffers.row_size(x);
    copy(HeadCopy{buffers.place_of(x), target, n, 1, n, n});
    target.offset += n;
  }
}

/// n floats of each received row of `row_floats`, from `first` on.
struct ReceivedPart {
  ValueId value;
  std::int64_t row_floats, first, n;
};

/// Calls `receive` for each value that was sent.
template <class Receive>
void receive_parts(const BufferPlan& buffers, const Node& node, Receive receive) {
  std::int64_t first = 0, row_floats = 0;
  for (const ValueId output : node.outputs) row_floats += buffers.row_size(output);
  for (const ValueId output : node.outputs) {
    const std::int64_t n = buffers.row_size(output);
    receive(ReceivedPart{output, row_floats, first, n});
    first += n;
  }
}

}  // namespace sterna
