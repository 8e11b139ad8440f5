// The native walker with the arrays its steps point into.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cloister/walker.hpp"
#include "pass.hpp"

namespace cloister::bindings {

class BoundWalker {
 public:
  // Why the walk stopped, at which step, of which request, with which deadline and packet.
  using Stopped = std::tuple<std::string, size_t, uint64_t, double, nb::bytes>;

  BoundWalker(int64_t nodes, int64_t batch, int threads)
      : walker_(nodes, batch, threads), answer_elements_(static_cast<size_t>(nodes)) {}

  // The Pass is kept alive by the binding.
  size_t add_pass(BoundPass& bound, int64_t node, bool unblinds, bool accepts,
                  const std::optional<Input>& reply, const std::optional<Input>& residual,
                  const std::optional<Output>& store_pre, const std::optional<Output>& store_post,
                  const std::vector<int64_t>& sink_nodes, const std::vector<Output>& sink_out,
                  const std::vector<Contiguous<uint64_t>>& clipped) {
    PassStep step;
    step.pass = &bound.pass();
    step.node = node;
    step.unblinds = unblinds;
    step.accepts = accepts;
    step.sink_nodes = sink_nodes;
    const Batch before = source_batch(bound.pass()), after = result_batch(bound.pass());
    require(reply.has_value() == (node >= 0), "a pass over a node needs the node's reply");
    if (reply) step.run.reply = before.packed<const uint32_t>(hold(*reply), "reply");
    if (residual) step.run.residual = before.pixels<const float>(hold(*residual), "residual");
    if (store_pre) step.run.pre = before.pixels<float>(hold(*store_pre), "store_pre");
    if (store_post) step.run.post = after.pixels<float>(hold(*store_post), "store_post");
    require(clipped.size() == sink_out.size(), "a sink needs room for its counts");
    for (size_t i = 0; i < sink_out.size(); ++i) {
      const Output& out = sink_out[i];
      SinkRun sink;
      require(static_cast<int64_t>(clipped[i].size()) == walker_.batch(),
              "clipped needs one value per image");
      sink.clipped = counts_.emplace_back(clipped[i]).data();
      if (out.dtype() == nb::dtype<int16_t>()) {
        sink.plain = after.packed<int16_t>(hold(out), "sink_out");
      } else {
        sink.blinded = after.packed<uint32_t>(hold(out), "sink_out");
      }
      step.run.sinks.push_back(sink);
    }
    const size_t number = walker_.add(std::move(step));
    if (node >= 0) answer_elements_[static_cast<size_t>(node)] = before.h * before.w * before.c;
    return number;
  }

  // Float32 inputs of one walk: held, and known to the pass, until `end`.
  void set_inputs(size_t number, const std::optional<Input>& source,
                  const std::optional<Input>& residual) {
    PassStep& step = walker_.pass_step(number);
    const Batch before = source_batch(*step.pass);
    changed_.push_back(number);
    if (source) {
      inputs_.push_back(*source);
      step.run.values = before.packed<const float>(*source, "source");
    }
    if (residual) {
      inputs_.push_back(*residual);
      step.run.residual = before.pixels<const float>(*residual, "residual");
    }
  }

  size_t add_exchange(int64_t node, const nb::bytes& packet, const nb::bytes& answer,
                      size_t id_offset, const std::optional<Contiguous<const int16_t>>& staged,
                      const std::optional<Contiguous<int16_t>>& place) {
    ExchangeStep step;
    step.node = node;
    step.packet = copied(packet);
    step.answer = copied(answer);
    step.packet_id = step.answer_id = id_offset;
    require(staged.has_value() == place.has_value(), "a staged message needs its place");
    if (staged) {
      require(staged->size() == place->size(), "a staged message must fit its place");
      step.staged = reinterpret_cast<const uint8_t*>(staged->data());
      step.place = reinterpret_cast<uint8_t*>(place->data());
      step.staged_bytes = staged->size() * sizeof(int16_t);
      staged_.emplace_back(*staged, *place);
    }
    return walker_.add(std::move(step));
  }

