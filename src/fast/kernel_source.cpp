#include "fast/kernel_source.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "fast/embedded.h"
#include "fast/plan.h"

namespace natten::fast {

namespace {

constexpr int kMostChannels = 512;
constexpr std::int64_t kMostTokens = std::int64_t(1) << 30;  // on one axis: places and sums of them are 32-bit
constexpr std::int64_t kMostThreads = std::numeric_limits<int>::max();  // of a launch

ElementType element(FloatType type) {
  return type == FloatType::float16    ? ElementType::float16
         : type == FloatType::bfloat16 ? ElementType::bfloat16
                                       : ElementType::float32;
}

const char* short_name(ElementType type) {
  static constexpr const char* kNames[] = {"h", "b", "f", "i"};
  return kNames[static_cast<int>(type)];
}

const char* type_name(FloatType type, Platform platform) {
  if (type == FloatType::float32) return "float";
  if (platform == Platform::metal) return type == FloatType::float16 ? "float16_t" : "bfloat16_t";
  return type == FloatType::float16 ? "__half" : "__nv_bfloat16";
}

/// FNV-1a, in hexadecimal digits.
std::string hash_of(const std::string& text) {
  std::uint64_t hash = 1469598103934665603u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  char digits[16];
  return {digits, std::to_chars(digits, digits + sizeof digits, hash, 16).ptr};
}

std::vector<const char*> bodies(KernelId kernel, bool on_matrix_units, Platform platform) {
  using namespace text;
  if (!has_tiles(kernel)) return {groups, tile, tensor, sums};
  std::vector<const char*> all = {groups, tile, tensor, sweep, pairs, bias_gradient};
  if (on_matrix_units) {
    all.push_back(platform == Platform::metal ? fragments_metal : fragments_cuda);
    all.push_back(matrix);
  }
  switch (kernel) {
    case KernelId::forward:
      all.push_back(on_matrix_units ? matrix_forward : forward);
      break;
    case KernelId::backward_query:
    case KernelId::backward_key_value:
      all.push_back(on_matrix_units ? matrix_backward : backward);
      break;
    case KernelId::qk:
    case KernelId::av_backward_attn:
      all.push_back(scores);
      break;
    default:
      all.push_back(weighted);
  }
  return all;
}

/// Whether products of query and key, or their gradients, are in it.
bool is_scaled(KernelId kernel) {
  return has_tiles(kernel) && kernel != KernelId::av && kernel != KernelId::av_backward_attn &&
         kernel != KernelId::av_backward_value;
}

std::int64_t bias_entries(const Problem& p) {
  std::int64_t entries = p.has_rpb ? 1 : 0;  // of a head
  for (const Axis& axis : p.axes) entries *= 2 * axis.kernel_size - 1;
  return entries;
}

/// Threadgroups and threads on the first axis of the grid.
std::int64_t grid_groups(const Problem& p, KernelId kernel, const Plan& plan) {
  if (has_tiles(kernel)) return plan.parts;
  const std::int64_t threads =
      kernel == KernelId::delta ? p.batch * p.queries() * p.heads * plan.lanes : p.heads * bias_entries(p) * 32;
  return (threads + plan.threads - 1) / plan.threads;
}

/// Builds the pieces of one kernel: its text from a family of problems, its launch from the problem.
class Writer {
 public:
  Writer(const Problem& problem, KernelId kernel, Target target)
      : p_(problem),
        kernel_(kernel),
        target_(target),
        platform_(target.platform),
        plan_(plan(problem, kernel, target)) {
    arrays();
  }

  KernelText text() const;
  KernelLaunch launch() const;

 private:
  using Shape = std::vector<std::int64_t>;

  Shape tokens(std::int64_t heads, std::int64_t channels) const {
    return {p_.batch, p_.axes[0].length, p_.axes[1].length, p_.axes[2].length, heads, channels};
  }
  Shape queries() const {
    Shape shape{p_.batch};
    for (const Axis& axis : p_.axes) shape.push_back(output_length(axis.length, axis.stride));
    shape.push_back(p_.heads);
    return shape;
  }
  Shape queries(std::int64_t channels) const {
    Shape shape = queries();
    shape.push_back(channels);
    return shape;
  }
  Shape bias_table() const {
    Shape shape{p_.heads};
    for (const Axis& axis : p_.axes) shape.push_back(2 * axis.kernel_size - 1);
    return shape;
  }
  bool bias_gradient() const { return plan_.stage_columns > 0; }

