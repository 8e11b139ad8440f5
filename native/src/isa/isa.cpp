#include "cloister/isa.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>

namespace cloister {
namespace {

enum class Amx { absent, refused, permitted };

// Palette 1 of the tiles: 8 of them, of 16 rows of 64 bytes.
bool has_palette() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(0x1D, 1, &a, &b, &c, &d) != 0 && a >> 16 == 1024 &&
         b == ((8u << 16) | 64) && (c & 0xFFFF) == 16;
}

// A process that executes an instruction on tiles without the system's permission is ended.
bool request_permission() {
  constexpr long kGet = 0x1022, kRequest = 0x1023, kTileData = 18;  // of arch_prctl(2)
  uint64_t permitted = 0;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0 &&
         syscall(SYS_arch_prctl, kGet, &permitted) == 0 && (permitted >> kTileData & 1) != 0;
}

Amx amx() {
  static const Amx found = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-int8") ||
        !__builtin_cpu_supports("avx512vbmi") || !has_palette()) {
      return Amx::absent;
    }
    return request_permission() ? Amx::permitted : Amx::refused;
  }();
  return found;
}

}  // namespace

bool amx_refused() { return amx() == Amx::refused; }

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
    if (avx512) return amx() == Amx::permitted ? Isa::amx : Isa::avx512;
    return avx2 ? Isa::avx2 : Isa::portable;
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
    case Isa::amx: return "amx";
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
