// Matmuls of bf16 numbers, summed in fp32, whose factors lie as the processor's dot products want them; and how they are laid so.

#pragma once

#include "matrices.h"

namespace {

// ---- transposing

#if defined(__clang__)
inline void turn_square(F* square) {
    for (int row = 0; row < LANES; row++)
        for (int lane = 0; lane < row; lane++) {
            float kept = square[row][lane];
            square[row][lane] = square[lane][row];
            square[lane][row] = kept;
        }
}
#else
// One step of transposing a square of vectors: numbers whose row and lane differ in the bit STEP change places.
template <int STEP> inline void exchange(F* square) {
    I from_first, from_second;
    for (int lane = 0; lane < LANES; lane++) {
        from_first[lane] = lane & STEP ? LANES + lane - STEP : lane;
        from_second[lane] = lane & STEP ? LANES + lane : lane + STEP;
    }
    for (int row = 0; row < LANES; row++) {
        if (row & STEP) continue;
        F first = square[row], second = square[row + STEP];
        square[row] = __builtin_shuffle(first, second, from_first);
        square[row + STEP] = __builtin_shuffle(first, second, from_second);
    }
}

inline void turn_square(F* square) {
    exchange<1>(square);
    exchange<2>(square);
    exchange<4>(square);
    if constexpr (LANES == 16) exchange<8>(square);
}
#endif

// ---- matmuls

#if defined(OLMO2_AMX)
constexpr int64_t FINE = 32;  // rows and steps that matrix tiles take at a time
#else
constexpr int64_t FINE = 16;
#endif
constexpr int64_t WIDE = 16;  // columns of a panel

// A factor [rows, steps] by rows, and one in panels [columns / 16][steps / 2][16][2], as the dot products want it; where their
// product goes.
struct HalfFactors {
    const bf16* a;
    int64_t a_row;
    const bf16* b;
    int64_t b_panel;
    float* to;
    int64_t to_row;
};

#if defined(OLMO2_AMX)
template <bool ADD, int ROWS, int COLUMNS> inline void by_tiles(const HalfFactors& f, int64_t row, int64_t column, int64_t steps) {
    const bf16 *a = f.a + row * f.a_row, *b = f.b + column / WIDE * f.b_panel;
    float* to = f.to + row * f.to_row + column;
    int64_t a_bytes = 2 * f.a_row, to_bytes = 4 * f.to_row;
    if constexpr (ADD) {
        _tile_loadd(0, to, to_bytes);
        if constexpr (COLUMNS > 1) _tile_loadd(1, to + WIDE, to_bytes);
        if constexpr (ROWS > 1) _tile_loadd(2, to + TILE_ROWS * f.to_row, to_bytes);
        if constexpr (ROWS > 1 && COLUMNS > 1) _tile_loadd(3, to + TILE_ROWS * f.to_row + WIDE, to_bytes);
    } else {
        _tile_zero(0);
        if constexpr (COLUMNS > 1) _tile_zero(1);
        if constexpr (ROWS > 1) _tile_zero(2);
        if constexpr (ROWS > 1 && COLUMNS > 1) _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step += TILE_INPUTS) {
        _tile_loadd(4, a + step, a_bytes);
        _tile_loadd(6, b + step * WIDE, 4 * WIDE);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (COLUMNS > 1) {
            _tile_loadd(7, b + f.b_panel + step * WIDE, 4 * WIDE);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (ROWS > 1) {
            _tile_loadd(5, a + TILE_ROWS * f.a_row + step, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (COLUMNS > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, to, to_bytes);
    if constexpr (COLUMNS > 1) _tile_stored(1, to + WIDE, to_bytes);
    if constexpr (ROWS > 1) _tile_stored(2, to + TILE_ROWS * f.to_row, to_bytes);
    if constexpr (ROWS > 1 && COLUMNS > 1) _tile_stored(3, to + TILE_ROWS * f.to_row + WIDE, to_bytes);
}

template <bool ADD, int ROWS> inline void line_by_tiles(const HalfFactors& f, int64_t row, int64_t columns, int64_t steps) {
    int64_t column = 0;
    for (; column + 2 * WIDE <= columns; column += 2 * WIDE) by_tiles<ADD, ROWS, 2>(f, row, column, steps);
    if (column < columns) by_tiles<ADD, ROWS, 1>(f, row, column, steps);
}

// Rows and columns are multiples of 16, steps of 32.
template <bool ADD> void product(const HalfFactors& f, int64_t rows, int64_t columns, int64_t steps) {
    int64_t row = 0;
    for (; row + 2 * TILE_ROWS <= rows; row += 2 * TILE_ROWS) line_by_tiles<ADD, 2>(f, row, columns, steps);
    if (row < rows) line_by_tiles<ADD, 1>(f, row, columns, steps);
}

// Tiles belong to a thread and are given back, so that another code's are not disturbed.
struct Tiles {
    Tiles() { configure_tiles(2 * TILE_ROWS); }
    ~Tiles() { _tile_release(); }
};
#else
template <bool ADD, int R, int PANELS>
inline void by_vectors(const HalfFactors& f, int64_t row, int64_t column, int64_t steps) {
    constexpr int V = WIDE / LANES;
    typedef Dot<bf16> D;
    F sums[R][PANELS * V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < PANELS * V; v++)
            sums[r][v] = ADD ? load<F>(f.to + (row + r) * f.to_row + column + v * LANES) : F{};
    for (int64_t step = 0; step < steps; step += 2) {
        D::Weight line[PANELS * V];
        for (int v = 0; v < PANELS * V; v++)
            line[v] = load<D::Weight>(f.b + (column / WIDE + v / V) * f.b_panel + step * WIDE + v % V * LANES * 2);
        for (int r = 0; r < R; r++) {
            D::Factor factor = D::factor(f.a + (row + r) * f.a_row + step);
            for (int v = 0; v < PANELS * V; v++) sums[r][v] = D::add(sums[r][v], factor, line[v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < PANELS * V; v++) store(f.to + (row + r) * f.to_row + column + v * LANES, sums[r][v]);
}

// Rows and columns are multiples of 16, steps of 2.
template <bool ADD> void product(const HalfFactors& f, int64_t rows, int64_t columns, int64_t steps) {
    constexpr int R = LANES == 16 ? 8 : 4;
    for (int64_t row = 0; row < rows; row += R) {
        int64_t column = 0;
        if constexpr (LANES == 16)
            for (; column + 2 * WIDE <= columns; column += 2 * WIDE) by_vectors<ADD, R, 2>(f, row, column, steps);
        for (; column < columns; column += WIDE) by_vectors<ADD, R, 1>(f, row, column, steps);
    }
}

struct Tiles {
    Tiles() {}
};
#endif

// ---- laying numbers out; rows lie `apart` from each other

// 16 numbers of a row that may end before.
inline H some_halves(const bf16* from, int64_t count) {
    if (count >= LANES) return load<H>(from);
    H value{};
    if (count > 0) std::memcpy(&value, from, count * sizeof(bf16));
    return value;
}

// Panels whose columns are the rows and whose steps are the width: [rows / 16][width / 2][16][2].
inline void turn_pairs(const bf16* from, int64_t apart, int64_t rows, int64_t width, bf16* to) {
    for (int64_t row = 0; row < rows; row += LANES)
        for (int64_t place = 0; place < width; place += 2 * LANES) {
            F square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = load<F>(from + (row + i) * apart + place);
            turn_square(square);
            bf16* panel = to + row / WIDE * WIDE * width + row % WIDE * 2;
            for (int i = 0; i < LANES; i++) std::memcpy(panel + (place + 2 * i) * WIDE, &square[i], sizeof(F));
        }
}

// Panels whose columns are the width and whose steps are the rows: [width / 16][rows / 2][16][2].
inline void pair_rows(const bf16* from, int64_t apart, int64_t rows, int64_t width, bf16* to) {
    for (int64_t row = 0; row < rows; row += 2)
        for (int64_t place = 0; place < width; place += LANES) {
            const bf16* at = from + row * apart + place;
            U line = low_halves(load<H>(at)) | low_halves(load<H>(at + apart)) << 16;
            std::memcpy(to + (place / WIDE * rows + row) * WIDE + place % WIDE * 2, &line, sizeof(line));
        }
}

// [width][rows].
inline void flip_halves(const bf16* from, int64_t apart, int64_t rows, int64_t width, bf16* to, int64_t to_apart) {
    for (int64_t row = 0; row < rows; row += LANES)
        for (int64_t place = 0; place < width; place += LANES) {
            F square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = (F)low_halves(load<H>(from + (row + i) * apart + place));
            turn_square(square);
            for (int i = 0; i < LANES; i++) {
                H line = from_low_halves((U)square[i]);
                std::memcpy(to + (place + i) * to_apart + row, &line, sizeof(line));
            }
        }
}

// To a result in fp32, or added to what is there.
inline void put_vector(float* to, F value, int64_t count, bool adds) {
    if (count >= LANES) return store(to, adds ? load<F>(to) + value : value);
    for (int64_t i = 0; i < count; i++) to[i] = adds ? to[i] + value[i] : value[i];
}

// Two rows side by side, 16 numbers of each that may end before.
inline U pair_of(const bf16* first, int64_t first_count, const bf16* second, int64_t second_count) {
    return low_halves(some_halves(first, first_count)) | low_halves(some_halves(second, second_count)) << 16;
}

// Sums [width][rows], lines `apart` from each other, to a result [rows][width] in fp32, or added to what is there.
inline void put_turned(const float* from, int64_t apart, int64_t rows, int64_t width, float* to, bool adds) {
    for (int64_t row = 0; row < rows; row += LANES)
        for (int64_t place = 0; place < width; place += LANES) {
            F square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = load<F>(from + (place + i) * apart + row);
            turn_square(square);
            for (int64_t i = 0; i < std::min<int64_t>(LANES, rows - row); i++)
                put_vector(to + (row + i) * width + place, square[i], width - place, adds);
        }
}

}  // namespace
