#include "distributed/gathers.h"

#include <algorithm>
#include <numeric>

#include "distributed/order.h"
#include "distributed/ring_collectives.h"
#include "graph/decorated.h"
#include "graph/pin.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten::distributed {

namespace {

using Sizes = std::vector<std::int64_t>;

// Elements that each rank sends to the right and to the left: its block, padded to the longest.
struct Layout {
  Sizes right, left;

  int size() const { return static_cast<int>(right.size()); }
  int right_of(int rank) const { return (rank + 1) % size(); }
  int left_of(int rank) const { return (rank + size() - 1) % size(); }
  std::int64_t block() const {
    std::int64_t longest = 1;
    for (int rank = 0; rank < size(); ++rank) longest = std::max(longest, right[rank] + left[rank]);
    return longest;
  }
  // Of what comes back: each rank returns what it got.
  Layout reversed() const {
    Layout back{Sizes(size()), Sizes(size())};
    for (int rank = 0; rank < size(); ++rank) {
      back.right[rank] = left[right_of(rank)];
      back.left[rank] = right[left_of(rank)];
    }
    return back;
  }
  Layout times(int count) const {
    Layout more = *this;
    for (Sizes* sizes : {&more.right, &more.left}) {
      for (std::int64_t& size : *sizes) size *= count;
    }
    return more;
  }
};

struct Flat {
  mx::array left, right, done;
};

mx::array part(const mx::array& flat, std::int64_t start, std::int64_t count, mx::Stream s) {
  mx::Shape from(flat.ndim(), 0), to = flat.shape();
  from.back() = static_cast<int>(start);
  to.back() = static_cast<int>(start + count);
  return mx::slice(flat, from, to, s);
}

// Where rank finds in the gathered blocks what its neighbors sent it.
std::int64_t left_start(const Layout& layout, int rank) {
  return layout.left_of(rank) * layout.block();
}
std::int64_t right_start(const Layout& layout, int rank) {
  return layout.right_of(rank) * layout.block() + layout.right[layout.right_of(rank)];
}

Flat exchange_flat(const mx::array& to_right, const mx::array& to_left, const Layout& layout, const Arrays& after,
                   const Group& group, mx::Stream s);

mx::array padded(const Arrays& parts, std::int64_t length, mx::Stream s) {
  const mx::array joined = mx::concatenate(parts, -1, s);
  mx::Shape rest = joined.shape();
  rest.back() = static_cast<int>(length) - rest.back();
  return mx::concatenate({joined, mx::zeros(rest, joined.dtype(), s)}, -1, s);
}

mx::array gathered_blocks(const mx::array& block, const Layout& layout, const Group& group, mx::Stream s) {
  const int rank = group.rank();
  const Layout back = layout.reversed();
  Rules rules{"NattenGather",
              // What others did with this rank's part is what their neighbors return.
              [=](const Arrays&, const mx::array& cotangent, int, mx::Stream s) {
                const Flat returned =
                    exchange_flat(part(cotangent, right_start(layout, rank), back.right[rank], s),
                                  part(cotangent, left_start(layout, rank), back.left[rank], s), back, {}, group, s);
                const mx::array all = padded({returned.right, returned.left}, layout.block(), s);
                return pin({all}, {returned.done}, s)[0];
              },
              [=](const Arrays& tangents, mx::Stream s) { return gathered_blocks(tangents[0], layout, group, s); },
              [=](const Arrays& inputs, const std::vector<int>& axes, mx::Stream s) -> std::pair<mx::array, int> {
                const mx::array blocks = mx::moveaxis(inputs[0], axes[0], 0, s);
                const int count = blocks.shape(0);
                const auto flat = [&](std::int64_t start, std::int64_t length) {
                  return mx::reshape(part(blocks, start, length, s), {static_cast<int>(count * length)}, s);
                };
                const Flat found =
                    exchange_flat(flat(0, layout.right[rank]), flat(layout.right[rank], layout.left[rank]),
                                  layout.times(count), {}, group, s);
                // Only the two parts that somebody reads.
                mx::array all = mx::zeros({count, static_cast<int>(layout.size() * layout.block())}, blocks.dtype(), s);
                const auto put = [&](const mx::array& what, std::int64_t start, std::int64_t length) {
                  const mx::array rows = mx::reshape(what, {count, static_cast<int>(length)}, s);
                  all = mx::slice_update(all, rows, mx::Shape{0, static_cast<int>(start)},
                                         mx::Shape{count, static_cast<int>(start + length)}, s);
                };
                put(found.left, left_start(layout, rank), back.left[rank]);
                put(found.right, right_start(layout, rank), back.right[rank]);
                return {pin({all}, {found.done}, s)[0], 0};
              }};
  const mx::array node = all_gather(block, group, s);
  return decorated(node, std::move(rules), node.primitive().stream());
}

// The last element is any one that was gathered: its gradient (0) is added to that of the others, which thereby comes
// after what comes after this exchange.
Flat exchange_flat(const mx::array& to_right, const mx::array& to_left, const Layout& layout, const Arrays& after,
                   const Group& group, mx::Stream s) {
  const int rank = group.rank();
  Arrays inputs{padded({to_right, to_left}, layout.block(), s)};
  inputs.insert(inputs.end(), after.begin(), after.end());
  Arrays ordered = after;
  for (const mx::array& node : previous(group, inputs)) ordered.push_back(node);
  const mx::array block = pin({inputs[0]}, ordered, s)[0];
  const mx::array all = gathered_blocks(block, layout, group, s);
  const mx::array done = mx::astype(part(all, 0, 1, s), mx::float32, s);
  set_previous(group, inputs, done);
  return {part(all, left_start(layout, rank), layout.right[layout.left_of(rank)], s),
          part(all, right_start(layout, rank), layout.left[layout.right_of(rank)], s), done};
}

mx::array flattened(const Arrays& arrays, mx::Dtype type, mx::Stream s) {
  Arrays flat{mx::zeros({0}, type, s)};
  for (const mx::array& a : arrays) flat.push_back(mx::astype(mx::flatten(a, s), type, s));
  return mx::concatenate(flat, 0, s);
}

Arrays unflattened(const mx::array& flat, const std::vector<mx::Shape>& shapes, const std::vector<mx::Dtype>& types,
                   mx::Stream s) {
  Arrays arrays;
  std::int64_t start = 0;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const std::int64_t count =
        std::accumulate(shapes[i].begin(), shapes[i].end(), std::int64_t{1}, std::multiplies<>());
    arrays.push_back(mx::astype(mx::reshape(part(flat, start, count, s), shapes[i], s), types[i], s));
    start += count;
  }
  return arrays;
}

}  // namespace

Delivery exchange_by_gathers(const Parcel& parcel, const Arrays& after, const Group& group, mx::Stream s) {
  mx::Dtype type = mx::float16;  // the one that holds all others exactly
  bool is_first = true;
  for (const std::vector<mx::Dtype>* types : {&parcel.left_types, &parcel.right_types}) {
    for (const mx::Dtype t : *types) {
      type = is_first ? t : mx::promote_types(type, t);
      is_first = false;
    }
  }
  const Flat found = exchange_flat(flattened(parcel.to_right, type, s), flattened(parcel.to_left, type, s),
                                   {parcel.right_sizes, parcel.left_sizes}, after, group, s);
  return {unflattened(found.left, parcel.from_left, parcel.left_types, s),
          unflattened(found.right, parcel.from_right, parcel.right_types, s), found.done};
}

}  // namespace natten::distributed
