// Parts of a transformer's training on CPUs that read and write much and compute little: norms, rotary embedding, SwiGLU,
// and attention within short rows. `model/network/fused.py` calls them, forward and backward.
//
// Each is one pass over its inputs, where PyTorch's operations are up to a dozen with a temporary each. They round at the places
// where those do, once to the type of the activations; sums are fp32.

#include "vectors.h"
#include <vector>

namespace {

// This thread's part of so many.
inline Range own(int64_t count) { return share(count, omp_get_thread_num(), omp_get_num_threads()); }

template <class T> float scale_of(const T* x, int64_t width, float epsilon) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) squares += wide(x[i]) * wide(x[i]);
    return 1 / std::sqrt(squares / float(width) + epsilon);
}

// ---- norms

// out = norm(x) * weight, plus the residual where there is one.
template <class T>
void norm(const T* x, const float* weight, const T* residual, int64_t rows, int64_t width, float epsilon, T* out,
          float* scales) {
    Range mine = own(rows);
    for (int64_t row = mine.begin; row < mine.end; row++) {
        const T* from = x + row * width;
        T* to = out + row * width;
        float scale = scales[row] = scale_of(from, width, epsilon);
        if (residual == nullptr) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) to[i] = narrow<T>(wide(from[i]) * scale * weight[i]);
            continue;
        }
        const T* added = residual + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            to[i] = narrow<T>(wide(added[i]) + rounded<T>(wide(from[i]) * scale * weight[i]));
    }
}

// The gradient of one normed vector, of which `gradient` is the output's: x's goes to `to`, the weight's is added to `sums`.
template <class T, class G>
inline void norm_gradient(const T* x, const float* weight, float scale, const G* gradient, int64_t width, T* to, float* sums) {
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < width; i++) {
        float normed = wide(x[i]) * scale, given = wide(gradient[i]);
        sums[i] += given * normed;
        along += given * weight[i] * normed;
    }
    along /= float(width);
#pragma omp simd
    for (int64_t i = 0; i < width; i++)
        to[i] = narrow<T>(scale * (wide(gradient[i]) * weight[i] - wide(x[i]) * scale * along));
}

// ---- queries, keys and values

struct Heads {
    int64_t batch, length, heads, kv_heads, dim;
    float epsilon;
    const float *cosines, *sines;  // [length, dim]

    int64_t width(bool query) const { return (query ? heads : kv_heads) * dim; }
    int64_t stride() const { return width(true) + 2 * width(false); }
};

// Calls `part` with half of a head's width as a constant, where it is a usual one: without, short loops are not made vectors.
template <class Part> void with_half(int64_t dim, Part part) {
    if (dim == 16) part(std::integral_constant<int64_t, 8>());
    else if (dim == 32) part(std::integral_constant<int64_t, 16>());
    else if (dim == 64) part(std::integral_constant<int64_t, 32>());
    else part(dim / 2);
}

// Norms a projection of one token and turns each of its heads by the position; heads lie [heads, length, dim] in the result.
template <class T, class Half>
void turned(const Heads& h, const T* x, const float* weight, float scale, int64_t heads, int64_t position, T* to, Half half) {
    const float *c = h.cosines + position * h.dim, *s = h.sines + position * h.dim;
    for (int64_t head = 0; head < heads; head++) {
        const T* from = x + head * h.dim;
        const float* w = weight + head * h.dim;
        T* out = to + (head * h.length + position) * h.dim;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            float a = rounded<T>(wide(from[i]) * scale * w[i]), b = rounded<T>(wide(from[i + half]) * scale * w[i + half]);
            out[i] = narrow<T>(a * c[i] - b * s[i]);
            out[i + half] = narrow<T>(b * c[i + half] + a * s[i + half]);
        }
    }
}

// The other way: gradients of turned heads, turned back; fp32 [heads * dim].
template <class T, class Half>
void turned_back(const Heads& h, const T* gradient, int64_t heads, int64_t position, float* to, Half half) {
    const float *c = h.cosines + position * h.dim, *s = h.sines + position * h.dim;
    for (int64_t head = 0; head < heads; head++) {
        const T* from = gradient + (head * h.length + position) * h.dim;
        float* out = to + head * h.dim;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            float a = wide(from[i]), b = wide(from[i + half]);
            out[i] = a * c[i] + b * s[i + half];
            out[i + half] = b * c[i + half] - a * s[i];
        }
    }
}

