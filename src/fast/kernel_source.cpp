#include "fast/kernel_source.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <stdexcept>

#include "fast/embedded.h"
#include "fast/hash.h"
#include "fast/plan.h"
#include "fast/spans.h"

namespace natten::fast {

namespace {

constexpr int kMostChannels = 512;
constexpr std::int64_t kMostTokens = std::int64_t(1) << 30;  // of an axis: places and sums of them are 32-bit
constexpr std::int64_t kMostExtraTokens = 1 << 19;           // counted in float32 (bodies/matrix.h)
constexpr std::int64_t kMostThreads = std::numeric_limits<int>::max();  // of a launch

/// What stands before the bodies of an engine's kernels.
std::vector<const char*> shared_bodies(const KernelRow& kernel, Engine engine, Platform platform, bool has_extra) {
  using namespace text;
  std::vector<const char*> all = {groups, tile, tensor};
  if (!kernel.has_tiles()) return all;
  if (has_extra) all.push_back(extra);
  all.insert(all.end(), {sweep, pairs, bias_gradient});
  if (has_matrix_units(engine)) {
    all.push_back(platform == Platform::metal ? fragments_metal : fragments_cuda);
    all.insert(all.end(), {matrix_bias, matrix});
  }
  if (engine == Engine::warpgroup) {
    all.insert(all.end(), {warpgroup_instructions, warpgroup_accumulators, warpgroup_region, warpgroup_mask,
                           warpgroup_stages, warpgroup_producers, warpgroup_held, warpgroup_bias});
  }
  return all;
}

/// Threadgroups on the first axis of the grid.
std::int64_t grid_groups(const Problem& p, KernelId kernel, const Plan& plan) {
  if (row_of(kernel).has_tiles()) return plan.parts;
  // A simdgroup for each entry of rpb, some lanes for each delta.
  const std::int64_t threads =
      kernel == KernelId::rpb_sum ? p.heads * bias_entries(p) * 32 : p.batch * p.queries() * p.heads * plan.lanes;
  return (threads + plan.threads - 1) / plan.threads;
}

/// Builds the pieces of one kernel's text, for a family of problems.
class Writer {
 public:
  Writer(const Problem& family, KernelId kernel, Target target)
      : p_(family),
        kernel_(row_of(kernel)),
        target_(target),
        is_metal_(target.platform == Platform::metal),
        sums_bias_(kernel_.sums_bias(family)),
        has_extra_(kernel_.attends_extra(family)),
        plan_(plan(family, kernel, target)) {}

  KernelText text() const;

 private:
  std::string constants() const;
  std::string tensor(const std::string& name) const;
  std::string shared(const std::string& name, const std::string& type, int count) const;
  std::string at_site(const std::string& call) const;
  std::string axes(const std::string& shape) const;
  std::string shape_of(Array array) const { return spec_of(p_, array).name + "_shape"; }
  std::string call() const;

