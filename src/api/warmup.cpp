// Kernels of described calls, made before the calls are.
#include <set>

#include "api/entry.h"
#include "api/registry.h"
#include "fast/launch.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "natten/attention.h"

namespace natten {

namespace {

/// Of one sample, since kernels do not depend on how many there are.
mx::array zeros(const ArrayDescription& array, mx::StreamOrDevice stream) {
  mx::Shape shape = array.shape;
  shape[0] = 1;
  return mx::zeros(shape, array.dtype, stream);
}

std::optional<mx::array> zeros(const std::optional<ArrayDescription>& array, mx::StreamOrDevice stream) {
  return array ? std::optional(zeros(*array, stream)) : std::nullopt;
}

/// Of a sample without padding.
std::optional<mx::array> full_lengths(const CallDescription& call, int rank) {
  if (!call.lengths) return std::nullopt;
  const mx::Shape& shape = (call.op == "av" ? call.value : call.query).shape;
  std::vector<int> lengths;
  for (int axis = 0; axis < rank; ++axis) {
    lengths.push_back(call.shape ? static_cast<int>((*call.shape)[axis]) : shape[axis + 1]);
  }
  mx::Shape one = call.lengths->shape;
  one[0] = 1;
  return mx::array(lengths.begin(), one, mx::int32);
}

/// The call on zeros, and its gradients if wanted.
void run_on_zeros(const WarmupCall& warm, const Caller& caller) {
  const CallDescription& call = warm.call;
  const mx::StreamOrDevice s = call.stream;
  const std::optional<mx::array> lengths = full_lengths(call, caller.rank);
  std::optional<mx::array> rpb;
  if (call.rpb) rpb = mx::zeros(call.rpb->shape, call.rpb->dtype, s);
  const auto function = [&](const Arrays& a) -> Arrays {
    const auto placed = [&](auto options) {
      options.query_start = call.query_start;
      options.key_start = call.key_start;
      options.shape = call.shape;
      return options;
    };
    if (call.op == "qk") {
      const QkOptions options{
          .scale = call.scale, .rpb = rpb ? std::optional(a[2]) : rpb, .lengths = lengths, .stream = s};
      return {qk(caller, a[0], a[1], warm.neighborhood, placed(options))};
    }
    if (call.op == "av") {
      return {av(caller, a[0], a[1], warm.neighborhood, placed(AvOptions{.lengths = lengths, .stream = s}))};
    }
    AttentionOptions options = placed(AttentionOptions{});
    options.scale = call.scale;
    options.lengths = lengths;
    options.stream = s;
    options.additional_keys = zeros(call.additional_keys, s);
    options.additional_values = zeros(call.additional_values, s);
    if (rpb) options.rpb = a[3];
    return {attention(caller, a[0], a[1], a[2], warm.neighborhood, options).out};
  };
  Arrays inputs{zeros(call.query, s)};
  if (call.op != "av") inputs.push_back(zeros(call.key, s));
  if (call.op != "qk") inputs.push_back(zeros(call.value, s));
  if (rpb) inputs.push_back(*rpb);
  Arrays results = function(inputs);
  if (warm.gradients) {
    for (const mx::array& gradient : mx::vjp(function, inputs, results).second) results.push_back(gradient);
  }
  mx::eval(results);
}

}  // namespace

WarmupReport warmup(const std::vector<WarmupCall>& calls,
                    const std::function<void(std::size_t, std::size_t)>& progress) {
  std::vector<ValidatedCall> validated_calls;
  for (const WarmupCall& call : calls) validated_calls.push_back(validated(call.call, call.neighborhood));

  struct Run {
    std::size_t call;
    std::size_t kernels;
  };
  std::vector<Run> runs;
  std::vector<fast::CubinPtr> codes;
  std::set<std::string> names;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const auto& [caller, problem, additional] = validated_calls[i];
    if (problem.batch == 0 || explain_choice(caller, problem).tier != tiers()[1]) continue;
    std::size_t without_code = 0;
    for (const fast::PreparedKernel& kernel : fast::prepare(problem, calls[i].gradients)) {
      if (!names.insert(kernel.name).second) continue;
      if (kernel.code) codes.push_back(kernel.code);
      without_code += !kernel.code;
    }
    if (without_code > 0) runs.push_back({i, without_code});
  }
  WarmupReport report;
  const auto tell = [&](std::size_t kernels) {
    report.kernels += kernels;
    if (progress) progress(report.kernels, names.size());
  };
  if (!names.empty()) tell(0);
  for (const fast::CubinPtr& code : codes) {
    code->code();
    report.compiled += code->is_compiled();
    tell(1);
  }
  for (const Run& one : runs) {
    run_on_zeros(calls[one.call], validated_calls[one.call].caller);
    report.compiled += one.kernels;
    tell(one.kernels);
  }
  return report;
}

}  // namespace natten
