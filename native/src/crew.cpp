#include "crew.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "pause.hpp"

namespace cloister {
namespace {

using std::chrono::microseconds;

// How long to look for what is due, because a core takes longer to wake: after a call for the other
// threads and the next call; and for the call when an answer has woken a helper before its caller.
constexpr microseconds kNext{50}, kCaller{300};

// Looks for a while whether `happened`.
template <typename Condition>
bool soon(const Condition& happened, microseconds patience) {
  for (const auto start = std::chrono::steady_clock::now();;) {
    for (int i = 0; i < 64; ++i) {
      if (happened()) return true;
      pause();
    }
    if (std::chrono::steady_clock::now() - start > patience) return false;
  }
}

class Crew {
 public:
  // Never destroyed: its threads wait until the process ends.
  static Crew& instance() {
    static Crew* const crew = new Crew;
    return *crew;
  }

  bool owned() const { return getpid() == owner_; }  // a fork has no helpers
  bool try_lock() { return owned() && busy_.try_lock(); }
  void unlock() { busy_.unlock(); }

  // Runs job(0) here and job(worker), for workers 1 .. helpers, on those that wake in time.
  void run(int helpers, const std::function<void(int64_t)>& job) {
    {
      const std::lock_guard lock(mutex_);
      wanted_ = ready(helpers);
      job_ = &job;
      ++call_;
    }
    if (asleep_ > 0) eventfd_write(wake_, 1);
    job(0);
    {
      const std::lock_guard lock(mutex_);
      job_ = nullptr;  // whoever has not woken by now is not waited for
    }
    const auto finished = [&] { return active_ == 0; };
    if (soon(finished, kNext)) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, finished);
  }

  void attend(int descriptor, int helpers) {
    const std::lock_guard lock(mutex_);
    helpers = ready(helpers);
    for (int i = 0; i < helpers; ++i) add(helpers_[i].events, descriptor);
  }

  void ignore(int descriptor) {
    const std::lock_guard lock(mutex_);
    for (const Helper& helper : helpers_) {
      epoll_ctl(helper.events, EPOLL_CTL_DEL, descriptor, nullptr);
    }
  }

 private:
  struct Helper {
    int events;  // an epoll instance of its own: each event wakes all helpers
    pthread_t thread;
  };

  // Edge-triggered: an event wakes once, though nobody may read what came, or the peer be gone.
  static bool add(int events, int descriptor) {
    epoll_event event{EPOLLIN | EPOLLET, {}};
    return epoll_ctl(events, EPOLL_CTL_ADD, descriptor, &event) == 0;
  }

  // As many helpers as the system gives; those that run take all items.
  int ready(int helpers) {
    while (count() < helpers && start()) avoided_ = -1;
    keep_apart();
    return std::min(helpers, count());
  }

  int count() const { return static_cast<int>(helpers_.size()); }

  bool start() {
    const int events = epoll_create1(EPOLL_CLOEXEC);
    if (events < 0) return false;
    try {
      if (add(events, wake_)) {
        std::thread thread(&Crew::help, this, count() + 1, events);
        helpers_.push_back({events, thread.native_handle()});
        thread.detach();
        return true;
      }
    } catch (const std::system_error&) {
      // Without this helper, then.
    }
    close(events);
    return false;
  }

  // A scheduler may wake a helper on its caller's core and leave it there until the pass is over.
  // Costs a look at the core's number unless the caller has moved.
  void keep_apart() {
    const int core = sched_getcpu();
    cpu_set_t cores;
    if (core == avoided_ || sched_getaffinity(0, sizeof cores, &cores) != 0) return;
    CPU_CLR(core, &cores);
    if (CPU_COUNT(&cores) == 0) return;
    for (const Helper& helper : helpers_) {
      pthread_setaffinity_np(helper.thread, sizeof cores, &cores);
    }
    avoided_ = core;
  }

  void help(int number, int events) {
    uint64_t seen = 0;
    // A helper that only looks leaves its core to the worker, or to its own caller.
    const auto called = [&] { return call_ != seen || (sched_yield(), false); };
    while (true) {
      for (auto patience = kNext; !soon(called, patience); patience = kCaller) {
        ++asleep_;
        epoll_event event;
        if (call_ == seen) epoll_wait(events, &event, 1, -1);
        --asleep_;
      }
      std::unique_lock lock(mutex_);
      seen = call_;
      if (job_ == nullptr || number > wanted_) continue;
      const auto* job = job_;
      ++active_;
      lock.unlock();
      (*job)(number);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  const pid_t owner_ = getpid();
  const int wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);  // counts up and is never read
  std::mutex busy_, mutex_;
  std::condition_variable done_;
  const std::function<void(int64_t)>* job_ = nullptr;
  std::atomic<uint64_t> call_{0};
  std::atomic<int> active_{0}, asleep_{0};
  std::vector<Helper> helpers_;
  int wanted_ = 0;
  int avoided_ = -1;  // the core that all helpers keep off
};

}  // namespace

void in_parallel(int64_t items, int threads,
                 const std::function<void(int64_t worker, int64_t item)>& work) {
  std::atomic<int64_t> next{0};
  const auto take = [&](int64_t worker) {
    for (int64_t item; (item = next.fetch_add(1)) < items;) work(worker, item);
  };
  const auto helpers = static_cast<int>(std::min<int64_t>(threads, items)) - 1;
  Crew* crew = helpers > 0 ? &Crew::instance() : nullptr;
  if (crew == nullptr || !crew->try_lock()) return take(0);
  const std::lock_guard lock(*crew, std::adopt_lock);
  crew->run(helpers, take);
}

Attention::Attention(int descriptor, int threads) : descriptor_(threads > 1 ? descriptor : -1) {
  if (descriptor_ < 0 || !Crew::instance().owned()) return;
  Crew::instance().attend(descriptor_, threads - 1);
}

Attention::~Attention() {
  if (descriptor_ < 0 || !Crew::instance().owned()) return;
  Crew::instance().ignore(descriptor_);
}

}  // namespace cloister
