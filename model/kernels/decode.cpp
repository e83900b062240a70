// Decoding on CPUs in one call per step: all layers of the network for one new token per row, or for the tokens of prompts.
//
// `library.py` compiles this file for the processor at hand and `model/decoding/compiled_step.py` calls it. It is the arithmetic of
// `prepared_weights.py`, rounded at the same places. Matrices lie in panels of 32 outputs:
//   fp32  [outputs / 32][inputs][32]
//   bf16  [outputs / 32][inputs / 2][32][2]   (two inputs side by side, as the processor's bf16 dot product wants them)
// Keys lie in chunks of 64 positions, [chunk][head_dim][64] or [chunk][head_dim / 2][64][2], so that a vector holds the scores of
// several positions, nothing is summed across it, and memory is read in order. Values lie by position, in bf16 by pairs: [position / 2][head_dim][2].
//
// Every output is summed over its inputs in ascending order, whatever rows are computed with it and on however many threads.
// So a row's logits are the same bytes in every batch.

#include "matrices.h"
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int PANEL = 32, CHUNK = 64;
constexpr int MOST_ROWS = LANES == 16 ? 12 : 6;
constexpr int STRIP = 2 * LANES;                 // outputs that a tile of one strip has
constexpr int64_t PANEL_BYTES = 128 * 1024;      // weights that several tiles use
constexpr int64_t ROW_BLOCK_BYTES = 256 * 1024;  // inputs of rows that should stay in the second cache

// ---- matrices

inline int64_t panels_of(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }

