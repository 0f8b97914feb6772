#include "distributed/transport.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "distributed/gathers.h"
#include "distributed/order.h"
#include "distributed/ring_sockets.h"
#include "graph/pin.h"
#include "graph/trace.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/distributed/distributed_impl.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten::distributed {

namespace {

std::atomic<std::int64_t> sent_so_far{0};

// An array as runs of bytes that lie together, from the outermost axis to the one that holds them.
struct Strided {
  const char* data;
  std::size_t run;
  std::vector<std::pair<std::int64_t, std::ptrdiff_t>> axes;  // length, bytes to the next

  explicit Strided(mx::array& a) : data(a.data<char>()), run(a.itemsize()) {
    const auto item = static_cast<std::ptrdiff_t>(a.itemsize());
    for (int i = static_cast<int>(a.ndim()) - 1; i >= 0; --i) {
      const std::ptrdiff_t step = a.strides(i) * item;
      if (a.shape(i) == 1) continue;
      if (axes.empty() && step == static_cast<std::ptrdiff_t>(run)) {
        run *= a.shape(i);
      } else {
        axes.emplace(axes.begin(), a.shape(i), step);
      }
    }
  }

  /// Calls visit(first byte) for each run.
  template <class Visit>
  void for_each_run(const char* from, Visit&& visit, std::size_t axis = 0) const {
    if (axis == axes.size()) return visit(from);
    for (std::int64_t i = 0; i < axes[axis].first; ++i, from += axes[axis].second) for_each_run(from, visit, axis + 1);
  }
};

// Shorter runs are copied together before they are sent: the system takes longer for a run than for its bytes.
constexpr std::size_t kLeastRun = 1024;

void send_parts(int socket, const std::vector<Strided>& parts) {
  std::vector<iovec> runs;
  for (const Strided& part : parts) {
    part.for_each_run(part.data, [&](const char* from) { runs.push_back({const_cast<char*>(from), part.run}); });
  }
  send_runs(socket, std::move(runs));
}

// The arrays as one run of bytes. MLX's backends count elements with 32 bits: the widest type that fits carries most.
mx::array buffer_of(std::size_t bytes) {
  const std::vector<std::pair<std::size_t, mx::Dtype>> types{
      {8, mx::uint64}, {4, mx::uint32}, {2, mx::uint16}, {1, mx::uint8}};
  const auto type = std::find_if(types.begin(), types.end(), [&](const auto& t) { return bytes % t.first == 0; });
  const std::size_t count = bytes / type->first;
  if (count > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw std::runtime_error("[natten.distributed] a message of " + std::to_string(bytes) + " bytes is too large");
  }
  return mx::array(mx::allocator::malloc(bytes), mx::Shape{static_cast<int>(count)}, type->second);
}

// The arrays in their order in a message: wide types first, so that each is aligned where it lies.
std::vector<mx::array*> in_message(Arrays::iterator first, Arrays::iterator last) {
  std::vector<mx::array*> arrays;
  for (; first != last; ++first) arrays.push_back(&*first);
  std::stable_sort(arrays.begin(), arrays.end(),
                   [](const mx::array* a, const mx::array* b) { return a->itemsize() > b->itemsize(); });
  return arrays;
}

std::size_t total(const std::vector<mx::array*>& arrays) {
  std::size_t bytes = 0;
  for (const mx::array* a : arrays) bytes += a->nbytes();
  return bytes;
}

// Inputs: what goes right, what goes left, and what it comes after. Outputs: a Delivery.
class Exchange : public mx::Primitive {
 public:
  Exchange(mx::Stream s, Group group, Parcel parcel, const Arrays& inputs)
      : Primitive(s), group_(std::move(group)), parcel_(std::move(parcel)) {
    right_ = parcel_.to_right.size();
    left_ = parcel_.to_left.size();
    parcel_.to_right.clear();  // they are inputs
    parcel_.to_left.clear();
    for (const mx::array& input : inputs) input_shapes_.push_back(input.shape());
  }

  const char* name() const override { return "NattenExchange"; }

