// The decorating primitive, around a small primitive that knows neither vjp nor vmap: out = query * scale + bias(head).
#include "ops/differentiable.h"

#include <gtest/gtest.h>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"

namespace natten {
namespace {

// Inputs: query [B, x, x, x, H, D], key, which counts for nothing, rpb [H, 1, 1, 1].
class Affine : public mx::Primitive {
 public:
  Affine(mx::Stream s, float scale) : Primitive(s), scale_(scale) {}
  const char* name() const override { return "Affine"; }
  void eval_gpu(const Arrays&, Arrays&) override { throw std::runtime_error("CPU only"); }
  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    mx::array& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    const int heads = out.shape(4), dim = out.shape(5);
    mx::cpu::get_command_encoder(stream()).dispatch([q = inputs[0].data<float>(), b = inputs[2].data<float>(),
                                                     o = out.data<float>(), n = out.size(), heads, dim,
                                                     scale = scale_] {
      for (std::size_t i = 0; i < n; ++i) o[i] = q[i] * scale + b[(i / dim) % heads];
    });
  }

 private:
  float scale_;
};

mx::array reference(const mx::array& query, const mx::array& bias, float scale, mx::Stream s) {
  return mx::add(mx::multiply(query, mx::array(scale), s), mx::reshape(bias, {-1, 1}, s), s);
}

Arrays run_reference(const Call& call) {
  return {reference(call[Argument::query], call[Argument::rpb], call.problem.scale, call.stream)};
}

// `factor` times the true gradients.
Arrays run_backward(const Call& call, float factor) {
  if (call.role == Role::backward_key_value) return {mx::zeros_like(call[Argument::key], call.stream)};
  const mx::array dout = mx::multiply(call[Argument::dlogits], mx::array(factor), call.stream);
  const mx::array dbias = mx::sum(dout, std::vector<int>{0, 1, 2, 3, 5}, false, call.stream);
  return {mx::multiply(dout, mx::array(static_cast<float>(call.problem.scale)), call.stream),
          mx::reshape(dbias, call[Argument::rpb].shape(), call.stream)};
}

Tier tier_of(std::function<Arrays(const Call&)> forward, float factor = 1.0f) {
  Tier tier;
  tier.name = "affine";
  tier.supports = [](const Problem&, Role role) {
    return role == Role::backward ? Objection("one by one") : Objection();
  };
  tier.run = [forward, factor](const Call& call) {
    return call.role == Role::forward ? forward(call) : run_backward(call, factor);
  };
  return tier;
}

Arrays run_affine(const Call& call) {
  return mx::array::make_arrays({call.inputs[0].shape()}, {mx::float32},
                                std::make_shared<Affine>(call.stream, call.problem.scale),
                                {mx::contiguous(call.inputs[0], false, call.stream), call.inputs[1],
                                 mx::contiguous(call.inputs[2], false, call.stream)});
}

Arrays run_on(const Tier& tier, const mx::array& query, const mx::array& bias, float scale = 2.0f) {
  static const TierPtr pure = [] {
    Tier reference = tier_of(run_reference);
    reference.differentiated_by_mlx = true;
    return std::make_shared<const Tier>(reference);
  }();
  Problem problem;
  problem.op = Op::qk;
  problem.has_rpb = true;
  problem.scale = scale;
  problem.heads = problem.kv_heads = 2;
  problem.axes.fill(Axis{1, 1, 1, 1, 1, false});
  return run({std::make_shared<const Tier>(tier), pure, problem}, {query, mx::zeros({2, 1, 2, 3, 2, 4}), bias},
             mx::default_stream(mx::Device::cpu));
}

mx::array run(const mx::array& query, const mx::array& bias, float scale = 2.0f) {
  static const Tier tier = tier_of(run_affine);
  return run_on(tier, query, bias, scale)[0];
}

// Something that is not linear in the decorated primitive, so that second derivatives are not zero.
mx::array loss(const mx::array& query, const mx::array& bias) {
  const mx::array out = run(query, bias);
  return mx::sum(mx::multiply(mx::square(out), out));
}
mx::array reference_loss(const mx::array& query, const mx::array& bias) {
  const mx::array out = reference(query, bias, 2.0f, mx::default_stream(mx::Device::cpu));
  return mx::sum(mx::multiply(mx::square(out), out));
}

const mx::Shape kShape{2, 1, 2, 3, 2, 4};
mx::array query() {
  return mx::random::normal(kShape, mx::float32, mx::random::key(1));
}
mx::array bias() {
  return mx::random::normal({2, 1, 1, 1}, mx::float32, mx::random::key(2));
}

void expect_close(const mx::array& a, const mx::array& b) {
  ASSERT_EQ(a.shape(), b.shape());
  EXPECT_TRUE(mx::allclose(a, b, 1e-4, 1e-4).item<bool>());
}

using Loss = mx::array (*)(const mx::array&, const mx::array&);

std::vector<mx::array> gradients_of(Loss f, const mx::array& q, const mx::array& b) {
  return mx::grad([f](const Arrays& a) { return f(a[0], a[1]); }, {0, 1})({q, b});
}

class OnCpu : public testing::Test {
 protected:
  void SetUp() override { mx::set_default_device(mx::Device::cpu); }
};
using Differentiable = OnCpu;

TEST_F(Differentiable, Gradient) {
  const auto found = gradients_of(loss, query(), bias()), expected = gradients_of(reference_loss, query(), bias());
  expect_close(found[0], expected[0]);
  expect_close(found[1], expected[1]);
}

TEST_F(Differentiable, SecondDerivative) {
  const auto second = [](Loss f) {
    return mx::grad([f](const mx::array& q) { return mx::sum(mx::square(gradients_of(f, q, bias())[0])); })(query());
  };
  expect_close(second(loss), second(reference_loss));
}

TEST_F(Differentiable, Jvp) {
  const auto push = [](Loss f) {
    return mx::jvp([f](const Arrays& a) { return Arrays{f(a[0], bias())}; }, {query()}, {mx::ones(kShape)}).second[0];
  };
  expect_close(push(loss), push(reference_loss));
}

TEST_F(Differentiable, VmapOverEachInput) {
  const mx::array queries = mx::random::normal({3, 2, 1, 2, 3, 2, 4}, mx::float32, mx::random::key(3));
  const mx::array biases = mx::random::normal({3, 2, 1, 1, 1}, mx::float32, mx::random::key(4));
  for (auto [query_axis, bias_axis] : {std::pair(0, -1), std::pair(-1, 0), std::pair(0, 0)}) {
    const auto mapped = mx::vmap([](const Arrays& a) { return Arrays{run(a[0], a[1])}; }, {query_axis, bias_axis},
                                 {0})({query_axis < 0 ? query() : queries, bias_axis < 0 ? bias() : biases})[0];
    ASSERT_EQ(mapped.shape(0), 3);
    for (int i = 0; i < 3; ++i) {
      expect_close(mx::take(mapped, i, 0), run(query_axis < 0 ? query() : mx::take(queries, i, 0),
                                               bias_axis < 0 ? bias() : mx::take(biases, i, 0)));
    }
  }
}

TEST_F(Differentiable, VmapOverAnInnerAxis) {
  const mx::array queries = mx::random::normal({2, 1, 3, 2, 3, 2, 4}, mx::float32, mx::random::key(5));
  const auto mapped =
      mx::vmap([](const Arrays& a) { return Arrays{run(a[0], a[1])}; }, {2, -1}, {2})({queries, bias()})[0];
  for (int i = 0; i < 3; ++i) expect_close(mx::take(mapped, i, 2), run(mx::take(queries, i, 2), bias()));
}

TEST_F(Differentiable, VmapOverMoreThanTheTierTakes) {
  std::vector<int> heads;
  Tier narrow = tier_of([&](const Call& call) {
    heads.push_back(call.inputs[0].shape(4));
    return run_affine(call);
  });
  narrow.supports = [](const Problem& p, Role) { return p.heads <= 5 ? Objection() : Objection("too many heads"); };
  const mx::array biases = mx::random::normal({5, 2, 1, 1, 1}, mx::float32, mx::random::key(4));
  const auto call = [&](const Arrays& a) { return run_on(narrow, a[0], a[1]); };
  const mx::array mapped = mx::vmap(call, {-1, 0})({query(), biases})[0];
  EXPECT_EQ(heads, (std::vector<int>{2, 4, 4, 2}));  // while vmap traces, then two examples at once
  for (int i = 0; i < 5; ++i) expect_close(mx::take(mapped, i, 0), run(query(), mx::take(biases, i, 0)));
}

TEST_F(Differentiable, VmapOfGradient) {
  const mx::array queries = mx::random::normal({3, 2, 1, 2, 3, 2, 4}, mx::float32, mx::random::key(6));
  const auto mapped =
      mx::vmap([](const Arrays& a) { return gradients_of(loss, a[0], a[1]); }, {0, -1}, {0, 0})({queries, bias()});
  for (int i = 0; i < 3; ++i) {
    const auto expected = gradients_of(reference_loss, mx::take(queries, i, 0), bias());
    expect_close(mx::take(mapped[0], i, 0), expected[0]);
    expect_close(mx::take(mapped[1], i, 0), expected[1]);  // of the shared bias, per example
  }
}

TEST_F(Differentiable, Compile) {
  const auto compiled = mx::compile([](const Arrays& a) { return Arrays{loss(a[0], a[1])}; });
  for (int i = 0; i < 2; ++i) expect_close(compiled({query(), bias()})[0], reference_loss(query(), bias()));
}

TEST_F(Differentiable, ShapelessCompileIsRightOrRaises) {
  const auto compiled = mx::compile([](const Arrays& a) { return Arrays{run(a[0], a[1])}; }, true);
  expect_close(compiled({query(), bias()})[0], run(query(), bias()));
  EXPECT_THROW(mx::eval(compiled({mx::zeros({2, 1, 2, 5, 2, 4}), bias()})), std::invalid_argument);
}

TEST_F(Differentiable, NotEquivalentWhenTheProblemDiffers) {
  // Common subexpressions are merged by compile: operations of different problems must not be.
  const auto compiled = mx::compile([](const Arrays& a) {
    return Arrays{run(a[0], a[1], 2.0f), run(a[0], a[1], 3.0f)};
  });
  const auto results = compiled({query(), bias()});
  expect_close(results[1], run(query(), bias(), 3.0f));
}

// A tier without a primitive of its own: MLX operations, here with gradients twice the true ones, to see that the tier
// is the one asked.
Arrays run_composed(const Arrays& inputs) {
  static const Tier tier = tier_of(run_reference, 2.0f);
  return run_on(tier, inputs[0], inputs[1]);
}

TEST_F(Differentiable, AComposingTierRunsOnce) {
  int runs = 0;
  const Tier counting = tier_of([&](const Call& call) {
    ++runs;
    return run_reference(call);
  });
  run_on(counting, query(), bias());
  EXPECT_EQ(runs, 1);
}

TEST_F(Differentiable, BackwardIsMadeWhenSomebodyDifferentiates) {
  std::vector<Role> roles;
  Tier tier = tier_of(run_affine);
  tier.run = [&roles, run = tier.run](const Call& call) {
    roles.push_back(call.role);
    return run(call);
  };
  run_on(tier, query(), bias());
  EXPECT_EQ(roles, std::vector{Role::forward});
  mx::vjp([&](const Arrays& a) { return run_on(tier, a[0], bias()); }, {query()}, {mx::ones(kShape)});
  EXPECT_EQ(roles, (std::vector{Role::forward, Role::forward, Role::backward_query}));
}

TEST_F(Differentiable, ATierMayComposeOperations) {
  const mx::Stream s = mx::default_stream(mx::Device::cpu);
  const mx::array q = query(), b = bias(), ones = mx::ones(kShape);
  expect_close(run_composed({q, b})[0], reference(q, b, 2.0f, s));

  const auto pulled = [](const Arrays& a) { return mx::vjp(run_composed, {a[0], a[1]}, {a[2]}).second; };
  const Arrays gradients = pulled({q, b, ones});
  expect_close(gradients[0], mx::full(kShape, 4.0f));
  expect_close(gradients[1], mx::full({2, 1, 1, 1}, 96.0f));

  const auto pushed = mx::jvp(run_composed, {q, b}, {ones, mx::zeros_like(b)}).second;
  expect_close(pushed[0], mx::full(kShape, 2.0f));

  const mx::array stacked = mx::stack({q, mx::negative(q)});
  const auto map = [](const auto& function) { return mx::vmap(function, {0, -1, -1}); };
  const Arrays mapped = map([](const Arrays& a) { return run_composed({a[0], a[1]}); })({stacked, b, ones});
  expect_close(mx::take(mapped[0], 1, 0), reference(mx::negative(q), b, 2.0f, s));
  const Arrays mapped_gradients = map(pulled)({stacked, b, ones});
  expect_close(mx::take(mapped_gradients[0], 1, 0), mx::full(kShape, 4.0f));
  expect_close(mx::take(mapped_gradients[1], 1, 0), mx::full({2, 1, 1, 1}, 96.0f));
}

TEST_F(Differentiable, ACompositionIsNotCompiledShapeless) {
  EXPECT_ANY_THROW(mx::eval(mx::compile(run_composed, true)({query(), bias()})));
  expect_close(mx::compile(run_composed)({query(), bias()})[0],
               reference(query(), bias(), 2.0f, mx::default_stream(mx::Device::cpu)));
}

}  // namespace
}  // namespace natten
