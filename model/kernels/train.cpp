// Parts of a transformer's training on CPUs that read and write much and compute little: norms, rotary embedding and SwiGLU.
// `model/network/fused.py` calls them, forward and backward.
//
// Each is one pass over its inputs, where PyTorch's operations are up to a dozen with a temporary each. They round at the places
// where those do, once to the type of the activations; sums are fp32.

#include "vectors.h"

namespace {

template <class T> float scale_of(const T* x, int64_t width, float epsilon) {
    F squares{};
    by_vectors(width, [&](int64_t i, auto length) {
        F value = some(x + i, length, 0);
        squares += value * value;
    });
    return 1 / std::sqrt(sum_of(squares) / float(width) + epsilon);
}

// ---- norms

// out = norm(x) * weight, plus the residual where there is one.
template <class T>
void norm(const T* x, const float* weight, const T* residual, int64_t rows, int64_t width, float epsilon, T* out,
          float* scales) {
    Range mine = own(rows);
    for (int64_t row = mine.begin; row < mine.end; row++) {
        const T *from = x + row * width, *added = residual ? residual + row * width : nullptr;
        T* to = out + row * width;
        float scale = scales[row] = scale_of(from, width, epsilon);
        by_vectors(width, [&](int64_t i, auto length) {
            F normed = some(from + i, length, 0) * scale * some(weight + i, length, 0);
            if (added) normed = some(added + i, length, 0) + rounded<T>(normed);
            keep(to + i, normed, length);
        });
    }
}

// The gradient of one normed vector, of which `gradient` is the output's: x's goes to `to`, the weight's is added to `sums`.
template <class T, class G>
inline void norm_gradient(const T* x, const float* weight, float scale, const G* gradient, int64_t width, T* to, float* sums) {
    F products{};
    by_vectors(width, [&](int64_t i, auto length) {
        F normed = some(x + i, length, 0) * scale, given = some(gradient + i, length, 0);
        keep(sums + i, some(sums + i, length, 0) + given * normed, length);
        products += given * some(weight + i, length, 0) * normed;
    });
    float along = sum_of(products) / float(width);
    by_vectors(width, [&](int64_t i, auto length) {
        F normed = some(x + i, length, 0) * scale;
        keep(to + i, scale * (some(gradient + i, length, 0) * some(weight + i, length, 0) - normed * along), length);
    });
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
        int64_t i = 0;
        for (; i + LANES <= half; i += LANES) {
            F a = rounded<T>(load_wide(from + i) * scale * load<F>(w + i));
            F b = rounded<T>(load_wide(from + i + half) * scale * load<F>(w + i + half));
            store(out + i, a * load<F>(c + i) - b * load<F>(s + i));
            store(out + i + half, b * load<F>(c + i + half) + a * load<F>(s + i + half));
        }
        for (; i < half; i++) {
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
        int64_t i = 0;
        for (; i + LANES <= half; i += LANES) {
            F a = load_wide(from + i), b = load_wide(from + i + half);
            store(out + i, a * load<F>(c + i) + b * load<F>(s + i + half));
            store(out + i + half, b * load<F>(c + i + half) - a * load<F>(s + i));
        }
        for (; i < half; i++) {
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
    Numbers<float> back(queries + keys);
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
        by_vectors(width, [&](int64_t i, auto length) {
            F g = some(gate + i, length, 0), d = some(given + i, length, 0), opened = 1 / (1 + exponential(-g));
            keep(to_up + i, d * rounded<T>(g * opened), length);
            keep(to_gate + i, d * some(up + i, length, 0) * opened * (1 + g * (1 - opened)), length);
        });
    }
}

// The threads' sums, in their order.
void add_up(const Numbers<float>& parts, int64_t width, float* to) {
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
    Numbers<float> sums(threads * width);
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
    Numbers<float> sums(threads * width);
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
}
