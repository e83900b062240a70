// Vectors of fp32 numbers, bf16 and what both are rounded by: shared by the files of this folder.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float F __attribute__((vector_size(LANES * 4)));
typedef int32_t I __attribute__((vector_size(LANES * 4)));
typedef uint32_t U __attribute__((vector_size(LANES * 4)));
typedef uint16_t H __attribute__((vector_size(LANES * 2)));
typedef uint16_t bf16;

template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

template <class Vector> inline Vector load(const void* from) {
    Vector to;
    std::memcpy(&to, from, sizeof(to));
    return to;
}

inline F spread(float value) { return F{} + value; }

inline float wide(float value) { return value; }
inline float wide(bf16 value) { return bits<float>(uint32_t(value) << 16); }

template <class T> T narrow(float value);
template <> inline float narrow<float>(float value) { return value; }
template <> inline bf16 narrow<bf16>(float value) {
    uint32_t whole = bits<uint32_t>(value);
    uint32_t rounded = (whole + 0x7fff + ((whole >> 16) & 1)) >> 16;  // to nearest, ties to even
    return value == value ? bf16(rounded) : bf16(0x7fc0);
}

template <class T> inline float rounded(float value) { return wide(narrow<T>(value)); }

inline void store(float* to, F value) { std::memcpy(to, &value, sizeof(value)); }
inline void store(bf16* to, F value) {
    U whole = (U)value;
    U near = (whole + 0x7fff + ((whole >> 16) & 1)) >> 16;
    U kept = (U)(value == value);  // all ones where it is a number
    H half = __builtin_convertvector((near & kept) | (0x7fc0 & ~kept), H);
    std::memcpy(to, &half, sizeof(half));
}

// e**x to about two units in the last place; NaN stays NaN.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = x * 1.44269504f + 12582912.0f;  // 1.5 * 2**23: what is added to it loses its fraction
    n -= 12582912.0f;
    float r = x - n * 0.693145752f;  // ln 2 in two parts, the first exact when multiplied
    r -= n * 1.42860677e-6f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * bits<float>((int32_t(n) + 127) << 23);
}

struct Range {
    int64_t begin, end;
};

inline Range share(int64_t count, int64_t thread, int64_t threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
}

inline int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// silu(gate) * up, rounded to the type of the numbers after each of the two.
template <class T> void gated(const T* gate, const T* up, int64_t count, T* out) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float g = wide(gate[i]);
        out[i] = narrow<T>(rounded<T>(g / (1 + exponential(-g))) * wide(up[i]));
    }
}

}  // namespace
