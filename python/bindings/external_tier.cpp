#include "external_tier.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "api/registry.h"

namespace natten::bindings {

namespace {

// Per operation, in the order of Role.
constexpr const char* kFunctions[3][3] = {{"forward", "backward_query", "backward_key_value"},
                                          {"qk", "qk_backward_query", "qk_backward_key"},
                                          {"av", "av_backward_attn", "av_backward_value"}};

std::vector<mx::array> arrays_of(const char* function, const nb::object& result) {
  std::vector<mx::array> arrays;
  if (nb::isinstance<mx::array>(result)) {
    arrays.push_back(nb::cast<mx::array>(result));
    return arrays;
  }
  if (PySequence_Check(result.ptr())) {
    for (nb::handle item : result) {
      if (!nb::isinstance<mx::array>(item)) break;
      arrays.push_back(nb::cast<mx::array>(item));
    }
    if (arrays.size() == static_cast<std::size_t>(PySequence_Size(result.ptr())) && !arrays.empty()) return arrays;
  }
  throw std::runtime_error(std::string("external tier: ") + function + " must return mlx.core.array values");
}

// The module's function; the reference is never dropped, because tiers outlive the interpreter.
class Function {
 public:
  Function(nb::handle module, const char* name) : name_(name), callable_(module.attr(name)) { callable_.inc_ref(); }

  // rpb and lengths that the call lacks are None.
  Arrays operator()(const Call& call) const {
    const nb::gil_scoped_acquire gil;
    Problem with_all = call.problem;
    with_all.has_rpb = with_all.op != Op::av;
    with_all.has_lengths = true;
    nb::list arguments;
    arguments.append(to_dict(call.problem));
    for (const Argument argument : inputs_of(with_all, call.role)) arguments.append(nb::cast(call.find(argument)));
    Arrays results = arrays_of(name_, callable_(*arguments));
    const Arguments expected = outputs_of(call.problem, call.role);
    if (results.size() == expected.size()) return results;
    std::string names;
    for (const Argument result : expected) names += (names.empty() ? "" : ", ") + std::string(name_of(result));
    throw std::runtime_error(std::string("external tier: ") + name_ + " must return (" + names + ")");
  }

  Objection objection(const Problem& problem) const {
    const nb::gil_scoped_acquire gil;
    const nb::object result = callable_(to_dict(problem));
    return result.is_none() ? Objection() : Objection(nb::cast<std::string>(nb::str(result)));
  }

 private:
  const char* name_;
  nb::handle callable_;
};

}  // namespace

nb::dict to_dict(const Problem& p) {
  const auto per_axis = [&](auto member) {
    nb::list values;
    for (const Axis& axis : p.axes) values.append(axis.*member);
    return nb::tuple(values);
  };
  const auto name = [](FloatType type) { return to_string(to_dtype(type)); };
  nb::dict d;
  d["op"] = p.op == Op::attention ? "attention" : p.op == Op::qk ? "qk" : "av";
  d["rank"] = p.rank;
  d["device"] = p.device == DeviceType::cpu ? "cpu" : "gpu";
  d["batch"] = p.batch;
  d["heads"] = p.heads;
  d["kv_heads"] = p.kv_heads;
  d["head_dim"] = p.head_dim;
  d["value_dim"] = p.value_dim;
  d["length"] = per_axis(&Axis::length);
  d["kernel_size"] = per_axis(&Axis::kernel_size);
  d["stride"] = per_axis(&Axis::stride);
  d["dilation"] = per_axis(&Axis::dilation);
  d["gna_stride"] = per_axis(&Axis::gna_stride);
  d["is_causal"] = per_axis(&Axis::is_causal);
  d["scale"] = p.scale;
  d["query_dtype"] = name(p.query_type);
  d["key_dtype"] = name(p.key_type);
  d["value_dtype"] = name(p.value_type);
  d["has_rpb"] = p.has_rpb;
  d["has_lengths"] = p.has_lengths;
  return d;
}

Tier external_tier(nb::handle module) {
  std::string missing;
  const auto check = [&](const char* name) {
    if (nb::hasattr(module, name) && PyCallable_Check(nb::object(module.attr(name)).ptr())) return;
    missing += (missing.empty() ? "" : ", ") + std::string(name);
  };
  check("supports");
  for (const auto& names : kFunctions) std::for_each(std::begin(names), std::end(names), check);
  if (!missing.empty()) throw std::invalid_argument("external tier: the module lacks the functions " + missing);
  std::vector<std::vector<Function>> functions(3);
  for (int op = 0; op < 3; ++op) {
    for (const char* name : kFunctions[op]) functions[op].emplace_back(module, name);
  }
  Tier tier;
  tier.name = kCompiled;
  tier.is_fused = true;
  tier.unavailable = [] { return Objection(); };
  tier.supports = [f = Function(module, "supports")](const Problem& p, Role role) {
    if (role >= Role::backward) return Objection("a module has a function for each part of the backward");
    return role == Role::forward ? f.objection(p) : Objection();
  };
  tier.choice = [](const Problem&) { return KernelChoice{"external module", ""}; };
  tier.run = [functions](const Call& call) {
    return functions[static_cast<int>(call.problem.op)][static_cast<int>(call.role)](call);
  };
  return tier;
}

}  // namespace natten::bindings