  const Problem p_;
  const KernelRow& kernel_;
  const Target target_;
  const bool is_metal_;
  const bool sums_bias_;
  const bool has_extra_;
  const Plan plan_;
};

std::string Writer::constants() const {
  std::string text;
  const auto define_text = [&](const std::string& name, const std::string& value) {
    text += "#define NA_" + name + ' ' + value + '\n';
  };
  // Not through a stream: that would write 1,024 where the program's locale says so.
  const auto define = [&](std::initializer_list<std::pair<const char*, std::int64_t>> numbers,
                          const std::string& after = "", const std::string& before = "") {
    for (const auto& [name, value] : numbers) define_text(before + name + after, std::to_string(value));
  };
  // clang-format off
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = p_.axes[a];
    const AxisConstants c = axis_constants(axis);
    define({{"KERNEL_SIZE", axis.kernel_size}, {"STRIDE", axis.stride}, {"DILATION", axis.dilation},
            {"GNA_STRIDE", axis.gna_stride}, {"IS_CAUSAL", axis.is_causal}, {"IS_CIRCULAR", axis.is_circular},
            {"CLASSES", c.classes}, {"STEP", c.step}, {"EXTENT", plan_.extent[a]}},
           "_" + std::to_string(a));
  }
  define({{"HAS_SPANS", p_.spans.has_value()}, {"HAS_EXTRA", has_extra_}});
  define_text("LOG2_E", "1.44269504f");
  define_text("LN_2", "0.693147181f");
  define({{"HEAD_GROUP", p_.heads / p_.kv_heads}, {"SLOTS", p_.kernel_volume()},
          {"HAS_RPB", p_.has_rpb && kernel_.reads(Array::rpb)}, {"BIAS_GRADIENT", sums_bias_},
          {"RPB_SIZE", bias_entries(p_)}, {"STAGE_COLUMNS", std::max(plan_.stage_columns, 1)},
          {"THREADS", plan_.threads}, {"GROUPS", plan_.groups}, {"RUN", plan_.run}, {"RUN_AXIS", plan_.run_axis},
          {"LANES", plan_.lanes}, {"BATCH", plan_.batch}, {"CHUNK", plan_.chunk}, {"VECTOR", plan_.vector}});
  for (const auto& [name, stream] : {std::pair("A_", plan_.a), std::pair("B_", plan_.b)}) {
    define_text(name + std::string("TYPE"), type_name(stream.type, target_.platform));
    define({{"CHANNELS", std::max(stream.channels, 1)}, {"HELD", std::max(stream.slices, 1) * plan_.vector},
            {"PITCH", std::max(stream.pitch, 1)}}, "", name);
  }
  if (plan_.engine == Engine::warpgroup) {
    const bool half = p_.query_type == FloatType::float16;
    define({{"WARPGROUPS", plan_.warpgroups}, {"PRODUCERS", plan_.producers}, {"STAGES", plan_.stages},
            {"SPLIT_AXIS", plan_.split_axis}, {"PING_PONG", plan_.ping_pong}, {"HOLD_SHARED", plan_.hold_shared},
            {"NUMBERS", kernel_.streamed_scalars()}, {"MASK", static_cast<int>(plan_.mask)},
            {"PRODUCER_REGISTERS", plan_.producer_registers}, {"CONSUMER_REGISTERS", plan_.consumer_registers},
            {"HAS_LENGTHS", p_.has_lengths}, {"BIAS_MARGIN", plan_.bias_margin}});
    for (int a = 0; a < kAxes; ++a) {
      define({{"MASK_CHANNELS", plan_.mask_channels[a]}, {"REACH", plan_.reach[a]}}, "_" + std::to_string(a));
    }
    // The largest float16 and its negative; in bfloat16 2^60. A logit that is not above `least` counts as none.
    define_text("ONE", half ? "0x7bff" : "0x5d80");
    define_text("PENALTY", half ? "0xfbff" : "0xdd80");
    define_text("LEAST_LOGIT", half ? "(-2e9f)" : "(-6e35f)");
  }
  if (has_matrix_units(plan_.engine)) {
    define({{"BLOCK", plan_.block}, {"WIDE", plan_.wide}, {"A_WIDTH", plan_.a.width}, {"B_WIDTH", plan_.b.width}});
    // Words of streamed positions: see bodies/matrix.h.
    const bool by_bits = plan_.mask == MaskKind::bits;
    unsigned guards = 0, nowhere = 0;
    for (int a = kAxes - 1, shift = 0; a >= 0; --a) {
      define({{"BITS_", plan_.bits[a]}, {"SHIFT_", shift},
              {"BOX_", plan_.warpgroups > 0 ? plan_.warpgroup_extent[a] : plan_.extent[a]}}, std::to_string(a));
      nowhere |= ((1u << plan_.bits[a]) - 1) << shift;
      guards |= by_bits ? 0u : 1u << (shift + plan_.bits[a]);
      shift += plan_.bits[a] + (by_bits ? 0 : 1);
    }
    define({{"MASK_BITS", by_bits}, {"STAGED_BIAS", plan_.staged_bias}});
    define_text("GUARDS", std::to_string(guards) + "u");
    define_text("NOWHERE", std::to_string(nowhere) + "u");
  }
  // clang-format on
  return text;
}

/// Of MLX's pointer and strides.
std::string Writer::tensor(const std::string& name) const {
  for (const Array array : kernel_.inputs) {
    const ArraySpec spec = spec_of(p_, array);
    if (spec.name == name) {
      return "natten::tensor(" + name + ", " + name + "_strides, " + std::to_string(spec.shape.size()) + ")";
    }
  }
  throw std::logic_error(std::string("kernel ") + kernel_.name + " has no input " + name);
}

std::string Writer::shared(const std::string& name, const std::string& type, int count) const {
  return std::string("alignas(16) ") + (is_metal_ ? "threadgroup " : "__shared__ ") + type + " " + name + "[" +
         std::to_string(count) + "];\n";
}

/// What `spans_of` (bodies/tile.h) takes; `shape` is that of an array with whole axes, if there are no spans.
std::string Writer::axes(const std::string& shape) const {
  if (p_.spans) return kSpansName;
  return "natten::Extent{{" + shape + "[1], " + shape + "[2], " + shape + "[3]}}";
}

/// The call, for the place of the threadgroup, `na_site`. A tile for each threadgroup, or a loop over some tiles where
/// their gradients of rpb are summed up.
std::string Writer::at_site(const std::string& call) const {
  // Of the arrays on the side of keys, or of query, the lengths of the axes; of the held ones the heads.
  const Array key = kernel_.first_input(Side::keys), held = kernel_.first_input(kernel_.held);
  const std::string tokens = shape_of(key == Array::none ? Array::query : key);
  const std::string heads =
      held == Array::none ? shape_of(Array::query) + "[4] / NA_HEAD_GROUP" : shape_of(held) + "[4]";
  const std::string group = is_metal_ ? "int(threadgroup_position_in_grid.x)" : "int(blockIdx.x)";
  const std::string groups = is_metal_ ? "int(threadgroups_per_grid.x)" : "int(gridDim.x)";
  std::string text = "natten::Site na_site = natten::locate<" + std::string(kernel_.holds_keys() ? "false" : "true") +
                     ">(" + axes(tokens) + ", " + (sums_bias_ ? "na_group" : group) +
                     (is_metal_ ? ", int(threadgroup_position_in_grid.y), " : ", int(blockIdx.y), ") + heads +
                     ", int(" + (is_metal_ ? "thread_position_in_threadgroup.x" : "threadIdx.x") + "));\n";
  if (sums_bias_) {
    text += "if (na_site.batch >= " + tokens + "[0]) break;\nna_site.parts = " + groups + ";\n";
  }
  if (p_.has_lengths) {
    text +=
        "na_site.lengths = natten::Extent{{na_lengths[3 * na_site.batch], na_lengths[3 * na_site.batch + 1], "
        "na_lengths[3 * na_site.batch + 2]}};\n";
  }
  text += call;
  if (!sums_bias_) return text;
  return "for (int na_group = " + group + ";; na_group += " + groups + ") {\n" + text + "}\n";
}

/// A product of a warpgroup's 64 rows, in registers or in shared memory, with `columns` of shared memory: its operands
/// have to be written out.
std::string warpgroup_product(const std::string& name, FloatType type, int columns, bool in_registers,
                              bool transposed) {
  std::string registers, operands;
  for (int i = 0; i < columns / 2; ++i) {
    const std::string comma = i == 0 ? "" : ", ";
    registers += comma + '%' + std::to_string(i);
    operands += comma + "\"+f\"(c[" + std::to_string(i / 4) + "][" + std::to_string(i % 4) + "])";
  }
  int next = columns / 2;
  const auto argument = [&] { return '%' + std::to_string(next++); };
  std::string left = argument();
  for (int i = 1; i < 4 && in_registers; ++i) left += ", " + argument();
  const std::string right = argument(), accumulate = argument();
  const std::string types = type == FloatType::float16 ? "f16.f16" : "bf16.bf16";
  return "namespace natten {\nNATTEN_FN void " + name + "(float (&c)[" + std::to_string(columns / 8) + "][4], " +
         (in_registers ? "const unsigned (&a)[4]" : "unsigned long long a") +
         ", unsigned long long b, int accumulate) {\n#ifdef NATTEN_EMULATED\n  warpgroup_product<NA_A_TYPE, " +
         (transposed ? "true" : "false") +
         ">(c, a, b, accumulate);\n#else\n  asm volatile(\"{.reg .pred p; setp.ne.b32 p, " + accumulate +
         ", 0; wgmma.mma_async.sync.aligned.m64n" + std::to_string(columns) + "k16.f32." + types + " {" + registers +
         "}, " + (in_registers ? '{' + left + '}' : left) + ", " + right + ", p, 1, 1, " + (in_registers ? "" : "0, ") +
         (transposed ? '1' : '0') + ";}\"\n               : " + operands +
         "\n               : " + (in_registers ? "\"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3])" : "\"l\"(a)") +
         ", \"l\"(b), \"r\"(accumulate));\n#endif\n}\n}\n";
}

/// The row's call with its words filled in, and the threadgroup memory that it works in.
std::string Writer::call() const {
  std::string memory;
  const bool has_warpgroups = plan_.engine == Engine::warpgroup;
  const bool has_parts = plan_.engine == Engine::decode;
  const bool has_rows = kernel_.has_tiles() && !has_warpgroups && !has_parts;
  if (has_warpgroups) memory = "extern __shared__ unsigned char na_memory[];\n";
  if (has_parts) memory = shared("na_parts", "float", plan_.shared_bytes() / 4);
  if (has_rows) memory = shared("na_rows_a", type_name(plan_.a.type, target_.platform), plan_.chunk * plan_.a.pitch);
  if (has_rows && plan_.b.channels > 0) {
    memory += shared("na_rows_b", type_name(plan_.b.type, target_.platform), plan_.chunk * plan_.b.pitch);
  }
  const int scratch = has_rows ? kernel_.streamed_scalars() * plan_.chunk + plan_.stage_columns * plan_.positions() : 0;
  if (scratch > 0) memory += shared("na_scratch", "float", scratch);
  const bool has_words = plan_.words > 0;
  if (has_words) {
    memory += shared("na_words", "unsigned", plan_.words * plan_.chunk) +
              shared("na_offsets", "natten::Offset", 2 * plan_.chunk);
    if (plan_.staged_bias > 0) memory += shared("na_bias", "float", plan_.staged_bias);
  }
  const auto word = [&](const std::string& name) -> std::string {
    if (name == "rows") return has_warpgroups ? "na_memory" : has_parts ? "na_parts" : "na_rows_a, na_rows_b";
    if (name == "site" && has_warpgroups) {  // what finds its tiles itself has to know of the problem
      const std::string key = shape_of(kernel_.first_input(Side::keys));
      return axes(key) + ", " + key + "[0], " + shape_of(kernel_.first_input(kernel_.held)) + "[4], " +
             (p_.has_lengths ? "na_lengths" : "nullptr");
    }
    if (name == "site") return "na_site";
    if (name == "scale") return kernel_.reads(Array::scale) ? kScaleName + std::string("[0]") : "1.0f";
    if (name == "partials") return sums_bias_ ? "na_partials" : "nullptr";
    if (has_warpgroups) return name != "rpb" ? "" : p_.has_rpb ? "na_rpb" : "nullptr";
    if (name == "rpb") return p_.has_rpb ? "na_rpb" : spec_of(p_, kernel_.inputs[0]).name;  // any pointer will do
    if (name == "scratch") return scratch > 0 ? "na_scratch" : "nullptr";
    if (name == "words" && !has_words) return "";
    if (name == "words") return std::string("na_words, na_offsets, ") + (plan_.staged_bias > 0 ? "na_bias" : "nullptr");
    return is_metal_ ? "natten::Offset(thread_position_in_grid.x)"
                     : "natten::Offset(blockIdx.x) * blockDim.x + threadIdx.x";  // thread
  };
  std::string call = "natten::";
  for (const char* c = kernel_.call; *c != 0;) {
    const char kind = *c;
    if (kind != '@' && kind != '$') {
      call += *c++;
      continue;
    }
    std::string name;
    while (std::isalpha(static_cast<unsigned char>(*++c))) name += *c;
    std::string value = kind == '@' ? tensor("na_" + name) : word(name);
    if (has_extra_ && (name == "key" || name == "value")) {
      const std::string extra = "na_extra_" + name;
      value = "natten::with_extra(" + value + ", " + tensor(extra) + ", " + extra + "_shape[3])";
    }
    call += value;
    if (value.empty()) c += 2;  // the comma
  }
  call += ";\n";
  return !kernel_.has_tiles() ? call : memory + (has_warpgroups ? call : at_site(call));
}

KernelText Writer::text() const {
  KernelText k;
  k.platform = target_.platform;
  k.header = constants();
  if (!is_metal_) k.header += text::instructions_cuda;
  k.header += is_metal_ ? text::prelude_metal : text::prelude_cuda;
  k.header += text::window;
  if (plan_.engine == Engine::warpgroup) {
    k.header += warpgroup_product("multiply_block", p_.query_type, plan_.block, true, false) +
                warpgroup_product("multiply_block_shared", p_.query_type, plan_.block, false, false) +
                warpgroup_product("multiply_a", p_.query_type, plan_.a.width, true, true) +
                warpgroup_product("multiply_b", p_.query_type, plan_.b.width, true, true);
  }
  for (const char* body : shared_bodies(kernel_, plan_.engine, target_.platform, has_extra_)) k.header += body;
  k.header += kernel_.bodies[static_cast<int>(plan_.engine)];
  k.source = call();
  // MLX finds compiled kernels by name, on disk too: the name must change with every letter of the text, and with the
  // GPU that it is compiled for.
  k.name = std::string("natten_") + kernel_.name + '_';
  if (!is_metal_) k.name += "sm" + std::to_string(target_.capability) + '_';
  for (const Array array : kernel_.inputs) {
    if (has_array(p_, array)) k.name += "hbfi"[static_cast<int>(type_of(p_, array))];
  }
  k.name += '_' + hash_of(k.header + k.source);
  if (!is_metal_) {  // MLX has no place for launch bounds, but it does write the kernel's name
    const std::string generated = "custom_kernel_" + k.name;
    k.header += "#define " + generated + " __launch_bounds__(" + std::to_string(plan_.threads) + ", " +
                std::to_string(plan_.groups) + ") " + generated + "\n";
    k.source = "#undef " + generated + "\n" + k.source;
  }
  return k;
}

}  // namespace

