#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace natten::cpu::testing {
namespace {

struct AxisKey {
  std::int64_t token, slot, bias;
};

// SEMANTICS, word by word: keys(i) = { j*d + g : a <= j < b }.
std::vector<AxisKey> axis_keys(const Axis& axis, std::int64_t i) {
  const std::int64_t L = axis.length, K = axis.kernel_size, d = axis.dilation, u = axis.gna_stride;
  const std::int64_t g = i % d, p = i / d, n = (L - g + d - 1) / d;
  std::int64_t a, b;
  if (axis.is_causal) {
    const std::int64_t lead = std::min((p / u) * u + u - 1, n - 1);
    a = std::max<std::int64_t>(lead - K + 1, 0);
    b = p + 1;
  } else {
    const std::int64_t lead = std::min((p / u) * u + u / 2, n - 1);
    a = std::clamp<std::int64_t>(lead - K / 2, 0, n - K);
    b = a + K;
  }
  std::vector<AxisKey> keys;
  for (std::int64_t j = a; j < b; ++j) {
    keys.push_back({j * d + g, axis.is_causal ? K - 1 - (p - j) : j - a, (j - p) + K - 1});
  }
  return keys;
}

double dot(const Values& x, std::int64_t x_row, const Values& y, std::int64_t y_row, std::int64_t dim) {
  double sum = 0;
  for (std::int64_t c = 0; c < dim; ++c) sum += x[x_row * dim + c] * y[y_row * dim + c];
  return sum;
}

void add(Values& x, std::int64_t x_row, double weight, const Values& y, std::int64_t y_row, std::int64_t dim) {
  for (std::int64_t c = 0; c < dim; ++c) x[x_row * dim + c] += weight * y[y_row * dim + c];
}

}  // namespace

void Reference::for_each_query(const std::function<void(const Query&)>& visit) const {
  const Problem& p = problem;
  const auto& full = p.axes;
  std::int64_t outputs[3];
  for (int a = 0; a < 3; ++a) outputs[a] = (full[a].length + full[a].stride - 1) / full[a].stride;
  std::int64_t tables = 1;
  for (const Axis& axis : full) tables *= 2 * axis.kernel_size - 1;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    auto axes = full;
    bool legal = true;
    for (int a = 0; a < 3 && !lengths.empty(); ++a) {
      axes[a].length = lengths[b * 3 + a];
      legal = legal && axes[a].kernel_size * axes[a].dilation <= axes[a].length && axes[a].length <= full[a].length;
    }
    if (!legal) continue;
    for (std::int64_t i0 = 0; i0 < axes[0].length; i0 += axes[0].stride) {
      for (std::int64_t i1 = 0; i1 < axes[1].length; i1 += axes[1].stride) {
        for (std::int64_t i2 = 0; i2 < axes[2].length; i2 += axes[2].stride) {
          const auto keys0 = axis_keys(axes[0], i0), keys1 = axis_keys(axes[1], i1), keys2 = axis_keys(axes[2], i2);
          for (std::int64_t h = 0; h < p.heads; ++h) {
            Query query;
            query.row = (((b * full[0].length + i0) * full[1].length + i1) * full[2].length + i2) * p.heads + h;
            query.output = (((b * outputs[0] + i0 / axes[0].stride) * outputs[1] + i1 / axes[1].stride) * outputs[2] +
                            i2 / axes[2].stride) *
                               p.heads +
                           h;
            for (const AxisKey& k0 : keys0) {
              for (const AxisKey& k1 : keys1) {
                for (const AxisKey& k2 : keys2) {
                  const std::int64_t token =
                      ((b * full[0].length + k0.token) * full[1].length + k1.token) * full[2].length + k2.token;
                  query.keys.push_back(
                      {token * p.kv_heads + h / (p.heads / p.kv_heads),
                       (k0.slot * full[1].kernel_size + k1.slot) * full[2].kernel_size + k2.slot,
                       h * tables +
                           (k0.bias * (2 * full[1].kernel_size - 1) + k1.bias) * (2 * full[2].kernel_size - 1) +
                           k2.bias});
                }
              }
            }
            visit(query);
          }
        }
      }
    }
  }
}

