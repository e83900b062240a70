// The softmax over a vocabulary for training on CPUs, with its gradient; `model/network/fused.py` calls it.
//
// A row of logits is read three times, from a near cache but for the first: for its largest, for the sum of the powers, and to be
// overwritten with its gradient. The powers stay in fp32 between the last two.

#include "vectors.h"

namespace {

struct Softmax {
    int64_t rows, vocab;
    float temperature, z_weight;
};

// log(sum(exp(logits / temperature))) of a row; the exponentials less the largest go to `powers` where it is not null.
template <class T> float log_total(const Softmax& s, const T* logits, float* powers, float* part) {
    // A temperature of 1 divides nothing; others divide as PyTorch does.
    F divisor = spread(s.temperature), sums[2] = {};
    float top = largest(logits, s.vocab) / s.temperature;
    int turn = 0;
    by_vectors(s.vocab, [&](int64_t place, auto length) {
        F value = some(logits + place, length, -INFINITY);
        // Lanes behind the row's end have no part in the sum: e**-87 is not 0.
        F power = exponential(value / divisor - top);
        if constexpr (std::is_same_v<decltype(length), int>)
            for (int i = length; i < LANES; i++) power[i] = 0;
        sums[turn ^= 1] += power;
        if (powers) keep(powers + place, power, length);
    });
    float sum = sum_of(sums[0] + sums[1]);
    *part = 1 / sum;
    return top + std::log(sum);
}

// Each row's gradient of scale * (log_total + z_weight * log_total**2 - logits[target] / temperature) over the row itself, where
// `scales` is not null; what each row's target has, divided, goes to `picked`.
template <class T>
void softmax(const Softmax& s, T* logits, const int64_t* targets, const float* scales, float* log_totals, float* picked) {
    Numbers<float> powers(scales ? s.vocab : 0);
    Range mine = own(s.rows);
    for (int64_t row = mine.begin; row < mine.end; row++) {
        T* line = logits + row * s.vocab;
        float part, total = log_total(s, line, scales ? powers.data() : nullptr, &part);
        float chosen = wide(line[targets[row]]) / s.temperature;
        log_totals[row] = total;
        picked[row] = chosen;
        if (!scales) continue;
        float scale = scales[row] / s.temperature, grow = scale * (1 + 2 * s.z_weight * total);
        by_vectors(s.vocab, [&](int64_t place, auto length) {
            keep(line + place, some(powers.data() + place, length, 0) * (part * grow), length);
        });
        // A small difference of large numbers, so it is computed in fp32 and rounded once.
        line[targets[row]] = narrow<T>(std::exp(chosen - total) * grow - scale);
    }
}

}  // namespace

extern "C" {

// Logits [rows, vocab] are fp32, or bf16 where `half` is not 0.
void olmo2_softmax(int half, const Softmax* s, void* logits, const int64_t* targets, const float* scales, float* log_totals,
                   float* picked, int threads) {
#pragma omp parallel num_threads(threads)
    if (half) softmax(*s, (bf16*)logits, targets, scales, log_totals, picked);
    else softmax(*s, (float*)logits, targets, scales, log_totals, picked);
}
}