const char* type_name(ElementType type, Platform platform) {
  static constexpr const char* kNames[][4] = {{"float16_t", "bfloat16_t", "float", "int"},
                                              {"__half", "__nv_bfloat16", "float", "int"}};
  return kNames[static_cast<int>(platform)][static_cast<int>(type)];
}

std::optional<std::string> objection(Target target) {
  if (target.platform != Platform::cuda || target.capability >= Target::kOldestCapability) return std::nullopt;
  return "a GPU of compute capability " + std::to_string(target.capability / 10) + '.' +
         std::to_string(target.capability % 10) + " is too old: kernels need 8.0";
}

std::optional<std::string> objection(const Problem& p, Target target) {
  if (const auto reason = objection(target)) return reason;
  for (const FloatType type : {p.query_type, p.key_type, p.value_type}) {
    if (type == FloatType::float64) return "float64 is not a type of GPU kernels";
  }
  if (std::max(p.head_dim, p.value_dim) > kMostChannels) {
    return "head dim " + std::to_string(std::max(p.head_dim, p.value_dim)) + " is above " +
           std::to_string(kMostChannels);
  }
  if (p.batch == 0) return "empty batch";
  if (p.queries() == 0) return "a span without computed queries";
  if (const std::int64_t most = largest_position(p); most > kMostTokens) {
    return "an axis with positions up to " + std::to_string(most) + " is too long";
  }
  if (p.extra_tokens > kMostExtraTokens) return "more than 2^19 additional tokens";
  // MLX would declare some of them `constant`, and pointers to keys and to extra keys have one type.
  const std::int64_t rows = p.batch * p.kv_heads * std::min(p.key_tokens(), p.extra_tokens);
  if (p.extra_tokens > 0 && target.platform == Platform::metal && rows * std::min(p.head_dim, p.value_dim) < 8) {
    return "additional tokens beside arrays of fewer than 8 elements";
  }
  if (p.heads > 65535) return "more than 65535 heads";
  if (p.kernel_volume() > kMostThreads) return "a window of more than 2^31 keys";
  // A simdgroup for each entry sums the parts of its gradient. Also bounds what the parts need.
  if (p.heads * bias_entries(p) > kMostThreads / 32) return "a relative position bias of more than 2^26 entries";
  for (const Role role : {Role::forward, Role::backward}) {
    for (const KernelId kernel : kernels_of(p, role)) {
      const Plan plan = fast::plan(p, kernel, target);
      if (std::max(grid_groups(p, kernel, plan), plan.tile_count() * p.batch) > kMostThreads / plan.threads) {
        return "more queries than a launch can address";
      }
      if (plan.shared_bytes() > most_shared_bytes(target.platform)) {
        return std::string("kernel ") + kernel_name(kernel) + " needs " + std::to_string(plan.shared_bytes()) +
               " bytes of threadgroup memory";
      }
    }
  }
  return std::nullopt;
}

