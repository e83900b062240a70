// The gradient of a linear layer's weights on CPUs with matrix tiles: a sum over all tokens, in fp32. `model/network/fused.py`
// calls it.
//
// The libraries' matmuls round it to bf16, and transpose the larger factor first. Here the smaller one is transposed, once, and the
// larger is taken by pairs of rows, some columns at a time, while they are in the nearest cache.

#include "half_products.h"

namespace {

constexpr int64_t STEPS = 512;   // rows of both factors that are multiplied at a time
constexpr int64_t APART = STEPS + 32;  // two lines that are a power of two apart would meet in the same places of the cache
constexpr int64_t COLUMNS = 64;  // of the larger factor

// Two factors [rows][..] of bf16 numbers, and where the sum over rows of their outer products goes.
struct Outer {
    int64_t rows, smaller, larger, smaller_apart, larger_apart;
    int64_t turned;  // whether the larger one's columns are the rows of the result
    int64_t adds;    // to what is there
    const bf16 *small, *large;
    float* to;
};

inline int64_t lines_of(const Outer& o) { return padded(o.smaller, 32); }
inline int64_t steps_of(const Outer& o) { return padded(o.rows, 32); }

// This thread's columns of the smaller factor, as lines: [chunk of STEPS][lines][APART].
void flip(const Outer& o, bf16* to) {
    Range mine = own(lines_of(o) / LANES);
    for (int64_t row = 0; row < steps_of(o); row += LANES)
        for (int64_t block = mine.begin; block < mine.end; block++) {
            F square[LANES];
            for (int i = 0; i < LANES; i++) {
                int64_t count = row + i < o.rows ? o.smaller - block * LANES : 0;
                square[i] = (F)low_halves(some_halves(o.small + (row + i) * o.smaller_apart + block * LANES, count));
            }
            turn_square(square);
            bf16* lines = to + row / STEPS * lines_of(o) * APART + block * LANES * APART + row % STEPS;
            for (int i = 0; i < LANES; i++) {
                H line = from_low_halves((U)square[i]);
                std::memcpy(lines + i * APART, &line, sizeof(line));
            }
        }
}

// Some columns of the larger factor in panels [columns / 16][steps / 2][16][2], rows from `begin` to `end`.
void pair_up(const Outer& o, int64_t column, int64_t begin, int64_t end, bf16* to) {
    for (int64_t row = begin; row < end; row += 2) {
        const bf16* from = o.large + row * o.larger_apart + column;
        if (row + 16 < o.rows)
            for (int64_t place = 0; place < COLUMNS; place += 32) {
                __builtin_prefetch(from + 16 * o.larger_apart + place);
                __builtin_prefetch(from + 17 * o.larger_apart + place);
            }
        for (int64_t place = 0; place < COLUMNS; place += LANES) {
            int64_t count = o.larger - column - place;
            U line = pair_of(from + place, row < o.rows ? count : 0, from + o.larger_apart + place, row + 1 < o.rows ? count : 0);
            std::memcpy(to + (place / WIDE * STEPS + row - begin) * WIDE + place % WIDE * 2, &line, sizeof(line));
        }
    }
}

// Sums [lines][COLUMNS] to their place in the result.
void place(const Outer& o, const float* sums, int64_t column) {
    int64_t columns = std::min(COLUMNS, o.larger - column);
    if (o.turned) return put_turned(sums, COLUMNS, columns, o.smaller, o.to + column * o.smaller, o.adds);
    for (int64_t line = 0; line < o.smaller; line++)
        for (int64_t i = 0; i < columns; i += LANES)
            put_vector(o.to + line * o.larger + column + i, load<F>(sums + line * COLUMNS + i), columns - i, o.adds);
}

void outer(const Outer& o, bf16* flipped) {
    flip(o, flipped);
#pragma omp barrier
    Tiles tiles;
    int64_t lines = lines_of(o);
    Numbers<bf16> pairs(COLUMNS * STEPS);
    Numbers<float> sums(lines * COLUMNS);
    Range mine = own((o.larger + COLUMNS - 1) / COLUMNS);
    for (int64_t block = mine.begin; block < mine.end; block++) {
        for (int64_t begin = 0; begin < steps_of(o); begin += STEPS) {
            int64_t end = std::min(begin + STEPS, steps_of(o));
            pair_up(o, block * COLUMNS, begin, end, pairs.data());
            const bf16* some = flipped + begin / STEPS * lines * APART;
            // Few columns at a time: their pairs stay in the nearest cache while all lines meet them.
            for (int64_t place = 0; place < COLUMNS; place += 2 * WIDE) {
                HalfFactors f{some, APART, pairs.data() + place * STEPS, STEPS * WIDE, sums.data() + place, COLUMNS};
                if (begin == 0) product<false>(f, lines, 2 * WIDE, end - begin);
                else product<true>(f, lines, 2 * WIDE, end - begin);
            }
        }
        place(o, sums.data(), block * COLUMNS);
    }
}

}  // namespace

extern "C" {

void olmo2_outer(const Outer* o, int threads) {
    Numbers<bf16> flipped(padded(steps_of(*o), STEPS) / STEPS * lines_of(*o) * APART);
#pragma omp parallel num_threads(threads)
    outer(*o, flipped.data());
}

// Whether this code multiplies by matrix tiles.
int olmo2_has_tiles() {
#if defined(OLMO2_AMX)
    return 1;
#else
    return 0;
#endif
}
}