// R rows times S strips. Strips that follow each other lie in one panel or in the next.
template <class T, class Out, int R, int S>
void tile(const T* x, int64_t stride, const T* weights, int64_t inputs, int64_t first, int64_t outputs, Out* out,
          int64_t out_stride) {
    typedef Dot<T> D;
    F sums[R][2 * S] = {};
    const T* strips[S];
    for (int s = 0; s < S; s++) {
        int64_t at = first + s * STRIP;
        strips[s] = weights + at / PANEL * PANEL * inputs + at % PANEL * D::width;
    }
    int64_t steps = inputs / D::width;
    for (int64_t k = 0; k < steps; k++) {
        typename D::Weight w[2 * S];
        for (int s = 0; s < S; s++) {
            const T* line = strips[s] + k * PANEL * D::width;
            w[2 * s] = load<typename D::Weight>(line);
            w[2 * s + 1] = load<typename D::Weight>(line + LANES * D::width);
        }
        for (int r = 0; r < R; r++) {
            typename D::Factor factor = D::factor(x + r * stride + k * D::width);
            for (int s = 0; s < 2 * S; s++) sums[r][s] = D::add(sums[r][s], factor, w[s]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int s = 0; s < 2 * S; s++) {
            int64_t at = first + s * LANES;
            T line[LANES];
            store(line, sums[r][s]);
            int64_t count = std::min<int64_t>(LANES, outputs - at);
            for (int64_t i = 0; i < count; i++) {
                if constexpr (sizeof(Out) == sizeof(T)) out[r * out_stride + at + i] = line[i];
                else out[r * out_stride + at + i] = wide(line[i]);  // logits: rounded, then handed on as fp32
            }
        }
}

// Strips side by side in a tile of R rows: enough sums at once to hide the latency of an addition, few enough for the registers.
constexpr int strips_for(int rows) {
    return LANES == 16 ? (rows <= 2 ? 4 : rows <= 6 ? 2 : 1) : (rows == 1 ? 4 : rows <= 3 ? 2 : 1);
}

template <class T, class Out, int R = MOST_ROWS>
void tiles(int rows, const T* x, int64_t stride, const T* weights, int64_t inputs, int64_t begin, int64_t end,
           int64_t outputs, Out* out, int64_t out_stride) {
    if constexpr (R > 1) {
        if (rows < R) return tiles<T, Out, R - 1>(rows, x, stride, weights, inputs, begin, end, outputs, out, out_stride);
    }
    constexpr int S = strips_for(R);
    int64_t at = begin;
    for (; at + S * STRIP <= end; at += S * STRIP)
        tile<T, Out, R, S>(x, stride, weights, inputs, at, outputs, out, out_stride);
    for (; at < end; at += STRIP) tile<T, Out, R, 1>(x, stride, weights, inputs, at, outputs, out, out_stride);
}

#if defined(OLMO2_AMX)
// One panel of outputs of at most 32 rows.
template <class Out>
void panel_by_tiles(int rows, const bf16* x, int64_t stride, const bf16* panel, int64_t inputs, int64_t first,
                    int64_t outputs, Out* out, int64_t out_stride) {
    bool second = rows > TILE_ROWS;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < inputs; k += TILE_INPUTS) {
        _tile_loadd(6, panel + k * PANEL, 4 * PANEL);
        _tile_loadd(7, panel + k * PANEL + PANEL, 4 * PANEL);
        _tile_loadd(4, x + k, 2 * stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (second) {
            _tile_loadd(5, x + TILE_ROWS * stride + k, 2 * stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    alignas(64) float sums[2 * TILE_ROWS][PANEL];
    _tile_stored(0, sums[0], 4 * PANEL);
    _tile_stored(1, sums[0] + 16, 4 * PANEL);
    if (second) {
        _tile_stored(2, sums[TILE_ROWS], 4 * PANEL);
        _tile_stored(3, sums[TILE_ROWS] + 16, 4 * PANEL);
    }
    int64_t count = std::min<int64_t>(PANEL, outputs - first);
    for (int r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++) {
            bf16 value = narrow<bf16>(sums[r][i]);
            if constexpr (sizeof(Out) == sizeof(bf16)) out[r * out_stride + first + i] = value;
            else out[r * out_stride + first + i] = wide(value);
        }
}
#endif

// This thread's part of x @ weights.T, for rows of `inputs` numbers.
template <class T, class Out>
void product(const T* x, int64_t rows, const T* weights, int64_t inputs, int64_t outputs, Out* out, int thread,
             int threads) {
    int64_t panels = panels_of(outputs);
    Range columns{0, panels}, lines{0, rows};
    // By outputs each weight is read by one thread. A prompt has rows enough to be shared out where outputs are few.
    if (panels >= 4 * threads || rows < MOST_ROWS * threads) columns = share(panels, thread, threads);
    else lines = share(rows, thread, threads);
    bool by_tiles = false;
    int64_t most_rows = MOST_ROWS;
#if defined(OLMO2_AMX)
    by_tiles = sizeof(T) == sizeof(bf16) && inputs % TILE_INPUTS == 0;
    if (by_tiles) most_rows = 2 * TILE_ROWS;
#endif
    int64_t row_bytes = inputs * int64_t(sizeof(T)), configured = 0;
    int64_t block = std::max(most_rows, ROW_BLOCK_BYTES / row_bytes / most_rows * most_rows);
    int64_t end = std::min(columns.end * PANEL, (outputs + STRIP - 1) / STRIP * STRIP);
    for (int64_t low = lines.begin; low < lines.end; low += block) {
        int64_t count = std::min(block, lines.end - low), parts = (count + most_rows - 1) / most_rows;
        // Few panels at a time, so that a panel is read from a near cache by all tiles but the first.
        int64_t group = parts == 1 ? panels : std::max<int64_t>(1, PANEL_BYTES / (PANEL * row_bytes));
        for (int64_t panel = columns.begin; panel < columns.end; panel += group)
            for (int64_t part = 0; part < parts; part++) {
                Range some = share(count, part, parts);
                int64_t row = low + some.begin, until = std::min(panel + group, columns.end);
                int rows_here = int(some.end - some.begin);
                if (!by_tiles) {
                    tiles<T, Out>(rows_here, x + row * inputs, inputs, weights, inputs, panel * PANEL,
                                  std::min(end, until * PANEL), outputs, out + row * outputs, outputs);
                    continue;
                }
#if defined(OLMO2_AMX)
                if constexpr (sizeof(T) == sizeof(bf16)) {
                    if (configured != rows_here) configure_tiles(rows_here);
                    configured = rows_here;
                    for (int64_t p = panel; p < until; p++)
                        panel_by_tiles(rows_here, x + row * inputs, inputs, weights + p * PANEL * inputs, inputs,
                                       p * PANEL, outputs, out + row * outputs, outputs);
                }
#endif
            }
    }
#if defined(OLMO2_AMX)
    if (configured) _tile_release();
#else
    (void)configured;
#endif
}

template <class T, class From>
void pack(T* to, const From* from, int64_t count, int64_t inputs, int64_t first, int threads) {
    constexpr int width = Dot<T>::width;
#pragma omp parallel for num_threads(threads)
    for (int64_t panel = first / PANEL; panel < panels_of(first + count); panel++) {
        int64_t begin = std::max(first, panel * PANEL), end = std::min(first + count, (panel + 1) * PANEL);
        int64_t count_here = end - begin, column = begin - panel * PANEL;
        // Pieces of the rows are rounded as they lie, and then turned within the nearest cache.
        constexpr int64_t PIECE = 16;
        alignas(64) T piece[PANEL][PIECE];
        for (int64_t k = 0; k < inputs; k += PIECE) {
            int64_t some = std::min(PIECE, inputs - k);
            for (int64_t r = 0; r < count_here; r++) {
                const From* row = from + (begin - first + r) * inputs + k;
                for (int64_t i = 0; i < some; i++) piece[r][i] = narrow<T>(wide(row[i]));
            }
            for (int64_t i = 0; i < some; i += width) {
                T* line = to + (panel * inputs + k + i) * PANEL + column * width;
                for (int64_t r = 0; r < count_here; r++) std::memcpy(line + r * width, &piece[r][i], width * sizeof(T));
            }
        }
    }
}

// ---- the network

// The layouts of these, and of Tokens below, are repeated in compiled_step.py.
struct Layer {
    const void *qkv, *out, *gate_up, *down;
    const float *q_norm, *k_norm, *attention_norm, *feed_forward_norm;
    void *keys, *values;
};

struct Network {
    int64_t layers, d_model, n_heads, n_kv_heads, head_dim, mlp_hidden, vocab, chunks;
    int64_t layer_norm, input_norms, query_norm, embedding_is_bf16;
    float epsilon, clip, query_scale;
    const void* embedding;
    const void* head;
    const float* norm;
    const float* turns;
    const Layer* layer;
};

// What multiplies a number in a norm is (x - mean) * scale: RMSNorm's mean is 0, and its weights hold sqrt(width).
struct Moments {
    float mean, scale;
};

template <class T> Moments moments(const Network& net, const T* x, int64_t width) {
    float sum = 0, squares = 0;
    if (net.layer_norm) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += wide(x[i]);
        sum /= float(width);
    }
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) {
        float away = wide(x[i]) - sum;
        squares += away * away;
    }
    if (net.layer_norm) return {sum, 1 / std::sqrt(squares / float(width) + net.epsilon)};
    return {0, 1 / std::sqrt(squares + float(width) * net.epsilon)};
}

// out = norm(x), or with a residual out = residual + norm(x). `out` may be `residual`.
template <class T, bool ADD>
void norm(const Network& net, const T* x, const float* weight, int64_t width, T* out) {
    Moments m = moments(net, x, width);
    if (weight == nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float normed = (wide(x[i]) - m.mean) * m.scale;
            out[i] = ADD ? narrow<T>(wide(out[i]) + rounded<T>(normed)) : narrow<T>(normed);
        }
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        float normed = wide(x[i]) * weight[i] * m.scale;
        out[i] = ADD ? narrow<T>(wide(out[i]) + rounded<T>(normed)) : narrow<T>(normed);
    }
}

// One head of a query or key: normed with the moments of the whole projection, turned by its position, rounded once.
template <class T>
void turn(const Network& net, const T* x, const float* weight, Moments m, const float* turns, T* out) {
#pragma omp simd
    for (int64_t i = 0; i < net.head_dim / 2; i++) {
        float a = (wide(x[2 * i]) - m.mean) * m.scale, b = (wide(x[2 * i + 1]) - m.mean) * m.scale;
        if (weight != nullptr) a *= weight[2 * i], b *= weight[2 * i + 1];
        float c = turns[2 * i], s = turns[2 * i + 1];
        out[2 * i] = narrow<T>(a * c - b * s);
        out[2 * i + 1] = narrow<T>(a * s + b * c);
    }
}

// A head's values of one position are padded to whole vectors.
inline int64_t value_width(const Network& net) { return padded(net.head_dim, 16); }

// Where a head's keys and values of one row begin.
template <class T> T* keys_of(const Network& net, const Layer& layer, int64_t row, int64_t head) {
    return (T*)layer.keys + (row * net.n_kv_heads + head) * net.chunks * CHUNK * net.head_dim;
}
template <class T> T* values_of(const Network& net, const Layer& layer, int64_t row, int64_t head) {
    return (T*)layer.values + (row * net.n_kv_heads + head) * net.chunks * CHUNK * value_width(net);
}

template <class T>
void remember(const Network& net, const T* k, const T* v, int64_t position, T* keys, T* values) {
    constexpr int width = Dot<T>::width;
    T* column = keys + position / CHUNK * CHUNK * net.head_dim + position % CHUNK * width;
    for (int64_t d = 0; d < net.head_dim; d += width)
        for (int i = 0; i < width; i++) column[d * CHUNK + i] = k[d + i];
    T* line = values + position / width * width * value_width(net) + position % width;
    for (int64_t d = 0; d < net.head_dim; d++) line[d * width] = v[d];
}

// Tells the processor early what will be read: a head's keys or values are too short for it to notice by itself.
inline void announce(const void* line) { __builtin_prefetch(line); }

// Scores of the first N vectors of positions of a chunk. `later` is what is read next, of the same size.
template <class T, int N> void score(const Network& net, const T* q, const T* keys, const T* later, float* scores) {
    typedef Dot<T> D;
    F sums[N] = {};
    for (int64_t d = 0; d < net.head_dim; d += D::width) {
        typename D::Factor factor = D::factor(q + d);
        for (int n = 0; n < N; n++) {
            int64_t at = d * CHUNK + n * LANES * D::width;
            if (n * LANES % 16 == 0) announce(later + at);
            sums[n] = D::add(sums[n], factor, load<typename D::Weight>(keys + at));
        }
    }
    for (int n = 0; n < N; n++) store(scores + n * LANES, sums[n]);
}

template <class T, int N = CHUNK / LANES>
void score_some(int vectors, const Network& net, const T* q, const T* keys, const T* later, float* scores) {
    if constexpr (N > 1) {
        if (vectors < N) return score_some<T, N - 1>(vectors, net, q, keys, later, scores);
    }
    score<T, N>(net, q, keys, later, scores);
}

// Sums of N vectors of values, weighted. Two sums each, of every other line, are added at the end: their latency overlaps.
template <class T, int N>
void mix(const T* weights, int64_t lines, const T* values, int64_t width, const T* later, T* out, int64_t count) {
    typedef Dot<T> D;
    F sums[2][N] = {};
    auto add_line = [&](F* sum, int64_t line) {
        typename D::Factor factor = D::factor(weights + line * D::width);
        for (int n = 0; n < N; n++) {
            int64_t at = (line * width + n * LANES) * D::width;
            if (n * LANES % 16 == 0) announce(later + at);
            sum[n] = D::add(sum[n], factor, load<typename D::Weight>(values + at));
        }
    };
    int64_t line = 0;
    for (; line + 2 <= lines; line += 2) add_line(sums[0], line), add_line(sums[1], line + 1);
    if (line < lines) add_line(sums[0], line);
    for (int n = 0; n < N; n++) {
        T whole[LANES];
        store(whole, sums[0][n] + sums[1][n]);
        for (int64_t i = 0; i < std::min<int64_t>(LANES, count - n * LANES); i++) out[n * LANES + i] = whole[i];
    }
}

// One query over the positions up to its own. `scores` and `weights` have room for all positions. `next` is where the keys lie
// that are read after these.
template <class T>
void attend(const Network& net, const T* q, const T* keys, const T* values, const T* next, int64_t used, float* scores,
            T* weights, T* out) {
    for (int64_t at = 0; at < used; at += CHUNK) {
        int vectors = int((std::min<int64_t>(CHUNK, used - at) + LANES - 1) / LANES);
        score_some(vectors, net, q, keys + at * net.head_dim, values + at * net.head_dim, scores + at);
    }
    float top = scores[0], sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < used; i++) top = scores[i] > top ? scores[i] : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < used; i++) {
        scores[i] = exponential(scores[i] - top);
        sum += scores[i];
    }
    for (int64_t i = 0; i < used; i++) weights[i] = narrow<T>(scores[i] / sum);
    // The last pair's second position may be an older row's: it counts nothing.
    constexpr int width = Dot<T>::width;
    int64_t lines = (used + width - 1) / width;
    for (int64_t i = used; i < lines * width; i++) weights[i] = T(0);
    int64_t line = value_width(net), at = 0;
    for (; at + 4 * LANES <= line; at += 4 * LANES)
        mix<T, 4>(weights, lines, values + at * width, line, next + at * width, out + at, net.head_dim - at);
    for (; at < line; at += LANES)
        mix<T, 1>(weights, lines, values + at * width, line, next + at * width, out + at, net.head_dim - at);
}

