// What one core of this machine can do at best: the numbers `python -m benchmarks floor` divides by.
//
//     g++ -O3 -std=c++20 -march=native benchmarks/ceilings.cpp -o ceilings && ./ceilings
//
// Prints JSON: GHz, 512-bit instructions per cycle, and GB/s by the size of the working set. The
// best of several repetitions each, because other work can only make them slower.
#include <immintrin.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

double seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

template <class Work>
double fastest(int repeats, const Work& work) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double started = seconds();
    work();
    best = std::min(best, seconds() - started);
  }
  return best;
}

constexpr int64_t kRounds = 2'000'000;
constexpr int kChains = 12;  // independent ones, so that latency does not count

// A chain of multiplications of three cycles each.
double gigahertz() {
  const double time = fastest(5, [] {
    uint64_t x = 3;
    for (int64_t i = 0; i < 10 * kRounds; ++i) __asm__ volatile("imul %0, %0" : "+r"(x));
  });
  return 3 * 10 * kRounds / time * 1e-9;
}

template <class Step>
double per_cycle(double ghz, const Step& step) {
  const double time = fastest(5, [&] {
    // Named one by one: an array would be kept in memory.
    __m512i a = _mm512_set1_epi32(3), b = a, c = a, d = a, e = a, f = a;
    __m512i g = a, h = a, i = a, j = a, k = a, l = a;
    for (int64_t round = 0; round < kRounds; ++round) {
      step(a), step(b), step(c), step(d), step(e), step(f);
      step(g), step(h), step(i), step(j), step(k), step(l);
    }
  });
  return kRounds * kChains / time / (ghz * 1e9);
}

// Huge pages, as sessions use them for what is large.
char* memory(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  auto* p = static_cast<char*>(std::aligned_alloc(kHuge, bytes));
  madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 1, bytes);
  return p;
}

struct Rates {
  double read, write, stream;
};

Rates gigabytes(char* p, size_t bytes) {
  const int64_t lines = static_cast<int64_t>(bytes / 64);
  const int64_t sweeps = (int64_t{400} << 20) / static_cast<int64_t>(bytes) + 1;
  const double total = 1e-9 * static_cast<double>(bytes) * static_cast<double>(sweeps);
  const __m512i one = _mm512_set1_epi32(1);
  const auto sweep = [&](const auto& line) {
    return total / fastest(5, [&] {
             for (int64_t i = 0; i < sweeps; ++i) {
               for (int64_t j = 0; j < lines; ++j) line(reinterpret_cast<__m512i*>(p + 64 * j));
             }
             _mm_sfence();
           });
  };
  return {sweep([](__m512i* line) {
            const __m512i v = _mm512_load_si512(line);
            __asm__ volatile("" : : "v"(v));
          }),
          sweep([&](__m512i* line) {
            _mm512_store_si512(line, one);
            __asm__ volatile("" : : : "memory");
          }),
          sweep([&](__m512i* line) {
            _mm512_stream_si512(line, one);
            __asm__ volatile("" : : : "memory");
          })};
}

}  // namespace

int main() {
  const __m512i k = _mm512_set1_epi32(5);
  const double ghz = gigahertz();
  std::printf("{\n  \"ghz\": %.3f,\n  \"per_cycle\": {\n", ghz);
  std::printf("    \"ifma\": %.2f,\n", per_cycle(ghz, [&](__m512i& v) {
                __asm__ volatile("vpmadd52luq %1, %1, %0" : "+v"(v) : "v"(k));
              }));
  std::printf("    \"vnni\": %.2f,\n", per_cycle(ghz, [&](__m512i& v) {
                __asm__ volatile("vpdpwssd %1, %1, %0" : "+v"(v) : "v"(k));
              }));
  std::printf("    \"vaes\": %.2f,\n", per_cycle(ghz, [&](__m512i& v) {
                __asm__ volatile("vaesenc %1, %0, %0" : "+v"(v) : "v"(k));
              }));
  std::printf("    \"multiply\": %.2f,\n", per_cycle(ghz, [&](__m512i& v) {
                __asm__ volatile("vmulps %1, %0, %0" : "+v"(v) : "v"(k));
              }));
  std::printf("    \"add\": %.2f\n  },\n  \"gb_per_s\": {\n", per_cycle(ghz, [&](__m512i& v) {
                __asm__ volatile("vpaddd %1, %0, %0" : "+v"(v) : "v"(k));
              }));
  constexpr size_t kMegabyte = size_t{1} << 20;
  char* p = memory(256 * kMegabyte);
  const struct {
    const char* name;
    size_t bytes;
  } levels[] = {{"L2", kMegabyte / 2}, {"L3", 8 * kMegabyte}, {"memory", 256 * kMegabyte}};
  for (const auto& level : levels) {
    const Rates rates = gigabytes(p, level.bytes);
    std::printf("    \"%s\": {\"read\": %.1f, \"write\": %.1f, \"stream\": %.1f}%s\n", level.name,
                rates.read, rates.write, rates.stream, level.bytes > 100 * kMegabyte ? "" : ",");
  }
  std::printf("  }\n}\n");
}
