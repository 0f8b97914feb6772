#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace natten::oracle {

namespace {

using Index = std::int64_t;
using Index3 = std::array<Index, 3>;

constexpr double kNever = -std::numeric_limits<double>::infinity();  ///< lse of a query without a finite logit

Index3 unflatten(Index index, const Index3& size) {
  return {index / (size[1] * size[2]), index / size[2] % size[1], index % size[2]};
}
Index flatten(const Index3& index, const Index3& size) {
  return (index[0] * size[1] + index[1]) * size[2] + index[2];
}

Index modulo(Index i, Index n) {
  return (i % n + n) % n;
}

Index3 lengths_of(const Problem& p) {
  return {p.axes[0].length, p.axes[1].length, p.axes[2].length};
}
Index3 query_rows_of(const Problem& p) {
  return {p.span(0).query_rows, p.span(1).query_rows, p.span(2).query_rows};
}
Index3 key_rows_of(const Problem& p) {
  return {p.span(0).key_rows, p.span(1).key_rows, p.span(2).key_rows};
}
Index3 kernel_of(const Problem& p) {
  return {p.axes[0].kernel_size, p.axes[1].kernel_size, p.axes[2].kernel_size};
}
Index3 outputs_of(const Problem& p) {
  Index3 size{};
  for (int a = 0; a < 3; ++a) {
    const Index start = p.span(a).query_start;
    for (Index i = start; i < start + p.span(a).query_rows; ++i) size[a] += i % p.axes[a].stride == 0;
  }
  return size;
}

}  // namespace

std::vector<Slot> keys_of(const Axis& axis, Index length, Index i) {
  const Index K = axis.kernel_size, d = axis.dilation, u = axis.gna_stride;
  const Index g = i % d, p = i / d, n = (length - g + d - 1) / d;
  Index a, b;
  if (axis.is_causal) {
    const Index lead = std::min((p / u) * u + u - 1, n - 1);
    a = std::max(lead - K + 1, Index{0});
    b = p + 1;
  } else if (axis.is_circular) {
    a = (p / u) * u + u / 2 - K / 2;
    b = a + K;
  } else {
    const Index lead = std::min((p / u) * u + u / 2, n - 1);
    a = std::clamp(lead - K / 2, Index{0}, n - K);
    b = a + K;
  }
  std::vector<Slot> keys;
  for (Index j = a; j < b; ++j) {
    const Index place = axis.is_circular ? modulo(j, n) : j;
    keys.push_back({place * d + g, axis.is_causal ? K - 1 - (p - j) : j - a, j - p + K - 1});
  }
  return keys;
}

Reference::Reference(const Problem& problem, const Arrays& arrays) : p_(problem), a_(arrays) {
  const Index3 kernel = kernel_of(p_), outputs = outputs_of(p_);
  const Index3 table = {2 * kernel[0] - 1, 2 * kernel[1] - 1, 2 * kernel[2] - 1};
  rows_.resize(p_.batch, std::vector<Row>(p_.queries()));
  for (Index b = 0; b < p_.batch; ++b) {
    const Index3 lengths = sample_lengths(b);
    for (Index q = 0; q < p_.queries(); ++q) {
      Row& row = rows_[b][q];
      Index3 at = unflatten(q, outputs), query{}, shift{};
      row.inside = is_legal(b);
      for (int a = 0; a < 3; ++a) {
        const Index s = p_.axes[a].stride, start = p_.span(a).query_start;
        at[a] = ((start + s - 1) / s + at[a]) * s;
        query[a] = at[a] - start;
        shift[a] = p_.span(a).key_start;
        row.inside = row.inside && at[a] < lengths[a];
      }
      row.token = flatten(query, query_rows_of(p_));
      if (!row.inside) continue;
      const auto key_row = [&](int a, Index key) {  // rows of a circular axis may begin anywhere
        return p_.axes[a].is_circular && !p_.has_lengths ? modulo(key - shift[a], lengths[a]) : key - shift[a];
      };
      for (const Slot& s0 : keys_of(p_.axes[0], lengths[0], at[0])) {
        for (const Slot& s1 : keys_of(p_.axes[1], lengths[1], at[1])) {
          for (const Slot& s2 : keys_of(p_.axes[2], lengths[2], at[2])) {
            row.pairs.push_back({flatten({key_row(0, s0.key), key_row(1, s1.key), key_row(2, s2.key)}, key_rows_of(p_)),
                                 flatten({s0.slot, s1.slot, s2.slot}, kernel),
                                 flatten({s0.bias, s1.bias, s2.bias}, table)});
          }
        }
      }
    }
  }
}

std::array<Index, 3> Reference::sample_lengths(Index batch) const {
  if (a_.lengths.empty()) return lengths_of(p_);
  return {a_.lengths[3 * batch], a_.lengths[3 * batch + 1], a_.lengths[3 * batch + 2]};
}

