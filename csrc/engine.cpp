// The C interface of the CPU engine, called through ctypes (sacfast/engines/native.py): it needs no Python
// headers, and one pointer to a struct crosses it per call. Handles are made by *_new and ended by *_delete.
#include "cpu/policy.h"
#include "cpu/sac_update.h"
#include "guarded.h"

using sacfast::guarded;
using sacfast::cpu::Arithmetic;
using sacfast::cpu::Policy;
using sacfast::cpu::SacUpdate;

SACFAST_EXPORT const char* sacfast_error() { return sacfast::last_error.c_str(); }

// The arithmetic for a path ("" for the fastest) and a precision, or nullptr; what there is, by name.
SACFAST_EXPORT const Arithmetic* sacfast_arithmetic(const char* path, const char* precision) {
  return sacfast::cpu::find_arithmetic(path, precision);
}
SACFAST_EXPORT const char* sacfast_arithmetic_path(const Arithmetic* arithmetic) { return arithmetic->path; }
SACFAST_EXPORT const char* sacfast_arithmetic_names() { return sacfast::cpu::arithmetic_names(); }

SACFAST_EXPORT SacUpdate* sacfast_update_new(const sacfast::UpdateSpec* spec, const Arithmetic* arithmetic) {
  return guarded<SacUpdate*>(nullptr, [&] { return new SacUpdate(*spec, *arithmetic); });
}
SACFAST_EXPORT void sacfast_update_delete(SacUpdate* update) { delete update; }

// SacUpdate::Result, or -1.
SACFAST_EXPORT int sacfast_update_run(SacUpdate* update, sacfast::UpdateCall* call) {
  return guarded(-1, [&] { return static_cast<int>(update->run(*call)); });
}
// The same in two, 0 or -1 from the first; between them the update's other threads work.
SACFAST_EXPORT int sacfast_update_start(SacUpdate* update, sacfast::UpdateCall* call) {
  return guarded(-1, [&] { return update->start(*call), 0; });
}
SACFAST_EXPORT int sacfast_update_finish(SacUpdate* update) {
  return guarded(-1, [&] { return static_cast<int>(update->finish()); });
}
SACFAST_EXPORT void sacfast_update_set_profiling(SacUpdate* update, int on) {
  update->set_profiling(on != 0);
}
SACFAST_EXPORT void sacfast_update_take_profile(SacUpdate* update, double* seconds) {
  update->take_profile(seconds);
}

SACFAST_EXPORT Policy* sacfast_policy_new(const sacfast::PolicySpec* spec, const Arithmetic* arithmetic) {
  return guarded<Policy*>(nullptr, [&] { return new Policy(*spec, *arithmetic); });
}
SACFAST_EXPORT void sacfast_policy_delete(Policy* policy) { delete policy; }
SACFAST_EXPORT void sacfast_policy_act(Policy* policy, sacfast::PolicyCall* call) { policy->act(*call); }
