// The native executor with the arrays its steps point into.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cloister/executor.hpp"
#include "fused_step.hpp"

namespace cloister::bindings {

class BoundExecutor {
 public:
  using Clear = Contiguous<int16_t>;
  using Staged = Contiguous<const int16_t>;
  using Words = Contiguous<const uint32_t>;
  using Image = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

  BoundExecutor(std::vector<bool> checked, int64_t batch, int threads,
                const std::map<int64_t, int64_t>& pad_offsets, int64_t pad_words)
      : executor_(std::move(checked), batch, threads, pad_offsets, pad_words),
        answer_elements_(executor_.nodes()) {}

  // The binding keeps the FusedStep alive. A message that is None is every request's own.
  void add_fused(BoundStep& bound, std::optional<int64_t> node, bool unblinds, bool binds,
                 const std::optional<Input>& reply, const std::optional<Input>& residual,
                 const std::optional<Output>& store_pre, const std::optional<Output>& store_post,
                 const std::vector<int64_t>& sink_nodes,
                 const std::vector<std::optional<Output>>& messages,
                 const std::vector<Contiguous<uint64_t>>& clipped) {
    Fused step;
    step.step = &bound.step();
    step.node = node.value_or(-1);
    step.unblinds = unblinds;
    step.binds = binds;
    step.sink_nodes = sink_nodes;
    const Batch before = source_batch(bound.step()), after = result_batch(bound.step());
    if (reply) step.run.reply = before.packed<const uint32_t>(hold(*reply), "reply");
    if (residual) step.run.residual = before.pixels<const float>(hold(*residual), "residual");
    if (store_pre) step.run.pre = before.pixels<float>(hold(*store_pre), "store_pre");
    if (store_post) step.run.post = after.pixels<float>(hold(*store_post), "store_post");
    require(clipped.size() == messages.size(), "a sink needs room for its counts");
    for (size_t i = 0; i < messages.size(); ++i) {
      require(static_cast<int64_t>(clipped[i].size()) == executor_.batch(),
              "clipped needs one value per image");
      require(messages[i] || binds, "a step that does not bind needs its messages");
      SinkRun sink;
      if (messages[i]) sink = BoundStep::message(hold(*messages[i]), after);
      sink.clipped = counts_.emplace_back(clipped[i]).data();
      step.run.sinks.push_back(sink);
    }
    executor_.add(std::move(step));
    if (node) answer_elements_.at(static_cast<size_t>(*node)) = before.h * before.w * before.c;
  }

  void add_exchange(int64_t node, const nb::bytes& packet, const nb::bytes& answer,
                    size_t id_offset, const std::optional<Staged>& staged,
                    const std::optional<Clear>& place) {
    Exchange step = exchange(packet, answer, id_offset);
    step.node = node;
    require(staged.has_value() == place.has_value(), "a staged message needs its place");
    if (staged) {
      require(staged->size() == place->size(), "a staged message must fit its place");
      step.staged = reinterpret_cast<const uint8_t*>(staged->data());
      step.place = reinterpret_cast<uint8_t*>(place->data());
      step.staged_bytes = staged->size() * sizeof(int16_t);
      staged_.emplace_back(*staged, *place);
    }
    executor_.add(std::move(step));
  }

  // A value, channels last, goes out as it lies or, `channels_first`, image by image transposed.
  void add_segment(const nb::bytes& packet, const nb::bytes& answer, size_t id_offset,
                   const Image& value, const Contiguous<float>& place, bool channels_first) {
    Exchange step = exchange(packet, answer, id_offset);
    require(value.size() == place.size(), "a value must fit its place");
    step.staged = reinterpret_cast<const uint8_t*>(value.data());
    step.place = reinterpret_cast<uint8_t*>(place.data());
    step.staged_bytes = value.size() * sizeof(float);
    if (channels_first) {
      step.rows = static_cast<int64_t>(value.shape(1) * value.shape(2));
      step.columns = static_cast<int64_t>(value.shape(3));
    }
    values_.emplace_back(value, place);
    executor_.add(std::move(step));
  }

  void add_outside(std::optional<int64_t> node) { executor_.add(Outside{node.value_or(-1)}); }

  void begin(const std::vector<nb::bytes>& keys, const std::vector<uint64_t>& pad_ids,
             std::vector<Words> terms, const std::vector<std::optional<nb::bytes>>& mask_keys) {
    end();
    const size_t images = keys.size();
    require(pad_ids.size() == images && terms.size() == images && mask_keys.size() == images,
            "every image needs a key, a pad id and terms, and a mask key or None");
    std::vector<ImagePads> pads;
    for (size_t i = 0; i < images; ++i) {
      require(static_cast<int64_t>(terms[i].size()) == executor_.pad_words(),
              "the terms of a pad set have another size than the plan's");
      pads.push_back({pad_ids[i], bytes_of(keys[i], kAesKeyBytes, "key"), terms[i].data(),
                      mask_keys[i] ? bytes_of(*mask_keys[i], kAesKeyBytes, "mask key") : nullptr});
    }
    executor_.begin(pads);
    terms_ = std::move(terms);
  }