KernelText kernel_text(const Problem& problem, KernelId kernel, Target target) {
  return Writer(family_of(problem), kernel, target).text();
}

KernelLaunch kernel_launch(const Problem& p, KernelId kernel, Target target) {
  const KernelRow& row = row_of(kernel);
  const Plan plan = fast::plan(p, kernel, target);
  // Those that rpb_sum adds up are the query gradient's.
  const KernelId summed = p.op == Op::qk ? KernelId::qk_backward_query : KernelId::backward_query;
  const std::int64_t parts = kernel == KernelId::rpb_sum ? fast::plan(p, summed, target).parts : plan.parts;
  KernelLaunch k;
  for (const Array array : row.inputs) {
    if (has_array(p, array)) k.inputs.push_back(spec_of(p, array, parts));
  }
  for (const Array array : row.outputs) {
    if (has_array(p, array)) k.outputs.push_back(spec_of(p, array, parts));
  }
  k.threadgroup = {plan.threads, 1, 1};
  const std::int64_t heads = row.holds_keys() ? p.kv_heads : p.heads;
  k.grid = {static_cast<int>(grid_groups(p, kernel, plan) * plan.threads),
            row.has_tiles() ? static_cast<int>(heads) : 1, 1};
  if (row.has_tiles()) k.shared_bytes = plan.shared_bytes();
  k.dynamic_bytes = plan.dynamic_bytes();
  k.scale = static_cast<float>(p.scale);
  return k;
}

KernelSource kernel_source(const Problem& problem, KernelId kernel, Target target) {
  return {kernel_text(problem, kernel, target), kernel_launch(problem, kernel, target)};
}

}  // namespace natten::fast
