#include "distributed/halo.h"

#include <optional>

#include "distributed/split.h"
#include "mlx/ops.h"

namespace natten::distributed {

namespace {

class Hops {
 public:
  Hops(const Arrays& tensors, const HaloRequest& request, mx::Stream s)
      : plan_(request.plan),
        axis_(request.axis),
        group_(request.group),
        link_(request.link),
        rank_(group_.rank()),
        s_(s) {
    for (const mx::array& tensor : tensors) {
      shapes_.push_back(tensor.shape());
      types_.push_back(tensor.dtype());
      left_.push_back(no_rows(tensor));
    }
    right_ = left_;
  }

  // What travels is in reach: the ends of the slab first, then what came in the hop before.
  Halo travel(const Views& views, std::size_t requested) {
    Arrays to_right = views.parts[requested], to_left = views.parts[requested + 1], after{views.anchor};
    for (std::size_t hop = 0; hop < plan_.hops.size(); ++hop) {
      if (hop > 0) {
        to_right = last_rows(to_right, plan_.hops[hop].to_right[rank_]);
        to_left = first_rows(to_left, plan_.hops[hop].to_left[rank_]);
      }
      const Delivery delivery = exchange(parcel(to_right, to_left, plan_.hops[hop]), after, group_, link_);
      const int distance = static_cast<int>(hop) + 1;
      const Arrays left = last_rows(delivery.from_left, plan_.kept_left(rank_, distance));
      const Arrays right = first_rows(delivery.from_right, plan_.kept_right(rank_, distance));
      left_ = hop == 0 ? left : joined(left, left_);
      right_ = hop == 0 ? right : joined(right_, right);
      to_right = delivery.from_left;
      to_left = delivery.from_right;
      after = {views.anchor, delivery.done};
    }
    return {views.whole,
            {views.parts.begin(), views.parts.begin() + static_cast<std::ptrdiff_t>(requested)},
            left_,
            right_,
            after.back()};
  }

 private:
  mx::Shape with_rows(const mx::Shape& shape, std::int64_t rows) const {
    mx::Shape result = shape;
    result[axis_] = static_cast<int>(rows);
    return result;
  }

  mx::array no_rows(const mx::array& tensor) const {
    return mx::zeros(with_rows(tensor.shape(), 0), tensor.dtype(), s_);
  }

  Arrays sliced(const Arrays& arrays, std::int64_t start, std::int64_t rows) const {
    Arrays result;
    for (const mx::array& a : arrays) {
      mx::Shape from(a.ndim(), 0), to = a.shape();
      from[axis_] = static_cast<int>(start);
      to[axis_] = static_cast<int>(start + rows);
      result.push_back(mx::slice(a, from, to, s_));
    }
    return result;
  }

  Arrays first_rows(const Arrays& arrays, std::int64_t rows) const { return sliced(arrays, 0, rows); }
  Arrays last_rows(const Arrays& arrays, std::int64_t rows) const {
    return sliced(arrays, arrays[0].shape(axis_) - rows, rows);
  }

  Arrays joined(const Arrays& before, const Arrays& after) const {
    Arrays result;
    for (std::size_t i = 0; i < before.size(); ++i) {
      result.push_back(mx::concatenate({before[i], after[i]}, axis_, s_));
    }
    return result;
  }

  Parcel parcel(const Arrays& to_right, const Arrays& to_left, const Hop& hop) const {
    Parcel p;
    p.to_right = to_right;
    p.to_left = to_left;
    std::int64_t row = 0;  // elements, of all tensors
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      p.from_left.push_back(with_rows(shapes_[i], hop.to_right[plan_.left_of(rank_)]));
      p.from_right.push_back(with_rows(shapes_[i], hop.to_left[plan_.right_of(rank_)]));
      std::int64_t elements = 1;
      for (const int length : with_rows(shapes_[i], 1)) elements *= length;
      row += elements;
    }
    p.left_types = p.right_types = types_;
    for (int rank = 0; rank < plan_.size(); ++rank) {
      p.right_sizes.push_back(row * hop.to_right[rank]);
      p.left_sizes.push_back(row * hop.to_left[rank]);
    }
    return p;
  }

  const SlabPlan& plan_;
  int axis_;
  Group group_;
  mx::Stream link_;
  int rank_;
  mx::Stream s_;
  std::vector<mx::Shape> shapes_;
  std::vector<mx::Dtype> types_;
  Arrays left_, right_;
};

}  // namespace

Halo exchange_halo(const Arrays& tensors, const HaloRequest& request, mx::Stream s) {
  const SlabPlan& plan = request.plan;
  const int rank = request.group.rank();
  const std::int64_t rows = plan.slabs[rank].rows;
  std::vector<Rows> parts = request.parts;
  const std::int64_t to_right = plan.hops.empty() ? 0 : plan.hops[0].to_right[rank];
  const std::int64_t to_left = plan.hops.empty() ? 0 : plan.hops[0].to_left[rank];
  parts.emplace_back(rows - to_right, rows);
  parts.emplace_back(0, to_left);
  return Hops(tensors, request, s).travel(split(tensors, request.axis, parts, s), request.parts.size());
}

}  // namespace natten::distributed
