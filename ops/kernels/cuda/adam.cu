#include "elements.cuh"
#include "step_numbers.cuh"

// One step of AdamW (tinygrad2/optim.py) on n parameters p with gradients g * factor * *scale (scale: null for 1), and
// moments m and v. `half` is null, or gets p rounded to T. If the factors are not a number, nothing is written.
// unbias1 = 1 / (1 - beta1^t), gain1 = 1 - beta1, and so for 2.
//
// With `numbers` (gpu/step_numbers.py; null for none) factor, learning rate and t are read there instead: t is
// `missed` less, and corrections[2 t], corrections[2 t + 1] are unbias1 and unbias2, the same for all t from `last` on.
extern "C" __global__ void __launch_bounds__(256) adamw(
    float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
    T* __restrict__ half, long long n, int wide, const float* __restrict__ scale, float factor, float lr, float gain1,
    float gain2, float unbias1, float unbias2, float eps, float decay, const float* __restrict__ numbers,
    const float* __restrict__ corrections, int missed, int last) {
    size_t first = first_element();
    float by = scale ? scale[0] * factor : factor;
    if (numbers) by = numbers[FACTOR];
    if (by != by) return;
    if (numbers) {
        int t = min((int)(numbers[COUNT] - numbers[SKIPPED]) - missed, last);
        lr = numbers[RATE];
        unbias1 = corrections[2 * t];
        unbias2 = corrections[2 * t + 1];
    }
    float p_[ELEMENTS], g_[ELEMENTS], m_[ELEMENTS], v_[ELEMENTS];
    load_elements(g, first, n, wide, g_);
    load_elements(m, first, n, wide, m_);
    load_elements(v, first, n, wide, v_);
    load_elements(p, first, n, wide, p_);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
        float grad = g_[i] * by;
        m_[i] += gain1 * (grad - m_[i]);
        v_[i] += gain2 * (grad * grad - v_[i]);
        p_[i] -= lr * (m_[i] * unbias1 / (sqrtf(v_[i] * unbias2) + eps) + decay * p_[i]);
    }
    store_elements(m, first, n, wide, m_);
    store_elements(v, first, n, wide, v_);
    store_elements(p, first, n, wide, p_);
    if (half) store_elements(half, first, n, wide, p_);
}