template <class T>
void heads(const Heads& h, const T* x, const float* q_weight, const float* k_weight, T* q, T* k, T* v, float* scales) {
    Range mine = own(h.batch * h.length);
    int64_t queries = h.width(true), keys = h.width(false);
    for (int64_t row = mine.begin; row < mine.end; row++) {
        int64_t text = row / h.length, position = row % h.length;
        const T* from = x + row * h.stride();
        scales[2 * row] = scale_of(from, queries, h.epsilon);
        scales[2 * row + 1] = scale_of(from + queries, keys, h.epsilon);
        with_half(h.dim, [&](auto half) {
            turned(h, from, q_weight, scales[2 * row], h.heads, position, q + text * h.length * queries, half);
            turned(h, from + queries, k_weight, scales[2 * row + 1], h.kv_heads, position, k + text * h.length * keys, half);
        });
        for (int64_t head = 0; head < h.kv_heads; head++)
            std::memcpy(v + ((text * h.kv_heads + head) * h.length + position) * h.dim,
                        from + queries + keys + head * h.dim, h.dim * sizeof(T));
    }
}

template <class T>
void heads_gradient(const Heads& h, const T* x, const float* q_weight, const float* k_weight, const float* scales,
                    const T* q, const T* k, const T* v, T* to, float* sums) {
    Range mine = own(h.batch * h.length);
    int64_t queries = h.width(true), keys = h.width(false);
    std::vector<float> back(queries + keys);
    for (int64_t row = mine.begin; row < mine.end; row++) {
        int64_t text = row / h.length, position = row % h.length;
        const T* from = x + row * h.stride();
        T* out = to + row * h.stride();
        with_half(h.dim, [&](auto half) {
            turned_back(h, q + text * h.length * queries, h.heads, position, back.data(), half);
            turned_back(h, k + text * h.length * keys, h.kv_heads, position, back.data() + queries, half);
        });
        norm_gradient(from, q_weight, scales[2 * row], back.data(), queries, out, sums);
        norm_gradient(from + queries, k_weight, scales[2 * row + 1], back.data() + queries, keys, out + queries, sums + queries);
        for (int64_t head = 0; head < h.kv_heads; head++)
            std::memcpy(out + queries + keys + head * h.dim,
                        v + ((text * h.kv_heads + head) * h.length + position) * h.dim, h.dim * sizeof(T));
    }
}

// ---- SwiGLU

// x [rows, 2 * width] holds gate and up of each row.
template <class T> void gated_rows(const T* x, int64_t rows, int64_t width, T* out) {
    Range mine = own(rows);
    for (int64_t row = mine.begin; row < mine.end; row++)
        gated(x + row * 2 * width, x + row * 2 * width + width, width, out + row * width);
}

template <class T> void gated_gradient(const T* x, const T* gradient, int64_t rows, int64_t width, T* out) {
    Range mine = own(rows);
    for (int64_t row = mine.begin; row < mine.end; row++) {
        const T *gate = x + row * 2 * width, *up = gate + width, *given = gradient + row * width;
        T *to_gate = out + row * 2 * width, *to_up = to_gate + width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float g = wide(gate[i]), d = wide(given[i]), opened = 1 / (1 + exponential(-g));
            to_up[i] = narrow<T>(d * rounded<T>(g * opened));
            to_gate[i] = narrow<T>(d * wide(up[i]) * opened * (1 + g * (1 - opened)));
        }
    }
}

// ---- attention

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

constexpr int TILE_ROWS = 4, TILE_VECTORS = LANES == 16 ? 4 : 2;

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
    for (; first + TILE_ROWS <= last; first += TILE_ROWS) line<TILE_ROWS, ADD>(f, first, columns, begin, end);
    for (; first < last; first++) line<1, ADD>(f, first, columns, begin, end);
}

constexpr int64_t QUERY_ROWS = 64;  // whose scores are held at a time

struct Attention {
    int64_t batch, length, heads, kv_heads, dim;

    int64_t columns() const { return padded(length, LANES); }
    int64_t group() const { return heads / kv_heads; }
};

// One thread's fp32 copies of what a head's matmuls read, and their results. Zeros where a row is padded to whole vectors.
struct Scratch {
    std::vector<float> q, k, v, k_turned, v_turned, out, q_gradient, k_gradient, v_gradient, scores, slopes;

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

template <class T> void widen(const T* from, int64_t count, float scale, float* to) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) to[i] = wide(from[i]) * scale;
}

