// Causal attention for training on CPUs, forward and backward; `model/network/fused.py` calls it. The backward pass computes the
// scores again from the logarithms of their sums, so that nothing of size length x length is kept (FlashAttention, Dao et al. 2022).
//
// fp32 is multiplied by vectors. bf16 is multiplied in bf16 and summed in fp32, by matrix tiles or dot products where the processor
// has them. There the weights of the values and the slopes of the scores are rounded to bf16 before they are multiplied, as
// FlashAttention does on accelerators.

#include "half_products.h"

namespace {

constexpr int64_t QUERY_ROWS = 128;  // whose scores are held at a time

struct Attention {
    int64_t batch, length, heads, kv_heads, dim;

    int64_t columns() const { return padded(length, LANES); }
    int64_t group() const { return heads / kv_heads; }
};

// ---- fp32

// A factor [rows, inner] by strides, another [inner, columns] by rows, and where their product goes.
struct Factors {
    const float* a;
    int64_t a_row, a_step;
    const float* b;
    int64_t b_row;
    float* to;
    int64_t to_row;
};

template <int R, int V, bool ADD> inline void tile(const Factors& f, int64_t row, int64_t column, int64_t begin, int64_t end) {
    F sum[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            sum[r][v] = ADD ? load<F>(f.to + (row + r) * f.to_row + column + v * LANES) : F{};
    for (int64_t step = begin; step < end; step++) {
        F line[V];
        for (int v = 0; v < V; v++) line[v] = load<F>(f.b + step * f.b_row + column + v * LANES);
        for (int r = 0; r < R; r++) {
            float factor = f.a[(row + r) * f.a_row + step * f.a_step];
            for (int v = 0; v < V; v++) sum[r][v] += factor * line[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(f.to + (row + r) * f.to_row + column + v * LANES, sum[r][v]);
}

constexpr int FEW_ROWS = 4, TILE_VECTORS = LANES == 16 ? 4 : 2;

template <int R, bool ADD> void line(const Factors& f, int64_t row, int64_t columns, int64_t begin, int64_t end) {
    int64_t column = 0;
    for (; column + TILE_VECTORS * LANES <= columns; column += TILE_VECTORS * LANES)
        tile<R, TILE_VECTORS, ADD>(f, row, column, begin, end);
    for (; column + 2 * LANES <= columns; column += 2 * LANES) tile<R, 2, ADD>(f, row, column, begin, end);
    for (; column < columns; column += LANES) tile<R, 1, ADD>(f, row, column, begin, end);
}

// Rows [first, last) of the product, over steps [begin, end) of what both share; columns are whole vectors.
template <bool ADD>
void product(const Factors& f, int64_t first, int64_t last, int64_t columns, int64_t begin, int64_t end) {
    for (; first + FEW_ROWS <= last; first += FEW_ROWS) line<FEW_ROWS, ADD>(f, first, columns, begin, end);
    for (; first < last; first++) line<1, ADD>(f, first, columns, begin, end);
}

// One thread's fp32 copies of what a head's matmuls read, and their results. Zeros where a row is padded to whole vectors.
struct Scratch {
    Numbers<float> q, k, v, k_turned, v_turned, out, q_gradient, k_gradient, v_gradient, scores, slopes;

    Scratch(const Attention& a, bool backward) {
        int64_t size = a.length * a.dim, turned = a.columns() * a.dim, block = QUERY_ROWS * a.columns();
        for (auto* one : {&q, &k, &v}) one->resize(size);
        k_turned.resize(turned);
        scores.resize(block);
        if (!backward) {
            out.resize(QUERY_ROWS * a.dim);
            return;
        }
        for (auto* one : {&out, &k_gradient, &v_gradient}) one->resize(size);
        q_gradient.resize(QUERY_ROWS * a.dim);
        v_turned.resize(turned);
        slopes.resize(block);
    }
};

inline void scaled(const float* from, int64_t count, float scale, float* to) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i] * scale;
}

// [length, dim] -> [dim, columns].
inline void turn(const Attention& a, const float* from, float* to) {
    for (int64_t row = 0; row < a.length; row += LANES) {
        int64_t rows = std::min<int64_t>(LANES, a.length - row);
        for (int64_t place = 0; place < a.dim; place += LANES) {
            F square[LANES] = {};
            for (int64_t i = 0; i < rows; i++) square[i] = load<F>(from + (row + i) * a.dim + place);
            turn_square(square);
            for (int64_t i = 0; i < LANES; i++) store(to + (place + i) * a.columns() + row, square[i]);
        }
    }
}

inline void read(const Attention& a, const float* keys, const float* values, Scratch& s) {
    scaled(keys, a.length * a.dim, 1, s.k.data());
    turn(a, s.k.data(), s.k_turned.data());
    scaled(values, a.length * a.dim, 1, s.v.data());
}

// Of the queries [begin, end): a product with keys as columns, of which each tile of rows needs those up to its last query. What
// lies behind them is not read.
inline void by_keys(const Attention& a, const float* queries, const float* turned, int64_t begin, int64_t end, float* to) {
    Factors f{queries + begin * a.dim, a.dim, 1, turned, a.columns(), to, a.columns()};
    for (int64_t row = begin; row < end; row += FEW_ROWS) {
        int64_t last = std::min(row + FEW_ROWS, end);
        product<false>(f, row - begin, last - begin, padded(last, LANES), 0, a.dim);
    }
}

// The same with keys as the steps of the sums.
inline void over_keys(const Attention& a, const float* weights, const float* lines, int64_t begin, int64_t end, float* to) {
    Factors f{weights, a.columns(), 1, lines, a.dim, to, a.dim};
    for (int64_t row = begin; row < end; row += FEW_ROWS) {
        int64_t last = std::min(row + FEW_ROWS, end);
        product<false>(f, row - begin, last - begin, a.dim, 0, last);
    }
}

void attend(const Attention& a, const float* q, const float* k, const float* v, float* out, float* log_sums) {
    Scratch s(a, false);
    float scale = 1 / std::sqrt(float(a.dim));
    int64_t size = a.length * a.dim, columns = a.columns();
    Range mine = own(a.batch * a.kv_heads);
    for (int64_t pair = mine.begin; pair < mine.end; pair++) {
        read(a, k + pair * size, v + pair * size, s);
        for (int64_t head = pair * a.group(); head < (pair + 1) * a.group(); head++) {
            scaled(q + head * size, size, scale, s.q.data());
            int64_t text = head / a.heads, place = head % a.heads;
            for (int64_t begin = 0; begin < a.length; begin += QUERY_ROWS) {
                int64_t end = std::min(begin + QUERY_ROWS, a.length);
                by_keys(a, s.q.data(), s.k_turned.data(), begin, end, s.scores.data());
                for (int64_t row = begin; row < end; row++) {
                    float *line = s.scores.data() + (row - begin) * columns, top = line[0], sum = 0;
                    // Whole vectors: the rest of a loop would be computed one by one.
                    int64_t seen = padded(row + 1, LANES);
                    std::fill(line + row + 1, line + seen, -INFINITY);
#pragma omp simd reduction(max : top)
                    for (int64_t i = 0; i < seen; i++) top = std::max(top, line[i]);
#pragma omp simd
                    for (int64_t i = 0; i < seen; i++) line[i] = exponential(line[i] - top);
                    // Also what a tile of rows reads of later keys.
                    std::fill(line + row + 1, line + seen, 0.0f);
#pragma omp simd reduction(+ : sum)
                    for (int64_t i = 0; i < seen; i++) sum += line[i];
                    float part = 1 / sum;
#pragma omp simd
                    for (int64_t i = 0; i < seen; i++) line[i] *= part;
                    log_sums[head * a.length + row] = top + std::log(sum);
                }
                over_keys(a, s.scores.data(), s.v.data(), begin, end, s.out.data());
                for (int64_t row = begin; row < end; row++) {
                    float* to = out + ((text * a.length + row) * a.heads + place) * a.dim;
                    const float* from = s.out.data() + (row - begin) * a.dim;
#pragma omp simd
                    for (int64_t i = 0; i < a.dim; i++) to[i] = from[i];
                }
            }
        }
    }
}

// The weights and the slopes of scores of the queries [begin, end): P and dS of FlashAttention (Dao et al. 2022).
void slopes(const Attention& a, Scratch& s, const float* out, int64_t head, int64_t begin, int64_t end, const float* log_sums) {
    int64_t columns = a.columns(), text = head / a.heads, place = head % a.heads;
    by_keys(a, s.q.data(), s.k_turned.data(), begin, end, s.scores.data());
    by_keys(a, s.out.data(), s.v_turned.data(), begin, end, s.slopes.data());
    for (int64_t row = begin; row < end; row++) {
        float *weights = s.scores.data() + (row - begin) * columns, *slope = s.slopes.data() + (row - begin) * columns;
        const float* made = out + ((text * a.length + row) * a.heads + place) * a.dim;
        const float* given = s.out.data() + row * a.dim;
        float along = 0, log_sum = log_sums[head * a.length + row];
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < a.dim; i++) along += given[i] * made[i];
        int64_t seen = padded(row + 1, LANES);
#pragma omp simd
        for (int64_t i = 0; i < seen; i++) {
            weights[i] = exponential(weights[i] - log_sum);
            slope[i] = weights[i] * (slope[i] - along);
        }
        // The matmuls below read whole blocks: keys after a query's own position have no part in it.
        std::fill(weights + row + 1, weights + std::min(padded(end, LANES), columns), 0.0f);
        std::fill(slope + row + 1, slope + std::min(padded(end, LANES), columns), 0.0f);
    }
}

void attend_gradient(const Attention& a, const float* q, const float* k, const float* v, const float* out,
                     const float* log_sums, const float* gradient, float* to_q, float* to_k, float* to_v) {
    Scratch s(a, true);
    float scale = 1 / std::sqrt(float(a.dim));
    int64_t size = a.length * a.dim, columns = a.columns();
    Range mine = own(a.batch * a.kv_heads);
    for (int64_t pair = mine.begin; pair < mine.end; pair++) {
        read(a, k + pair * size, v + pair * size, s);
        turn(a, s.v.data(), s.v_turned.data());
        std::fill(s.k_gradient.begin(), s.k_gradient.end(), 0.0f);
        std::fill(s.v_gradient.begin(), s.v_gradient.end(), 0.0f);
        for (int64_t head = pair * a.group(); head < (pair + 1) * a.group(); head++) {
            scaled(q + head * size, size, scale, s.q.data());
            int64_t text = head / a.heads, place = head % a.heads;
            for (int64_t row = 0; row < a.length; row++)
                scaled(gradient + ((text * a.length + row) * a.heads + place) * a.dim, a.dim, 1, s.out.data() + row * a.dim);
            for (int64_t begin = 0; begin < a.length; begin += QUERY_ROWS) {
                int64_t end = std::min(begin + QUERY_ROWS, a.length);
                slopes(a, s, out, head, begin, end, log_sums);
                over_keys(a, s.slopes.data(), s.k.data(), begin, end, s.q_gradient.data());
                for (int64_t row = begin; row < end; row++)
                    for (int64_t i = 0; i < a.dim; i++)
                        to_q[head * size + row * a.dim + i] = scale * s.q_gradient[(row - begin) * a.dim + i];
                const float *queries = s.q.data() + begin * a.dim, *given = s.out.data() + begin * a.dim;
                Factors by_key{s.slopes.data(), 1, columns, queries, a.dim, s.k_gradient.data(), a.dim};
                product<true>(by_key, 0, end, a.dim, 0, end - begin);
                Factors by_value{s.scores.data(), 1, columns, given, a.dim, s.v_gradient.data(), a.dim};
                product<true>(by_value, 0, end, a.dim, 0, end - begin);
            }
        }
        for (int64_t i = 0; i < size; i++) to_k[pair * size + i] = s.k_gradient[i];
        for (int64_t i = 0; i < size; i++) to_v[pair * size + i] = s.v_gradient[i];
    }
}

// ---- bf16

// Lines [rows][width] of one head: where they are if they are whole squares, else copied and padded with zeros.
struct Lines {
    Numbers<bf16> copy;
    const bf16* first = nullptr;
    int64_t rows, width, stride;

    Lines(int64_t count, int64_t dim) : rows(padded(count, 32)), width(padded(dim, 32)), stride(width) {}

    const bf16* at(int64_t row) const { return first + row * stride; }
    void read(const bf16* from, int64_t apart, int64_t count, int64_t dim) {
        first = from, stride = apart;
        if (count == rows && dim == width) return;
        copy.resize(rows * width);
        for (int64_t row = 0; row < count; row++) std::memcpy(copy.data() + row * width, from + row * apart, dim * sizeof(bf16));
        first = copy.data(), stride = width;
    }

    void turned(bf16* to) const { turn_pairs(first, stride, rows, width, to); }
    void by_pairs(bf16* to) const { pair_rows(first, stride, rows, width, to); }
    void flipped(bf16* to, int64_t apart) const { flip_halves(first, stride, rows, width, to, apart); }
};

// Turns [dim][rows], lines so far apart, back into lines of bf16.
inline void turn_back(const float* from, int64_t apart, int64_t length, int64_t dim, bf16* to) {
    for (int64_t row = 0; row < length; row += LANES)
        for (int64_t place = 0; place < dim; place += LANES) {
            F square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = load<F>(from + (place + i) * apart + row);
            turn_square(square);
            int64_t count = std::min<int64_t>(LANES, length - row);
            for (int64_t i = 0; i < count; i++) store(to + (row + i) * dim + place, square[i]);
        }
}

// One thread's copies and results of a head.
struct HalfScratch {
    Lines q, k, v, given;
    int64_t rows, width;
    int64_t apart;  // between lines over all positions: without more than those, lines would meet in the same places of the cache
    Numbers<bf16> k_turned, v_turned, k_pairs, v_pairs, q_flipped, given_flipped, weights, slopes, weight_pairs, slope_pairs;
    Numbers<float> scores, inner, out, k_gradient, v_gradient;

    HalfScratch(const Attention& a, bool backward)
        : q(a.length, a.dim), k(a.length, a.dim), v(a.length, a.dim), given(backward ? a.length : 0, a.dim), rows(q.rows),
          width(q.width), apart(rows + 32) {
        int64_t size = rows * width, block = QUERY_ROWS * apart;
        k_turned.resize(size);
        scores.resize(block);
        out.resize(QUERY_ROWS * width);
        if (!backward) {
            weights.resize(block);
            v_pairs.resize(size);
            return;
        }
        for (auto* one : {&v_turned, &k_pairs}) one->resize(size);
        for (auto* one : {&q_flipped, &given_flipped}) one->resize(width * apart);
        for (auto* one : {&slopes, &weight_pairs, &slope_pairs}) one->resize(block);
        for (auto* one : {&k_gradient, &v_gradient}) one->resize(width * apart);
        inner.resize(block);
    }
};

// Products of some lines with all lines up to the last of them: scores, or what comes back to the weights.
inline void with_earlier(const Lines& lines, const bf16* turned, int64_t begin, int64_t end, int64_t dim, float* to,
                         int64_t apart) {
    int64_t steps = padded(dim, FINE == 32 ? 32 : 2);
    for (int64_t row = begin; row < end; row += FINE)
        product<false>({lines.at(row), lines.stride, turned, WIDE * lines.width, to + (row - begin) * apart, apart}, FINE,
                       row + FINE, steps);
}

// Sums over all lines up to each, weighted: rows [begin, end) of weights by rows, lines by pairs.
inline void over_earlier(const bf16* weights, const bf16* pairs, int64_t apart, int64_t rows, int64_t width, int64_t begin,
                         int64_t end, int64_t dim, float* to) {
    for (int64_t row = begin; row < end; row += FINE)
        product<false>({weights + (row - begin) * apart, apart, pairs, WIDE * rows, to + (row - begin) * width, width}, FINE,
                       padded(dim, WIDE), row + FINE);
}

// e**(score - top) of a query, rounded, zeros up to `end`; the sum of what is rounded, and the row's top.
inline float powers(const float* scores, float scale, int64_t row, int64_t end, bf16* to, float* top) {
    F highest = spread(-INFINITY);
    int64_t place = 0;
    for (; place + LANES <= row + 1; place += LANES) {
        F score = load<F>(scores + place);
        highest = score > highest ? score : highest;
    }
    if (place <= row) {
        F score = up_to(load<F>(scores + place), place, row, -INFINITY);
        highest = score > highest ? score : highest;
    }
    float most = highest[0];
    for (int lane = 1; lane < LANES; lane++) most = std::max(most, highest[lane]);
    *top = most * scale;
    F sum{}, away = spread(*top);
    for (place = 0; place + LANES <= row + 1; place += LANES) {
        F power = rounded<bf16>(exponential(load<F>(scores + place) * scale - away));
        sum += power;
        store(to + place, power);
    }
    if (place <= row) {
        F power = up_to(rounded<bf16>(exponential(load<F>(scores + place) * scale - away)), place, row, 0);
        sum += power;
        store(to + place, power);
        place += LANES;
    }
    for (; place < end; place += LANES) store(to + place, F{});
    return sum_of(sum);
}

void attend(const Attention& a, const bf16* q, const bf16* k, const bf16* v, bf16* out, float* log_sums) {
    HalfScratch s(a, false);
    Tiles tiles;
    float scale = 1 / std::sqrt(float(a.dim));
    int64_t size = a.length * a.dim;
    Range mine = own(a.batch * a.kv_heads);
    for (int64_t pair = mine.begin; pair < mine.end; pair++) {
        s.k.read(k + pair * size, a.dim, a.length, a.dim);
        s.k.turned(s.k_turned.data());
        s.v.read(v + pair * size, a.dim, a.length, a.dim);
        s.v.by_pairs(s.v_pairs.data());
        for (int64_t head = pair * a.group(); head < (pair + 1) * a.group(); head++) {
            s.q.read(q + head * size, a.dim, a.length, a.dim);
            int64_t text = head / a.heads, place = head % a.heads;
            for (int64_t begin = 0; begin < a.length; begin += QUERY_ROWS) {
                int64_t end = std::min(begin + QUERY_ROWS, a.length), fine_end = padded(end, FINE);
                with_earlier(s.q, s.k_turned.data(), begin, fine_end, a.dim, s.scores.data(), s.apart);
                float sums[QUERY_ROWS];
                for (int64_t row = begin; row < fine_end; row++) {
                    bf16* to = s.weights.data() + (row - begin) * s.apart;
                    float top = 0;
                    // The lines behind the last have no weights that are read, but what they hold must be numbers.
                    int64_t own_row = std::min(row, end - 1);
                    sums[row - begin] = powers(s.scores.data() + (own_row - begin) * s.apart, scale, own_row, padded(row + 1, FINE), to, &top);
                    if (row < end) log_sums[head * a.length + row] = top + std::log(sums[row - begin]);
                }
                over_earlier(s.weights.data(), s.v_pairs.data(), s.apart, s.rows, s.width, begin, fine_end, a.dim, s.out.data());
                for (int64_t row = begin; row < end; row++) {
                    bf16* to = out + ((text * a.length + row) * a.heads + place) * a.dim;
                    float part = 1 / sums[row - begin];
                    for (int64_t i = 0; i < a.dim; i += LANES)
                        store(to + i, load<F>(s.out.data() + (row - begin) * s.width + i) * part);
                }
            }
        }
    }
}

// What the backward pass knows of one query.
struct Query {
    const float *scores, *inner;
    float log_sum, along;
    int64_t row;  // -1 behind the last
};

// P and dS (FlashAttention) of one query at some keys, as bf16 in the low halves: zero behind the query's own position.
inline void slopes_at(const Query& query, float scale, int64_t place, U* weights, U* slopes) {
    if (place > query.row) {
        *weights = *slopes = U{};
        return;
    }
    F weight = exponential(load<F>(query.scores + place) * scale - query.log_sum);
    F slope = weight * (load<F>(query.inner + place) - query.along) * scale;
    if (place + LANES > query.row + 1) {
        weight = up_to(weight, place, query.row, 0);
        slope = up_to(slope, place, query.row, 0);
    }
    *weights = low_halves(halves(weight));
    *slopes = low_halves(halves(slope));
}

// Those of two queries that follow each other, by pairs; slopes by rows as well.
inline void slopes_of(const Query* two, float scale, int64_t index, int64_t fine_end, HalfScratch& s) {
    for (int64_t place = 0; place < fine_end; place += LANES) {
        U weights[2], slopes[2];
        for (int i = 0; i < 2; i++) {
            slopes_at(two[i], scale, place, &weights[i], &slopes[i]);
            H line = from_low_halves(slopes[i]);
            std::memcpy(s.slopes.data() + (index + i) * s.apart + place, &line, sizeof(line));
        }
        U weight_line = weights[0] | weights[1] << 16, slope_line = slopes[0] | slopes[1] << 16;
        int64_t at = (place / WIDE * QUERY_ROWS + index) * WIDE + place % WIDE * 2;
        std::memcpy(s.weight_pairs.data() + at, &weight_line, sizeof(weight_line));
        std::memcpy(s.slope_pairs.data() + at, &slope_line, sizeof(slope_line));
    }
}

void attend_gradient(const Attention& a, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const float* log_sums,
                     const bf16* gradient, bf16* to_q, bf16* to_k, bf16* to_v) {
    HalfScratch s(a, true);
    Tiles tiles;
    float scale = 1 / std::sqrt(float(a.dim));
    int64_t size = a.length * a.dim, dims = padded(a.dim, WIDE);
    Range mine = own(a.batch * a.kv_heads);
    for (int64_t pair = mine.begin; pair < mine.end; pair++) {
        s.k.read(k + pair * size, a.dim, a.length, a.dim);
        s.k.turned(s.k_turned.data());
        s.k.by_pairs(s.k_pairs.data());
        s.v.read(v + pair * size, a.dim, a.length, a.dim);
        s.v.turned(s.v_turned.data());
        std::fill(s.k_gradient.begin(), s.k_gradient.end(), 0.0f);
        std::fill(s.v_gradient.begin(), s.v_gradient.end(), 0.0f);
        for (int64_t head = pair * a.group(); head < (pair + 1) * a.group(); head++) {
            int64_t text = head / a.heads, place = head % a.heads, across = a.heads * a.dim;
            int64_t first = text * a.length * across + place * a.dim;
            s.q.read(q + head * size, a.dim, a.length, a.dim);
            s.q.flipped(s.q_flipped.data(), s.apart);
            s.given.read(gradient + first, across, a.length, a.dim);
            s.given.flipped(s.given_flipped.data(), s.apart);
            for (int64_t begin = 0; begin < a.length; begin += QUERY_ROWS) {
                int64_t end = std::min(begin + QUERY_ROWS, a.length), fine_end = padded(end, FINE);
                with_earlier(s.q, s.k_turned.data(), begin, fine_end, a.dim, s.scores.data(), s.apart);
                with_earlier(s.given, s.v_turned.data(), begin, fine_end, a.dim, s.inner.data(), s.apart);
                for (int64_t row = begin; row < fine_end; row += 2) {
                    Query two[2];
                    for (int i = 0; i < 2; i++) {
                        int64_t at = std::min(row + i, end - 1), index = at - begin;
                        F along{};
                        for (int64_t c = 0; c < a.dim; c += LANES)
                            along += load_wide(s.given.at(at) + c) * load_wide(out + first + at * across + c);
                        two[i] = {s.scores.data() + index * s.apart, s.inner.data() + index * s.apart, log_sums[head * a.length + at],
                                  sum_of(along), row + i < end ? at : -1};
                    }
                    slopes_of(two, scale, row - begin, fine_end, s);
                }
                over_earlier(s.slopes.data(), s.k_pairs.data(), s.apart, s.rows, s.width, begin, fine_end, a.dim, s.out.data());
                for (int64_t row = begin; row < end; row++)
                    for (int64_t i = 0; i < a.dim; i += LANES)
                        store(to_q + head * size + row * a.dim + i, load<F>(s.out.data() + (row - begin) * s.width + i));
                product<true>({s.q_flipped.data() + begin, s.apart, s.slope_pairs.data(), QUERY_ROWS * WIDE, s.k_gradient.data(), s.apart},
                              dims, fine_end, fine_end - begin);
                product<true>({s.given_flipped.data() + begin, s.apart, s.weight_pairs.data(), QUERY_ROWS * WIDE, s.v_gradient.data(), s.apart},
                              dims, fine_end, fine_end - begin);
            }
        }
        turn_back(s.k_gradient.data(), s.apart, a.length, a.dim, to_k + pair * size);
        turn_back(s.v_gradient.data(), s.apart, a.length, a.dim, to_v + pair * size);
    }
}

}  // namespace

extern "C" {

// Numbers are fp32, or bf16 where `half` is not 0.

void olmo2_attend(int half, const Attention* a, const void* q, const void* k, const void* v, void* out, float* log_sums,
                  int threads) {
#pragma omp parallel num_threads(threads)
    if (half) attend(*a, (const bf16*)q, (const bf16*)k, (const bf16*)v, (bf16*)out, log_sums);
    else attend(*a, (const float*)q, (const float*)k, (const float*)v, (float*)out, log_sums);
}

void olmo2_attend_gradient(int half, const Attention* a, const void* q, const void* k, const void* v, const void* out,
                           const float* log_sums, const void* gradient, void* to_q, void* to_k, void* to_v, int threads) {
#pragma omp parallel num_threads(threads)
    if (half)
        attend_gradient(*a, (const bf16*)q, (const bf16*)k, (const bf16*)v, (const bf16*)out, log_sums, (const bf16*)gradient,
                        (bf16*)to_q, (bf16*)to_k, (bf16*)to_v);
    else
        attend_gradient(*a, (const float*)q, (const float*)k, (const float*)v, (const float*)out, log_sums,
                        (const float*)gradient, (float*)to_q, (float*)to_k, (float*)to_v);
}
}
