#include "cloister/isa.hpp"

#include <atomic>
#include <stdexcept>

namespace cloister {

Isa best_isa() {
#if defined(__x86_64__)
  static const Isa best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("aes");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni") &&
                        __builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("vaes");
    return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
  }();
  return best;
#else
  return Isa::portable;
#endif
}

namespace {
std::atomic<Isa>& forced() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}
}  // namespace

Isa active_isa() { return forced().load(std::memory_order_relaxed); }

void force_isa(Isa isa) {
  if (isa > best_isa()) throw std::invalid_argument("this CPU does not offer that instruction set");
  forced().store(isa, std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    names.emplace_back(isa_name(static_cast<Isa>(i)));
  }
  return names;
}

}  // namespace cloister