bool Reference::is_legal(Index batch) const {
  const Index3 lengths = sample_lengths(batch);
  for (int a = 0; a < 3; ++a) {
    const Axis& axis = p_.axes[a];
    const Index least = axis.is_causal ? 1 : axis.kernel_size * axis.dilation;
    if (lengths[a] < least || lengths[a] > axis.length) return false;
    if (axis.is_circular && lengths[a] % (axis.dilation * axis.gna_stride) != 0) return false;
  }
  return true;
}

bool Reference::is_inside(Index batch, Index row, bool keys) const {
  const Index3 at = unflatten(row, keys ? key_rows_of(p_) : query_rows_of(p_)), lengths = sample_lengths(batch);
  bool inside = is_legal(batch);
  for (int a = 0; a < 3; ++a) {
    const Index start = keys ? p_.span(a).key_start : p_.span(a).query_start;
    const bool turns = p_.axes[a].is_circular && !p_.has_lengths;
    inside = inside && (turns || start + at[a] < lengths[a]);
  }
  return inside;
}
bool Reference::is_query_token(Index batch, Index row) const {
  return is_inside(batch, row, false);
}
bool Reference::is_key(Index batch, Index row) const {
  return is_inside(batch, row, true);
}

bool Reference::is_query(Index batch, Index query) const {
  return rows_[batch][query].inside;
}

bool Reference::is_filled(Index batch, Index query, Index slot) const {
  for (const Pair& pair : rows_[batch][query].pairs) {
    if (pair.slot == slot) return true;
  }
  return false;
}

Index Reference::query_row(Index b, Index token, Index h) const {
  return (b * p_.query_tokens() + token) * p_.heads + h;
}
Index Reference::key_row(Index b, Index token, Index h) const {
  return (b * p_.key_tokens() + token) * p_.kv_heads + h / (p_.heads / p_.kv_heads);
}
Index Reference::extra_row(Index b, Index token, Index h) const {
  return (b * p_.extra_tokens + token) * p_.kv_heads + h / (p_.heads / p_.kv_heads);
}
Index Reference::out_row(Index b, Index query, Index h) const {
  return (b * p_.queries() + query) * p_.heads + h;
}

Index Reference::bias_entries() const {
  const Index3 kernel = kernel_of(p_);
  return (2 * kernel[0] - 1) * (2 * kernel[1] - 1) * (2 * kernel[2] - 1);
}

double Reference::dot(const Values& a, Index row_a, const Values& b, Index row_b, Index channels) const {
  double sum = 0;
  for (Index c = 0; c < channels; ++c) sum += a[row_a * channels + c] * b[row_b * channels + c];
  return sum;
}

template <class Visit>
void Reference::for_each_row(Visit visit) const {
  for (Index b = 0; b < p_.batch; ++b) {
    for (Index q = 0; q < p_.queries(); ++q) {
      for (Index h = 0; h < p_.heads; ++h) visit(b, q, h, rows_[b][q]);
    }
  }
}

double Reference::logit(const Row& row, const Pair& pair, Index b, Index h) const {
  const double bias = a_.rpb.empty() ? 0.0 : a_.rpb[h * bias_entries() + pair.bias];
  return p_.scale * dot(a_.query, query_row(b, row.token, h), a_.key, key_row(b, pair.key, h), p_.head_dim) + bias;
}

double Reference::extra_logit(const Row& row, Index token, Index b, Index h) const {
  return p_.scale * dot(a_.query, query_row(b, row.token, h), a_.extra_key, extra_row(b, token, h), p_.head_dim);
}

Values Reference::lse() const {
  Values result(p_.batch * p_.queries() * p_.heads, 0.0);
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    if (!row.inside) return;
    double top = kNever, sum = 0;
    std::vector<double> logits;
    for (const Pair& pair : row.pairs) logits.push_back(logit(row, pair, b, h));
    for (Index n = 0; n < p_.extra_tokens; ++n) logits.push_back(extra_logit(row, n, b, h));
    for (const double x : logits) top = std::max(top, x);
    for (const double x : logits) sum += top == kNever ? 0 : std::exp(x - top);
    result[out_row(b, q, h)] = top + std::log(sum);
  });
  return result;
}

Values Reference::out() const {
  const Values lses = lse();
  Values result(p_.batch * p_.queries() * p_.heads * p_.value_dim, 0.0);
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    const Index at = out_row(b, q, h);
    if (!row.inside || lses[at] == kNever) return;
    const auto add = [&](double logit, const Values& values, Index value) {
      const double weight = std::exp(logit - lses[at]);
      for (Index c = 0; c < p_.value_dim; ++c) {
        result[at * p_.value_dim + c] += weight * values[value * p_.value_dim + c];
      }
    };
    for (const Pair& pair : row.pairs) add(logit(row, pair, b, h), a_.value, key_row(b, pair.key, h));
    for (Index n = 0; n < p_.extra_tokens; ++n) add(extra_logit(row, n, b, h), a_.extra_value, extra_row(b, n, h));
  });
  return result;
}

