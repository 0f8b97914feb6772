#include "fast/kernels.h"

#include <algorithm>

#include "fast/embedded.h"
#include "fast/spans.h"

namespace natten::fast {

namespace {

// clang-format off
enum class Shape : std::uint8_t { tokens, queries, extra, tables, table, samples, spans, one };
enum class Last : std::uint8_t { none, head_dim, value_dim, slots };
enum class Type : std::uint8_t { query, key, value, float32, int32 };

struct ArrayRow { const char* name; Type type; Shape shape; Side side; Last last; };

/// In the order of Array.
constexpr ArrayRow kArrays[] = {
    {"",            Type::float32, Shape::one,     Side::none,    Last::none},
    {"na_query",    Type::query,   Shape::tokens,  Side::queries, Last::head_dim},
    {"na_key",      Type::key,     Shape::tokens,  Side::keys,    Last::head_dim},
    {"na_value",    Type::value,   Shape::tokens,  Side::keys,    Last::value_dim},
    {"na_extra_key",   Type::key,   Shape::extra, Side::none, Last::head_dim},
    {"na_extra_value", Type::value, Shape::extra, Side::none, Last::value_dim},
    {"na_rpb",      Type::float32, Shape::table,   Side::none,    Last::none},
    {"na_lengths",  Type::int32,   Shape::samples, Side::none,    Last::none},
    {kSpansName,    Type::int32,   Shape::spans,   Side::none,    Last::none},
    {kScaleName,    Type::float32, Shape::one,     Side::none,    Last::none},
    {"na_out",      Type::query,   Shape::queries, Side::queries, Last::value_dim},
    {"na_lse",      Type::float32, Shape::queries, Side::queries, Last::none},
    {"na_dout",     Type::query,   Shape::queries, Side::queries, Last::value_dim},
    {"na_dlse",     Type::float32, Shape::queries, Side::queries, Last::none},
    {"na_delta",    Type::float32, Shape::queries, Side::queries, Last::none},
    {"na_logits",   Type::query,   Shape::queries, Side::queries, Last::slots},
    {"na_dlogits",  Type::query,   Shape::queries, Side::queries, Last::slots},
    {"na_attn",     Type::query,   Shape::queries, Side::queries, Last::slots},
    {"na_dattn",    Type::query,   Shape::queries, Side::queries, Last::slots},
    {"na_dquery",   Type::query,   Shape::tokens,  Side::queries, Last::head_dim},
    {"na_dkey",     Type::key,     Shape::tokens,  Side::keys,    Last::head_dim},
    {"na_dvalue",   Type::value,   Shape::tokens,  Side::keys,    Last::value_dim},
    {"na_partials", Type::float32, Shape::tables,  Side::none,    Last::none},
    {"na_drpb",     Type::float32, Shape::table,   Side::none,    Last::none},
};
// clang-format on

const ArrayRow& array_row(Array array) {
  return kArrays[static_cast<int>(array)];
}

using A = Array;

// clang-format off
/// In the order of KernelId.
constexpr KernelRow kKernels[] = {
    {"forward", TileClass::forward, Side::queries,
     {A::query, A::key, A::value, A::extra_key, A::extra_value, A::rpb, A::lengths, A::spans, A::scale},
     {A::out, A::lse},
     {1, 1}, {text::forward, text::matrix_forward, text::warpgroup_forward, text::decode_forward},
     "attention_forward(@query, @key, @value, $rpb, na_out, na_lse, $rows, $words, $site, $scale)"},
    {"delta", TileClass::split, Side::none, {A::out, A::dout, A::dlse}, {A::delta}, {0, 2}, {text::sums, nullptr},
     "attention_delta(@out, @dout, @dlse, na_delta, natten::Extent{{na_out_shape[1], na_out_shape[2], "
     "na_out_shape[3]}}, na_out_shape[0], na_out_shape[4], $thread)"},
    {"backward_query", TileClass::query_gradient, Side::queries,
     {A::query, A::key, A::value, A::extra_key, A::extra_value, A::lse, A::dout, A::delta, A::rpb, A::lengths, A::spans,
      A::scale},
     {A::dquery, A::partials}, {2, 1}, {text::backward, text::matrix_backward, text::warpgroup_backward},
     "attention_backward<true>(@query, @dout, @key, @value, @lse, @delta, $rpb, na_dquery, na_dquery, $partials, "
     "$rows, $scratch, $words, $site, $scale)"},
    {"backward_key_value", TileClass::key_gradient, Side::keys,
     {A::query, A::key, A::value, A::lse, A::dout, A::delta, A::rpb, A::lengths, A::spans, A::scale},
     {A::dkey, A::dvalue}, {2, 2}, {text::backward, text::matrix_backward, text::warpgroup_backward},
     "attention_backward<false>(@key, @value, @query, @dout, @lse, @delta, $rpb, na_dkey, na_dvalue, $partials, "
     "$rows, $scratch, $words, $site, $scale)"},
    {"qk", TileClass::split, Side::queries, {A::query, A::key, A::rpb, A::lengths, A::spans, A::scale}, {A::logits},
     {1, 0}, {text::scores, nullptr},
     "attention_scores(@query, natten::Indexed::query_tokens, @key, $rpb, na_logits, na_rows_a, na_site, $scale, "
     "-NA_INFINITY)"},
    {"qk_backward_query", TileClass::split, Side::queries,
     {A::dlogits, A::key, A::lengths, A::spans, A::scale}, {A::dquery, A::partials}, {1, 0}, {text::weighted, nullptr},
     "attention_weighted<true, true>(@key, natten::Indexed::keys, @dlogits, na_dquery, $partials, na_rows_a, $scratch, "
     "na_site, $scale)"},
    {"qk_backward_key", TileClass::split, Side::keys, {A::query, A::dlogits, A::lengths, A::spans, A::scale}, {A::dkey},
     {1, 0}, {text::weighted, nullptr},
     "attention_weighted<false, false>(@query, natten::Indexed::query_tokens, @dlogits, na_dkey, $partials, na_rows_a, "
     "$scratch, na_site, $scale)"},
    {"av", TileClass::split, Side::queries, {A::attn, A::value, A::lengths, A::spans}, {A::out},
     {0, 1}, {text::weighted, nullptr},
     "attention_weighted<true, false>(@value, natten::Indexed::keys, @attn, na_out, $partials, na_rows_a, $scratch, "
     "na_site, $scale)"},
    {"av_backward_attn", TileClass::split, Side::queries, {A::dout, A::value, A::lengths, A::spans}, {A::dattn},
     {0, 1}, {text::scores, nullptr},
     "attention_scores(@dout, natten::Indexed::queries, @value, $rpb, na_dattn, na_rows_a, na_site, $scale, 0.0f)"},
    {"av_backward_value", TileClass::split, Side::keys,
     {A::dout, A::attn, A::value, A::lengths, A::spans}, {A::dvalue},  // of value the shape
     {0, 1}, {text::weighted, nullptr},
     "attention_weighted<false, false>(@dout, natten::Indexed::queries, @attn, na_dvalue, $partials, na_rows_a, "
     "$scratch, na_site, $scale)"},
    {"rpb_sum", TileClass::split, Side::none, {A::partials}, {A::drpb}, {0, 1}, {text::sums, nullptr},
     "sum_bias_gradients(na_partials, na_drpb, na_partials_shape[0], na_partials_shape[1] * NA_RPB_SIZE, $thread)"},
};
// clang-format on

}  // namespace

const char* engine_name(Engine engine) {
  static constexpr const char* kNames[] = {"simt", "matrix", "warpgroup", "decode"};
  return kNames[static_cast<int>(engine)];
}

std::array<Array, 2> KernelRow::streams() const {
  std::array<Array, 2> found{Array::none, Array::none};
  std::size_t count = 0;
  for (const Array array : inputs) {
    const Last last = array_row(array).last;
    const bool is_rows = last == Last::head_dim || last == Last::value_dim;
    if (is_rows && side_of(array) != held && count < (has_tiles() ? 2u : 1u)) found[count++] = array;
  }
  return found;
}

int KernelRow::streamed_scalars() const {
  return static_cast<int>(std::count_if(inputs.begin(), inputs.end(), [&](Array array) {
    return has_tiles() && side_of(array) != Side::none && side_of(array) != held && array_row(array).last == Last::none;
  }));
}

Array KernelRow::first_input(Side side) const {
  const auto found = std::find_if(inputs.begin(), inputs.end(), [&](Array a) { return side_of(a) == side; });
  return found == inputs.end() ? Array::none : *found;
}

const KernelRow& row_of(KernelId kernel) {
  return kKernels[static_cast<int>(kernel)];
}

const char* kernel_name(KernelId kernel) {
  return row_of(kernel).name;
}

bool has_array(const Problem& p, Array array) {
  if (array == Array::rpb || array == Array::partials) return p.has_rpb;
  if (array == Array::extra_key || array == Array::extra_value) return p.extra_tokens > 0;
  if (array == Array::spans) return p.spans.has_value();
  return array == Array::lengths ? p.has_lengths : array != Array::none;
}

Side side_of(Array array) {
  return array_row(array).side;
}

std::int64_t channels_of(const Problem& p, Array array) {
  const Last last = array_row(array).last;
  return last == Last::head_dim ? p.head_dim : last == Last::value_dim ? p.value_dim : 0;
}

ElementType type_of(const Problem& p, Array array) {
  const FloatType types[] = {p.query_type, p.key_type, p.value_type};  // in the order of Type
  const Type type = array_row(array).type;
  if (type >= Type::float32) return type == Type::int32 ? ElementType::int32 : ElementType::float32;
  static_assert(int(ElementType::float32) == int(FloatType::float32) && FloatType::float64 > FloatType::float32);
  return static_cast<ElementType>(std::min(types[static_cast<int>(type)], FloatType::float32));
}

std::int64_t bias_entries(const Problem& p) {
  std::int64_t entries = p.has_rpb ? 1 : 0;
  for (const Axis& axis : p.axes) entries *= 2 * axis.kernel_size - 1;
  return entries;
}

ArraySpec spec_of(const Problem& p, Array array, std::int64_t parts) {
  const ArrayRow& row = array_row(array);
  ArraySpec spec{row.name, type_of(p, array), {}};
  if (row.shape == Shape::one) spec.shape = {1};
  if (row.shape == Shape::samples) spec.shape = {p.batch, kAxes};
  if (row.shape == Shape::spans) spec.shape = {kAxes, kSpanNumbers};
  if (row.shape == Shape::tables) spec.shape = {parts};
  if (row.shape == Shape::tables || row.shape == Shape::table) {
    spec.shape.push_back(p.heads);
    for (const Axis& axis : p.axes) spec.shape.push_back(2 * axis.kernel_size - 1);
  }
  if (row.shape == Shape::extra) spec.shape = {p.batch, 1, 1, p.extra_tokens, p.kv_heads, channels_of(p, array)};
  if (row.side == Side::none) return spec;
  spec.shape.push_back(p.batch);
  for (int a = 0; a < kAxes; ++a) {
    const AxisSpan span = p.span(a);
    const std::int64_t tokens = row.side == Side::keys ? span.key_rows : span.query_rows;
    spec.shape.push_back(row.shape == Shape::tokens ? tokens : p.queries(a));
  }
  spec.shape.push_back(row.side == Side::keys ? p.kv_heads : p.heads);
  if (row.last == Last::slots) spec.shape.push_back(p.kernel_volume());
  if (row.last == Last::head_dim || row.last == Last::value_dim) spec.shape.push_back(channels_of(p, array));
  return spec;
}

std::vector<KernelId> kernels_of(const Problem& p, Role role) {
  constexpr KernelId kOfOp[][3] = {{KernelId::forward, KernelId::backward_query, KernelId::backward_key_value},
                                   {KernelId::qk, KernelId::qk_backward_query, KernelId::qk_backward_key},
                                   {KernelId::av, KernelId::av_backward_attn, KernelId::av_backward_value}};
  const auto [forward, query_gradient, key_gradient] = kOfOp[static_cast<int>(p.op)];
  if (role == Role::forward) return {forward};
  std::vector<KernelId> kernels;
  if (p.op == Op::attention) kernels.push_back(KernelId::delta);
  if (role != Role::backward_key_value) {
    kernels.push_back(query_gradient);
    if (p.has_rpb) kernels.push_back(KernelId::rpb_sum);
  }
  if (role != Role::backward_query) kernels.push_back(key_gradient);
  return kernels;
}

}  // namespace natten::fast
