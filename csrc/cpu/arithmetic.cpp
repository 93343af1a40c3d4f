// Which arithmetic paths are compiled in (SACFAST_PATH_*), and which of them run on this CPU and kernel.
#include "arithmetic.h"

#include <cstring>
#include <string>

// Tiles are of Linux and x86-64; emulated ones (amx_tiles.h) need no more than AVX-512.
#if defined(SACFAST_PATH_AMX) && !defined(SACFAST_EMULATE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sacfast::cpu {

const Arithmetic* arithmetic_amx(const char* precision);
const Arithmetic* arithmetic_avx512(const char* precision);
const Arithmetic* arithmetic_avx2(const char* precision);
const Arithmetic* arithmetic_portable(const char* precision);

namespace {

// __builtin_cpu_supports asks the operating system too, whether it saves the registers.
#if defined(SACFAST_PATH_AVX2)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

#if defined(SACFAST_PATH_AVX512) || defined(SACFAST_PATH_AMX)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
#endif

#if defined(SACFAST_PATH_AMX) && !defined(SACFAST_EMULATE_AMX)
// Linux saves tiles only for processes that have asked for it, because of the 8 KB more that each thread
// costs.
bool has_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  constexpr unsigned kTile = 1u << 24, kBFloat16 = 1u << 22;
  static const bool granted = [] {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kBFloat16) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}
#endif

#if defined(SACFAST_PATH_PORTABLE)
bool always() { return true; }
#endif

struct Path {
  const Arithmetic* (*find)(const char* precision);
  bool (*runs)();
};

// Fastest first. Emulated tiles are for tests, and slowest.
constexpr Path kPaths[] = {
#if defined(SACFAST_PATH_AMX) && !defined(SACFAST_EMULATE_AMX)
    {arithmetic_amx, has_amx},
#endif
#if defined(SACFAST_PATH_AVX512)
    {arithmetic_avx512, has_avx512},
#endif
#if defined(SACFAST_PATH_AVX2)
    {arithmetic_avx2, has_avx2},
#endif
#if defined(SACFAST_PATH_PORTABLE)
    {arithmetic_portable, always},
#endif
#if defined(SACFAST_PATH_AMX) && defined(SACFAST_EMULATE_AMX)
    {arithmetic_amx, has_avx512},
#endif
    {nullptr, nullptr}};

constexpr const char* kPrecisions[] = {"float32", "bf16x3", "bf16"};

}  // namespace

const Arithmetic* find_arithmetic(const char* path, const char* precision) {
  for (const Path* candidate = kPaths; candidate->find; ++candidate) {
    const Arithmetic* table = candidate->runs() ? candidate->find(precision) : nullptr;
    if (table && (*path == '\0' || std::strcmp(path, table->path) == 0)) return table;
  }
  return nullptr;
}

const char* arithmetic_names() {
  static const std::string names = [] {
    std::string list;
    for (const Path* candidate = kPaths; candidate->find; ++candidate) {
      for (const char* precision : kPrecisions) {
        const Arithmetic* table = candidate->runs() ? candidate->find(precision) : nullptr;
        if (table) list += std::string(list.empty() ? "" : " ") + table->path + ":" + table->precision;
      }
    }
    return list;
  }();
  return names.c_str();
}

}  // namespace sacfast::cpu
