#include "ops/tier.h"

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace natten {

namespace {

Arguments joined(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

const char* name_of(Argument argument) {
  // clang-format off
  constexpr const char* kNames[] = {
      "query", "key", "value", "attn", "rpb", "key_before", "value_before", "key_after", "value_after",
      "extra_key", "extra_value", "lengths", "out", "lse", "logits", "dout", "dlse", "dlogits",
      "dquery", "dkey", "dvalue", "dattn", "drpb", "dkey_before", "dvalue_before", "dkey_after", "dvalue_after",
      "dextra_key", "dextra_value"};
  // clang-format on
  return kNames[static_cast<int>(argument)];
}

Argument primal_of(Argument gradient) {
  if (gradient < Argument::dquery) throw std::logic_error(std::string(name_of(gradient)) + " is no gradient");
  return static_cast<Argument>(static_cast<int>(gradient) - static_cast<int>(Argument::dquery));
}

Arguments inputs_of(const Problem& problem, Role role) {
  Arguments arguments = problem.op == Op::attention ? Arguments{Argument::query, Argument::key, Argument::value}
                        : problem.op == Op::qk      ? Arguments{Argument::query, Argument::key}
                                                    : Arguments{Argument::attn, Argument::value};
  if (problem.pieces) {
    arguments =
        joined(arguments, {Argument::key_before, Argument::value_before, Argument::key_after, Argument::value_after});
  }
  if (problem.extra_tokens > 0) arguments = joined(arguments, {Argument::extra_key, Argument::extra_value});
  if (problem.has_rpb) arguments.push_back(Argument::rpb);
  if (problem.has_lengths) arguments.push_back(Argument::lengths);
  if (role == Role::forward) return arguments;
  return joined(arguments, problem.op == Op::attention
                               ? Arguments{Argument::out, Argument::lse, Argument::dout, Argument::dlse}
                           : problem.op == Op::qk ? Arguments{Argument::dlogits}
                                                  : Arguments{Argument::dout});
}

Arguments outputs_of(const Problem& problem, Role role) {
  switch (role) {
    case Role::forward:
      return problem.op == Op::attention ? Arguments{Argument::out, Argument::lse}
             : problem.op == Op::qk      ? Arguments{Argument::logits}
                                         : Arguments{Argument::out};
    case Role::backward_query:
      if (problem.op == Op::av) return {Argument::dattn};
      return problem.has_rpb ? Arguments{Argument::dquery, Argument::drpb} : Arguments{Argument::dquery};
    case Role::backward_key_value:
      if (problem.pieces) {
        return {Argument::dkey,          Argument::dvalue,     Argument::dkey_before,
                Argument::dvalue_before, Argument::dkey_after, Argument::dvalue_after};
      }
      return problem.op == Op::attention ? Arguments{Argument::dkey, Argument::dvalue}
             : problem.op == Op::qk      ? Arguments{Argument::dkey}
                                         : Arguments{Argument::dvalue};
    case Role::backward_extra:
      return problem.extra_tokens > 0 ? Arguments{Argument::dextra_key, Argument::dextra_value} : Arguments{};
    case Role::backward:
      return joined(outputs_of(problem, Role::backward_query), outputs_of(problem, Role::backward_key_value));
    default:
      return joined(outputs_of(problem, Role::backward), outputs_of(problem, Role::backward_extra));
  }
}

std::optional<mx::array> Call::find(Argument argument) const {
  const Arguments arguments = inputs_of(problem, role);
  const auto found = std::find(arguments.begin(), arguments.end(), argument);
  return found == arguments.end() ? std::nullopt : std::optional(inputs[found - arguments.begin()]);
}

const mx::array& Call::operator[](Argument argument) const {
  const Arguments arguments = inputs_of(problem, role);
  return inputs[std::find(arguments.begin(), arguments.end(), argument) - arguments.begin()];
}

Objection objection(const Tier& tier, const Problem& problem) {
  if (const unsigned missing = options_of(problem) & ~tier.takes) {
    return std::string(kOptionNames[std::countr_zero(missing)]) + " is not among the options of this tier";
  }
  for (const Role role : {Role::forward, Role::backward_query, Role::backward_key_value}) {
    if (Objection reason = tier.supports(problem, role)) return reason;
  }
  return {};
}

}  // namespace natten
