#include "cloister/walker.hpp"

#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "crew.hpp"
#include "pads/wipe.hpp"

namespace cloister {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

int64_t now(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return time.tv_sec * kSecond + time.tv_nsec;
}

void ordered(bool condition, const char* message) {
  if (!condition) throw std::logic_error(std::string("walker: ") + message);
}

// `bytes` of `value` from the highest down.
void put_big_endian(uint8_t* out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out[i] = static_cast<uint8_t>(value >> (8 * (bytes - 1 - i)));
}

void put_little_endian(uint8_t* out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out[i] = static_cast<uint8_t>(value >> (8 * i));
}

// A blocking recv() gives up after `left_ns`: one system call where poll() and recv() are two.
void limit_waiting(int descriptor, int64_t left_ns) {
  const int64_t us = std::max<int64_t>((left_ns + 999) / 1000, 1);
  const timeval patience{static_cast<time_t>(us / 1'000'000),
                         static_cast<suseconds_t>(us % 1'000'000)};
  setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
}

}  // namespace

Walker::Walker(int64_t nodes, int64_t batch, int threads) : batch_(batch), threads_(threads) {
  if (nodes < 0 || batch < 1) throw std::invalid_argument("walker: no images");
  nodes_.resize(static_cast<size_t>(nodes));
  for (Node& node : nodes_) node.sums.resize(static_cast<size_t>(batch));
  answer_sums_.resize(static_cast<size_t>(batch));
}

Walker::~Walker() { end(); }

Walker::Node& Walker::node(int64_t index) {
  if (index < 0 || index >= static_cast<int64_t>(nodes_.size())) {
    throw std::invalid_argument("walker: there is no such node");
  }
  return nodes_[static_cast<size_t>(index)];
}

size_t Walker::add(PassStep step) {
  if (step.node >= 0) node(step.node);
  for (const int64_t sink : step.sink_nodes) node(sink);
  const size_t sinks = step.pass->shape().sinks.size();
  if (step.sink_nodes.size() != sinks || step.run.sinks.size() != sinks) {
    throw std::invalid_argument("walker: a pass needs one node per sink");
  }
  passes_.push_back(std::move(step));
  steps_.push_back({true, passes_.size() - 1});
  costs_.emplace_back();
  return steps_.size() - 1;
}

size_t Walker::add(ExchangeStep step) {
  node(step.node);
  if (step.packet_id + 8 > step.packet.size() || step.answer_id + 8 > step.answer.size()) {
    throw std::invalid_argument("walker: a packet has no room for its request id");
  }
  exchanges_.push_back(std::move(step));
  steps_.push_back({false, exchanges_.size() - 1});
  costs_.emplace_back();
  return steps_.size() - 1;
}

PassStep& Walker::pass_step(size_t step) {
  if (step >= steps_.size() || !steps_[step].is_pass) {
    throw std::invalid_argument("walker: the step is no pass");
  }
  return passes_[steps_[step].index];
}

void Walker::begin() {
  end();
  for (Node& node : nodes_) node.state = State::open;
}

void Walker::begin(const uint8_t key[kAesKeyBytes], const std::vector<uint64_t>& pad_ids,
                   const std::vector<int64_t>& hidden,
                   std::vector<std::vector<const uint32_t*>> unblind) {
  const auto n = static_cast<size_t>(batch_);
  if (pad_ids.size() != n || hidden.size() != unblind.size()) {
    throw std::invalid_argument("walker: one pad id per image is needed");
  }
  begin();
  for (size_t i = 0; i < hidden.size(); ++i) {
    Node& to = node(hidden[i]);
    if (unblind[i].size() != n) throw std::invalid_argument("walker: a pad is missing");
    to.unblind = std::move(unblind[i]);
    to.nonces.resize(n * kAesNonceBytes);
    for (size_t j = 0; j < n; ++j) {
      uint8_t* nonce = to.nonces.data() + j * kAesNonceBytes;
      put_big_endian(nonce, pad_ids[j], 8);
      put_big_endian(nonce + 8, static_cast<uint64_t>(hidden[i]), 4);
    }
  }
  std::memcpy(key_.data(), key, kAesKeyBytes);
  has_pads_ = true;
}

void Walker::end() {
  wipe(key_.data(), key_.size());
  has_pads_ = false;
  for (Node& node : nodes_) {
    node.state = State::closed;
    node.nonces.clear();
    node.unblind.clear();
  }
}

