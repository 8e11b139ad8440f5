#include "cloister/executor.hpp"

#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "cloister/transpose.hpp"
#include "threads/thread_pool.hpp"

namespace cloister {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kAlignedWords = 16;  // of the terms of a node

int64_t now(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return time.tv_sec * kSecond + time.tv_nsec;
}

void ordered(bool condition, const char* message) {
  if (!condition) throw std::logic_error(std::string("executor: ") + message);
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

void copy_staged(const Exchange& step) {
  if (step.rows == 0) {
    std::memcpy(step.place, step.staged, step.staged_bytes);
    return;
  }
  const auto words = static_cast<size_t>(step.rows * step.columns);
  const auto* from = reinterpret_cast<const uint32_t*>(step.staged);
  auto* to = reinterpret_cast<uint32_t*>(step.place);
  for (size_t i = 0; i < step.staged_bytes / sizeof(uint32_t); i += words) {
    transpose(from + i, step.rows, step.columns, to + i);
  }
}

}  // namespace

Executor::Executor(std::vector<bool> checked, int64_t batch, int threads,
                   const std::map<int64_t, int64_t>& pad_offsets, int64_t pad_words)
    : batch_(batch),
      threads_(threads),
      schedules_(static_cast<size_t>(std::max<int64_t>(batch, 0))),
      mask_schedules_(schedules_.size()),
      keys_(schedules_.size()),
      mask_keys_(schedules_.size()),
      terms_(schedules_.size()),
      pad_words_(pad_words) {
  if (batch < 1) throw std::invalid_argument("executor: no images");
  nodes_.resize(checked.size());
  for (const auto& [index, offset] : pad_offsets) {
    if (offset < 0 || offset >= pad_words || offset % kAlignedWords != 0) {
      throw std::invalid_argument("executor: a node's terms begin at no multiple of 16 words");
    }
    node(index).pad_offset = offset;
  }
  for (size_t i = 0; i < nodes_.size(); ++i) {
    nodes_[i].checked = checked[i];
    nodes_[i].sums.resize(static_cast<size_t>(batch));
  }
  answer_sums_.resize(static_cast<size_t>(batch));
}

Executor::~Executor() { end(); }

Executor::Node& Executor::node(int64_t index) {
  if (index < 0 || index >= static_cast<int64_t>(nodes_.size())) {
    throw std::invalid_argument("executor: there is no such node");
  }
  return nodes_[static_cast<size_t>(index)];
}

void Executor::add(Fused step) {
  const std::vector<SinkRule>& rules = step.step->shape().sinks;
  if (step.sink_nodes.size() != rules.size() || step.run.sinks.size() != rules.size()) {
    throw std::invalid_argument("executor: a fused step needs one node per sink");
  }
  if ((step.node >= 0) != step.step->reads_answer()) {
    throw std::invalid_argument("executor: a fused step that reads an answer needs its node");
  }
  if (step.node >= 0 && node(step.node).checked != step.step->checked()) {
    throw std::invalid_argument("executor: a checked node needs a checked step, and no other does");
  }
  if (step.unblinds) {
    const FusedShape& shape = step.step->shape();
    const int64_t first = step.node < 0 ? -1 : node(step.node).pad_offset;
    if (first < 0 || shape.h * shape.w * shape.c > pad_words_ - first) {
      throw std::invalid_argument("executor: an answer that is unblinded needs its terms");
    }
  }
  for (size_t i = 0; i < rules.size(); ++i) {
    if (node(step.sink_nodes[i]).checked != rules[i].checked()) {
      throw std::invalid_argument("executor: the request of a checked node needs coefficients");
    }
  }
  steps_.emplace_back(std::move(step));
  bound_.emplace_back();
  costs_.emplace_back();
}

void Executor::add(Exchange step) {
  if (step.node >= 0) node(step.node);
  if (step.packet_id + 8 > step.packet.size() || step.answer_id + 8 > step.answer.size()) {
    throw std::invalid_argument("executor: a packet has no room for its request id");
  }
  if (step.rows < 0 || step.columns < 0 || (step.rows > 0) != (step.columns > 0)) {
    throw std::invalid_argument("executor: a matrix has rows and columns");
  }
  const auto matrix = sizeof(uint32_t) * static_cast<size_t>(step.rows * step.columns);
  if (matrix != 0 && step.staged_bytes % matrix != 0) {
    throw std::invalid_argument("executor: a staged message is a whole number of matrices");
  }
  steps_.emplace_back(std::move(step));
  bound_.emplace_back();
  costs_.emplace_back();
}

void Executor::add(Outside step) {
  if (step.node >= 0) node(step.node);
  steps_.emplace_back(step);
  bound_.emplace_back();
  costs_.emplace_back();
}

bool Executor::waits(int64_t index) { return node(index).state == State::answered; }

const FusedStep& Executor::fused(size_t step) const {
  const Fused* found = step < steps_.size() ? std::get_if<Fused>(&steps_[step]) : nullptr;
  if (found == nullptr) throw std::invalid_argument("executor: the step is no fused step");
  return *found->step;
}

int64_t Executor::node_of(size_t step) const {
  if (step < steps_.size()) {
    const auto* found = std::get_if<Exchange>(&steps_[step]);
    if (found != nullptr && found->node >= 0) return found->node;
    const auto* outside = std::get_if<Outside>(&steps_[step]);
    if (outside != nullptr && outside->node >= 0) return outside->node;
  }
  throw std::invalid_argument("executor: the step is no exchange");
}

void Executor::begin(const std::vector<ImagePads>& pads) {
  end();
  if (!pads.empty()) enter(pads);
  std::fill(costs_.begin(), costs_.end(), StepCost{});
  begun_ = true;
  for (Node& node : nodes_) node.state = State::open;
}

void Executor::enter(const std::vector<ImagePads>& pads) {
  if (pads.size() != terms_.size()) {
    throw std::invalid_argument("executor: one pad set per image is needed");
  }
  for (size_t j = 0; j < pads.size(); ++j) {
    terms_[j] = pads[j].terms;
    if (pads[j].mask_key != nullptr) has_masks_ = true;
    if (!has_aes()) continue;  // pads are arrays then
    keys_[j] = &schedules_[j].emplace(pads[j].key);
    if (pads[j].mask_key != nullptr) mask_keys_[j] = &mask_schedules_[j].emplace(pads[j].mask_key);
  }
  for (size_t i = 0; i < nodes_.size(); ++i) {
    Node& to = nodes_[i];
    if (to.pad_offset < 0) continue;
    if (has_masks_ && !to.checked) {
      throw std::invalid_argument("executor: masked terms of a node that is not checked");
    }
    to.nonces.resize(pads.size() * kAesNonceBytes);
    for (size_t j = 0; j < pads.size(); ++j) {
      uint8_t* nonce = to.nonces.data() + j * kAesNonceBytes;
      put_big_endian(nonce, pads[j].id, 8);
      put_big_endian(nonce + 8, i, 4);
    }
  }
  has_pads_ = true;
}

FusedRun& Executor::bind(size_t step) {
  fused(step);
  const auto& of = std::get<Fused>(steps_[step]);
  if (!of.binds) throw std::invalid_argument("executor: the step has no arrays of its own");
  return bound_[step].emplace(of.run);
}

void Executor::close() {
  begun_ = false;
  for (Node& node : nodes_) node.state = State::closed;
}

void Executor::end() {
  // A schedule wipes itself.
  for (auto* schedules : {&schedules_, &mask_schedules_}) {
    for (auto& schedule : *schedules) schedule.reset();
  }
  for (auto* keys : {&keys_, &mask_keys_}) std::fill(keys->begin(), keys->end(), nullptr);
  std::fill(terms_.begin(), terms_.end(), nullptr);
  has_pads_ = has_masks_ = answer_waits_ = false;
  paused_.reset();
  close();
  for (Node& node : nodes_) {
    node.answer = nullptr;
    node.nonces.clear();
  }
  for (auto& bound : bound_) bound.reset();
}

Stop Executor::run(size_t first, uint64_t& next_request_id, const Channel& channel) {
  if (first > steps_.size()) throw std::invalid_argument("executor: there is no such step");
  if (channel.descriptor >= 0) limit_waiting(channel.descriptor, channel.timeout_ns);
  // Threads of a fused step count as well; the clock of this thread alone is the cheaper one.
  const clockid_t cpu = threads_ > 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_THREAD_CPUTIME_ID;
  Stop stop;
  int64_t before = now(cpu);
  if (paused_) costs_[paused_->first].caller_ns += before - paused_->second;
  paused_.reset();
  for (stop.step = first; stop.step < steps_.size(); ++stop.step) {
    StepCost& cost = costs_[stop.step];
    if (auto* fused = std::get_if<Fused>(&steps_[stop.step])) {
      stop.why = perform(*fused, stop.step);
    } else if (auto* exchanged = std::get_if<Exchange>(&steps_[stop.step])) {
      const int64_t sent = now(CLOCK_MONOTONIC);
      stop.request_id = next_request_id++;
      stop.deadline_ns = sent + channel.timeout_ns;
      stop.why = exchange(*exchanged, channel, threads_of(stop.step + 1), stop);
      cost.wait_ns += now(CLOCK_MONOTONIC) - sent;
    } else {
      const int64_t sends = std::get<Outside>(steps_[stop.step]).node;
      require_compared();
      ordered(sends < 0 || node(sends).state == State::written, "a request is not there");
      stop.why = Stop::Why::outside;
    }
    const int64_t after = now(cpu);
    cost.cpu_ns += after - before;
    before = after;
    if (stop.why != Stop::Why::done) {
      paused_.emplace(stop.step, after);
      break;
    }
  }
  return stop;
}

void Executor::answered(size_t step, const uint32_t* answer) {
  Node& of = node(node_of(step));
  ordered(of.state == State::written, "an answer without a request");
  of.state = State::answered;
  of.answer = answer;
  answer_waits_ = true;
}

void Executor::require_compared() const { ordered(!answer_waits_, "an answer was not compared"); }

Stop::Why Executor::perform(Fused& step, size_t number) {
  if (step.binds && !bound_[number]) return Stop::Why::unbound;
  FusedRun& run = step.binds ? *bound_[number] : step.run;
  Node* source = step.node >= 0 ? &node(step.node) : nullptr;
  const uint32_t* const reply = run.reply;
  if (source != nullptr) {
    ordered(source->state == State::answered, "an answer is not there");
    if (source->answer != nullptr) run.reply = source->answer;
  }
  run.n = batch_;
  run.unblind_images = nullptr;
  run.mask_keys = nullptr;
  if (step.unblinds) {
    ordered(has_pads_ && source != nullptr, "a pad is missing");
    run.unblind_images = terms_.data();
    run.unblind_offset = source->pad_offset;
    if (has_masks_) run.mask_keys = mask_keys_.data();
    run.mask_nonces = source->nonces.data();
  }
  for (size_t i = 0; i < step.sink_nodes.size(); ++i) {
    Node& sink = node(step.sink_nodes[i]);
    ordered(sink.state == State::open, "a request is written twice");
    run.sinks[i].sums = sink.sums.data();
    run.sinks[i].sums_stride = 1;
    if (run.sinks[i].blinded == nullptr || run.sinks[i].pad != nullptr) continue;
    ordered(has_pads_ && !sink.nonces.empty(), "a pad is missing");
    run.sinks[i].keys = keys_.data();
    run.sinks[i].nonces = sink.nonces.data();
  }
  run.sums_out = answer_sums_.data();
  run.sums_out_stride = 1;
  // From here on the pads count as used, whatever happens.
  for (const int64_t sink : step.sink_nodes) node(sink).state = State::written;
  if (source != nullptr) source->state = State::consumed;
  step.step->run(run, threads_);
  run.reply = reply;
  bound_[number].reset();
  if (source == nullptr) return Stop::Why::done;
  source->answer = nullptr;
  if (source->checked && answer_sums_ != source->sums) {
    close();
    return Stop::Why::mismatch;
  }
  answer_waits_ = false;
  return Stop::Why::done;
}

int Executor::threads_of(size_t step) const {
  const Fused* next = step < steps_.size() ? std::get_if<Fused>(&steps_[step]) : nullptr;
  return next == nullptr ? 1 : next->step->worthwhile(batch_, threads_);
}

Stop::Why Executor::exchange(Exchange& step, const Channel& channel, int threads, Stop& stop) {
  Node* of = step.node >= 0 ? &node(step.node) : nullptr;
  require_compared();
  ordered(of == nullptr ? begun_ : of->state == State::written, "a request is not there");
  if (step.staged != nullptr) copy_staged(step);
  put_little_endian(step.packet.data() + step.packet_id, stop.request_id);
  put_little_endian(step.answer.data() + step.answer_id, stop.request_id);
  ssize_t size =
      send(channel.descriptor, step.packet.data(), step.packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (size < 0) return Stop::Why::unsent;
  const WakeOnPacket wake(channel.descriptor, threads);
  // One byte more than a packet may have, so that one too long is seen as such.
  received_.resize(channel.max_packet_bytes + 1);
  while ((size = recv(channel.descriptor, received_.data(), received_.size(), 0)) < 0) {
    if (errno != EINTR) return Stop::Why::unanswered;
    if (channel.interrupted(channel.context)) return Stop::Why::interrupted;
    const int64_t left = stop.deadline_ns - now(CLOCK_MONOTONIC);
    if (left <= 0) return Stop::Why::unanswered;
    limit_waiting(channel.descriptor, left);  // for the rest of this run: signals are rare
  }
  if (size <= 0) return Stop::Why::unanswered;
  const bool expected = static_cast<size_t>(size) == step.answer.size() &&
                        std::equal(step.answer.begin(), step.answer.end(), received_.begin());
  if (!expected) {
    stop.packet.assign(received_.begin(), received_.begin() + size);
    return Stop::Why::unexpected;
  }
  if (of != nullptr) {
    of->state = State::answered;
    answer_waits_ = true;
  }
  return Stop::Why::done;
}

}  // namespace cloister