// What a step needs besides the cache.
template <class T> struct Buffers {
    T *x, *normed, *projected, *mixed, *hidden, *turned, *weights;
    float* scores;

    // How many bytes they take; they are laid into `memory` unless it is null.
    int64_t place(const Network& net, int64_t rows, int threads, char* memory) {
        int64_t at = 0;
        auto take = [&](auto*& pointer, int64_t count) {
            pointer = (std::remove_reference_t<decltype(pointer)>)(memory + at);
            at += padded(count * int64_t(sizeof(*pointer)), 64);
        };
        int64_t heads = net.n_heads + 2 * net.n_kv_heads, places = net.chunks * CHUNK;
        take(x, rows * net.d_model);
        take(normed, rows * net.d_model);
        take(projected, rows * std::max({heads * net.head_dim, 2 * net.mlp_hidden, net.d_model}));
        take(mixed, rows * net.n_heads * net.head_dim);
        take(hidden, rows * net.mlp_hidden);
        take(turned, threads * padded(2 * net.head_dim, 64));
        take(weights, threads * padded(places, 64));
        take(scores, threads * padded(places, 64));
        return at;
    }
};

// The tokens of a step or of prompts: where each stands, and whose logits are wanted.
struct Tokens {
    int64_t count, wanted_count;
    const int64_t *ids, *positions, *rows, *wanted;
};

