#include "ops/operations.h"

#include <algorithm>

#include "mlx/ops.h"
#include "pure/pure.h"

namespace natten {

namespace {

using Optional = std::optional<mx::array>;

// Inputs of an operation: `arrays` tensors (query, key, value; query, key; attn, value), then rpb and lengths if any.
struct Signature {
  int tensors;
  bool has_rpb;
  bool has_lengths;

  int rpb() const { return has_rpb ? tensors : -1; }
  int lengths() const { return has_lengths ? tensors + has_rpb : -1; }
  int size() const { return tensors + has_rpb + has_lengths; }

  Optional rpb_of(const Arrays& a) const { return has_rpb ? Optional(a[rpb()]) : std::nullopt; }
  Optional lengths_of(const Arrays& a) const { return has_lengths ? Optional(a[lengths()]) : std::nullopt; }

  std::vector<Role> roles(int saved = 0) const {
    std::vector<Role> result(tensors, Role::tokens);
    if (has_rpb) result.push_back(Role::bias);
    if (has_lengths) result.push_back(Role::lengths);
    result.insert(result.end(), saved, Role::tokens);
    return result;
  }
  Arrays pack(Arrays arrays, const Optional& rpb, const Optional& lengths) const {
    if (rpb) arrays.push_back(*rpb);
    if (lengths) arrays.push_back(*lengths);
    return arrays;
  }
};

AttentionInputs attention_inputs(const Signature& sig, const Arrays& a) {
  return {a[0], a[1], a[2], sig.rpb_of(a), sig.lengths_of(a)};
}

Arrays joined(const Arrays& a, const Arrays& b) {
  Arrays result = a;
  result.insert(result.end(), b.begin(), b.end());
  return result;
}

bool holds(const std::vector<int>& argnums, int arg) {
  return arg >= 0 && std::find(argnums.begin(), argnums.end(), arg) != argnums.end();
}

decltype(Operation::fits) fits(const TierPtr& tier) {
  return [tier](const Problem& p) { return p.batch * p.tokens() <= kMaxTokens && !tier->supports(p); };
}

// A backward kernel as an operation of its own: inputs are the forward's inputs and what was saved, outputs are the
// gradients of the inputs `wanted`. Its derivatives are those of the reference's gradient, which depends on the saved
// results only through the inputs.
Operation backward(const TierPtr& tier, const std::string& name, const Problem& problem, const Signature& sig,
                   int saved, const std::vector<int>& wanted, int cotangents,
                   decltype(Operation::reference) forward_reference, decltype(Operation::run) run) {
  Operation op{tier->name + name, problem, sig.roles(saved), {}, std::move(run), fits(tier), {}, {}};
  for (int arg : wanted) op.outputs.push_back(arg == sig.rpb() ? Role::bias : Role::tokens);
  op.reference = [sig, wanted, cotangents, forward_reference](const Problem& p, const Arrays& all, mx::Stream s) {
    const Arrays inputs(all.begin(), all.begin() + sig.size());
    return gradients([&](const Arrays& a) { return forward_reference(p, a, s); }, inputs, wanted,
                     {all.end() - cotangents, all.end()});
  };
  return op;
}

struct Backward {
  Operation operation;
  std::vector<int> wanted;  // the inputs whose gradients it computes
};

// Runs each backward that some argument asks for, or `whole` where every one is asked for, and gathers the gradients;
// lengths have none.
decltype(Operation::vjp) answered_by(std::vector<Backward> kernels, bool saves_outputs,
                                     std::optional<Backward> whole = std::nullopt) {
  return [kernels = std::move(kernels), saves_outputs, whole = std::move(whole)](
             const Problem& p, const Arrays& inputs, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs, mx::Stream s) {
    const Arrays all = joined(saves_outputs ? joined(inputs, outputs) : inputs, cotangents);
    const auto is_asked = [&](const Backward& kernel) {
      return std::any_of(kernel.wanted.begin(), kernel.wanted.end(), [&](int arg) { return holds(argnums, arg); });
    };
    std::vector<Backward> asked;
    std::copy_if(kernels.begin(), kernels.end(), std::back_inserter(asked), is_asked);
    if (whole && asked.size() == kernels.size()) asked = {*whole};
    std::vector<Optional> found(inputs.size());
    for (const auto& [operation, wanted] : asked) {
      Operation kernel = operation;
      kernel.problem = p;
      const Arrays results = differentiable(kernel, all, s);
      for (std::size_t i = 0; i < wanted.size(); ++i) found[wanted[i]] = results[i];
    }
    Arrays gradients;
    for (int arg : argnums) gradients.push_back(found[arg] ? *found[arg] : mx::zeros_like(inputs[arg], s));
    return gradients;
  };
}

std::vector<int> with_rpb(std::vector<int> wanted, const Signature& sig) {
  if (sig.has_rpb) wanted.push_back(sig.rpb());
  return wanted;
}

Operation attention_operation(const TierPtr& tier, const Problem& problem, const Signature& sig) {
  const auto reference = [sig](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
    const auto [out, lse] = pure::attention(p, attention_inputs(sig, a), s);
    return {out, lse};
  };
  Operation op{
      tier->name + "_attention", problem, sig.roles(), {Role::tokens, Role::tokens}, {}, fits(tier), reference, {}};
  op.run = [tier, sig](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
    const auto [out, lse] = tier->forward(p, attention_inputs(sig, a), s);
    return {out, lse};
  };
  if (!tier->backward_query) return op;

  constexpr int kSaved = 4;  // out, lse, dout, dlse
  const std::vector<int> query_side = with_rpb({0}, sig), key_side = {1, 2};
  std::vector<int> both_sides = query_side;
  both_sides.insert(both_sides.end(), key_side.begin(), key_side.end());
  const auto kernel = [&](const char* name, const std::vector<int>& wanted, auto member) {
    return backward(tier, name, problem, sig, kSaved, wanted, 2, reference,
                    [tier, sig, member](const Problem& p, const Arrays& a, mx::Stream s) {
                      const int n = sig.size();
                      return ((*tier).*member)(p, attention_inputs(sig, a), a[n], a[n + 1], a[n + 2], a[n + 3], s);
                    });
  };
  op.vjp = answered_by(
      {{kernel("_attention_backward_query", query_side, &Tier::backward_query), query_side},
       {kernel("_attention_backward_key_value", key_side, &Tier::backward_key_value), key_side}},
      true,
      tier->backward ? std::optional(Backward{kernel("_attention_backward", both_sides, &Tier::backward), both_sides})
                     : std::nullopt);
  return op;
}

Operation qk_operation(const TierPtr& tier, const Problem& problem, const Signature& sig) {
  const auto reference = [sig](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
    return {pure::qk(p, a[0], a[1], sig.rpb_of(a), sig.lengths_of(a), s)};
  };
  Operation op{tier->name + "_qk", problem, sig.roles(), {Role::tokens}, {}, fits(tier), reference, {}};
  op.run = [tier, sig](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
    return {tier->qk(p, a[0], a[1], sig.rpb_of(a), sig.lengths_of(a), s)};
  };
  if (!tier->qk_backward_query) return op;

  const std::vector<int> query_side = with_rpb({0}, sig), key_side = {1};
  const Operation query_backward =
      backward(tier, "_qk_backward_query", problem, sig, 1, query_side, 1, reference,
               [tier, sig](const Problem& p, const Arrays& a, mx::Stream s) {
                 return tier->qk_backward_query(p, a[0], a[1], sig.rpb_of(a), sig.lengths_of(a), a.back(), s);
               });
  const Operation key_backward =
      backward(tier, "_qk_backward_key", problem, sig, 1, key_side, 1, reference,
               [tier, sig](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
                 return {tier->qk_backward_key(p, a[0], a[1], sig.rpb_of(a), sig.lengths_of(a), a.back(), s)};
               });
  op.vjp = answered_by({{query_backward, query_side}, {key_backward, key_side}}, false);
  return op;
}

Operation av_operation(const TierPtr& tier, const Problem& problem, const Signature& sig) {
  const auto reference = [sig](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
    return {pure::av(p, a[0], a[1], sig.lengths_of(a), s)};
  };
  Operation op{tier->name + "_av", problem, sig.roles(), {Role::tokens}, {}, fits(tier), reference, {}};
  op.run = [tier, sig](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
    return {tier->av(p, a[0], a[1], sig.lengths_of(a), s)};
  };
  if (!tier->av_backward_attn) return op;

  const std::vector<int> attn_side = {0}, value_side = {1};
  const auto kernel = [&](const char* name, const std::vector<int>& wanted, auto member) {
    return backward(tier, name, problem, sig, 1, wanted, 1, reference,
                    [tier, sig, member](const Problem& p, const Arrays& a, mx::Stream s) -> Arrays {
                      return {((*tier).*member)(p, a[0], a[1], sig.lengths_of(a), a.back(), s)};
                    });
  };
  op.vjp = answered_by({{kernel("_av_backward_attn", attn_side, &Tier::av_backward_attn), attn_side},
                        {kernel("_av_backward_value", value_side, &Tier::av_backward_value), value_side}},
                       false);
  return op;
}

}  // namespace

std::pair<mx::array, mx::array> run_attention(const TierPtr& tier, const Problem& problem,
                                              const AttentionInputs& inputs, mx::Stream s) {
  if (tier->differentiated_by_mlx) return tier->forward(problem, inputs, s);
  const Signature sig{3, problem.has_rpb, problem.has_lengths};
  const Arrays results =
      differentiable(attention_operation(tier, problem, sig),
                     sig.pack({inputs.query, inputs.key, inputs.value}, inputs.rpb, inputs.lengths), s);
  return {results[0], results[1]};
}

mx::array run_qk(const TierPtr& tier, const Problem& problem, const mx::array& query, const mx::array& key,
                 const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths, mx::Stream s) {
  if (tier->differentiated_by_mlx) return tier->qk(problem, query, key, rpb, lengths, s);
  const Signature sig{2, problem.has_rpb, problem.has_lengths};
  return differentiable(qk_operation(tier, problem, sig), sig.pack({query, key}, rpb, lengths), s)[0];
}

mx::array run_av(const TierPtr& tier, const Problem& problem, const mx::array& attn, const mx::array& value,
                 const std::optional<mx::array>& lengths, mx::Stream s) {
  if (tier->differentiated_by_mlx) return tier->av(problem, attn, value, lengths, s);
  const Signature sig{2, false, problem.has_lengths};
  return differentiable(av_operation(tier, problem, sig), sig.pack({attn, value}, std::nullopt, lengths), s)[0];
}

}  // namespace natten
