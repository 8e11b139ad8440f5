#include "threads/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "threads/pause.hpp"

namespace cloister {
namespace {

using std::chrono::microseconds;

// How long a thread polls before it blocks, because a core takes longer to wake. kNext: the caller
// polls for its helpers, and a helper for the next call, after a call. kCaller: a helper polls for
// its caller's call, when a packet has woken the helper first.
constexpr microseconds kNone{0}, kNext{50}, kCaller{300};

// Polls for a while; whether the condition came true.
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

// A helper's own epoll instance and eventfd: what wakes one helper wakes no other.
struct Helper {
  Helper() = default;
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;
  ~Helper() {
    for (const int descriptor : {events, wake}) {
      if (descriptor >= 0) close(descriptor);
    }
  }

  // Edge-triggered: an event wakes once, also if no thread reads the data or the peer is gone.
  bool attend(int descriptor) const {
    epoll_event event{EPOLLIN | EPOLLET, {}};
    return epoll_ctl(events, EPOLL_CTL_ADD, descriptor, &event) == 0;
  }

  const int events = epoll_create1(EPOLL_CLOEXEC);
  const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);  // counts up and is never read
  pthread_t thread{};
  std::atomic<uint64_t> calls{0};  // that wanted it
  std::atomic<bool> asleep{false};
};

class ThreadPool {
 public:
  // Never destroyed: its threads wait until the process ends.
  static ThreadPool& instance() {
    static ThreadPool* const pool = new ThreadPool;
    return *pool;
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
      for (int i = 0; i < wanted_; ++i) {
        Helper& helper = *helpers_[static_cast<size_t>(i)];
        ++helper.calls;
        if (helper.asleep) eventfd_write(helper.wake, 1);
      }
    }
    job(0);
    {
      const std::lock_guard lock(mutex_);
      job_ = nullptr;  // a thread that has not woken by now is not waited for
    }
    const auto finished = [&] { return active_ == 0; };
    if (soon(finished, kNext)) return;
    std::unique_lock lock(mutex_);
    cpu_set_t cores;  // this thread's own is free while it sleeps
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) settle(cores);
    done_.wait(lock, finished);
  }

  void attend(int descriptor, int helpers) {
    const std::lock_guard lock(mutex_);
    helpers = ready(helpers);
    for (int i = 0; i < helpers; ++i) helpers_[static_cast<size_t>(i)]->attend(descriptor);
  }

  void ignore(int descriptor) {
    const std::lock_guard lock(mutex_);
    for (const auto& helper : helpers_) {
      epoll_ctl(helper->events, EPOLL_CTL_DEL, descriptor, nullptr);
    }
  }

 private:
  int count() const { return static_cast<int>(helpers_.size()); }

  // As many helpers as the system gives; those that run take all items.
  int ready(int helpers) {
    while (count() < helpers && start()) CPU_ZERO(&cores_);
    keep_apart();
    return std::min(helpers, count());
  }

  bool start() {
    try {
      helpers_.reserve(helpers_.size() + 1);
      auto helper = std::make_unique<Helper>();
      if (!helper->attend(helper->wake)) return false;
      std::thread thread(&ThreadPool::help, this, std::ref(*helper), count() + 1);
      helper->thread = thread.native_handle();
      thread.detach();
      helpers_.push_back(std::move(helper));
      return true;
    } catch (const std::exception&) {
      return false;  // without this helper, then
    }
  }

  // A scheduler may wake a helper on its caller's core and leave it there until the step is over.
  void keep_apart() {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) != 0) return;
    if (CPU_COUNT(&cores) > 1) CPU_CLR(sched_getcpu(), &cores);
    settle(cores);
  }

  // Where the helpers may run.
  void settle(const cpu_set_t& cores) {
    if (CPU_EQUAL(&cores, &cores_)) return;
    for (const auto& helper : helpers_) {
      pthread_setaffinity_np(helper->thread, sizeof cores, &cores);
    }
    cores_ = cores;
  }

  void help(Helper& self, int number) {
    uint64_t seen = 0;
    // A helper that only looks leaves its core to the worker, or to its own caller.
    const auto called = [&] { return self.calls != seen || (sched_yield(), false); };
    auto patience = kNone;
    while (true) {
      while (patience == kNone || !soon(called, patience)) {
        self.asleep = true;
        epoll_event event;
        const int found = self.calls == seen ? epoll_wait(self.events, &event, 1, -1) : 1;
        self.asleep = false;
        if (found < 0 && errno != EINTR) return;  // somebody has closed its descriptors
        patience = kCaller;
      }
      patience = take_part(self, number, seen) ? kNext : kNone;
    }
  }

  bool take_part(const Helper& self, int number, uint64_t& seen) {
    std::unique_lock lock(mutex_);
    seen = self.calls;
    if (job_ == nullptr || number > wanted_) return false;  // too late
    const auto* job = job_;
    ++active_;
    lock.unlock();
    (*job)(number);
    lock.lock();
    if (--active_ == 0) done_.notify_one();
    return true;
  }

  const pid_t owner_ = getpid();
  std::mutex busy_, mutex_;
  std::condition_variable done_;
  const std::function<void(int64_t)>* job_ = nullptr;
  std::atomic<int> active_{0};
  std::vector<std::unique_ptr<Helper>> helpers_;
  cpu_set_t cores_{};  // where the helpers may run
  int wanted_ = 0;
};

}  // namespace

void in_parallel(int64_t items, int threads,
                 const std::function<void(int64_t worker, int64_t item)>& work) {
  std::atomic<int64_t> next{0};
  const auto take = [&](int64_t worker) {
    for (int64_t item; (item = next.fetch_add(1)) < items;) work(worker, item);
  };
  const auto helpers = static_cast<int>(std::min<int64_t>(threads, items)) - 1;
  ThreadPool* pool = helpers > 0 ? &ThreadPool::instance() : nullptr;
  if (pool == nullptr || !pool->try_lock()) return take(0);
  const std::lock_guard lock(*pool, std::adopt_lock);
  pool->run(helpers, take);
}

WakeOnPacket::WakeOnPacket(int descriptor, int threads)
    : descriptor_(threads > 1 ? descriptor : -1) {
  if (descriptor_ < 0 || !ThreadPool::instance().owned()) return;
  ThreadPool::instance().attend(descriptor_, threads - 1);
}

WakeOnPacket::~WakeOnPacket() {
  if (descriptor_ < 0 || !ThreadPool::instance().owned()) return;
  ThreadPool::instance().ignore(descriptor_);
}

}  // namespace cloister
