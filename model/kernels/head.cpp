// The loss of a head over a vocabulary with its gradients, on CPUs with matrix tiles; `model/network/fused.py` calls it.
//
// The logits are never written to memory: they are computed some ids at a time, once for their sums and once more for their
// gradient, which both products take from a near cache. Writing and reading them would take longer than that third product.

#include "half_products.h"

namespace {

constexpr int64_t IDS = 512;    // of the vocabulary, at a time
constexpr int64_t GROUP = 512;  // rows whose gradients of logits are held at a time
constexpr int64_t BLOCK = 32;   // rows whose logits are held at a time
constexpr int64_t APART = IDS + 32;

struct Head {
    int64_t rows, width, vocab;
    float z_weight;
    int64_t adds;  // to the gradient of the head that is there
    const bf16 *x, *head;
    const int64_t* targets;
    const float* scales;
    float *log_totals, *picked;
    bf16* to_x;  // null where a gradient is not asked for
    float* to_head;

    int64_t lines() const { return padded(rows, BLOCK); }
    int64_t numbers() const { return padded(width, 32); }
    int64_t apart() const { return lines() + 32; }
};

// What all threads read, and what each of them finds of every row.
struct Shared {
    Numbers<bf16> x, flipped;  // [lines][numbers], [numbers][apart]
    Numbers<float> tops, sums, gradients;  // [thread][lines], the last [thread][lines][numbers]
    Numbers<float> grows;      // [lines]

    Shared(const Head& h, int threads)
        : x(h.lines() * h.numbers()), flipped(h.numbers() * h.apart()), tops(threads * h.lines(), -INFINITY),
          sums(threads * h.lines()), gradients(h.to_x ? threads * h.lines() * h.numbers() : 0), grows(h.lines()) {}
};

struct Own {
    Numbers<bf16> turned, pairs, logit_gradients, logit_pairs;
    Numbers<float> logits, head_gradients;

    Own(const Head& h)
        : turned(IDS * h.numbers()), pairs(IDS * h.numbers()), logit_gradients(GROUP * APART), logit_pairs(GROUP * IDS),
          logits(BLOCK * APART), head_gradients(h.to_head ? h.numbers() * APART : 0) {}
};

// The factors of this thread's rows: x padded with zeros, and transposed.
void prepare(const Head& h, Shared& all) {
    Range mine = own(h.lines() / BLOCK);
    for (int64_t row = mine.begin * BLOCK; row < std::min(mine.end * BLOCK, h.rows); row++)
        std::memcpy(all.x.data() + row * h.numbers(), h.x + row * h.width, h.width * sizeof(bf16));
    flip_halves(all.x.data() + mine.begin * BLOCK * h.numbers(), h.numbers(), (mine.end - mine.begin) * BLOCK, h.numbers(),
                all.flipped.data() + mine.begin * BLOCK, h.apart());
}

// Rows of the head in panels whose columns are ids: [ids / 16][numbers / 2][16][2]; behind the vocabulary's end they are zeros.
void turn_ids(const Head& h, int64_t first, bf16* to) {
    Numbers<bf16> padding;
    const bf16* from = h.head + first * h.width;
    int64_t count = std::min(IDS, h.vocab - first), apart = h.width;
    if (count < IDS || h.width != h.numbers()) {
        padding.resize(IDS * h.numbers());
        for (int64_t id = 0; id < count; id++)
            std::memcpy(padding.data() + id * h.numbers(), from + id * h.width, h.width * sizeof(bf16));
        from = padding.data(), apart = h.numbers();
    }
    turn_pairs(from, apart, IDS, h.numbers(), to);
}

// The same rows by pairs of ids: [numbers / 16][ids / 2][16][2].
void pair_ids(const Head& h, int64_t first, bf16* to) {
    for (int64_t id = 0; id < IDS; id += 2)
        for (int64_t place = 0; place < h.numbers(); place += LANES) {
            const bf16* from = h.head + (first + id) * h.width + place;
            int64_t count = h.width - place;
            U line = pair_of(from, first + id < h.vocab ? count : 0, from + h.width, first + id + 1 < h.vocab ? count : 0);
            std::memcpy(to + (place / WIDE * IDS + id) * WIDE + place % WIDE * 2, &line, sizeof(line));
        }
}

void logits_of(const Head& h, const Shared& all, const Own& mine, int64_t row, float* to) {
    product<false>({all.x.data() + row * h.numbers(), h.numbers(), mine.turned.data(), WIDE * h.numbers(), to, APART}, BLOCK, IDS,
                   h.numbers());
}

// This thread's ids: the largest logit of every row and the sum of powers below it, and the logits of targets.
void sum_up(const Head& h, Shared& all, Own& mine, Range tiles) {
    float *tops = all.tops.data() + omp_get_thread_num() * h.lines(), *sums = all.sums.data() + omp_get_thread_num() * h.lines();
    for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
        int64_t first = tile * IDS, count = std::min(IDS, h.vocab - first);
        turn_ids(h, first, mine.turned.data());
        for (int64_t begin = 0; begin < h.rows; begin += BLOCK) {
            logits_of(h, all, mine, begin, mine.logits.data());
            for (int64_t row = begin; row < std::min(begin + BLOCK, h.rows); row++) {
                const float* logits = mine.logits.data() + (row - begin) * APART;
                int64_t target = h.targets[row] - first;
                if (target >= 0 && target < count) h.picked[row] = logits[target];
                float top = std::max(tops[row], largest(logits, count));
                sums[row] = sums[row] * std::exp(tops[row] - top) + sum_of_powers(logits, count, top);
                tops[row] = top;
            }
        }
    }
}