  void begin(const std::optional<nb::bytes>& key, const std::vector<uint64_t>& pad_ids,
             const std::vector<int64_t>& hidden,
             std::vector<std::vector<Contiguous<const uint32_t>>> unblinding) {
    end();
    if (!key) return walker_.begin();
    require(hidden.size() == unblinding.size(), "every hidden node needs its pads");
    std::vector<std::vector<const uint32_t*>> pointers(hidden.size());
    for (size_t i = 0; i < hidden.size(); ++i) {
      const auto node = static_cast<size_t>(hidden[i]);
      require(node < answer_elements_.size(), "there is no such node");
      for (const auto& array : unblinding[i]) {
        require(static_cast<int64_t>(array.size()) == answer_elements_[node],
                "an unblinding term has another size than the answer");
        pointers[i].push_back(array.data());
      }
    }
    walker_.begin(bytes_of(*key, kAesKeyBytes, "key"), pad_ids, hidden, std::move(pointers));
    unblinding_ = std::move(unblinding);
  }

  void end() {
    walker_.end();
    for (const size_t number : changed_) {
      PassStep& step = walker_.pass_step(number);
      step.run.values = nullptr;
      step.run.residual = {};
    }
    changed_.clear();
    unblinding_.clear();
    inputs_.clear();
    outstanding_.reset();
  }

  Stopped run(size_t first, size_t last, uint64_t next_request_id, int descriptor, double timeout_s,
              size_t max_packet_bytes) {
    // Beyond a year there is no deadline to speak of, and no overflow either.
    const double seconds = std::isfinite(timeout_s) ? std::clamp(timeout_s, 0.0, 3e7) : 3e7;
    const Channel channel{descriptor, static_cast<int64_t>(seconds * 1e9), max_packet_bytes,
                          [](void*) {
                            nb::gil_scoped_acquire acquire;
                            return PyErr_CheckSignals() != 0;
                          },
                          nullptr};
    Stop stop;
    {
      nb::gil_scoped_release release;
      stop = walker_.run(first, last, next_request_id, channel);
    }
    if (stop.why == Stop::Why::interrupted) {
      outstanding_ = {stop.step, stop.request_id};
      throw nb::python_error();
    }
    return {name(stop.why), stop.step, stop.request_id,
            1e-9 * static_cast<double>(stop.deadline_ns),
            nb::bytes(stop.packet.data(), stop.packet.size())};
  }

  void answered(size_t step) { walker_.answered(step); }

  std::optional<std::pair<size_t, uint64_t>> outstanding() const { return outstanding_; }

  std::vector<std::pair<int64_t, int64_t>> costs() const {
    std::vector<std::pair<int64_t, int64_t>> found;
    found.reserve(walker_.costs().size());
    for (const StepCost& cost : walker_.costs()) found.emplace_back(cost.cpu_ns, cost.wait_ns);
    return found;
  }

 private:
  static std::vector<uint8_t> copied(const nb::bytes& bytes) {
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.c_str());
    return {data, data + bytes.size()};
  }

  static std::string name(Stop::Why why) {
    switch (why) {
      case Stop::Why::done: return "done";
      case Stop::Why::mismatch: return "mismatch";
      case Stop::Why::unsent: return "unsent";
      case Stop::Why::unanswered: return "unanswered";
      default: return "unexpected";
    }
  }

  Batch source_batch(const Pass& pass) const {
    return {walker_.batch(), pass.shape().h, pass.shape().w, pass.shape().c};
  }

  Batch result_batch(const Pass& pass) const {
    return {walker_.batch(), pass.out_h(), pass.out_w(), pass.shape().c};
  }

  const Input& hold(const Input& array) { return read_.emplace_back(array); }
  const Output& hold(const Output& array) { return written_.emplace_back(array); }

  Walker walker_;
  std::vector<int64_t> answer_elements_;  // per image, by node
  std::vector<Input> read_, inputs_;
  std::vector<size_t> changed_;
  std::vector<Output> written_;
  std::vector<Contiguous<uint64_t>> counts_;
  std::vector<std::pair<Contiguous<const int16_t>, Contiguous<int16_t>>> staged_;
  std::vector<std::vector<Contiguous<const uint32_t>>> unblinding_;
  std::optional<std::pair<size_t, uint64_t>> outstanding_;
};

}  // namespace cloister::bindings