  // Arrays of one request, held until the step is completed; `pads` are for a CPU without AES
  // instructions.
  void bind(size_t number, const std::optional<Input>& source, const std::optional<Input>& residual,
            const std::vector<std::optional<Output>>& messages,
            const std::vector<std::optional<Input>>& pads) {
    const FusedStep& step = executor_.fused(number);
    const Batch before = source_batch(step), after = result_batch(step);
    const size_t sinks = step.shape().sinks.size();
    require(messages.size() == sinks && pads.size() == sinks, "every sink needs its arrays");
    FusedRun& run = executor_.bind(number);
    if (source) run.values = before.packed<const float>(own(number, *source), "source");
    if (residual) run.residual = before.pixels<const float>(own(number, *residual), "residual");
    for (size_t i = 0; i < sinks; ++i) {
      if (messages[i]) {
        const SinkRun found =
            BoundStep::message(written_now_.emplace_back(number, *messages[i]).second, after);
        run.sinks[i].plain = found.plain;
        run.sinks[i].blinded = found.blinded;
      }
      if (pads[i]) run.sinks[i].pad = after.packed<const uint32_t>(own(number, *pads[i]), "pad");
    }
  }

  void end() {
    executor_.end();
    terms_.clear();
    read_now_.clear();
    written_now_.clear();
    answers_.clear();
    outstanding_.reset();
  }

  Stop run(size_t first, uint64_t next_request_id, int descriptor, double timeout_s,
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
      stop = executor_.run(first, next_request_id, channel);
    }
    let_go(stop.step);
    if (stop.why == Stop::Why::interrupted) {
      outstanding_ = {stop.step, stop.request_id};
      throw nb::python_error();
    }
    return stop;
  }

  void answered(size_t step, const std::optional<Input>& answer) {
    if (!answer) return executor_.answered(step);
    const int64_t node = executor_.node_of(step);
    const auto elements = static_cast<size_t>(executor_.batch() * answer_elements_.at(node));
    require(answer->dtype() == nb::dtype<uint32_t>() && answer->size() == elements,
            "an answer has another type or size than expected");
    int64_t stride = 1;
    for (size_t axis = answer->ndim(); axis-- > 0;) {
      const auto size = static_cast<int64_t>(answer->shape(axis));
      require(size == 1 || answer->stride(axis) == stride, "an answer must be C-contiguous");
      stride *= size;
    }
    executor_.answered(step, static_cast<const uint32_t*>(answer->data()));
    answers_.emplace_back(node, *answer);
  }

  std::optional<std::pair<size_t, uint64_t>> outstanding() const { return outstanding_; }

  // Of every step: CPU time here, time waited, and the caller's CPU time; the sums of the first
  // `count` steps.
  std::tuple<int64_t, int64_t, int64_t> costs(const Contiguous<int64_t>& out, size_t count) const {
    std::tuple<int64_t, int64_t, int64_t> sums{};
    auto& [cpu, wait, caller] = sums;
    const std::vector<StepCost>& found = executor_.costs();
    require(out.size() == 3 * found.size(), "every step needs room for three numbers");
    for (size_t i = 0; i < found.size(); ++i) {
      out.data()[3 * i] = found[i].cpu_ns;
      out.data()[3 * i + 1] = found[i].wait_ns;
      out.data()[3 * i + 2] = found[i].caller_ns;
      if (i >= count) continue;
      cpu += found[i].cpu_ns;
      wait += found[i].wait_ns;
      caller += found[i].caller_ns;
    }
    return sums;
  }

 private:
  static Exchange exchange(const nb::bytes& packet, const nb::bytes& answer, size_t id_offset) {
    Exchange step;
    step.packet = copied(packet);
    step.answer = copied(answer);
    step.packet_id = step.answer_id = id_offset;
    return step;
  }

  static std::vector<uint8_t> copied(const nb::bytes& bytes) {
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.c_str());
    return {data, data + bytes.size()};
  }

  Batch source_batch(const FusedStep& step) const {
    return {executor_.batch(), step.shape().h, step.shape().w, step.shape().c};
  }

  Batch result_batch(const FusedStep& step) const {
    return {executor_.batch(), step.out_h(), step.out_w(), step.shape().c};
  }

  const Input& hold(const Input& array) { return read_.emplace_back(array); }
  const Output& hold(const Output& array) { return written_.emplace_back(array); }
  const Input& own(size_t step, const Input& array) {
    return read_now_.emplace_back(step, array).second;
  }
  // What steps before `step` were given: all of it has been read and written.
  void let_go(size_t step) {
    const auto completed = [&](const auto& held) { return held.first < step; };
    std::erase_if(read_now_, completed);
    std::erase_if(written_now_, completed);
    std::erase_if(answers_, [&](const auto& held) { return !executor_.waits(held.first); });
  }

  Executor executor_;
  std::vector<int64_t> answer_elements_;  // per image, by node
  std::vector<Input> read_;
  std::vector<Output> written_;
  std::vector<std::pair<size_t, Input>> read_now_;  // of this request, by step
  std::vector<std::pair<size_t, Output>> written_now_;
  std::vector<std::pair<int64_t, Input>> answers_;  // of this request, by node
  std::vector<Contiguous<uint64_t>> counts_;
  std::vector<std::pair<Staged, Clear>> staged_;
  std::vector<std::pair<Image, Contiguous<float>>> values_;
  std::vector<Words> terms_;
  std::optional<std::pair<size_t, uint64_t>> outstanding_;
};