#if defined(__clang__)
// [length, dim] -> [dim, columns].
inline void turn(const Attention& a, const float* from, float* to) {
    for (int64_t row = 0; row < a.length; row++)
        for (int64_t i = 0; i < a.dim; i++) to[i * a.columns() + row] = from[row * a.dim + i];
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

// [length, dim] -> [dim, columns].
inline void turn(const Attention& a, const float* from, float* to) {
    for (int64_t row = 0; row < a.length; row += LANES) {
        int64_t rows = std::min<int64_t>(LANES, a.length - row);
        for (int64_t place = 0; place < a.dim; place += LANES) {
            F square[LANES] = {};
            for (int64_t i = 0; i < rows; i++) square[i] = load<F>(from + (row + i) * a.dim + place);
            exchange<1>(square);
            exchange<2>(square);
            exchange<4>(square);
            if constexpr (LANES == 16) exchange<8>(square);
            for (int64_t i = 0; i < LANES; i++) store(to + (place + i) * a.columns() + row, square[i]);
        }
    }
}
#endif

template <class T> void read(const Attention& a, const T* keys, const T* values, Scratch& s) {
    widen(keys, a.length * a.dim, 1, s.k.data());
    turn(a, s.k.data(), s.k_turned.data());
    widen(values, a.length * a.dim, 1, s.v.data());
}

// Of the queries [begin, end): a product with keys as columns, of which each tile of rows needs those up to its last query. What
// lies behind them is not read.
inline void by_keys(const Attention& a, const float* queries, const float* turned, int64_t begin, int64_t end, float* to) {
    Factors f{queries + begin * a.dim, a.dim, 1, turned, a.columns(), to, a.columns()};
    for (int64_t row = begin; row < end; row += TILE_ROWS) {
        int64_t last = std::min(row + TILE_ROWS, end);
        product<false>(f, row - begin, last - begin, padded(last, LANES), 0, a.dim);
    }
}

// The same with keys as the steps of the sums.
inline void over_keys(const Attention& a, const float* weights, const float* lines, int64_t begin, int64_t end, float* to) {
    Factors f{weights, a.columns(), 1, lines, a.dim, to, a.dim};
    for (int64_t row = begin; row < end; row += TILE_ROWS) {
        int64_t last = std::min(row + TILE_ROWS, end);
        product<false>(f, row - begin, last - begin, a.dim, 0, last);
    }
}

template <class T>
void attend(const Attention& a, const T* q, const T* k, const T* v, T* out, float* log_sums) {
    Scratch s(a, false);
    float scale = 1 / std::sqrt(float(a.dim));
    int64_t size = a.length * a.dim, columns = a.columns();
    Range mine = own(a.batch * a.kv_heads);
    for (int64_t pair = mine.begin; pair < mine.end; pair++) {
        read(a, k + pair * size, v + pair * size, s);
        for (int64_t head = pair * a.group(); head < (pair + 1) * a.group(); head++) {
            widen(q + head * size, size, scale, s.q.data());
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
                    T* to = out + ((text * a.length + row) * a.heads + place) * a.dim;
                    const float* from = s.out.data() + (row - begin) * a.dim;
#pragma omp simd
                    for (int64_t i = 0; i < a.dim; i++) to[i] = narrow<T>(from[i]);
                }
            }
        }
    }
}

// The weights and the slopes of scores of the queries [begin, end): P and dS of FlashAttention (Dao et al. 2022).
template <class T>
void slopes(const Attention& a, Scratch& s, const T* out, int64_t head, int64_t begin, int64_t end, const float* log_sums) {
    int64_t columns = a.columns(), text = head / a.heads, place = head % a.heads;
    by_keys(a, s.q.data(), s.k_turned.data(), begin, end, s.scores.data());
    by_keys(a, s.out.data(), s.v_turned.data(), begin, end, s.slopes.data());
    for (int64_t row = begin; row < end; row++) {
        float *weights = s.scores.data() + (row - begin) * columns, *slope = s.slopes.data() + (row - begin) * columns;
        const T* made = out + ((text * a.length + row) * a.heads + place) * a.dim;
        const float* given = s.out.data() + row * a.dim;
        float along = 0, log_sum = log_sums[head * a.length + row];
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < a.dim; i++) along += given[i] * wide(made[i]);
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

template <class T>
void attend_gradient(const Attention& a, const T* q, const T* k, const T* v, const T* out, const float* log_sums,
                     const T* gradient, T* to_q, T* to_k, T* to_v) {
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
            widen(q + head * size, size, scale, s.q.data());
            int64_t text = head / a.heads, place = head % a.heads;
            for (int64_t row = 0; row < a.length; row++)
                widen(gradient + ((text * a.length + row) * a.heads + place) * a.dim, a.dim, 1, s.out.data() + row * a.dim);
            for (int64_t begin = 0; begin < a.length; begin += QUERY_ROWS) {
                int64_t end = std::min(begin + QUERY_ROWS, a.length);
                slopes(a, s, out, head, begin, end, log_sums);
                over_keys(a, s.slopes.data(), s.k.data(), begin, end, s.q_gradient.data());
                for (int64_t row = begin; row < end; row++)
                    for (int64_t i = 0; i < a.dim; i++)
                        to_q[head * size + row * a.dim + i] = narrow<T>(scale * s.q_gradient[(row - begin) * a.dim + i]);
                const float *queries = s.q.data() + begin * a.dim, *given = s.out.data() + begin * a.dim;
                Factors by_key{s.slopes.data(), 1, columns, queries, a.dim, s.k_gradient.data(), a.dim};
                product<true>(by_key, 0, end, a.dim, 0, end - begin);
                Factors by_value{s.scores.data(), 1, columns, given, a.dim, s.v_gradient.data(), a.dim};
                product<true>(by_value, 0, end, a.dim, 0, end - begin);
            }
        }
        for (int64_t i = 0; i < size; i++) to_k[pair * size + i] = narrow<T>(s.k_gradient[i]);
        for (int64_t i = 0; i < size; i++) to_v[pair * size + i] = narrow<T>(s.v_gradient[i]);
    }
}

