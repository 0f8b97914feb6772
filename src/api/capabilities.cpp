// The support matrix and explanations, computed by asking the tiers' predicates about probe problems.
#include <algorithm>

#include "api/entry.h"
#include "api/registry.h"
#include "pure/pure.h"

namespace natten {

namespace {

constexpr int kProbeLength = 16;

Problem probe(int rank, Op op, DeviceType device, FloatType type = FloatType::float32) {
  Problem p;
  p.op = op;
  p.rank = rank;
  p.device = device;
  p.batch = 1;
  p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 32;
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  for (int axis = kAxes - rank; axis < kAxes; ++axis) p.axes[axis] = Axis{kProbeLength, 3, 1, 1, 1, false};
  p.query_type = p.key_type = p.value_type = type;
  return p;
}

constexpr FloatType kTypes[] = {FloatType::float32, FloatType::float16, FloatType::bfloat16, FloatType::float64};

// One probe for each feature of the semantics, so that an objection to it becomes a constraint of the row.
std::vector<Problem> feature_probes(int rank, Op op, DeviceType device) {
  std::vector<Problem> probes;
  const auto add = [&](auto change) {
    Problem p = probe(rank, op, device);
    change(p, p.axes[kAxes - 1]);
    probes.push_back(p);
  };
  add([](Problem&, Axis&) {});
  add([](Problem&, Axis& a) { a.kernel_size = 4; });
  add([](Problem&, Axis& a) { a.kernel_size = 1; });
  add([](Problem&, Axis& a) { a.kernel_size = kProbeLength; });
  add([](Problem&, Axis& a) { a.stride = 2; });
  add([](Problem&, Axis& a) { a.dilation = 2; });
  add([](Problem&, Axis& a) { a.gna_stride = 2; });
  add([](Problem&, Axis& a) { a.is_causal = true; });
  add([](Problem&, Axis& a) { a.is_circular = true; });
  add([](Problem&, Axis& a) {
    a.is_causal = true;
    a.kernel_size = 2 * kProbeLength;
  });
  add([](Problem& p, Axis& a) {
    p.spans = {whole(p.axes[0]), whole(p.axes[1]), AxisSpan{4, 4, 2, 8}};
    a.length = 2 * kProbeLength;
  });
  add([](Problem& p, Axis&) { p.heads = 4; });
  add([](Problem& p, Axis&) { p.value_dim = p.value_dim ? 24 : 0; });
  for (int dim : {1, 33, 256, 257, 512}) add([&](Problem& p, Axis&) { p.head_dim = p.value_dim = dim; });
  if (op != Op::av) add([](Problem& p, Axis&) { p.has_rpb = true; });
  add([](Problem& p, Axis&) { p.has_lengths = true; });
  for (FloatType type : kTypes) probes.push_back(probe(rank, op, device, type));
  return probes;
}

TierSupport support(const Tier& tier) {
  TierSupport row;
  const Objection unavailable = tier.unavailable();
  row.name = tier.name;
  row.available = !unavailable;
  row.reason = unavailable.value_or("");

  std::vector<DeviceType> devices;
  for (DeviceType device : {DeviceType::cpu, DeviceType::gpu}) {
    if (objection(tier, probe(1, Op::attention, device))) continue;
    devices.push_back(device);
    row.devices.push_back(device == DeviceType::cpu ? "cpu" : "gpu");
  }
  const auto on_some_device = [&](auto accepts) { return std::any_of(devices.begin(), devices.end(), accepts); };

  bool split = true;
  for (int rank = 1; rank <= kAxes; ++rank) {
    const std::string name = "na" + std::to_string(rank) + "d";
    row.forward[name] = on_some_device([&](DeviceType d) { return !objection(tier, probe(rank, Op::attention, d)); });
    row.fusion[name] = row.forward[name] && tier.is_fused;
    row.varlen[name] = on_some_device([&](DeviceType d) {
      Problem p = probe(rank, Op::attention, d);
      p.has_lengths = true;
      return !objection(tier, p);
    });
    split = split && on_some_device([&](DeviceType d) {
              return !objection(tier, probe(rank, Op::qk, d)) && !objection(tier, probe(rank, Op::av, d));
            });
    for (DeviceType device : devices) {
      for (Op op : {Op::attention, Op::qk, Op::av}) {
        for (const Problem& p : feature_probes(rank, op, device)) {
          const Objection reason = objection(tier, p);
          if (reason && std::find(row.constraints.begin(), row.constraints.end(), *reason) == row.constraints.end()) {
            row.constraints.push_back(*reason);
          }
        }
      }
    }
  }
  row.forward["split_qk_av"] = split;
  row.backward = row.forward;  // a tier takes calls that it can differentiate
  for (FloatType type : kTypes) {
    if (on_some_device([&](DeviceType d) { return !objection(tier, probe(1, Op::attention, d, type)); })) {
      row.dtypes.push_back(to_string(to_dtype(type)));
    }
  }
  return row;
}

}  // namespace

ValidatedCall validated(const CallDescription& call, const Neighborhood& neighborhood, const TierPtr& gpu_tier) {
  const mx::Device device = mx::to_stream(call.stream).device;
  const int rank = std::clamp(static_cast<int>(call.query.shape.size()) - 3, 1, kAxes);
  const Caller caller{"na" + std::to_string(rank) + "d" + (call.op == "attention" ? "" : "_" + call.op), rank};
  if (call.op == "attention") {
    Problem p = validate_attention(caller, call.query, call.key, call.value, neighborhood, given_of(call, device));
    const auto &keys = call.additional_keys, &values = call.additional_values;
    const std::int64_t additional = validate_additional(caller, p, keys, values);
    if (gpu_tier) p.device = DeviceType::gpu;
    if (additional == 0 || p.batch == 0 || p.queries() == 0) return {caller, p, additional};
    return {caller, with_additional(caller, p, additional, *keys, *values, gpu_tier), additional};
  }
  if (call.op == "qk") {
    const Problem p = validate_qk(caller, call.query, call.key, neighborhood, given_of(call, device));
    return {caller, p, validate_additional_keys(caller, p, call.additional_keys)};
  }
  if (call.op == "av") {
    const auto& others = call.additional_values;
    const std::int64_t additional = others && others->shape.size() == 4 ? others->shape[1] : 0;
    const Problem p = validate_av(caller, call.query, call.value, neighborhood, given_of(call, device), additional);
    validate_additional_values(caller, p, others);
    return {caller, additional > 0 ? pure::window_problem(p) : p, additional};
  }
  throw std::invalid_argument("[explain] op must be 'attention', 'qk' or 'av', got '" + call.op + "'");
}

std::map<std::string, TierSupport> support_matrix() {
  const auto all = tiers();
  return {{kCompiled, support(*all[0])}, {kFast, support(*all[1])}, {kPure, support(*all[2])}};
}

Explanation explain(const CallDescription& call, const Neighborhood& neighborhood) {
  const auto [caller, problem, additional] = validated(call, neighborhood);
  const Choice choice = explain_choice(caller, problem);
  KernelChoice kernel = choice.tier->choice(problem);
  if (problem.batch == 0) {
    kernel = {"none, the batch is empty", ""};
  } else if (problem.queries() == 0) {
    kernel = {"none, the span holds no query to compute", ""};
  } else if (additional > 0) {
    kernel.kernel += "; " + std::to_string(additional) + " additional tokens " +
                     (problem.extra_tokens > 0 ? "in it" : "by MLX's operations");
  }
  return {choice.tier->name, kernel.kernel, kernel.tile, choice.declined};
}

std::string gpu_cost(const CallDescription& call, const Neighborhood& neighborhood) {
  for (const TierPtr& tier : tiers()) {
    if (!tier->cost) continue;
    Problem problem = validated(call, neighborhood, tier).problem;
    problem.device = DeviceType::gpu;
    const Objection reason = objection(*tier, problem);
    return reason ? "none: tier '" + tier->name + "' cannot run this call: " + *reason : tier->cost(problem);
  }
  return "none: no tier has a model";
}

}  // namespace natten