// Turns the keys and keeps them with the values.
template <class T>
void keep(const Network& net, const Layer& layer, const Tokens& tokens, const Buffers<T>& b, int thread, int threads) {
    int64_t width = net.n_heads * net.head_dim, kv_width = net.n_kv_heads * net.head_dim;
    T* k = b.turned + thread * padded(2 * net.head_dim, 64);
    Range tasks = share(tokens.count * net.n_kv_heads, thread, threads);
    Moments m{0, 1};
    for (int64_t task = tasks.begin, last = -1; task < tasks.end; task++) {
        int64_t token = task / net.n_kv_heads, head = task % net.n_kv_heads, at = head * net.head_dim;
        int64_t row = tokens.rows[token], position = tokens.positions[token];
        const T* projected = b.projected + token * (width + 2 * kv_width) + width;
        if (net.query_norm && token != last) m = moments(net, projected, kv_width);  // over all heads
        last = token;
        turn(net, projected + at, layer.k_norm ? layer.k_norm + at : nullptr, m, net.turns + position * net.head_dim, k);
        remember(net, k, projected + kv_width + at, position, keys_of<T>(net, layer, row, head),
                 values_of<T>(net, layer, row, head));
    }
}

template <class T>
void heads(const Network& net, const Layer& layer, const Tokens& tokens, const Buffers<T>& b, int thread, int threads) {
    int64_t width = net.n_heads * net.head_dim, kv_width = net.n_kv_heads * net.head_dim;
    int64_t group = net.n_heads / net.n_kv_heads;
    T* q = b.turned + thread * padded(2 * net.head_dim, 64);
    float* scores = b.scores + thread * padded(net.chunks * CHUNK, 64);
    T* weights = b.weights + thread * padded(net.chunks * CHUNK, 64);
    Range tasks = share(tokens.count * net.n_kv_heads, thread, threads);
    Moments m{0, net.query_scale};
    for (int64_t task = tasks.begin, last = -1; task < tasks.end; task++) {
        int64_t token = task / net.n_kv_heads, head = task % net.n_kv_heads;
        int64_t row = tokens.rows[token], position = tokens.positions[token];
        const T* projected = b.projected + token * (width + 2 * kv_width);
        if (net.query_norm && token != last) {
            m = moments(net, projected, width);
            if (net.layer_norm) m.scale *= net.query_scale;
        }
        last = token;
        const T *keys = keys_of<T>(net, layer, row, head), *values = values_of<T>(net, layer, row, head);
        for (int64_t i = 0; i < group; i++) {
            int64_t place = (head * group + i) * net.head_dim;
            turn(net, projected + place, layer.q_norm ? layer.q_norm + place : nullptr, m,
                 net.turns + position * net.head_dim, q);
            const T* next = i + 1 < group ? keys : keys + net.chunks * CHUNK * net.head_dim;
            attend(net, q, keys, values, next, position + 1, scores, weights, b.mixed + token * width + place);
        }
    }
}

