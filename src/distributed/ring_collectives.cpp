#include "distributed/ring_collectives.h"

#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "distributed/ring_sockets.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/distributed/distributed_impl.h"
#include "mlx/distributed/ops.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten::distributed {

namespace {

using Arrays = std::vector<mx::array>;
using Group = mx::distributed::Group;

struct Ring {
  int rank, size, left, right;  // left and right: sockets

  int turned(int rank_or_part) const { return (rank_or_part % size + size) % size; }
};

// Parts of one array, of which part i begins at byte start[i]; the last one is its end.
struct Parts {
  char* data;
  std::vector<std::size_t> start;

  char* at(int part) const { return data + start[part]; }
  std::size_t bytes(int part) const { return start[part + 1] - start[part]; }
};

// Passes parts on to the right until every rank has all, of which rank r had part r + shift.
void pass_around(const Ring& ring, const Parts& parts, int shift) {
  for (int step = 0; step + 1 < ring.size; ++step) {
    const int sent = ring.turned(ring.rank + shift - step), received = ring.turned(sent - 1);
    pass_on(ring.right, parts.at(sent), parts.bytes(sent), ring.left, parts.at(received), parts.bytes(received));
  }
}

// Each part's sum begins at one rank and goes around; then the sums do.
template <class T>
void sum_around(const Ring& ring, const Parts& parts, char* arrived) {
  for (int step = 0; step + 1 < ring.size; ++step) {
    const int sent = ring.turned(ring.rank - step), received = ring.turned(sent - 1);
    pass_on(ring.right, parts.at(sent), parts.bytes(sent), ring.left, arrived, parts.bytes(received));
    T* sum = reinterpret_cast<T*>(parts.at(received));
    const T* addend = reinterpret_cast<const T*>(arrived);
    for (std::size_t i = 0; i < parts.bytes(received) / sizeof(T); ++i) sum[i] = addend[i] + sum[i];
  }
  pass_around(ring, parts, 1);
}

using Sum = void (*)(const Ring&, const Parts&, char*);

// Null for types that MLX's ring sums instead.
Sum sum_of(mx::Dtype type) {
  switch (type) {
    case mx::float32:
      return sum_around<float>;
    case mx::float16:
      return sum_around<mx::float16_t>;
    case mx::bfloat16:
      return sum_around<mx::bfloat16_t>;
    case mx::float64:
      return sum_around<double>;
    case mx::complex64:
      return sum_around<mx::complex64_t>;
    case mx::int32:
      return sum_around<std::int32_t>;
    case mx::int64:
      return sum_around<std::int64_t>;
    default:
      return nullptr;
  }
}

class RingCollective : public mx::Primitive {
 public:
  RingCollective(mx::Stream s, const Ring& ring, Sum sum) : Primitive(s), ring_(ring), sum_(sum) {}

  const char* name() const override { return sum_ ? "NattenRingSum" : "NattenRingGather"; }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    outputs[0].set_data(mx::allocator::malloc(outputs[0].nbytes()));
    if (outputs[0].nbytes() == 0) return;
    Parts parts{outputs[0].data<char>(), {}};
    const std::size_t own = inputs[0].nbytes(), item = inputs[0].itemsize(), size = ring_.size;
    for (std::size_t part = 0; part <= size; ++part) {
      parts.start.push_back(sum_ ? own / item * part / size * item : own * part);
    }
    char* const copy = sum_ ? parts.data : parts.at(ring_.rank);
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::optional<mx::array> arrived;
    if (sum_) {
      arrived.emplace(mx::allocator::malloc(own / size + item), mx::Shape{1}, mx::uint8);
      encoder.add_temporary(*arrived);
    }
    encoder.dispatch([ring = ring_, sum = sum_, parts, from = inputs[0].data<char>(), own, copy,
                      scratch = sum_ ? arrived->data<char>() : nullptr] {
      std::memcpy(copy, from, own);
      sum ? sum(ring, parts, scratch) : pass_around(ring, parts, 0);
    });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[natten.distributed] the ring's communication runs on a CPU stream");
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    if (sum_) return cotangents;
    return Primitive::vjp(primals, cotangents, argnums, {});
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    if (sum_) return {node(tangents[0], stream(), ring_, sum_)};
    return Primitive::jvp(primals, tangents, argnums);
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    if (sum_) return {{node(inputs[0], stream(), ring_, sum_)}, axes};
    return Primitive::vmap(inputs, axes);
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    mx::Shape shape = inputs[0].shape();
    if (!sum_) shape[0] *= ring_.size;
    return {shape};
  }

  static mx::array node(const mx::array& x, mx::Stream s, const Ring& ring, Sum sum) {
    const mx::array input = mx::contiguous(x, false, s);
    const auto primitive = std::make_shared<RingCollective>(s, ring, sum);
    return mx::array(primitive->output_shapes({input})[0], x.dtype(), primitive, {input});
  }

 private:
  Ring ring_;
  Sum sum_;  // null: gathers
};

std::optional<Ring> ring_of(const Group& group) {
  const RingSockets* sockets = RingSockets::of(group);
  if (sockets == nullptr) return std::nullopt;
  return Ring{group.rank(), group.size(), sockets->left[0], sockets->right[0]};
}

}  // namespace

mx::array all_gather(const mx::array& x, const Group& group, mx::Stream s) {
  const std::optional<Ring> ring = ring_of(group);
  if (!ring) return mx::distributed::all_gather(x, group, s);
  return RingCollective::node(x, group.raw_group()->communication_stream(s), *ring, nullptr);
}

mx::array all_sum(const mx::array& x, const Group& group, mx::Stream s) {
  const std::optional<Ring> ring = ring_of(group);
  const Sum sum = sum_of(x.dtype());
  if (!ring || sum == nullptr) return mx::distributed::all_sum(x, group, s);
  return RingCollective::node(x, group.raw_group()->communication_stream(s), *ring, sum);
}

}  // namespace natten::distributed
