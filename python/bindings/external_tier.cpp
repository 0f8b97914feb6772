#include "external_tier.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "api/registry.h"

namespace natten::bindings {

namespace {

constexpr const char* kFunctions[] = {
    "supports",        "forward", "backward_query",   "backward_key_value", "qk", "qk_backward_query",
    "qk_backward_key", "av",      "av_backward_attn", "av_backward_value"};

std::vector<mx::array> to_arrays(const char* function, const nb::object& result) {
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

  template <class... Arguments>
  std::vector<mx::array> operator()(const Problem& problem, const Arguments&... arguments) const {
    const nb::gil_scoped_acquire gil;
    return to_arrays(name_, callable_(to_dict(problem), arguments...));
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

using Optional = std::optional<mx::array>;

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
  for (const char* name : kFunctions) {
    if (nb::hasattr(module, name) && PyCallable_Check(nb::object(module.attr(name)).ptr())) continue;
    missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  if (!missing.empty()) throw std::invalid_argument("external tier: the module lacks the functions " + missing);
  Tier tier;
  tier.name = kCompiled;
  tier.is_fused = true;
  tier.unavailable = [] { return Objection(); };
  tier.supports = [f = Function(module, "supports")](const Problem& p) { return f.objection(p); };
  tier.choice = [](const Problem&) { return KernelChoice{"external module", ""}; };
  tier.forward = [f = Function(module, "forward")](const Problem& p, const AttentionInputs& in, mx::Stream) {
    const auto results = f(p, in.query, in.key, in.value, in.rpb, in.lengths);
    if (results.size() != 2) throw std::runtime_error("external tier: forward must return (out, lse)");
    return std::pair(results[0], results[1]);
  };
  const auto backward = [](Function f) {
    return [f](const Problem& p, const AttentionInputs& in, const mx::array& out, const mx::array& lse,
               const mx::array& dout, const mx::array& dlse,
               mx::Stream) { return f(p, in.query, in.key, in.value, in.rpb, in.lengths, out, lse, dout, dlse); };
  };
  tier.backward_query = backward(Function(module, "backward_query"));
  tier.backward_key_value = backward(Function(module, "backward_key_value"));
  tier.qk = [f = Function(module, "qk")](const Problem& p, const mx::array& q, const mx::array& k, const Optional& rpb,
                                         const Optional& lengths, mx::Stream) { return f(p, q, k, rpb, lengths)[0]; };
  tier.qk_backward_query = [f = Function(module, "qk_backward_query")](
                               const Problem& p, const mx::array& q, const mx::array& k, const Optional& rpb,
                               const Optional& lengths, const mx::array& dlogits,
                               mx::Stream) { return f(p, q, k, rpb, lengths, dlogits); };
  tier.qk_backward_key = [f = Function(module, "qk_backward_key")](
                             const Problem& p, const mx::array& q, const mx::array& k, const Optional& rpb,
                             const Optional& lengths, const mx::array& dlogits,
                             mx::Stream) { return f(p, q, k, rpb, lengths, dlogits)[0]; };
  tier.av = [f = Function(module, "av")](const Problem& p, const mx::array& attn, const mx::array& value,
                                         const Optional& lengths, mx::Stream) { return f(p, attn, value, lengths)[0]; };
  const auto av_backward = [](Function f) {
    return [f](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths,
               const mx::array& dout, mx::Stream) { return f(p, attn, value, lengths, dout)[0]; };
  };
  tier.av_backward_attn = av_backward(Function(module, "av_backward_attn"));
  tier.av_backward_value = av_backward(Function(module, "av_backward_value"));
  return tier;
}

}  // namespace natten::bindings
