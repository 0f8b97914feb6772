// Neighborhood attention from C++: forward, gradient, and what a wrong argument does.
#include <cmath>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "mlx/mlx.h"
#include "natten/natten.h"

namespace mx = mlx::core;

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

  try {
    natten::attention(query, key, value, {.kernel_size = 17});
  } catch (const std::invalid_argument& error) {
    std::cout << "as expected: " << error.what() << "\n";
    return 0;
  }
  return 1;
}
