// Which tier (backend) runs a call: choice, capabilities, explanation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "natten/attention.h"
#include "natten/neighborhood.h"

namespace natten {

namespace mx = mlx::core;

/// "auto", "pure", "fast_metal" ("fast_cuda" is the same) or "nanobind". Throws
/// std::invalid_argument for another name. The choice is process-wide; a tier that cannot serve a call falls back to
/// the next one, or throws std::runtime_error when NATTEN_STRICT=1.
void set_backend(const std::string& name);

/// While it lives, calls made in its thread choose as if set_backend(name) had been called, and set_backend changes
/// only that; other threads notice nothing. Scopes nest, and end in the thread where they began.
class BackendScope {
 public:
  explicit BackendScope(const std::string& name);
  ~BackendScope();
  BackendScope(const BackendScope&) = delete;
  BackendScope& operator=(const BackendScope&) = delete;

 private:
  std::string outer_;
};

/// The chosen tier, or for "auto" the one that would run on the default device.
std::string get_backend();

/// While one lives, calls of its thread are made of MLX's own primitives (of the tier "pure", whatever is chosen), so
/// that mx::export_function can write them to a file.
class Exportable {
 public:
  Exportable() { enter(); }
  ~Exportable() { leave(); }
  Exportable(const Exportable&) = delete;
  Exportable& operator=(const Exportable&) = delete;

  /// The same where no scope of C++ fits.
  static void enter();
  static void leave();
};

/// What a tier covers on a device that has it; only `name`, `available` and `reason` depend on this machine.
struct TierSupport {
  std::string name;  ///< what this machine calls the tier, everywhere: "fast_cuda" for "fast_metal" with an NVIDIA GPU
  bool available = false;
  std::string reason;                    ///< why not available; empty when it is
  std::map<std::string, bool> forward;   ///< na1d, na2d, na3d, split_qk_av
  std::map<std::string, bool> backward;  ///< na1d, na2d, na3d, split_qk_av
  std::map<std::string, bool> fusion;    ///< na1d, na2d, na3d: forward never stores the attention matrix
  std::map<std::string, bool> varlen;    ///< na1d, na2d, na3d
  std::vector<std::string> devices;      ///< cpu, gpu
  std::vector<std::string> dtypes;
  std::vector<std::string> constraints;  ///< what its predicate objects to
};

/// Keys "pure", "fast_metal", "nanobind" on every machine. Computed from the predicates that dispatch uses.
std::map<std::string, TierSupport> support_matrix();

/// Of an array that need not exist.
struct ArrayDescription {
  mx::Shape shape;
  mx::Dtype dtype = mx::float32;
};

/// A call to explain: arrays as the operation would get them.
struct CallDescription {
  std::string op = "attention";        ///< "attention", "qk" or "av" (query is attn then)
  ArrayDescription query, key, value;  ///< key unused by av, value unused by qk
  std::optional<Scale> scale = {};     ///< not of av
  std::optional<ArrayDescription> additional_keys = {},
                                  additional_values = {};  ///< attention has both, qk the first, av the second
  std::optional<ArrayDescription> rpb = {};                ///< not of av
  std::optional<ArrayDescription> lengths = {};            ///< int32 or int64
  mx::StreamOrDevice stream = {};
  PerAxis<std::int64_t> query_start = 0, key_start = 0;  ///< a span, as in the options of the call
  std::optional<PerAxis<std::int64_t>> shape = {};
};

struct Explanation {
  std::string tier;                                           ///< that would run
  std::string kernel;                                         ///< of that tier
  std::string tile;                                           ///< empty where the tier has none
  std::vector<std::pair<std::string, std::string>> declined;  ///< tier and its reason, in order of preference
};

/// Which tier would run a call and why the others would not. Validates like the operation itself.
Explanation explain(const CallDescription& call, const Neighborhood& neighborhood);

/// What the call would cost on a GPU, from the model of the tier of kernels compiled at run time, whether or not this
/// machine has a GPU: the platform, then a line for each kernel, forward and backward. Validates likewise.
std::string gpu_cost(const CallDescription& call, const Neighborhood& neighborhood);

/// Kernels of the tier that compiles at run time which are kept for later calls: their text and its plans.
struct KernelCacheUsage {
  std::size_t kernels = 0;
  std::size_t bytes = 0;  ///< about
  std::size_t limit = 0;  ///< bytes; what was used last is kept
};
KernelCacheUsage kernel_cache_usage();

/// Bytes of memory of large results of the CPU tier that is kept for the next results. At most NATTEN_CACHE_LIMIT,
/// otherwise an eighth of the machine's memory; given back where memory is short.
std::size_t get_cache_memory();

/// Forgets the kernels that are kept, and gives back the memory. What MLX has compiled or loaded it keeps itself, under
/// the name of the text; files stay (clear_kernel_files).
void clear_cache();

/// Files of kernels compiled for NVIDIA GPUs, which later processes read. In NATTEN_CACHE_DIR (empty: there are none),
/// else natten-mlx/kernels in XDG_CACHE_HOME or ~/.cache. What is there runs on the GPU: a folder that others write to
/// is theirs to misuse.
struct KernelFiles {
  std::string folder;  ///< empty: nothing is kept
  std::size_t files = 0;
  std::uint64_t bytes = 0;
  std::uint64_t limit = 0;  ///< bytes; files used longest ago give way
};
KernelFiles kernel_files();
/// Removes them, and nothing else in the folder. Returns what is gone.
KernelFiles clear_kernel_files();
/// Who compiles GPU kernels of calls made now, and why: a sentence for people.
std::string kernel_compiler();

struct WarmupCall {
  CallDescription call;
  Neighborhood neighborhood;
  bool gradients = true;
};
struct WarmupReport {
  std::size_t kernels = 0;   ///< that the calls need, each counted once
  std::size_t compiled = 0;  ///< of those; the others were in files. Where MLX compiles, all
};
/// Makes the kernels of calls before they are made: side by side where they are compiled here (kernel_compiler), else
/// by running each call on zeros, for one sample. Calls that no kernel compiled at run time would serve need nothing.
/// `progress` hears of kernels done and in all. Throws std::invalid_argument as the calls would, before any work, and
/// std::runtime_error where a kernel doesn't compile.
WarmupReport warmup(const std::vector<WarmupCall>& calls,
                    const std::function<void(std::size_t done, std::size_t total)>& progress = {});

}  // namespace natten