// x += what a part of a block gave, then the norm before the next part where norms sit on inputs.
template <class T>
void add(const Network& net, Range rows, const Buffers<T>& b, const float* weight, const float* next_weight) {
    for (int64_t row = rows.begin; row < rows.end; row++) {
        T *x = b.x + row * net.d_model, *given = b.projected + row * net.d_model, *normed = b.normed + row * net.d_model;
        if (!net.input_norms) {
            norm<T, true>(net, given, weight, net.d_model, x);
            continue;
        }
#pragma omp simd
        for (int64_t i = 0; i < net.d_model; i++) x[i] = narrow<T>(wide(x[i]) + wide(given[i]));
        norm<T, false>(net, x, next_weight, net.d_model, normed);
    }
}

template <class T> void gather(T* x, int64_t width, const Tokens& tokens, Range columns) {
    // Wanted tokens ascend, so a line is read before another is written over it.
    for (int64_t i = 0; i < tokens.wanted_count; i++)
        if (tokens.wanted[i] != i)
            for (int64_t c = columns.begin; c < columns.end; c++) x[i * width + c] = x[tokens.wanted[i] * width + c];
}

template <class T>
void feed(const Network& net, const Tokens& tokens, float* logits, char* memory, int wanted_threads) {
    Buffers<T> b;
    b.place(net, tokens.count, wanted_threads, memory);
    int64_t d = net.d_model, width = net.n_heads * net.head_dim, mlp = net.mlp_hidden;
    int64_t projections = width + 2 * net.n_kv_heads * net.head_dim;
#pragma omp parallel num_threads(wanted_threads)
    {
        int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        int64_t rows = tokens.count;
        Range own = share(rows, thread, threads);
        for (int64_t row = own.begin; row < own.end; row++) {
            T* x = b.x + row * d;
            for (int64_t i = 0; i < d; i++) {
                int64_t at = tokens.ids[row] * d + i;
                x[i] = narrow<T>(net.embedding_is_bf16 ? wide(((const bf16*)net.embedding)[at])
                                                       : ((const float*)net.embedding)[at]);
            }
            if (net.input_norms) norm<T, false>(net, x, net.layer[0].attention_norm, d, b.normed + row * d);
        }
        const T* input = net.input_norms ? b.normed : b.x;
        for (int64_t index = 0; index < net.layers; index++) {
            const Layer& layer = net.layer[index];
            bool last = index == net.layers - 1;
#pragma omp barrier
            product(input, rows, (const T*)layer.qkv, d, projections, b.projected, thread, threads);
            if (net.clip < INFINITY) {
#pragma omp barrier
                Range numbers = share(rows * projections, thread, threads);
                for (int64_t i = numbers.begin; i < numbers.end; i++) {
                    float x = wide(b.projected[i]), limit = rounded<T>(net.clip);
                    b.projected[i] = x > limit ? narrow<T>(limit) : x < -limit ? narrow<T>(-limit) : b.projected[i];
                }
            }
#pragma omp barrier
            keep(net, layer, tokens, b, thread, threads);
#pragma omp barrier
            heads(net, layer, tokens, b, thread, threads);
#pragma omp barrier
            if (last && tokens.wanted_count < rows) {  // nothing more is read from the others
                gather(b.mixed, width, tokens, share(width, thread, threads));
                gather(b.x, d, tokens, share(d, thread, threads));
                rows = tokens.wanted_count;
                own = share(rows, thread, threads);
#pragma omp barrier
            }
            product(b.mixed, rows, (const T*)layer.out, width, d, b.projected, thread, threads);
#pragma omp barrier
            add(net, own, b, layer.attention_norm, layer.feed_forward_norm);
#pragma omp barrier
            product(input, rows, (const T*)layer.gate_up, d, 2 * mlp, b.projected, thread, threads);
#pragma omp barrier
            Range mine = share(rows * mlp, thread, threads);
            for (int64_t at = mine.begin; at < mine.end;) {
                int64_t row = at / mlp, i = at % mlp, count = std::min(mlp - i, mine.end - at);
                const T* gate = b.projected + row * 2 * mlp + i;
                gated(gate, gate + mlp, count, b.hidden + at);
                at += count;
            }
#pragma omp barrier
            product(b.hidden, rows, (const T*)layer.down, mlp, d, b.projected, thread, threads);
#pragma omp barrier
            add(net, own, b, layer.feed_forward_norm, last ? net.norm : net.layer[index + 1].attention_norm);
        }
        if (!net.input_norms)
            for (int64_t row = own.begin; row < own.end; row++)
                norm<T, false>(net, b.x + row * d, net.norm, d, b.normed + row * d);
#pragma omp barrier
        product(b.normed, rows, (const T*)net.head, d, net.vocab, logits, thread, threads);
    }
}