  // All in one evaluation: every second rank sends first while its neighbors receive, so that no circle of ranks waits
  // to get rid of what it sends. A rank whose messages need nobody to receive them sends both first.
  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    outputs.back().set_data(mx::allocator::malloc(outputs.back().nbytes()));
    *outputs.back().data<float>() = 0.0F;
    Arrays sent = inputs;  // handles with data that may be pointed to
    const auto split = sent.begin() + static_cast<std::ptrdiff_t>(right_);
    const auto halves = outputs.begin() + static_cast<std::ptrdiff_t>(parcel_.from_left.size());
    const auto to_right = in_message(sent.begin(), split);
    const auto to_left = in_message(split, split + static_cast<std::ptrdiff_t>(left_));
    const auto from_left = in_message(outputs.begin(), halves);
    const auto from_right = in_message(halves, outputs.end() - 1);
    const int size = group_.size(), rank = group_.rank();
    const int right = (rank + 1) % size, left = (rank + size - 1) % size;
    if (fit_on_the_way(total(to_right), total(to_left))) {
      send(to_right, right);
      send(to_left, left);
      receive(from_left, left);
      receive(from_right, right);
    } else if (rank % 2 == 0) {
      send(to_right, right);
      receive(from_left, left);
      send(to_left, left);
      receive(from_right, right);
    } else {
      receive(from_left, left);
      send(to_right, right);
      receive(from_right, right);
      send(to_left, left);
    }
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[natten.distributed] messages between neighbors run on a CPU stream");
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    return exchanged_back(primals, cotangents, argnums);
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    Arrays all;
    for (const mx::array& primal : primals) all.push_back(mx::zeros_like(primal, stream()));
    Arrays after;
    for (std::size_t i = 0; i < argnums.size(); ++i) {
      all[argnums[i]] = tangents[i];
      if (argnums[i] >= static_cast<int>(right_ + left_)) after.push_back(tangents[i]);
    }
    return results(exchange(with_inputs(all), after, group_, stream()));
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    const Arrays mapped = mapped_first(inputs, axes, stream());
    int count = 1;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (axes[i] >= 0) count = inputs[i].shape(axes[i]);
    }
    Parcel parcel = with_inputs(mapped);
    for (std::vector<mx::Shape>* shapes : {&parcel.from_left, &parcel.from_right}) {
      for (mx::Shape& shape : *shapes) shape.insert(shape.begin(), count);
    }
    const auto after = mapped.begin() + static_cast<std::ptrdiff_t>(right_ + left_);
    Arrays outputs = results(exchange(parcel, {after, mapped.end()}, group_, stream()));
    outputs.back() = mx::broadcast_to(outputs.back(), {count, 1}, stream());
    return {outputs, std::vector<int>(outputs.size(), 0)};
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    std::vector<mx::Shape> shapes = parcel_.from_left;
    shapes.insert(shapes.end(), parcel_.from_right.begin(), parcel_.from_right.end());
    shapes.push_back({1});
    return shapes;
  }

 private:
  // Tasks of the stream run in the order in which they are dispatched, those of the group's functions too.
  void send(const std::vector<mx::array*>& arrays, int to) {
    if (total(arrays) == 0) return;
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<Strided> parts;
    for (mx::array* a : arrays) {
      if (a->size() > 0) parts.emplace_back(*a);
    }
    const bool is_right = to == (group_.rank() + 1) % group_.size();
    const std::optional<int> socket = socket_of(is_right ? &RingSockets::right : &RingSockets::left);
    const bool is_in_place =
        socket && std::all_of(parts.begin(), parts.end(), [](const Strided& part) { return part.run >= kLeastRun; });
    if (is_in_place) {
      encoder.dispatch([parts, on = *socket] { send_parts(on, parts); });
    } else {
      mx::array message = buffer_of(total(arrays));
      encoder.dispatch([parts, bytes = message.data<char>()] {
        char* to = bytes;
        for (const Strided& part : parts) {
          part.for_each_run(part.data, [&](const char* from) { to = std::copy_n(from, part.run, to); });
        }
      });
      if (socket) {
        encoder.dispatch([on = *socket, bytes = message.data<char>(), count = message.nbytes()] {
          send_runs(on, {{bytes, count}});
        });
      } else {
        group_.raw_group()->send(message, to, stream());
      }
      encoder.add_temporary(message);
    }
    encoder.dispatch([bytes = total(arrays)] { sent_so_far += static_cast<std::int64_t>(bytes); });
  }

  // The arrays share the message.
  void receive(const std::vector<mx::array*>& arrays, int from) {
    mx::array message = buffer_of(total(arrays));
    std::size_t offset = 0;
    for (mx::array* a : arrays) {
      const bool is_line = std::all_of(a->shape().begin(), a->shape().end(),
                                       [&](int length) { return length == 1 || std::size_t(length) == a->size(); });
      a->copy_shared_buffer(message, a->strides(), {true, true, is_line}, a->size(),
                            static_cast<std::int64_t>(offset / a->itemsize()));
      offset += a->nbytes();
    }
    if (offset == 0) return;
    const bool is_left = from == (group_.rank() + group_.size() - 1) % group_.size();
    if (const std::optional<int> socket = socket_of(is_left ? &RingSockets::left : &RingSockets::right)) {
      mx::cpu::get_command_encoder(stream()).dispatch(
          [on = *socket, bytes = message.data<char>(), count = message.nbytes()] { receive_bytes(on, bytes, count); });
    } else {
      group_.raw_group()->recv(message, from, stream());
    }
    mx::cpu::get_command_encoder(stream()).add_temporary(message);
  }

  std::optional<int> socket_of(std::vector<int> RingSockets::*side) const {
    const RingSockets* sockets = RingSockets::of(group_);
    return sockets != nullptr ? std::optional<int>((sockets->*side)[0]) : std::nullopt;
  }

  // Two ranks have one connection for both messages.
  bool fit_on_the_way(std::size_t right, std::size_t left) const {
    const RingSockets* sockets = RingSockets::of(group_);
    return sockets != nullptr && (group_.size() == 2 ? right + left : std::max(right, left)) <= sockets->room();
  }

  Parcel with_inputs(const Arrays& inputs) const {
    Parcel parcel = parcel_;
    const auto split = inputs.begin() + static_cast<std::ptrdiff_t>(right_);
    parcel.to_right = {inputs.begin(), split};
    parcel.to_left = {split, split + static_cast<std::ptrdiff_t>(left_)};
    return parcel;
  }

  static Arrays results(const Delivery& delivery) {
    Arrays all = delivery.from_left;
    all.insert(all.end(), delivery.from_right.begin(), delivery.from_right.end());
    all.push_back(delivery.done);
    return all;
  }

  // The gradient of what came from a neighbor belongs to it: the same node, the other way.
  Arrays exchanged_back(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums) {
    const auto split = cotangents.begin() + static_cast<std::ptrdiff_t>(parcel_.from_left.size());
    Parcel back;
    back.to_left = {cotangents.begin(), split};
    back.to_right = {split, cotangents.end() - 1};
    for (std::size_t i = 0; i < right_ + left_; ++i) {
      (i < right_ ? back.from_right : back.from_left).push_back(primals[i].shape());
      (i < right_ ? back.right_types : back.left_types).push_back(primals[i].dtype());
    }
    const Delivery delivery = exchange(back, {cotangents.back()}, group_, stream());
    Arrays all = delivery.from_right;
    all.insert(all.end(), delivery.from_left.begin(), delivery.from_left.end());
    Arrays result;
    for (const int arg : argnums) {
      const bool is_sent = arg < static_cast<int>(right_ + left_);
      result.push_back(is_sent ? all[arg]
                               : pin({mx::zeros_like(primals[arg], stream())}, {delivery.done}, stream())[0]);
    }
    return result;
  }

  Group group_;
  Parcel parcel_;  // its arrays are the inputs
  std::size_t right_ = 0, left_ = 0;
  std::vector<mx::Shape> input_shapes_;
};

