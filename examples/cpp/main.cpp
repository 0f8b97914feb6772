// Neighborhood attention from C++: every function, a gradient, a call in a file, and what a wrong argument does.
#include <cmath>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/mlx.h"
#include "natten/natten.h"

namespace mx = mlx::core;

namespace {

bool near(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(a - b)).item<float>() < 1e-5F;
}

// The calls beside attention, on its arguments and result: 0 where they agree with it.
int other_functions(const mx::array& query, const mx::array& key, const mx::array& value,
                    const natten::AttentionResult& result, const natten::Neighborhood& neighborhood) {
  const mx::array logits = natten::qk(query, key, neighborhood);  // [1, 16, 16, 2, 49]; -inf where there is no key
  const mx::array out = natten::av(mx::softmax(logits, -1), value, neighborhood);
  if (!near(out, result.out)) return 1;

  // Attention to windows, and to all keys of the flattened image; joined, as if a query attended both sets of keys.
  const mx::array q = mx::flatten(query, 1, 2), k = mx::flatten(key, 1, 2), v = mx::flatten(value, 1, 2);
  const natten::DenseResult dense = natten::dense_attention(q, k, v, {.return_lse = true});
  const natten::AttentionResult both =
      natten::merge({mx::flatten(result.out, 1, 2), dense.out}, {mx::flatten(result.lse, 1, 2), *dense.lse});
  std::cout << "joined " << both.out.shape() << "\n";

  // What a query attends, as a dense mask [queries, keys]; the keys that rows 8 and 9 of the queries need.
  const mx::array mask = natten::neighborhood_mask({16, 16}, neighborhood);
  const natten::KeySpan span = natten::key_span(neighborhood, {8, 0}, {2, 16}, {16, 16});
  std::cout << mx::sum(mask).item<int>() << " pairs; rows from " << span.key_start[0] << " on, " << span.rows[0]
            << "\n";

  // One value for all axes, or one per axis.
  const natten::Neighborhood wide{.kernel_size = {7, 5}, .dilation = 2, .is_causal = {true, false}};
  return natten::attention(query, key, value, wide).out.shape() == query.shape() ? 0 : 1;
}

// A call in a file, which a program without this library runs.
int exported(const mx::array& x, const natten::Neighborhood& neighborhood) {
  const std::string file = (std::filesystem::temp_directory_path() / "natten_block.mlxfn").string();
  const auto attend = [&](const std::vector<mx::array>& inputs) {
    return std::vector{natten::attention(inputs[0], inputs[0], inputs[0], neighborhood).out};
  };
  {
    const natten::Exportable exportable;
    mx::export_function(file, attend, {x});
  }
  auto block = mx::import_function(file);
  const mx::array out = block({x})[0];
  return near(out, attend({x})[0]) ? 0 : 1;
}

}  // namespace

int main() {
  mx::random::seed(0);
  const mx::Shape shape{1, 16, 16, 2, 8};  // batch, height, width, heads, head dim
  const mx::array query = mx::random::normal(shape);
  const mx::array key = mx::random::normal(shape);
  const mx::array value = mx::random::normal(shape);

  // Every query attends 7x7 keys around it, and no row below its own.
  const natten::Neighborhood neighborhood{.kernel_size = 7, .is_causal = {true, false}};
  const natten::AttentionResult result = natten::attention(query, key, value, neighborhood);
  std::cout << "out " << result.out.shape() << ", lse " << result.lse.shape() << "\n";

  // Weights sum to one: the gradient of a sum over the output with respect to value sums to its size.
  const auto total = [&](const mx::array& v) { return mx::sum(natten::attention(query, key, v, neighborhood).out); };
  const mx::array gradient = mx::grad(total)(value);
  const float sum = mx::sum(gradient).item<float>();
  std::cout << "gradient of value sums to " << sum << " of " << value.size() << "\n";
  if (std::abs(sum - static_cast<float>(value.size())) > 0.1F) return 1;

  if (other_functions(query, key, value, result, neighborhood) != 0 || exported(query, neighborhood) != 0) return 1;

  try {
    natten::attention(query, key, value, {.kernel_size = 17});
  } catch (const std::invalid_argument& error) {
    std::cout << "as expected: " << error.what() << "\n";
    return 0;
  }
  return 1;
}
