#include "crew.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "pause.hpp"

namespace cloister {
namespace {

// Looks for a while whether `happened`: what is due within microseconds is not worth a sleep, from
// which a core takes tens of them to wake.
template <typename Condition>
bool soon(const Condition& happened) {
  constexpr auto kPatience = std::chrono::microseconds(50);
  for (const auto start = std::chrono::steady_clock::now();;) {
    for (int i = 0; i < 64; ++i) {
      if (happened()) return true;
      pause();
    }
    if (std::chrono::steady_clock::now() - start > kPatience) return false;
  }
}

class Crew {
 public:
  // Never destroyed: its threads wait until the process ends.
  static Crew& instance() {
    static Crew* const crew = new Crew;
    return *crew;
  }

  bool try_lock() { return getpid() == owner_ && busy_.try_lock(); }  // a fork has no helpers
  void unlock() { busy_.unlock(); }

  // Runs job(0) here and job(worker), for workers 1 .. helpers, on those that wake in time.
  void run(int helpers, const std::function<void(int64_t)>& job) {
    helpers = start(helpers);
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      wanted_ = helpers;
      ++call_;
    }
    wake_.notify_all();
    job(0);
    {
      const std::lock_guard lock(mutex_);
      job_ = nullptr;  // whoever has not woken by now is not waited for
    }
    const auto finished = [&] { return active_ == 0; };
    if (soon(finished)) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, finished);
  }

 private:
  // As many helpers as the system gives.
  int start(int helpers) {
    try {
      for (; count_ < helpers; ++count_) std::thread(&Crew::help, this, count_ + 1).detach();
    } catch (const std::system_error&) {
      // Those that run take all items.
    }
    return std::min(helpers, count_);
  }

  void help(int number) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return call_ != seen && number <= wanted_ && job_ != nullptr; });
      seen = call_;
      const auto* job = job_;
      ++active_;
      lock.unlock();
      (*job)(number);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
      lock.unlock();
      soon([&] { return call_ != seen; });  // passes come in pairs
      lock.lock();
    }
  }

  const pid_t owner_ = getpid();
  std::mutex busy_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* job_ = nullptr;
  std::atomic<uint64_t> call_{0};
  std::atomic<int> active_{0};
  int count_ = 0, wanted_ = 0;
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

}  // namespace cloister
