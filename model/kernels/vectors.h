// Vectors of fp32 numbers, bf16 and what both are rounded by: shared by the files of this folder.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <new>
#include <type_traits>
#include <vector>
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

// bf16 as the low halves of whole numbers, and back. The compiler would convert them in two parts.
inline U low_halves(H halves) {
#if defined(__AVX512F__)
    return bits<U>(_mm512_cvtepu16_epi32((__m256i)halves));
#else
    return __builtin_convertvector(halves, U);
#endif
}
inline H from_low_halves(U whole) {
#if defined(__AVX512F__)
    return bits<H>(_mm512_cvtepi32_epi16((__m512i)whole));
#else
    return __builtin_convertvector(whole, H);
#endif
}

// Numbers of a vector's length, widened where they are bf16.
inline F load_wide(const float* from) { return load<F>(from); }
inline F load_wide(const bf16* from) { return (F)(low_halves(load<H>(from)) << 16); }

// Rounded to bf16, to nearest and ties to even.
inline H halves(F value) {
#if defined(__AVX512BF16__)
    return bits<H>(_mm512_cvtneps_pbh((__m512)value));
#else
    U whole = (U)value;
    U near = (whole + 0x7fff + ((whole >> 16) & 1)) >> 16;
    U kept = (U)(value == value);  // all ones where it is a number
    return from_low_halves((near & kept) | (0x7fc0 & ~kept));
#endif
}

template <class T> F rounded(F value);
template <> inline F rounded<float>(F value) { return value; }
template <> inline F rounded<bf16>(F value) { return (F)(low_halves(halves(value)) << 16); }

inline void store(float* to, F value) { std::memcpy(to, &value, sizeof(value)); }
inline void store(bf16* to, F value) {
    H half = halves(value);
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

inline F exponential(F x) {
    x = x < -87.0f ? spread(-87.0f) : x;
    x = x > 88.0f ? spread(88.0f) : x;
    F n = x * 1.44269504f + 12582912.0f;
    n -= 12582912.0f;
    F r = x - n * 0.693145752f;
    r -= n * 1.42860677e-6f;
    F p = spread(1.0f / 720);
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (F)((__builtin_convertvector(n, I) + 127) << 23);
}

inline float sum_of(F value) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += value[i];
    return sum;
}

// Memory that begins with a line of the cache: a matrix tile that is read across two lines takes seven times as long.
template <class T> struct OnLines {
    typedef T value_type;
    static constexpr std::align_val_t LINE{64};
    OnLines() = default;
    template <class Other> OnLines(const OnLines<Other>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), LINE)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, LINE); }
    template <class Other> bool operator==(const OnLines<Other>&) const { return true; }
    template <class Other> bool operator!=(const OnLines<Other>&) const { return false; }
};
template <class T> using Numbers = std::vector<T, OnLines<T>>;

struct Range {
    int64_t begin, end;
};

inline Range share(int64_t count, int64_t thread, int64_t threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
}

// This thread's part of so many.
inline Range own(int64_t count) { return share(count, omp_get_thread_num(), omp_get_num_threads()); }

inline int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// Calls `part` with each vector of a row; the last one may be shorter, and `part` is told how long it is.
template <class Part> inline void by_vectors(int64_t count, Part part) {
    int64_t place = 0;
    for (; place + LANES <= count; place += LANES) part(place, std::integral_constant<int, LANES>());
    if (place < count) part(place, int(count - place));
}

template <class T, class Length> inline F some(const T* from, Length length, float other) {
    if constexpr (!std::is_same_v<Length, int>) return load_wide(from);
    F value = spread(other);
    for (int i = 0; i < length; i++) value[i] = wide(from[i]);
    return value;
}

template <class T, class Length> inline void keep(T* to, F value, Length length) {
    if constexpr (!std::is_same_v<Length, int>) return store(to, value);
    T whole[LANES];
    store(whole, value);
    std::memcpy(to, whole, length * sizeof(T));
}

// silu(gate) * up, rounded to the type of the numbers after each of the two.
template <class T> void gated(const T* gate, const T* up, int64_t count, T* out) {
    by_vectors(count, [&](int64_t i, auto length) {
        F g = some(gate + i, length, 0);
        keep(out + i, rounded<T>(g / (1 + exponential(-g))) * some(up + i, length, 0), length);
    });
}

inline I lane_numbers() {
    I numbers;
    for (int lane = 0; lane < LANES; lane++) numbers[lane] = lane;
    return numbers;
}

// `value` where its place is at most `last`, else `other`.
inline F up_to(F value, int64_t place, int64_t last, float other) {
    return lane_numbers() + int32_t(place) <= int32_t(last) ? value : spread(other);
}

// The largest of some numbers; NaN is none.
template <class T> inline float largest(const T* from, int64_t count) {
    F highest = spread(-INFINITY);
    by_vectors(count, [&](int64_t i, auto length) {
        F value = some(from + i, length, -INFINITY);
        highest = value > highest ? value : highest;
    });
    float top = highest[0];
    for (int lane = 1; lane < LANES; lane++) top = std::max(top, highest[lane]);
    return top;
}

// The sum of e**(number - top).
inline float sum_of_powers(const float* from, int64_t count, float top) {
    F sums[2] = {};
    int turn = 0;
    by_vectors(count, [&](int64_t i, auto length) {
        F power = exponential(some(from + i, length, -INFINITY) - top);
        // Lanes behind the end have no part in the sum: e**-87 is not 0.
        if constexpr (std::is_same_v<decltype(length), int>)
            for (int lane = length; lane < LANES; lane++) power[lane] = 0;
        sums[turn ^= 1] += power;
    });
    return sum_of(sums[0] + sums[1]);
}

}  // namespace