  void input(const char* name, FloatType type, Shape shape) { k_.inputs.push_back({name, element(type), shape}); }
  void output(const char* name, FloatType type, Shape shape) { k_.outputs.push_back({name, element(type), shape}); }
  void arrays();
  std::string constants() const;
  std::string tensor(const std::string& name, int rank = 6) const;
  std::string shared(const std::string& name, const std::string& type, int count) const;
  std::string at_site(const char* tokens_of, const char* heads, const std::string& call) const;
  std::string call() const;

  const Problem p_;
  KernelId kernel_;
  Target target_;
  Platform platform_;
  Plan plan_;
  KernelLaunch k_;
};

void Writer::arrays() {
  const auto query = [&] { input("na_query", p_.query_type, tokens(p_.heads, p_.head_dim)); };
  const auto key = [&] { input("na_key", p_.key_type, tokens(p_.kv_heads, p_.head_dim)); };
  const auto value = [&] { input("na_value", p_.value_type, tokens(p_.kv_heads, p_.value_dim)); };
  const auto dout = [&] { input("na_dout", p_.query_type, queries(p_.value_dim)); };
  const auto scalars = [&](const char* name) { input(name, FloatType::float32, queries()); };
  const auto rpb = [&] {
    if (p_.has_rpb) input("na_rpb", FloatType::float32, bias_table());
  };
  const auto drpb = [&] {
    if (!bias_gradient()) return;
    Shape shape = bias_table();
    shape.insert(shape.begin(), plan_.parts);
    output("na_partials", FloatType::float32, shape);
  };
  const std::int64_t slots = p_.kernel_volume();
  switch (kernel_) {
    case KernelId::forward:
      query(), key(), value(), rpb();
      output("na_out", p_.query_type, queries(p_.value_dim));
      output("na_lse", FloatType::float32, queries());
      break;
    case KernelId::delta:
      input("na_out", p_.query_type, queries(p_.value_dim));
      dout(), scalars("na_dlse");
      output("na_delta", FloatType::float32, queries());
      break;
    case KernelId::backward_query:
      query(), key(), value(), scalars("na_lse"), dout(), scalars("na_delta"), rpb();
      output("na_dquery", p_.query_type, tokens(p_.heads, p_.head_dim));
      drpb();
      break;
    case KernelId::backward_key_value:
      query(), key(), value(), scalars("na_lse"), dout(), scalars("na_delta"), rpb();
      output("na_dkey", p_.key_type, tokens(p_.kv_heads, p_.head_dim));
      output("na_dvalue", p_.value_type, tokens(p_.kv_heads, p_.value_dim));
      break;
    case KernelId::qk:
      query(), key(), rpb();
      output("na_logits", p_.query_type, queries(slots));
      break;
    case KernelId::qk_backward_query:
      input("na_dlogits", p_.query_type, queries(slots));
      key();
      output("na_dquery", p_.query_type, tokens(p_.heads, p_.head_dim));
      drpb();
      break;
    case KernelId::qk_backward_key:
      query();
      input("na_dlogits", p_.query_type, queries(slots));
      output("na_dkey", p_.key_type, tokens(p_.kv_heads, p_.head_dim));
      break;
    case KernelId::av:
      input("na_attn", p_.query_type, queries(slots));
      value();
      output("na_out", p_.query_type, queries(p_.value_dim));
      break;
    case KernelId::av_backward_attn:
      dout(), value();
      output("na_dattn", p_.query_type, queries(slots));
      break;
    case KernelId::av_backward_value:
      dout();
      input("na_attn", p_.query_type, queries(slots));
      value();  // for its shape only
      output("na_dvalue", p_.value_type, tokens(p_.kv_heads, p_.value_dim));
      break;
    case KernelId::rpb_sum: {
      const KernelId producer = p_.op == Op::attention ? KernelId::backward_query : KernelId::qk_backward_query;
      Shape partials = bias_table();
      partials.insert(partials.begin(), plan(p_, producer, target_).parts);
      input("na_partials", FloatType::float32, partials);
      output("na_drpb", FloatType::float32, bias_table());
      break;
    }
  }
  if (p_.has_lengths && has_tiles(kernel_)) {
    k_.inputs.push_back({"na_lengths", ElementType::int32, {p_.batch, kAxes}});
  }
  if (is_scaled(kernel_)) input(kScaleName, FloatType::float32, {1});
}

std::string Writer::constants() const {
  std::string text;
  const auto define_text = [&](const std::string& name, const std::string& value) {
    text += "#define NA_" + name + ' ' + value + '\n';
  };
  // Not through a stream: that would write 1,024 where the program's locale says so.
  const auto define = [&](const std::string& name, std::int64_t value) { define_text(name, std::to_string(value)); };
  for (int a = 0; a < kAxes; ++a) {
    const std::string axis = "_" + std::to_string(a);
    define("KERNEL_SIZE" + axis, p_.axes[a].kernel_size);
    define("STRIDE" + axis, p_.axes[a].stride);
    define("DILATION" + axis, p_.axes[a].dilation);
    define("GNA_STRIDE" + axis, p_.axes[a].gna_stride);
    define("IS_CAUSAL" + axis, p_.axes[a].is_causal ? 1 : 0);
    define("CLASSES" + axis, query_classes(p_.axes[a]));
    define("STEP" + axis, query_step(p_.axes[a]));
    define("EXTENT" + axis, plan_.extent[a]);
  }
  define_text("LOG2_E", "1.44269504f");
  define_text("LN_2", "0.693147181f");
  define("HEAD_GROUP", p_.heads / p_.kv_heads);
  define("SLOTS", p_.kernel_volume());
  const bool reads_bias = p_.has_rpb && (is_fused(kernel_) || kernel_ == KernelId::qk);
  define("HAS_RPB", reads_bias ? 1 : 0);
  define("BIAS_GRADIENT", bias_gradient() ? 1 : 0);
  define("RPB_SIZE", bias_entries(p_));
  define("STAGE_COLUMNS", std::max(plan_.stage_columns, 1));
  define("THREADS", plan_.threads);
  define("GROUPS", plan_.groups);
  define("RUN", plan_.run);
  define("RUN_AXIS", plan_.run_axis);
  define("LANES", plan_.lanes);
  define("BATCH", plan_.batch);
  define("CHUNK", plan_.chunk);
  define("VECTOR", plan_.vector);
  for (const bool first : {true, false}) {
    const Stream& stream = first ? plan_.a : plan_.b;
    const std::string name = first ? "A_" : "B_";
    define_text(name + "TYPE", type_name(stream.type, platform_));
    define(name + "CHANNELS", std::max(stream.channels, 1));
    define(name + "HELD", std::max(stream.slices, 1) * plan_.vector);
    define(name + "PITCH", std::max(stream.pitch, 1));
  }
  if (plan_.matrix) {
    define("BLOCK", plan_.block);
    define("A_WIDTH", plan_.a.width);
    define("B_WIDTH", plan_.b.width);
    // Packed coordinates: see bodies/matrix.h.
    unsigned guards = 0, nowhere = 0;
    for (int a = kAxes - 1, shift = 0; a >= 0; --a) {
      const std::string axis = std::to_string(a);
      define("BITS_" + axis, plan_.bits[a]);
      define("SHIFT_" + axis, shift);
      nowhere |= ((1u << plan_.bits[a]) - 1) << shift;
      guards |= 1u << (shift + plan_.bits[a]);
      shift += plan_.bits[a] + 1;
    }
    define_text("GUARDS", std::to_string(guards) + "u");
    define_text("NOWHERE", std::to_string(nowhere) + "u");
  }
  return text;
}

std::string Writer::tensor(const std::string& name, int rank) const {
  return "natten::tensor(" + name + ", " + name + "_strides, " + std::to_string(rank) + ")";
}

std::string Writer::shared(const std::string& name, const std::string& type, int count) const {
  return std::string("alignas(16) ") + (platform_ == Platform::metal ? "threadgroup " : "__shared__ ") + type + " " +
         name + "[" + std::to_string(count) + "];\n";
}

/// The call, for the place of the threadgroup, `na_site`. A tile for each threadgroup, or a loop over some tiles where
/// their gradients of rpb are summed up.
std::string Writer::at_site(const char* tokens_of, const char* heads, const std::string& call) const {
  const bool metal = platform_ == Platform::metal;
  const std::string tokens = tokens_of;
  const std::string group = metal ? "int(threadgroup_position_in_grid.x)" : "int(blockIdx.x)";
  const std::string groups = metal ? "int(threadgroups_per_grid.x)" : "int(gridDim.x)";
  std::string text = "natten::Site na_site = natten::locate<" + std::string(holds_keys(kernel_) ? "false" : "true") +
                     ">(natten::Extent{{" + tokens + "_shape[1], " + tokens + "_shape[2], " + tokens + "_shape[3]}}, " +
                     (bias_gradient() ? "na_group" : group) +
                     (metal ? ", int(threadgroup_position_in_grid.y), " : ", int(blockIdx.y), ") + heads + ", int(" +
                     (metal ? "thread_position_in_threadgroup.x" : "threadIdx.x") + "));\n";
  if (bias_gradient()) {
    text += "if (na_site.batch >= " + tokens + "_shape[0]) break;\nna_site.parts = " + groups + ";\n";
  }
  if (p_.has_lengths) {
    text +=
        "na_site.lengths = natten::Extent{{na_lengths[3 * na_site.batch], na_lengths[3 * na_site.batch + 1], "
        "na_lengths[3 * na_site.batch + 2]}};\n";
  }
  text += call;
  if (!bias_gradient()) return text;
  return "for (int na_group = " + group + ";; na_group += " + groups + ") {\n" + text + "}\n";
}

std::string Writer::call() const {
  const auto invoke = [](const std::string& function, const std::vector<std::string>& arguments) {
    std::string text = "natten::" + function + "(";
    for (const std::string& argument : arguments) text += (text.back() == '(' ? "" : ", ") + argument;
    return text + ");\n";
  };
  const std::string thread = platform_ == Platform::metal ? "natten::Offset(thread_position_in_grid.x)"
                                                          : "natten::Offset(blockIdx.x) * blockDim.x + threadIdx.x";
  if (kernel_ == KernelId::delta) {
    return invoke("attention_delta", {tensor("na_out"), tensor("na_dout"), tensor("na_dlse", 5), "na_delta",
                                      "natten::Extent{{na_out_shape[1], na_out_shape[2], na_out_shape[3]}}",
                                      "na_out_shape[0]", "na_out_shape[4]", thread});
  }
  if (kernel_ == KernelId::rpb_sum) {
    return invoke("sum_bias_gradients",
                  {"na_partials", "na_drpb", "na_partials_shape[0]", "na_partials_shape[1] * NA_RPB_SIZE", thread});
  }
  std::string memory = shared("na_rows_a", type_name(plan_.a.type, platform_), plan_.chunk * plan_.a.pitch);
  if (is_fused(kernel_)) {
    memory += shared("na_rows_b", type_name(plan_.b.type, platform_), plan_.chunk * plan_.b.pitch);
  }
  const int scratch_floats = kernel_ == KernelId::backward_key_value
                                 ? 2 * plan_.chunk  // lse and delta
                                 : plan_.stage_columns * plan_.extent[0] * plan_.extent[1] * plan_.extent[2];
  const std::string scratch = scratch_floats > 0 ? "na_scratch" : "nullptr";
  if (scratch_floats > 0) memory += shared(scratch, "float", scratch_floats);
  if (plan_.matrix) memory += shared("na_words", "unsigned", plan_.chunk);
  const std::string words = plan_.matrix ? "na_words, " : "";
  const std::string drpb = bias_gradient() ? "na_partials" : "nullptr";
  const std::string rpb = p_.has_rpb ? "na_rpb" : k_.inputs[0].name;  // any pointer will do where there is none
  const std::string scale = is_scaled(kernel_) ? kScaleName + std::string("[0]") : "1.0f";
  switch (kernel_) {
    case KernelId::forward:
      return memory + at_site("na_key", "na_query_shape[4]",
                              invoke("attention_forward",
                                     {tensor("na_query"), tensor("na_key"), tensor("na_value"), rpb, "na_out", "na_lse",
                                      "na_rows_a", "na_rows_b", words + "na_site", scale}));
    case KernelId::backward_query:
      return memory + at_site("na_key", "na_query_shape[4]",
                              invoke("attention_backward<true>",
                                     {tensor("na_query"), tensor("na_dout"), tensor("na_key"), tensor("na_value"),
                                      tensor("na_lse", 5), tensor("na_delta", 5), rpb, "na_dquery", "na_dquery", drpb,
                                      "na_rows_a", "na_rows_b", scratch, words + "na_site", scale}));
    case KernelId::backward_key_value:
      return memory + at_site("na_key", "na_key_shape[4]",
                              invoke("attention_backward<false>",
                                     {tensor("na_key"), tensor("na_value"), tensor("na_query"), tensor("na_dout"),
                                      tensor("na_lse", 5), tensor("na_delta", 5), rpb, "na_dkey", "na_dvalue", drpb,
                                      "na_rows_a", "na_rows_b", scratch, words + "na_site", scale}));
    case KernelId::qk:
      return memory +
             at_site("na_key", "na_query_shape[4]",
                     invoke("attention_scores", {tensor("na_query"), "natten::Indexed::query_tokens", tensor("na_key"),
                                                 rpb, "na_logits", "na_rows_a", "na_site", scale, "-NA_INFINITY"}));
    case KernelId::av_backward_attn:
      return memory +
             at_site("na_value", "na_dout_shape[4]",
                     invoke("attention_scores", {tensor("na_dout"), "natten::Indexed::queries", tensor("na_value"), rpb,
                                                 "na_dattn", "na_rows_a", "na_site", scale, "0.0f"}));
    case KernelId::av:
      return memory + at_site("na_value", "na_attn_shape[4]",
                              invoke("attention_weighted<true, false>",
                                     {tensor("na_value"), "natten::Indexed::keys", tensor("na_attn"), "na_out", drpb,
                                      "na_rows_a", scratch, "na_site", scale}));
    case KernelId::qk_backward_query:
      return memory + at_site("na_key", "na_dlogits_shape[4]",
                              invoke("attention_weighted<true, true>",
                                     {tensor("na_key"), "natten::Indexed::keys", tensor("na_dlogits"), "na_dquery",
                                      drpb, "na_rows_a", scratch, "na_site", scale}));
    case KernelId::qk_backward_key:
      return memory + at_site("na_query", "na_query_shape[4] / NA_HEAD_GROUP",
                              invoke("attention_weighted<false, false>",
                                     {tensor("na_query"), "natten::Indexed::query_tokens", tensor("na_dlogits"),
                                      "na_dkey", drpb, "na_rows_a", scratch, "na_site", scale}));
    default:  // av_backward_value
      return memory + at_site("na_value", "na_value_shape[4]",
                              invoke("attention_weighted<false, false>",
                                     {tensor("na_dout"), "natten::Indexed::queries", tensor("na_attn"), "na_dvalue",
                                      drpb, "na_rows_a", scratch, "na_site", scale}));
  }
}

KernelText Writer::text() const {
  KernelText k;
  k.platform = platform_;
  k.header = constants();
  if (platform_ == Platform::cuda) k.header += text::instructions_cuda;
  k.header += platform_ == Platform::metal ? text::prelude_metal : text::prelude_cuda;
  k.header += text::window;
  for (const char* body : bodies(kernel_, plan_.matrix, platform_)) k.header += body;
  k.source = call();
  // MLX finds compiled kernels by name, on disk too: the name must change with every letter of the text, and with the
  // GPU that it is compiled for.
  k.name = std::string("natten_") + kernel_name(kernel_) + '_';
  if (platform_ == Platform::cuda) k.name += "sm" + std::to_string(target_.capability) + '_';
  for (const ArraySpec& array : k_.inputs) k.name += short_name(array.type);
  k.name += '_' + hash_of(k.header + k.source);
  if (platform_ == Platform::cuda) {  // MLX has no place for launch bounds, but it does write the kernel's name
    const std::string generated = "custom_kernel_" + k.name;
    k.header += "#define " + generated + " __launch_bounds__(" + std::to_string(plan_.threads) + ", " +
                std::to_string(plan_.groups) + ") " + generated + "\n";
    k.source = "#undef " + generated + "\n" + k.source;
  }
  return k;
}

KernelLaunch Writer::launch() const {
  KernelLaunch k = k_;
  k.threadgroup = {plan_.threads, 1, 1};
  const std::int64_t heads = holds_keys(kernel_) ? p_.kv_heads : p_.heads;
  k.grid = {static_cast<int>(grid_groups(p_, kernel_, plan_) * plan_.threads),
            has_tiles(kernel_) ? static_cast<int>(heads) : 1, 1};
  if (has_tiles(kernel_)) k.shared_bytes = plan_.shared_bytes(kernel_);
  return k;
}

}  // namespace

const char* kernel_name(KernelId kernel) {
  static constexpr const char* kNames[] = {
      "forward",         "delta", "backward_query",   "backward_key_value", "qk",     "qk_backward_query",
      "qk_backward_key", "av",    "av_backward_attn", "av_backward_value",  "rpb_sum"};
  return kNames[static_cast<int>(kernel)];
}

std::vector<KernelId> forward_kernels(const Problem& p) {
  return {p.op == Op::attention ? KernelId::forward : p.op == Op::qk ? KernelId::qk : KernelId::av};
}

std::vector<KernelId> query_gradient_kernels(const Problem& p) {
  std::vector<KernelId> kernels;
  if (p.op == Op::attention) kernels.push_back(KernelId::delta);
  kernels.push_back(p.op == Op::attention ? KernelId::backward_query
                    : p.op == Op::qk      ? KernelId::qk_backward_query
                                          : KernelId::av_backward_attn);
  if (p.has_rpb) kernels.push_back(KernelId::rpb_sum);
  return kernels;
}

std::vector<KernelId> key_gradient_kernels(const Problem& p) {
  if (p.op == Op::attention) return {KernelId::delta, KernelId::backward_key_value};
  return {p.op == Op::qk ? KernelId::qk_backward_key : KernelId::av_backward_value};
}

std::vector<KernelId> gradient_kernels(const Problem& p) {
  std::vector<KernelId> kernels = query_gradient_kernels(p);
  kernels.push_back(key_gradient_kernels(p).back());
  return kernels;
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
  for (const Axis& axis : p.axes) {
    if (axis.length > kMostTokens) return "an axis of " + std::to_string(axis.length) + " tokens is too long";
  }
  if (p.heads > 65535) return "more than 65535 heads";
  if (p.kernel_volume() > kMostThreads) return "a window of more than 2^31 keys";
  // A simdgroup for each entry sums the parts of its gradient. Also bounds what the parts need.
  if (p.heads * bias_entries(p) > kMostThreads / 32) return "a relative position bias of more than 2^26 entries";
  std::vector<KernelId> kernels = forward_kernels(p);
  for (const KernelId kernel : gradient_kernels(p)) kernels.push_back(kernel);
  for (const KernelId kernel : kernels) {
    const Plan plan = fast::plan(p, kernel, target);
    if (grid_groups(p, kernel, plan) > kMostThreads / plan.threads ||
        plan.tile_count() * p.batch > kMostThreads / plan.threads) {
      return "more queries than a launch can address";
    }
    if (plan.shared_bytes(kernel) > most_shared_bytes(target.platform)) {
      return std::string("kernel ") + kernel_name(kernel) + " needs " + std::to_string(plan.shared_bytes(kernel)) +
             " bytes of threadgroup memory";
    }
  }
  return std::nullopt;
}

KernelText kernel_text(const Problem& problem, KernelId kernel, Target target) {
  return Writer(family_of(problem), kernel, target).text();
}

KernelLaunch kernel_launch(const Problem& problem, KernelId kernel, Target target) {
  return Writer(problem, kernel, target).launch();
}

KernelSource kernel_source(const Problem& problem, KernelId kernel, Target target) {
  return {kernel_text(problem, kernel, target), kernel_launch(problem, kernel, target)};
}

}  // namespace natten::fast
