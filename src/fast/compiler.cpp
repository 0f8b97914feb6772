#include "fast/compiler.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <iostream>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "fast/disk_cache.h"
#include "fast/nvrtc.h"
#include "natten/version.h"

namespace natten::fast {

namespace {

class Job : public Cubin {
 public:
  Job(const CudaProgram& program, int capability) : name_(program.name), text_(program.text), capability_(capability) {}

  const std::string& code() const override;
  bool is_compiled() const override { return made_.is_compiled; }

  /// Makes the code unless somebody has begun to.
  void run();

 private:
  enum class State { waiting, running, done };

  struct Made {
    std::string code;
    bool is_compiled = false;
  };
  Made make() const;

  // Of the program, until its code is there.
  const std::string name_;
  std::string text_;
  const int capability_;

  State state_ = State::waiting;  // under the mutex of the workers, as is process_
  pid_t process_ = 0;             // that runs it: what another process began before a fork goes on only there
  Made made_;
  std::exception_ptr error_;
};
using JobPtr = std::shared_ptr<Job>;

/// Threads that take jobs from a queue, and end when it is empty.
class Workers {
 public:
  static Workers& instance();

  void add(JobPtr job) {
    const std::lock_guard lock(mutex);
    if (is_closed_) return;  // whoever wants the code makes it
    queue_.push_back(std::move(job));
    const unsigned most = std::clamp(std::thread::hardware_concurrency(), 1u, 32u);
    if (threads_ >= most) return;
    try {
      std::thread([this] { work(); }).detach();
      ++threads_;
    } catch (const std::system_error&) {  // no more threads: the same
    }
  }

  std::mutex mutex;
  std::condition_variable changed;  // a job is done, or a thread has ended

 private:
  /// At exit: a library must not be unloaded under a thread that runs in it.
  void close() {
    std::unique_lock lock(mutex);
    is_closed_ = true;
    queue_.clear();
    changed.wait(lock, [this] { return threads_ == 0; });
  }

  void work() {
    std::unique_lock lock(mutex);
    while (!queue_.empty()) {
      const JobPtr job = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      job->run();
      lock.lock();
    }
    --threads_;
    changed.notify_all();
  }

  std::deque<JobPtr> queue_;
  unsigned threads_ = 0;
  bool is_closed_ = false;
};

// A forked process has none of the threads, so it begins with new workers; the old ones' lock is held around the fork.
Workers* workers = nullptr;

Workers& Workers::instance() {
  struct Setup {
    Setup() {
      Nvrtc::find();  // loaded before, so that it is unloaded after the threads have ended
      workers = new Workers;
      pthread_atfork([] { workers->mutex.lock(); }, [] { workers->mutex.unlock(); }, [] { workers = new Workers; });
    }
    ~Setup() { workers->close(); }
  };
  static Setup setup;
  return *workers;
}

const std::string& Job::code() const {
  const_cast<Job*>(this)->run();
  Workers& all = Workers::instance();
  std::unique_lock lock(all.mutex);
  all.changed.wait(lock, [this] { return state_ == State::done; });
  if (error_) std::rethrow_exception(error_);
  return made_.code;
}

void Job::run() {
  Workers& all = Workers::instance();
  {
    const std::lock_guard lock(all.mutex);
    if (state_ == State::done || (state_ == State::running && process_ == getpid())) return;
    state_ = State::running;
    process_ = getpid();
  }
  Made made;
  std::exception_ptr error;
  try {
    made = make();
  } catch (...) {
    error = std::current_exception();
  }
  const std::lock_guard lock(all.mutex);  // also because a fork must not see half of this
  state_ = State::done;
  made_ = std::move(made);
  error_ = std::move(error);
  text_ = {};
  all.changed.notify_all();
}

Job::Made Job::make() const {
  const Nvrtc* nvrtc = Nvrtc::find();
  if (!nvrtc) throw std::runtime_error("no compiler for kernel " + name_ + ": " + Nvrtc::failure());
  const DiskCache cache = DiskCache::of_environment();
  const std::string key = "natten-mlx " NATTEN_MLX_VERSION "\nNVRTC " + nvrtc->version() + "\n" +
                          Nvrtc::architecture(capability_) + "\n" + text_;
  if (std::optional<std::string> found = cache.find(key)) return {std::move(*found), false};
  Made made{nvrtc->compile(name_, text_, capability_), true};
  cache.insert(key, made.code);
  return made;
}

/// Whether kernels are left to this, where it can: unless the environment says otherwise.
bool is_wanted() {
  const char* choice = std::getenv("NATTEN_NVRTC");
  return !choice || std::string_view(choice) != "0";
}

std::function<void(const std::string&)>& logger() {
  static auto& logger = *new std::function<void(const std::string&)>(
      [](const std::string& message) { std::cerr << "natten: " << message << '\n'; });
  return logger;
}

}  // namespace

std::optional<std::string> objection_to_compiler(Target target) {
  if (target.platform != Platform::cuda) return "it is for CUDA";
  if (!is_wanted()) return "NATTEN_NVRTC is 0";
  const Nvrtc* nvrtc = Nvrtc::find();
  if (!nvrtc) return Nvrtc::failure();
  if (nvrtc->knows(target.capability)) return std::nullopt;
  return "NVRTC " + nvrtc->version() + " does not know " + Nvrtc::architecture(target.capability);
}

bool is_compiled_here(Target target) {
  const auto reason = objection_to_compiler(target);
  if (reason && target.platform == Platform::cuda && is_wanted()) {
    static std::once_flag told;
    std::call_once(told, [&] { logger()("MLX compiles kernels, anew in each process: " + *reason); });
  }
  return !reason;
}

void set_compiler_logger(std::function<void(const std::string&)> to) {
  logger() = std::move(to);
}

CubinPtr request_cubin(const CudaProgram& program, int capability) {
  auto job = std::make_shared<Job>(program, capability);
  Workers::instance().add(job);
  return job;
}

}  // namespace natten::fast
