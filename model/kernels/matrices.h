// How bf16 and fp32 numbers are multiplied: vectors of dot products, and matrix tiles (AMX). Shared by the files of this folder.

#pragma once

#include "vectors.h"

namespace {

// How inputs of one kind are multiplied: `steps` of `width` inputs each.
template <class T> struct Dot;

template <> struct Dot<float> {
    static constexpr int width = 1;
    typedef F Weight;
    typedef float Factor;
    static inline Factor factor(const float* x) { return *x; }
    static inline F add(F sum, Factor factor, Weight weight) { return sum + factor * weight; }
};

template <> struct Dot<bf16> {
    static constexpr int width = 2;
    typedef U Weight;
    typedef uint32_t Factor;
    static inline Factor factor(const bf16* x) { return load<uint32_t>(x); }
    static inline F add(F sum, Factor factor, Weight weight) {
#if defined(__AVX512BF16__)
        return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int32_t(factor)), (__m512bh)weight);
#else
        float low = bits<float>(factor << 16), high = bits<float>(factor & 0xffff0000);
        sum += low * (F)(weight << 16);
        return sum + high * (F)(weight & 0xffff0000);
#endif
    }
};

#if defined(__AMX_BF16__) || defined(OLMO2_EMULATE_AMX)
#define OLMO2_AMX 1

// ---- matrix tiles: 16 rows of 64 bytes, multiplied by one instruction

struct TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

#if defined(OLMO2_EMULATE_AMX)
// What the instructions do, written out, so that the loops around them are tested on processors without them.
struct EmulatedTile {
    int rows, row_bytes;
    uint8_t data[16][64];
};
thread_local EmulatedTile emulated[8];

inline void load_tile_config(const TileConfig* config) {
    for (int i = 0; i < 8; i++) emulated[i] = {config->rows[i], config->row_bytes[i], {}};
}
inline void release_tiles() {}
template <int TILE> void zero_tile() { std::memset(emulated[TILE].data, 0, sizeof(emulated[TILE].data)); }
template <int TILE> void load_tile(const void* from, int64_t stride) {
    zero_tile<TILE>();
    for (int r = 0; r < emulated[TILE].rows; r++)
        std::memcpy(emulated[TILE].data[r], (const char*)from + r * stride, emulated[TILE].row_bytes);
}
template <int TILE> void store_tile(void* to, int64_t stride) {
    for (int r = 0; r < emulated[TILE].rows; r++)
        std::memcpy((char*)to + r * stride, emulated[TILE].data[r], emulated[TILE].row_bytes);
}
template <int C, int A, int B> void multiply_tiles() {
    for (int m = 0; m < emulated[C].rows; m++)
        for (int k = 0; k < emulated[A].row_bytes / 4; k++)
            for (int n = 0; n < emulated[C].row_bytes / 4; n++)
                for (int i = 0; i < 2; i++) {
                    float sum = load<float>(emulated[C].data[m] + 4 * n);
                    sum += wide(load<bf16>(emulated[A].data[m] + 4 * k + 2 * i)) *
                           wide(load<bf16>(emulated[B].data[k] + 4 * n + 2 * i));
                    std::memcpy(emulated[C].data[m] + 4 * n, &sum, 4);
                }
}
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) load_tile_config(config)
#define _tile_release() release_tiles()
#define _tile_zero(tile) zero_tile<tile>()
#define _tile_loadd(tile, from, stride) load_tile<tile>(from, stride)
#define _tile_stored(tile, to, stride) store_tile<tile>(to, stride)
#define _tile_dpbf16ps(c, a, b) multiply_tiles<c, a, b>()
#endif

constexpr int TILE_ROWS = 16, TILE_INPUTS = 32;

// Tiles 0 to 3 hold sums (rows 0 to 15 and the rest, outputs 0 to 15 and the rest), 4 and 5 rows, 6 and 7 weights.
inline void configure_tiles(int rows) {
    TileConfig config;
    int first = std::min(rows, TILE_ROWS), rest = std::max(1, rows - TILE_ROWS);
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = 64;
        config.rows[tile] = uint8_t(tile >= 6 ? TILE_INPUTS / 2 : tile == 2 || tile == 3 || tile == 5 ? rest : first);
    }
    // The compiler's header says that the instruction reads 8 bytes, and would leave out the stores of the others.
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}
#endif

}  // namespace