Delivery exchange_by_messages(const Parcel& parcel, const Arrays& after, const Group& group, mx::Stream s) {
  Arrays inputs = parcel.to_right;
  inputs.insert(inputs.end(), parcel.to_left.begin(), parcel.to_left.end());
  inputs.insert(inputs.end(), after.begin(), after.end());
  std::vector<mx::Shape> shapes = parcel.from_left;
  shapes.insert(shapes.end(), parcel.from_right.begin(), parcel.from_right.end());
  shapes.push_back({1});
  std::vector<mx::Dtype> types = parcel.left_types;
  types.insert(types.end(), parcel.right_types.begin(), parcel.right_types.end());
  types.push_back(mx::float32);
  const mx::Stream link = group.raw_group()->communication_stream(s);
  const Arrays outputs =
      mx::array::make_arrays(shapes, types, std::make_shared<Exchange>(link, group, parcel, inputs), inputs);
  const auto split = outputs.begin() + static_cast<std::ptrdiff_t>(parcel.from_left.size());
  return {{outputs.begin(), split}, {split, outputs.end() - 1}, outputs.back()};
}

}  // namespace

Carrier carrier_of(const Group& group) {
  const char* forced = std::getenv("NATTEN_DISTRIBUTED_CARRIER");
  if (forced != nullptr && std::strcmp(forced, "gathers") == 0) return Carrier::gathers;
  return is_backend(group, "nccl") ? Carrier::gathers : Carrier::neighbors;
}

Delivery exchange(const Parcel& parcel, const Arrays& after, const Group& group, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  if (carrier_of(group) == Carrier::gathers) return exchange_by_gathers(parcel, after, group, s);
  Arrays inputs = parcel.to_right;
  inputs.insert(inputs.end(), parcel.to_left.begin(), parcel.to_left.end());
  inputs.insert(inputs.end(), after.begin(), after.end());
  Arrays ordered = after;
  for (const mx::array& node : previous(group, inputs)) ordered.push_back(node);
  const Delivery delivery = exchange_by_messages(parcel, ordered, group, s);
  set_previous(group, inputs, delivery.done);
  return delivery;
}

std::int64_t bytes_sent() {
  return sent_so_far;
}

}  // namespace natten::distributed