// Whether a node's count of an image reaches the node's limit.
inline bool reaches(Contiguous<const uint64_t> counts, Contiguous<const uint64_t> limits) {
  require(limits.size() > 0 ? counts.size() % limits.size() == 0 : counts.size() == 0,
          "every node needs a limit");
  const size_t images = limits.size() > 0 ? counts.size() / limits.size() : 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts.data()[i] >= limits.data()[i / images]) return true;
  }
  return false;
}

inline const char* why_name(const Stop& stop) {
  switch (stop.why) {
    case Stop::Why::done: return "done";
    case Stop::Why::mismatch: return "mismatch";
    case Stop::Why::unbound: return "unbound";
    case Stop::Why::outside: return "outside";
    case Stop::Why::unsent: return "unsent";
    case Stop::Why::unanswered: return "unanswered";
    default: return "unexpected";
  }
}

inline void register_executor(nb::module_& m) {
  m.def("reaches", &reaches, nb::arg("counts").noconvert(), nb::arg("limits").noconvert());
  nb::class_<Stop>(m, "Stop")
      .def_prop_ro("why", &why_name)
      .def_ro("step", &Stop::step)
      .def_ro("request_id", &Stop::request_id)
      .def_prop_ro("deadline_s",
                   [](const Stop& stop) { return 1e-9 * static_cast<double>(stop.deadline_ns); })
      .def_prop_ro("packet", [](const Stop& stop) {
        return nb::bytes(stop.packet.data(), stop.packet.size());
      });
  nb::class_<BoundExecutor>(m, "Executor")
      .def(nb::init<std::vector<bool>, int64_t, int, const std::map<int64_t, int64_t>&, int64_t>(),
           nb::kw_only(), nb::arg("checked"), nb::arg("batch"), nb::arg("threads"),
           nb::arg("pad_offsets") = std::map<int64_t, int64_t>{}, nb::arg("pad_words") = 0)
      .def("add_fused", &BoundExecutor::add_fused, nb::arg("step"), nb::keep_alive<1, 2>(),
           nb::kw_only(), nb::arg("node").none(), nb::arg("unblinds"), nb::arg("binds"),
           nb::arg("reply").noconvert().none(), nb::arg("residual").noconvert().none(),
           nb::arg("store_pre").noconvert().none(), nb::arg("store_post").noconvert().none(),
           nb::arg("sink_nodes"), nb::arg("messages").noconvert(), nb::arg("clipped").noconvert())
      .def("add_exchange", &BoundExecutor::add_exchange, nb::kw_only(), nb::arg("node"),
           nb::arg("packet"), nb::arg("answer"), nb::arg("id_offset"),
           nb::arg("staged").noconvert().none(), nb::arg("place").noconvert().none())
      .def("add_segment", &BoundExecutor::add_segment, nb::kw_only(), nb::arg("packet"),
           nb::arg("answer"), nb::arg("id_offset"), nb::arg("value").noconvert(),
           nb::arg("place").noconvert(), nb::arg("channels_first"))
      .def("add_outside", &BoundExecutor::add_outside, nb::kw_only(),
           nb::arg("node").none() = nb::none())
      .def("begin", &BoundExecutor::begin, nb::kw_only(),
           nb::arg("keys") = std::vector<nb::bytes>{}, nb::arg("pad_ids") = std::vector<uint64_t>{},
           nb::arg("terms").noconvert() = std::vector<BoundExecutor::Words>{},
           nb::arg("mask_keys") = std::vector<std::optional<nb::bytes>>{})
      .def("bind", &BoundExecutor::bind, nb::arg("step"), nb::kw_only(),
           nb::arg("source").noconvert().none(), nb::arg("residual").noconvert().none(),
           nb::arg("messages").noconvert(), nb::arg("pads").noconvert())
      .def("end", &BoundExecutor::end)
      .def("run", &BoundExecutor::run, nb::arg("first"), nb::kw_only(), nb::arg("next_request_id"),
           nb::arg("descriptor"), nb::arg("timeout_s"), nb::arg("max_packet_bytes"))
      .def("answered", &BoundExecutor::answered, nb::arg("step"),
           nb::arg("answer").noconvert().none() = nb::none())
      .def_prop_ro("outstanding", &BoundExecutor::outstanding)
      .def("costs", &BoundExecutor::costs, nb::arg("out").noconvert(), nb::arg("count"));
}

}  // namespace cloister::bindings