Stop Walker::run(size_t first, size_t last, uint64_t& next_request_id, const Channel& channel) {
  if (first > last || last > steps_.size()) throw std::invalid_argument("walker: no such steps");
  limit_waiting(channel.descriptor, channel.timeout_ns);
  // Threads of a pass count as well; the clock of this thread alone is the cheaper one.
  const clockid_t cpu = threads_ > 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_THREAD_CPUTIME_ID;
  Stop stop;
  int64_t before = now(cpu);
  for (stop.step = first; stop.step < last; ++stop.step) {
    StepCost& cost = costs_[stop.step];
    cost = {};
    const Step at = steps_[stop.step];
    if (at.is_pass) {
      if (!pass(passes_[at.index])) stop.why = Stop::Why::mismatch;
    } else {
      const int64_t sent = now(CLOCK_MONOTONIC);
      stop.request_id = next_request_id++;
      stop.deadline_ns = sent + channel.timeout_ns;
      stop.why = exchange(exchanges_[at.index], channel, threads_of(stop.step + 1), stop);
      cost.wait_ns = now(CLOCK_MONOTONIC) - sent;
    }
    const int64_t after = now(cpu);
    cost.cpu_ns = after - before;
    before = after;
    if (stop.why != Stop::Why::done) break;
  }
  return stop;
}

void Walker::answered(size_t step) {
  if (step >= steps_.size() || steps_[step].is_pass) {
    throw std::invalid_argument("walker: the step is no exchange");
  }
  Node& of = node(exchanges_[steps_[step].index].node);
  ordered(of.state == State::written, "an answer without a request");
  of.state = State::answered;
}

bool Walker::pass(PassStep& step) {
  PassRun& run = step.run;
  Node* source = step.node >= 0 ? &node(step.node) : nullptr;
  if (source != nullptr) ordered(source->state == State::answered, "an answer is not there");
  run.n = batch_;
  run.unblind_images = nullptr;
  if (step.unblinds) {
    ordered(has_pads_ && source != nullptr && !source->unblind.empty(), "a pad is missing");
    run.unblind_images = source->unblind.data();
  }
  for (size_t i = 0; i < step.sink_nodes.size(); ++i) {
    Node& sink = node(step.sink_nodes[i]);
    ordered(sink.state == State::open, "a request is written twice");
    run.sinks[i].sums = sink.sums.data();
    run.sinks[i].sums_stride = 1;
    if (run.sinks[i].blinded == nullptr) continue;
    ordered(has_pads_ && !sink.nonces.empty(), "a pad is missing");
    run.sinks[i].key = key_.data();
    run.sinks[i].nonces = sink.nonces.data();
  }
  run.sums_out = answer_sums_.data();
  run.sums_out_stride = 1;
  // From here on the pads count as used, whatever happens.
  for (const int64_t sink : step.sink_nodes) node(sink).state = State::written;
  if (source != nullptr) source->state = State::consumed;
  step.pass->run(run, threads_);
  if (!step.accepts) return true;
  // A pass without its coefficients leaves both sums at 0, which must not count as equal.
  ordered(source != nullptr && step.pass->checked(), "a check has no coefficients");
  return answer_sums_ == source->sums;
}

int Walker::threads_of(size_t step) const {
  if (step >= steps_.size() || !steps_[step].is_pass) return 1;
  return passes_[steps_[step].index].pass->worthwhile(batch_, threads_);
}

Stop::Why Walker::exchange(ExchangeStep& step, const Channel& channel, int threads, Stop& stop) {
  Node& of = node(step.node);
  ordered(of.state == State::written, "a request is not there");
  if (step.staged != nullptr) std::memcpy(step.place, step.staged, step.staged_bytes);
  put_little_endian(step.packet.data() + step.packet_id, stop.request_id);
  put_little_endian(step.answer.data() + step.answer_id, stop.request_id);
  ssize_t size =
      send(channel.descriptor, step.packet.data(), step.packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (size < 0) return Stop::Why::unsent;
  const Attention attention(channel.descriptor, threads);
  // One byte more than a packet may have, so that one too long is seen as such.
  received_.resize(channel.max_packet_bytes + 1);
  while ((size = recv(channel.descriptor, received_.data(), received_.size(), 0)) < 0) {
    if (errno != EINTR) return Stop::Why::unanswered;
    if (channel.interrupted(channel.context)) return Stop::Why::interrupted;
    const int64_t left = stop.deadline_ns - now(CLOCK_MONOTONIC);
    if (left <= 0) return Stop::Why::unanswered;
    limit_waiting(channel.descriptor, left);  // for the rest of this walk: signals are rare
  }
  if (size <= 0) return Stop::Why::unanswered;
  const bool expected = static_cast<size_t>(size) == step.answer.size() &&
                        std::equal(step.answer.begin(), step.answer.end(), received_.begin());
  if (!expected) {
    stop.packet.assign(received_.begin(), received_.begin() + size);
    return Stop::Why::unexpected;
  }
  of.state = State::answered;
  return Stop::Why::done;
}

}  // namespace cloister
