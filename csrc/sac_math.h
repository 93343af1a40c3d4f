// The scalar formulas of the operators, for host and device. The float32 functions are branch-free, in plain
// C++, so that a loop over them vectorises with any compiler and instruction set; the float64 ones call the
// standard library.
//
//   normals      z0 = r cos(angle), z1 = r sin(angle), r = sqrt(-2 ln u)   (Box and Muller, 1958)
//   squash       a = tanh(u), log(1 - a^2) = -2 (|u| + log1p(m / 2)), 1 - a^2 = 4 e / (2 + m)^2,
//                with m = expm1(-2 |u|) and e = exp(-2 |u|)
//   log-density  log N(u; mean, std) = -noise^2 / 2 - log_std - log(2 pi) / 2, as u = mean + std * noise
//
// log(1 - a^2) as above equals the usual stable form 2 (log 2 - u - softplus(-2 u)), and also keeps its
// digits near u = 0, where that form subtracts numbers close to log 2. Polynomials: exp, log, sin and cos
// from Cephes (Moshier), within 2 ulp on their ranges; atanh by a Chebyshev fit, within 4e-9.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.h"

namespace sacfast {

constexpr double kHalfLog2Pi = 0.91893853320467274178;

SACFAST_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SACFAST_HD float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// x = n ln 2 + r, |r| <= ln(2) / 2: returns exp(r) - 1 and stores n. |x| < 2^21. NaN stays NaN.
SACFAST_HD float reduced_expm1(float x, int32_t* n) {
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  *n = static_cast<int32_t>(float_bits(shifted) - 0x4B400000u);
  const float rounded = shifted - 12582912.0f;
  const float r = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r;
}

// exp(x), with overflow to infinity and gradual underflow.
SACFAST_HD float exponential(float x) {
  x = x > 89.5f ? 89.5f : x;
  x = x < -105.0f ? -105.0f : x;
  int32_t n;
  const float p = reduced_expm1(x, &n);
  const int32_t half = n >> 1;  // 2^n in two factors, each of them a normal number
  const float scale = bits_float(static_cast<uint32_t>(half + 127) << 23);
  return ((1.0f + p) * scale) * bits_float(static_cast<uint32_t>(n - half + 127) << 23);
}

SACFAST_HD double exponential(double x) { return exp(x); }

// max(x, 0), and x within [low, high]. Unlike fmaxf and fminf they keep a NaN, which is how divergence shows.
SACFAST_HD float rectified(float x) { return x < 0.0f ? 0.0f : x; }
SACFAST_HD float clamped(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// What the networks see of observations: normalised() of each number i with shift[i] and scale[i], both [O],
// or without `shift` the observations themselves. sacfast/normalizer.py keeps the statistics.
struct ObsStatistics {
  const float *shift, *scale;
};

SACFAST_HD float normalised(float x, float shift, float scale) {
  return clamped((x - shift) * scale, -10.0f, 10.0f);
}

// An observation [n] into `out`, which may be the same memory.
inline void normalise(const ObsStatistics& statistics, const float* obs, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = normalised(obs[i], statistics.shift[i], statistics.scale[i]);
}

template <typename T>
struct Squash {
  T action;     // tanh(u)
  T slope;      // 1 - tanh(u)^2; in float32 never below 4e-38
  T log_slope;  // log(1 - tanh(u)^2)
};

SACFAST_HD Squash<float> squash(float u) {
  const float magnitude = fabsf(u);
  float x = -2.0f * magnitude;
  x = x < -87.0f ? -87.0f : x;
  int32_t n;
  const float p = reduced_expm1(x, &n);
  const float scale = bits_float(static_cast<uint32_t>(n + 127) << 23);
  const float e = scale * p + scale, m = scale * p + (scale - 1.0f);
  const float s = m / (4.0f + m), z = s * s;  // log1p(m / 2) = 2 atanh(s), -1/3 < s <= 0
  float q = 0.116121646f;
  q = q * z + 0.108532879f;
  q = q * z + 0.142961789f;
  q = q * z + 0.199998531f;
  q = q * z + 0.333333336f;
  const float log1p_half = 2.0f * (s + s * (z * q));
  const float inverse = 1.0f / (2.0f + m);
  return {copysignf(-m * inverse, u), 4.0f * e * inverse * inverse, -2.0f * (magnitude + log1p_half)};
}

SACFAST_HD Squash<double> squash(double u) {
  const double magnitude = fabs(u), m = expm1(-2.0 * magnitude), inverse = 1.0 / (2.0 + m);
  return {copysign(-m * inverse, u), 4.0 * exp(-2.0 * magnitude) * inverse * inverse,
          -2.0 * (magnitude + log1p(0.5 * m))};
}

// ln x for a normal x > 0.
SACFAST_HD float logarithm(float x) {
  const uint32_t offset = float_bits(x) - 0x3F3504F3u;  // exponent and mantissa relative to sqrt(1/2)
  const float exponent = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float f = bits_float((offset & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f, z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = (p * f * z - 2.12194440e-4f * exponent) - 0.5f * z;
  return (f + tail) + 0.693359375f * exponent;
}

SACFAST_HD double logarithm(double x) { return log(x); }

template <typename T>
struct Pair {
  T first, second;
};

// cos and sin of an angle in [-pi/4, pi/4].
SACFAST_HD Pair<float> cosine_sine(float angle) {
  const float z = angle * angle;
  float s = -1.9515295891e-4f;
  s = s * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  float c = 2.443315711809948e-5f;
  c = c * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  return {(c * z) * z - 0.5f * z + 1.0f, s * z * angle + angle};
}

SACFAST_HD Pair<double> cosine_sine(double angle) { return {cos(angle), sin(angle)}; }

SACFAST_HD float square_root(float x) { return sqrtf(x); }
SACFAST_HD double square_root(double x) { return sqrt(x); }

// Two standard normals from two random words: u = ((a >> 9) + 1/2) 2^-23, which float32 holds exactly, and
// the angle 2 pi (b >> 8) / 2^24, whose nearest quarter turn is taken off in integers.
template <typename T>
SACFAST_HD Pair<T> normal_pair(uint32_t a, uint32_t b) {
  const T u = (static_cast<T>(static_cast<int32_t>(a >> 9)) + T(0.5)) * T(1.1920928955078125e-7);
  const T radius = square_root(T(-2) * logarithm(u));
  const int32_t turn = static_cast<int32_t>(b >> 8), quarter = (turn + (1 << 21)) >> 22;
  const T angle = static_cast<T>(turn - quarter * (1 << 22)) * T(6.28318530717958647692 / (1 << 24));
  const Pair<T> rotation = cosine_sine(angle);
  const bool odd = quarter & 1;
  const T c = odd ? rotation.second : rotation.first, s = odd ? rotation.first : rotation.second;
  const bool flip_c = (quarter + 1) & 2, flip_s = quarter & 2;
  return {radius * (flip_c ? -c : c), radius * (flip_s ? -s : s)};
}

// Numbers 4 block to 4 block + 3 of a draw of normals.
template <typename T>
SACFAST_HD void draw_normals(const PhiloxKey& key, uint32_t block, T* out) {
  const PhiloxWords words = philox4x32(key, block);
  const Pair<T> front = normal_pair<T>(words.w0, words.w1), back = normal_pair<T>(words.w2, words.w3);
  out[0] = front.first;
  out[1] = front.second;
  out[2] = back.first;
  out[3] = back.second;
}

// One element of the tanh-Gaussian forward pass: a = tanh(mean + exp(log_std) noise) and its term of log pi.
template <typename T>
SACFAST_HD Pair<T> squashed_gaussian_element(T mean, T log_std, T noise) {
  const Squash<T> squashed = squash(mean + exponential(log_std) * noise);
  return {squashed.action, (-T(0.5) * noise * noise - (log_std + T(kHalfLog2Pi))) - squashed.log_slope};
}

// Its gradients, with d log pi / du = 2 tanh(u): those of mean and log_std.
template <typename T>
SACFAST_HD Pair<T> squashed_gaussian_element_gradient(T grad_action, T grad_log_prob, T mean, T log_std,
                                                      T noise) {
  const T deviation = exponential(log_std) * noise;
  const Squash<T> squashed = squash(mean + deviation);
  const T grad_mean = grad_action * squashed.slope + grad_log_prob * (T(2) * squashed.action);
  return {grad_mean, grad_mean * deviation - grad_log_prob};
}

// How the policy's log_std is kept within [low, high].
struct LogStdBounds {
  float low, high;
  int32_t rescaled;  // from a tanh; else clamped
};

// log_std of what the head gives, and its derivative.
SACFAST_HD Pair<float> bounded_log_std(float raw, const LogStdBounds& bounds) {
  if (bounds.rescaled) {
    const float half = 0.5f * (bounds.high - bounds.low);
    const Squash<float> squashed = squash(raw);
    return {bounds.low + half * (squashed.action + 1.0f), half * squashed.slope};
  }
  const bool below = raw<bounds.low, above = raw> bounds.high;
  return {below ? bounds.low : above ? bounds.high : raw, below || above ? 0.0f : 1.0f};
}

// Which of two critics' values min_i Q_i is: the second where it is smaller or NaN, which is how divergence
// shows, and the first where they are equal.
SACFAST_HD bool second_is_least(float q1, float q2) { return q2 < q1 || q2 != q2; }

// y = r + gamma (1 - d) [min_i Qbar_i(s', a') - alpha log pi(a'|s')]   (arXiv:1812.05905, eqs. 3 and 5)
SACFAST_HD float td_target(float reward, float not_terminated, float q1, float q2, float next_log_prob,
                           float alpha, float gamma) {
  const float next_value = (second_is_least(q1, q2) ? q2 : q1) - alpha * next_log_prob;
  return reward + gamma * not_terminated * next_value;
}

// target + tau (source - target), written so that tau = 0 and tau = 1 are exact (as torch.lerp does).
template <typename T>
SACFAST_HD T interpolate(T target, T source, T tau) {
  const T difference = source - target;
  return tau < T(0.5) ? target + tau * difference : source - (T(1) - tau) * difference;
}

// A bfloat16 number by its bits.
struct BFloat16 {
  uint16_t bits;
};

SACFAST_HD float bfloat16_to_float(BFloat16 value) {
  return bits_float(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even; NaN becomes the quiet NaN.
SACFAST_HD BFloat16 float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded)};
}

// A float16 number by its bits.
struct Float16 {
  uint16_t bits;
};

SACFAST_HD float float16_to_float(Float16 value) {
  const uint32_t magnitude = (value.bits & 0x7FFFu) << 13, sign = (value.bits & 0x8000u) << 16;
  // None of these is subnormal in float32, which the engine's threads would take for zero.
  const uint32_t subnormal = float_bits(static_cast<float>(value.bits & 0x3FFu) * 0x1p-24f);
  const uint32_t normal = magnitude + 0x38000000u;  // the exponent's bias, 127 - 15
  const uint32_t finite = magnitude < 0x00800000u ? subnormal : normal;
  return bits_float((magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : finite) | sign);
}

}  // namespace sacfast