// Puts together what the threads have found of this thread's rows.
void finish_sums(const Head& h, Shared& all) {
    Range mine = own(h.rows);
    for (int64_t row = mine.begin; row < mine.end; row++) {
        float top = -INFINITY, sum = 0;
        for (size_t at = row; at < all.tops.size(); at += h.lines()) top = std::max(top, all.tops[at]);
        for (size_t at = row; at < all.tops.size(); at += h.lines()) {
            // A thread without ids has found nothing.
            if (all.sums[at] != 0) sum += all.sums[at] * std::exp(all.tops[at] - top);
        }
        h.log_totals[row] = top + std::log(sum);
        all.grows[row] = h.scales[row] * (1 + 2 * h.z_weight * h.log_totals[row]);
    }
}

// Gradients of the logits of two rows that follow each other: by rows, and by pairs of rows. Both are zeros behind the last row and
// behind the vocabulary's end.
void logit_gradients(const Head& h, const Shared& all, Own& mine, int64_t row, int64_t begin, int64_t group, int64_t first) {
    int64_t count = std::min(IDS, h.vocab - first);
    F grows[2], totals[2];
    float exact[2];
    int64_t targets[2];
    const float* logits[2];
    for (int i = 0; i < 2; i++) {
        bool there = row + i < h.rows;
        logits[i] = mine.logits.data() + (row + i - begin) * APART;
        grows[i] = spread(there ? all.grows[row + i] : 0);
        totals[i] = spread(there ? h.log_totals[row + i] : 0);
        targets[i] = there ? h.targets[row + i] - first : -1;
        // A small difference of large numbers, so it is computed in fp32 and rounded once.
        exact[i] = there ? std::exp(h.picked[row + i] - h.log_totals[row + i]) * all.grows[row + i] - h.scales[row + i] : 0;
    }
    for (int64_t place = 0; place < IDS; place += LANES) {
        U halves_of[2] = {};
        for (int i = 0; i < 2 && place < count; i++) {
            F gradient = exponential(load<F>(logits[i] + place) - totals[i]) * grows[i];
            if (targets[i] >= place && targets[i] < place + LANES) gradient[targets[i] - place] = exact[i];
            if (place + LANES > count) gradient = up_to(gradient, place, count - 1, 0);
            halves_of[i] = low_halves(halves(gradient));
        }
        U line = halves_of[0] | halves_of[1] << 16;
        std::memcpy(mine.logit_pairs.data() + (place / WIDE * GROUP + row - group) * WIDE + place % WIDE * 2, &line, sizeof(line));
        for (int i = 0; i < 2; i++) {
            H half = from_low_halves(halves_of[i]);
            std::memcpy(mine.logit_gradients.data() + (row + i - group) * APART + place, &half, sizeof(half));
        }
    }
}

void gradients(const Head& h, Shared& all, Own& mine, Range tiles) {
    float* to_x = all.gradients.data() + omp_get_thread_num() * h.lines() * h.numbers();
    for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
        int64_t first = tile * IDS;
        turn_ids(h, first, mine.turned.data());
        pair_ids(h, first, mine.pairs.data());
        for (int64_t group = 0; group < h.lines(); group += GROUP) {
            int64_t end = std::min(group + GROUP, h.lines());
            for (int64_t begin = group; begin < end; begin += BLOCK) {
                logits_of(h, all, mine, begin, mine.logits.data());
                for (int64_t row = begin; row < begin + BLOCK; row += 2) logit_gradients(h, all, mine, row, begin, group, first);
            }
            if (h.to_x)
                product<true>({mine.logit_gradients.data(), APART, mine.pairs.data(), IDS * WIDE, to_x + group * h.numbers(),
                               h.numbers()}, end - group, h.numbers(), IDS);
            if (!h.to_head) continue;
            HalfFactors f{all.flipped.data() + group, h.apart(), mine.logit_pairs.data(), GROUP * WIDE, mine.head_gradients.data(), APART};
            if (group == 0) product<false>(f, h.numbers(), IDS, end - group);
            else product<true>(f, h.numbers(), IDS, end - group);
        }
        if (h.to_head)
            put_turned(mine.head_gradients.data(), APART, std::min(IDS, h.vocab - first), h.width, h.to_head + first * h.width, h.adds);
    }
}

// Adds the threads' gradients of this thread's rows.
void finish_gradients(const Head& h, const Shared& all) {
    Range mine = own(h.rows);
    size_t size = h.lines() * h.numbers();
    for (int64_t row = mine.begin; row < mine.end; row++)
        by_vectors(h.width, [&](int64_t place, auto length) {
            F sum{};
            for (size_t at = row * h.numbers() + place; at < all.gradients.size(); at += size) sum += load<F>(all.gradients.data() + at);
            keep(h.to_x + row * h.width + place, sum, length);
        });
}

void loss(const Head& h, Shared& all) {
    Tiles tiles;
    Own mine(h);
    Range ids = own((h.vocab + IDS - 1) / IDS);
    prepare(h, all);
#pragma omp barrier
    sum_up(h, all, mine, ids);
#pragma omp barrier
    finish_sums(h, all);
    if (!h.to_x && !h.to_head) return;
#pragma omp barrier
    gradients(h, all, mine, ids);
#pragma omp barrier
    if (h.to_x) finish_gradients(h, all);
}

}  // namespace

extern "C" {

void olmo2_head_loss(const Head* h, int threads) {
    Shared all(*h, threads);
#pragma omp parallel num_threads(threads)
    loss(*h, all);
}
}