// The threads' sums, in their order.
void add_up(const std::vector<float>& parts, int64_t width, float* to) {
    std::fill(to, to + width, 0.0f);
    for (size_t at = 0; at < parts.size(); at += width)
        for (int64_t i = 0; i < width; i++) to[i] += parts[at + i];
}

}  // namespace

extern "C" {

// Numbers are fp32, or bf16 where `half` is not 0.

void olmo2_norm(int half, const void* x, const float* weight, const void* residual, int64_t rows, int64_t width, float epsilon,
                void* out, float* scales, int threads) {
#pragma omp parallel num_threads(threads)
    if (half) norm((const bf16*)x, weight, (const bf16*)residual, rows, width, epsilon, (bf16*)out, scales);
    else norm((const float*)x, weight, (const float*)residual, rows, width, epsilon, (float*)out, scales);
}

void olmo2_norm_gradient(int half, const void* x, const float* weight, const float* scales, const void* gradient, int64_t rows,
                         int64_t width, void* to, float* to_weight, int threads) {
    std::vector<float> sums(threads * width);
#pragma omp parallel num_threads(threads)
    {
        Range mine = own(rows);
        float* part = sums.data() + omp_get_thread_num() * width;
        for (int64_t row = mine.begin; row < mine.end; row++) {
            int64_t at = row * width;
            if (half)
                norm_gradient((const bf16*)x + at, weight, scales[row], (const bf16*)gradient + at, width, (bf16*)to + at, part);
            else
                norm_gradient((const float*)x + at, weight, scales[row], (const float*)gradient + at, width, (float*)to + at, part);
        }
    }
    add_up(sums, width, to_weight);
}

void olmo2_heads(int half, const Heads* h, const void* x, const float* q_weight, const float* k_weight, void* q, void* k, void* v,
                 float* scales, int threads) {
#pragma omp parallel num_threads(threads)
    if (half) heads(*h, (const bf16*)x, q_weight, k_weight, (bf16*)q, (bf16*)k, (bf16*)v, scales);
    else heads(*h, (const float*)x, q_weight, k_weight, (float*)q, (float*)k, (float*)v, scales);
}

void olmo2_heads_gradient(int half, const Heads* h, const void* x, const float* q_weight, const float* k_weight,
                          const float* scales, const void* q, const void* k, const void* v, void* to, float* to_weights,
                          int threads) {
    int64_t width = h->width(true) + h->width(false);
    std::vector<float> sums(threads * width);
#pragma omp parallel num_threads(threads)
    {
        float* part = sums.data() + omp_get_thread_num() * width;
        if (half)
            heads_gradient(*h, (const bf16*)x, q_weight, k_weight, scales, (const bf16*)q, (const bf16*)k, (const bf16*)v,
                           (bf16*)to, part);
        else
            heads_gradient(*h, (const float*)x, q_weight, k_weight, scales, (const float*)q, (const float*)k, (const float*)v,
                           (float*)to, part);
    }
    add_up(sums, width, to_weights);
}

void olmo2_gated(int half, const void* x, int64_t rows, int64_t width, void* out, int threads) {
#pragma omp parallel num_threads(threads)
    if (half) gated_rows((const bf16*)x, rows, width, (bf16*)out);
    else gated_rows((const float*)x, rows, width, (float*)out);
}

void olmo2_gated_gradient(int half, const void* x, const void* gradient, int64_t rows, int64_t width, void* out, int threads) {
#pragma omp parallel num_threads(threads)
    if (half) gated_gradient((const bf16*)x, (const bf16*)gradient, rows, width, (bf16*)out);
    else gated_gradient((const float*)x, (const float*)gradient, rows, width, (float*)out);
}

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