template <class T>
void put(const Network& net, int64_t layer, int64_t first_row, int64_t rows, int64_t tokens, int64_t start, const T* k,
         const T* v, const int64_t* strides, int threads) {
#pragma omp parallel for num_threads(threads) collapse(2)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < net.n_kv_heads; head++) {
            T* keys = keys_of<T>(net, net.layer[layer], first_row + row, head);
            T* values = values_of<T>(net, net.layer[layer], first_row + row, head);
            for (int64_t token = 0; token < tokens; token++)
                remember(net, k + row * strides[0] + token * strides[1] + head * net.head_dim,
                         v + row * strides[2] + token * strides[3] + head * net.head_dim, start + token, keys, values);
        }
}

// ---- the choice of a token

// The token of one row and its log-probability among all of them; `noise` lies in (0, 1), without it the choice is greedy.
// `powers` has room for the row.
void choose(const float* logits, int64_t vocab, int64_t ids, float temperature, const double* noise, float* powers,
            int64_t* token, float* logprob) {
    constexpr int64_t BLOCK = 128;
    float divisor = noise ? temperature : 1, top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < vocab; i++) top = logits[i] / divisor > top ? logits[i] / divisor : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < vocab; i++) {
        powers[i] = exponential(logits[i] / divisor - top);
        sum += powers[i];
    }
    int64_t found = 0;
    if (noise == nullptr) {
        float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < ids; i++) largest = logits[i] > largest ? logits[i] : largest;
        while (found < ids - 1 && logits[found] != largest) found++;
    } else {
        // fp64: in fp32, a vocabulary's cumulative sum would round small probabilities away.
        auto weight = [&](int64_t begin) {
            double whole = 0;
            for (int64_t i = begin; i < std::min(begin + BLOCK, ids); i++) whole += powers[i];
            return whole;
        };
        double total = 0;
        for (int64_t block = 0; block < ids; block += BLOCK) total += weight(block);
        double before = 0, wanted = *noise * total;
        int64_t last = 0;  // a token without weight is never drawn, whatever the sums round to
        for (int64_t block = 0; block < ids; block += BLOCK) {
            double part = weight(block);
            if (before + part > wanted || block + BLOCK >= ids) {
                for (found = block; found < std::min(block + BLOCK, ids); found++) {
                    before += powers[found];
                    if (powers[found] > 0) last = found;
                    if (before > wanted && powers[found] > 0) break;
                }
                found = std::min(found, last);
                break;
            }
            if (part > 0)
                for (int64_t i = block; i < std::min(block + BLOCK, ids); i++) last = powers[i] > 0 ? i : last;
            before += part;
        }
    }
    *token = found;
    *logprob = logits[found] / divisor - top - std::log(sum);
}

}  // namespace