Values Reference::delta() const {
  Values result(p_.batch * p_.queries() * p_.heads, 0.0);
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    const Index at = out_row(b, q, h);
    if (!row.inside) return;
    result[at] = dot(a_.out, at, a_.dout, at, p_.value_dim) - (a_.dlse.empty() ? 0.0 : a_.dlse[at]);
  });
  return result;
}

Gradients Reference::attention_gradients() const {
  const Values deltas = delta();
  Gradients g{
      Values(a_.query.size()),     Values(a_.key.size()),        Values(a_.value.size()), Values(a_.rpb.size()), {},
      Values(a_.extra_key.size()), Values(a_.extra_value.size())};
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    const Index at = out_row(b, q, h), query = query_row(b, row.token, h);
    if (!row.inside || a_.lse[at] == kNever) return;
    const auto add = [&](double logit, Index key, const Values& keys, const Values& values, Values& dkeys,
                         Values& dvalues) {
      const double weight = std::exp(logit - a_.lse[at]);
      const double dlogit = weight * (dot(a_.dout, at, values, key, p_.value_dim) - deltas[at]);
      for (Index c = 0; c < p_.value_dim; ++c) {
        dvalues[key * p_.value_dim + c] += weight * a_.dout[at * p_.value_dim + c];
      }
      for (Index c = 0; c < p_.head_dim; ++c) {
        g.query[query * p_.head_dim + c] += p_.scale * dlogit * keys[key * p_.head_dim + c];
        dkeys[key * p_.head_dim + c] += p_.scale * dlogit * a_.query[query * p_.head_dim + c];
      }
      return dlogit;
    };
    for (const Pair& pair : row.pairs) {
      const double dlogit = add(logit(row, pair, b, h), key_row(b, pair.key, h), a_.key, a_.value, g.key, g.value);
      if (!g.rpb.empty()) g.rpb[h * bias_entries() + pair.bias] += dlogit;
    }
    for (Index n = 0; n < p_.extra_tokens; ++n) {
      add(extra_logit(row, n, b, h), extra_row(b, n, h), a_.extra_key, a_.extra_value, g.extra_key, g.extra_value);
    }
  });
  return g;
}

Values Reference::logits() const {
  Values result(p_.batch * p_.queries() * p_.heads * p_.kernel_volume(), 0.0);
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    double* slots = &result[out_row(b, q, h) * p_.kernel_volume()];
    if (row.inside) std::fill(slots, slots + p_.kernel_volume(), kNever);
    for (const Pair& pair : row.pairs) slots[pair.slot] = logit(row, pair, b, h);
  });
  return result;
}

Gradients Reference::logits_gradients() const {
  Gradients g{Values(a_.query.size()), Values(a_.key.size()), {}, Values(a_.rpb.size()), {}, {}, {}};
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    const Index query = query_row(b, row.token, h);
    for (const Pair& pair : row.pairs) {
      const Index key = key_row(b, pair.key, h);
      const double dlogit = a_.dlogits[out_row(b, q, h) * p_.kernel_volume() + pair.slot];
      for (Index c = 0; c < p_.head_dim; ++c) {
        g.query[query * p_.head_dim + c] += p_.scale * dlogit * a_.key[key * p_.head_dim + c];
        g.key[key * p_.head_dim + c] += p_.scale * dlogit * a_.query[query * p_.head_dim + c];
      }
      if (!g.rpb.empty()) g.rpb[h * bias_entries() + pair.bias] += dlogit;
    }
  });
  return g;
}

Values Reference::weighted() const {
  Values result(p_.batch * p_.queries() * p_.heads * p_.value_dim, 0.0);
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    const Index at = out_row(b, q, h);
    for (const Pair& pair : row.pairs) {
      const double weight = a_.attn[at * p_.kernel_volume() + pair.slot];
      for (Index c = 0; c < p_.value_dim; ++c) {
        result[at * p_.value_dim + c] += weight * a_.value[key_row(b, pair.key, h) * p_.value_dim + c];
      }
    }
  });
  return result;
}

Gradients Reference::weighted_gradients() const {
  Gradients g{{}, {}, Values(a_.value.size()), {}, Values(a_.attn.size()), {}, {}};
  for_each_row([&](Index b, Index q, Index h, const Row& row) {
    const Index at = out_row(b, q, h);
    for (const Pair& pair : row.pairs) {
      const Index key = key_row(b, pair.key, h), slot = at * p_.kernel_volume() + pair.slot;
      g.attn[slot] = dot(a_.dout, at, a_.value, key, p_.value_dim);
      for (Index c = 0; c < p_.value_dim; ++c) {
        g.value[key * p_.value_dim + c] += a_.attn[slot] * a_.dout[at * p_.value_dim + c];
      }
    }
  });
  return g;
}

}  // namespace natten::oracle
