// How the C interfaces report failure: functions that can fail return nullptr or a negative number, and leave
// one sentence in sacfast_error().
#pragma once

#include <exception>
#include <new>
#include <string>

#define SACFAST_EXPORT extern "C" __attribute__((visibility("default")))

namespace sacfast {

inline thread_local std::string last_error;

// Runs `body`; on an exception stores what it says and returns `failed`.
template <typename T, typename F>
T guarded(T failed, F body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
  } catch (const std::exception& error) {
    last_error = error.what();
  }
  return failed;
}

}  // namespace sacfast