extern "C" {

// Numbers are fp32, or bf16 where `half` is not 0.

void olmo2_pack(int half, void* to, int from_half, const void* from, int64_t count, int64_t inputs, int64_t first,
                int threads) {
    if (!half) pack((float*)to, (const float*)from, count, inputs, first, threads);
    else if (from_half) pack((bf16*)to, (const bf16*)from, count, inputs, first, threads);
    else pack((bf16*)to, (const float*)from, count, inputs, first, threads);
}

void olmo2_linear(int half, const void* x, int64_t rows, const void* weights, int64_t inputs, int64_t outputs, void* out,
                  int wanted_threads) {
#pragma omp parallel num_threads(wanted_threads)
    {
        int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        if (half) product((const bf16*)x, rows, (const bf16*)weights, inputs, outputs, (bf16*)out, thread, threads);
        else product((const float*)x, rows, (const float*)weights, inputs, outputs, (float*)out, thread, threads);
    }
}

int64_t olmo2_buffer_bytes(int half, const Network* net, int64_t rows, int threads) {
    if (half) return Buffers<bf16>().place(*net, rows, threads, nullptr);
    return Buffers<float>().place(*net, rows, threads, nullptr);
}

void olmo2_put(int half, const Network* net, int64_t layer, int64_t first_row, int64_t rows, int64_t tokens,
               int64_t start, const void* k, const void* v, const int64_t* strides, int threads) {
    if (half) put(*net, layer, first_row, rows, tokens, start, (const bf16*)k, (const bf16*)v, strides, threads);
    else put(*net, layer, first_row, rows, tokens, start, (const float*)k, (const float*)v, strides, threads);
}

void olmo2_feed(int half, const Network* net, const Tokens* tokens, float* logits, void* buffers, int threads) {
    if (half) feed<bf16>(*net, *tokens, logits, (char*)buffers, threads);
    else feed<float>(*net, *tokens, logits, (char*)buffers, threads);
}

void olmo2_choose(const float* logits, int64_t rows, int64_t vocab, int64_t ids, double temperature, const double* noise,
                  float* powers, int64_t* tokens, float* logprobs, int threads) {
#pragma omp parallel for num_threads(std::min<int64_t>(threads, rows))
    for (int64_t row = 0; row < rows; row++)
        choose(logits + row * vocab, vocab, ids, float(temperature), noise ? noise + row : nullptr,
               powers + omp_get_thread_num() * vocab, tokens + row, logprobs + row);
}

// Asks the system for what the code needs; 0 if it is granted.
int olmo2_start() {
#if defined(__AMX_BF16__)
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM: tiles are large, so a process has to ask
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) != 0;
#else
    return 0;
#endif
}

