#include "distributed.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "distributed/agreement.h"
#include "distributed/call.h"
#include "distributed/collectives.h"
#include "distributed/order.h"
#include "distributed/slabs.h"
#include "distributed/transport.h"
#include "natten/distributed.h"

namespace natten::bindings {

using namespace nb::literals;
using distributed::SlabPlan;

namespace {

// Pairs of query and key on the axis, over the computed queries of a slab.
std::int64_t pairs(const Axis& axis, const distributed::Slab& slab) {
  std::int64_t sum = 0;
  for (std::int64_t i = slab.first_output; i < slab.first_output + slab.outputs; ++i) {
    const std::int64_t query = i * axis.stride, group = query % axis.dilation;
    const Range<std::int64_t> keys =
        window(axis, query / axis.dilation, group_length(axis.length, axis.dilation, group));
    sum += keys.end - keys.start;
  }
  return sum;
}

// Arguments are those of a call that was validated.
nb::dict bind_slab_plan(const std::vector<std::int64_t>& rows, std::int64_t kernel_size, std::int64_t stride,
                        std::int64_t dilation, bool is_causal, std::int64_t gna_stride, bool is_circular) {
  const std::int64_t length = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  const Axis axis{length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular};
  const SlabPlan plan = distributed::plan_slabs({axis}, rows);
  nb::list slabs, hops;
  for (const distributed::Slab& slab : plan.slabs) {
    nb::dict d;
    d["start"] = slab.start;
    d["rows"] = slab.rows;
    d["outputs"] = slab.outputs;
    d["left"] = slab.left;
    d["right"] = slab.right;
    d["pairs"] = pairs(axis, slab);
    slabs.append(d);
  }
  for (const distributed::Hop& hop : plan.hops) {
    nb::dict d;
    d["to_right"] = hop.to_right;
    d["to_left"] = hop.to_left;
    hops.append(d);
  }
  nb::dict result;
  result["slabs"] = slabs;
  result["hops"] = hops;
  result["left_border"] = plan.left_border;
  result["right_border"] = plan.right_border;
  return result;
}

distributed::SlabOptions slab_options(const Caller& c, nb::handle group, nb::handle axis, nb::handle rows,
                                      nb::handle overlap, nb::handle communication_stream) {
  distributed::SlabOptions options;
  if (!group.is_none()) {
    if (!nb::isinstance<distributed::Group>(group)) fail(c, "group must be an mlx.core.distributed.Group");
    options.group = nb::cast<distributed::Group>(group);
  }
  options.axis = static_cast<int>(std::clamp<std::int64_t>(to_integer(c, "axis", axis), -100, 100));
  if (!rows.is_none()) {
    const nb::object items = nb::steal(PyObject_GetIter(rows.ptr()));
    if (!items.is_valid()) {
      PyErr_Clear();
      fail(c, "rows must be a sequence of int, got " + text_of(rows));
    }
    std::vector<std::int64_t> counts;
    for (const nb::handle count : items) counts.push_back(to_integer(c, "rows", count));
    options.rows = counts;
  }
  if (!overlap.is_none()) options.overlap = to_flag(c, "overlap", overlap);
  options.communication_stream = to_stream_or_device(c, communication_stream);
  return options;
}

// Other ranks may be waited for: meanwhile other threads run.
template <class Function>
auto waiting(const Function& call) {
  const nb::gil_scoped_release released;
  return call();
}

std::pair<mx::array, mx::array> bind_distributed_attention(int rank, nb::handle query, nb::handle key, nb::handle value,
                                                           nb::handle kernel_size, nb::handle stride,
                                                           nb::handle dilation, nb::handle is_causal, nb::handle scale,
                                                           nb::handle additional_keys, nb::handle additional_values,
                                                           nb::handle gna_stride, nb::handle rpb, nb::handle lengths,
                                                           nb::handle stream, nb::handle is_circular, nb::handle group,
                                                           nb::handle axis, nb::handle rows, nb::handle overlap,
                                                           nb::handle communication_stream) {
  const Caller c{"distributed.na" + std::to_string(rank) + "d", rank};
  // A lambda may not capture structured bindings before clang 16.
  const auto inputs = to_inputs(c, {{"query", query}, {"key", key}, {"value", value}});
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  const AttentionOptions options{to_scale(c, scale),
                                 to_optional_array(c, "additional_keys", additional_keys),
                                 to_optional_array(c, "additional_values", additional_values),
                                 to_optional_array(c, "rpb", rpb),
                                 to_optional_array(c, "lengths", lengths),
                                 to_stream_or_device(c, stream)};
  const distributed::SlabOptions slabs = slab_options(c, group, axis, rows, overlap, communication_stream);
  const AttentionResult result = waiting(
      [&] { return distributed::attention(c, *inputs[0], *inputs[1], *inputs[2], neighborhood, options, slabs); });
  return {result.out, result.lse};
}

// What a module is called with, compared before the module computes anything: the rows of every rank.
std::vector<std::int64_t> bind_rows(const std::string& name, int rank, nb::handle x, nb::handle lengths,
                                    nb::handle group, nb::handle axis,
                                    const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& options) {
  const Caller c{name, rank};
  const mx::array& slab = to_array(c, "x", x);
  const distributed::SlabOptions slabs = slab_options(c, group, axis, nb::none(), nb::none(), nb::none());
  const int spread = distributed::array_axis(c, slabs);
  const std::int64_t own = spread < static_cast<int>(slab.ndim()) ? slab.shape(spread) : 0;
  const distributed::Group all = slabs.group ? *slabs.group : mx::distributed::init();
  if (all.size() == 1) return {own};
  distributed::Arguments arguments;
  arguments.add("shard_axis", {spread - 1}, 1);
  arguments.add_array("x", Spec(slab), spread);
  const std::optional<mx::array> samples = to_optional_array(c, "lengths", lengths);
  arguments.add_array("lengths", samples ? std::optional<Spec>(*samples) : std::nullopt);
  for (const auto& [option, values] : options) arguments.add(option, values, kAxes);
  return waiting([&] { return distributed::agree(c, arguments, own, all, {}); });
}

mx::array bind_shard(nb::handle x, nb::handle group, nb::handle axis, nb::handle rows, nb::handle stream) {
  const Caller c{"distributed.shard", 3};
  return distributed::shard(c, to_array(c, "x", x), slab_options(c, group, axis, rows, nb::none(), nb::none()),
                            to_stream_or_device(c, stream));
}

mx::array bind_gather(nb::handle x, nb::handle group, nb::handle axis, nb::handle rows, nb::handle stream) {
  const Caller c{"distributed.gather", 3};
  const mx::array& slab = to_array(c, "x", x);
  const distributed::SlabOptions slabs = slab_options(c, group, axis, rows, nb::none(), nb::none());
  const mx::StreamOrDevice s = to_stream_or_device(c, stream);
  return waiting([&] { return distributed::gather(c, slab, slabs, s); });
}

std::vector<mx::array> bind_sum(nb::handle arrays, nb::handle group, nb::handle stream) {
  const Caller c{"distributed.sum_gradients", 0};
  return distributed::sum_over_ranks(to_arrays(c, "gradients", arrays),
                                     slab_options(c, group, nb::int_(0), nb::none(), nb::none(), nb::none()).group,
                                     to_stream_or_device(c, stream));
}

}  // namespace

void bind_distributed(nb::module_& m) {
  m.def("slab_plan", bind_slab_plan, "rows"_a, "kernel_size"_a, "stride"_a, "dilation"_a, "is_causal"_a, "gna_stride"_a,
        "is_circular"_a, "Slabs, halos and messages of an axis that is spread over ranks.");
  m.def("distributed_attention", bind_distributed_attention, "rank"_a, "query"_a.none(), "key"_a.none(),
        "value"_a.none(), "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(), "is_causal"_a.none(),
        "scale"_a.none(), "additional_keys"_a.none(), "additional_values"_a.none(), "gna_stride"_a.none(),
        "rpb"_a.none(), "lengths"_a.none(), "stream"_a.none(), "is_circular"_a.none(), "group"_a.none(),
        "axis"_a.none(), "rows"_a.none(), "overlap"_a.none(), "communication_stream"_a.none(),
        "This rank's rows -> (out, lse).");
  m.def("distributed_rows", bind_rows, "name"_a, "rank"_a, "x"_a.none(), "lengths"_a.none(), "group"_a.none(),
        "axis"_a.none(), "options"_a, "Rows of every rank, which must share the arguments of a module.");
  m.def("distributed_shard", bind_shard, "x"_a.none(), "group"_a.none(), "axis"_a.none(), "rows"_a.none(),
        "stream"_a.none(), "This rank's rows of an array that all ranks hold.");
  m.def("distributed_gather", bind_gather, "x"_a.none(), "group"_a.none(), "axis"_a.none(), "rows"_a.none(),
        "stream"_a.none(), "The whole array, on every rank.");
  m.def("distributed_sum", bind_sum, "arrays"_a.none(), "group"_a.none(), "stream"_a.none(),
        "The sums of arrays over all ranks.");
  m.def("distributed_bytes_sent", &distributed::bytes_sent, "Bytes that this process has sent to its neighbors.");
  m.def("equal_rows", &distributed::equal_rows, "length"_a, "parts"_a,
        "Slabs as equal as possible, the longer ones first.");
  // Graphs that are kept hold Python functions (mx.checkpoint), which must not outlive the interpreter.
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&distributed::forget_order));
}

}  // namespace natten::bindings