void Reference::attention(Values& out, Values& lse) const {
  const Problem& p = problem;
  lse.assign(p.batch * p.queries() * p.heads, 0.0);
  out.assign(lse.size() * p.value_dim, 0.0);
  for_each_query([&](const Query& query) {
    Values logits;
    for (const Key& k : query.keys) {
      logits.push_back(p.scale * dot(this->query, query.row, key, k.row, p.head_dim) + (rpb.empty() ? 0 : rpb[k.bias]));
    }
    const double max = *std::max_element(logits.begin(), logits.end());
    if (max == -std::numeric_limits<double>::infinity()) {
      lse[query.output] = max;  // and `out` stays 0
      return;
    }
    double sum = 0;
    for (double x : logits) sum += std::exp(x - max);
    lse[query.output] = max + std::log(sum);
    for (std::size_t t = 0; t < logits.size(); ++t) {
      add(out, query.output, std::exp(logits[t] - lse[query.output]), value, query.keys[t].row, p.value_dim);
    }
  });
}

void Reference::attention_backward(const Values& out, const Values& lse, const Values& dout, const Values& dlse,
                                   Values& dq, Values& dk, Values& dv, Values& drpb) const {
  const Problem& p = problem;
  dq.assign(query.size(), 0.0);
  dk.assign(key.size(), 0.0);
  dv.assign(value.size(), 0.0);
  drpb.assign(rpb.size(), 0.0);
  for_each_query([&](const Query& query) {
    if (lse[query.output] == -std::numeric_limits<double>::infinity()) return;
    const double delta =
        dot(out, query.output, dout, query.output, p.value_dim) - (dlse.empty() ? 0 : dlse[query.output]);
    for (const Key& k : query.keys) {
      const double logit =
          p.scale * dot(this->query, query.row, key, k.row, p.head_dim) + (rpb.empty() ? 0 : rpb[k.bias]);
      const double probability = std::exp(logit - lse[query.output]);
      const double dlogit = probability * (dot(dout, query.output, value, k.row, p.value_dim) - delta);
      add(dq, query.row, p.scale * dlogit, key, k.row, p.head_dim);
      add(dk, k.row, p.scale * dlogit, this->query, query.row, p.head_dim);
      add(dv, k.row, probability, dout, query.output, p.value_dim);
      if (!rpb.empty()) drpb[k.bias] += dlogit;
    }
  });
}

void Reference::qk(Values& logits) const {
  const Problem& p = problem;
  const std::int64_t volume = p.kernel_volume();
  logits.assign(p.batch * p.queries() * p.heads * volume, 0.0);
  for_each_query([&](const Query& query) {
    std::fill_n(logits.begin() + query.output * volume, volume, -std::numeric_limits<double>::infinity());
    for (const Key& k : query.keys) {
      logits[query.output * volume + k.slot] =
          p.scale * dot(this->query, query.row, key, k.row, p.head_dim) + (rpb.empty() ? 0 : rpb[k.bias]);
    }
  });
}

void Reference::qk_backward(const Values& dlogits, Values& dq, Values& dk, Values& drpb) const {
  const Problem& p = problem;
  const std::int64_t volume = p.kernel_volume();
  dq.assign(query.size(), 0.0);
  dk.assign(key.size(), 0.0);
  drpb.assign(rpb.size(), 0.0);
  for_each_query([&](const Query& query) {
    for (const Key& k : query.keys) {
      const double dlogit = dlogits[query.output * volume + k.slot];
      add(dq, query.row, p.scale * dlogit, key, k.row, p.head_dim);
      add(dk, k.row, p.scale * dlogit, this->query, query.row, p.head_dim);
      if (!rpb.empty()) drpb[k.bias] += dlogit;
    }
  });
}

void Reference::av(const Values& attn, Values& out) const {
  const Problem& p = problem;
  const std::int64_t volume = p.kernel_volume();
  out.assign(p.batch * p.queries() * p.heads * p.value_dim, 0.0);
  for_each_query([&](const Query& query) {
    for (const Key& k : query.keys) {
      add(out, query.output, attn[query.output * volume + k.slot], value, k.row, p.value_dim);
    }
  });
}

void Reference::av_backward(const Values& attn, const Values& dout, Values& dattn, Values& dv) const {
  const Problem& p = problem;
  const std::int64_t volume = p.kernel_volume();
  dattn.assign(attn.size(), 0.0);
  dv.assign(value.size(), 0.0);
  for_each_query([&](const Query& query) {
    for (const Key& k : query.keys) {
      dattn[query.output * volume + k.slot] = dot(dout, query.output, value, k.row, p.value_dim);
      add(dv, k.row, attn[query.output * volume + k.slot], dout, query.output, p.value_dim);
    }
  });
}

}  // namespace natten::cpu::testing