// Whether products of small whole numbers, which every type holds exactly, are what they are: 0 if so.
int olmo2_check() {
    if (olmo2_start() != 0) return 1;
    constexpr int64_t ROWS = 2 * MOST_ROWS + 3, INPUTS = 64, OUTPUTS = 3 * PANEL + 5;
    static float x[ROWS * INPUTS], w[OUTPUTS * INPUTS], out[ROWS * OUTPUTS], packed[4 * PANEL * INPUTS];
    static bf16 half_x[ROWS * INPUTS], half_out[ROWS * OUTPUTS], half_packed[4 * PANEL * INPUTS];
    for (int64_t i = 0; i < ROWS * INPUTS; i++) half_x[i] = narrow<bf16>(x[i] = float(i * 7 % 5 - 2));
    for (int64_t i = 0; i < OUTPUTS * INPUTS; i++) w[i] = float(i * 11 % 3 - 1);
    for (int64_t rows : {int64_t(1), int64_t(2), ROWS}) {
        olmo2_pack(0, packed, 0, w, OUTPUTS, INPUTS, 0, 2);
        olmo2_pack(1, half_packed, 0, w, OUTPUTS, INPUTS, 0, 2);
        olmo2_linear(0, x, rows, packed, INPUTS, OUTPUTS, out, 2);
        olmo2_linear(1, half_x, rows, half_packed, INPUTS, OUTPUTS, half_out, 2);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = 0; o < OUTPUTS; o++) {
                float sum = 0;
                for (int64_t i = 0; i < INPUTS; i++) sum += x[r * INPUTS + i] * w[o * INPUTS + i];
                if (out[r * OUTPUTS + o] != sum || wide(half_out[r * OUTPUTS + o]) != sum) return 1;
            }
    }
    return 0;
}
}
