#include "common.cuh"
#include "step_numbers.cuh"

// decide_step of tinygrad2/gpu/step_numbers.py: n losses and the gradient's norm are in `values`. One warp.
//
// The loss scale stays between `least` and `most`; it is doubled after `good_steps` without an overflow. The
// overflow number `most_skipped` in a row is not skipped but ends the training, which has diverged.
extern "C" __global__ void __launch_bounds__(32) decide_step(
    const float* __restrict__ values, float* __restrict__ numbers, int n, float max_norm, float micro_batches,
    int dynamic, float least, float most, float good_steps, float most_skipped) {
    float total = 0;                                              // 0, or not a number
    for (int i = threadIdx.x; i < n; i += 32) total += 0 * values[i];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
    if (threadIdx.x > 0) return;
    float scale = numbers[SCALE], norm = values[n] / scale, not_a_number = __uint_as_float(0x7fc00000u);
    bool loss_is_finite = total == 0, norm_is_finite = 0 * norm == 0;
    bool overflow = dynamic && loss_is_finite && !norm_is_finite && numbers[IN_A_ROW] + 1 < most_skipped;
    bool stopped = numbers[STOPPED] != 0 || !(loss_is_finite && norm_is_finite || overflow);
    float clip = max_norm > 0 ? fminf(1, max_norm / (norm + 1e-6f)) : 1;
    numbers[FACTOR] = stopped || overflow ? not_a_number : clip / micro_batches / scale;
    numbers[STOPPED] = stopped;
    if (stopped || !dynamic) return;
    float good = overflow ? 0 : numbers[GOOD] + 1;
    if (overflow) scale = fmaxf(least, scale / 2);
    if (good == good_steps) scale = fminf(most, scale * 2);
    numbers[SCALE] = scale;
    numbers[GOOD] = good == good_steps ? 0 : good;
    numbers[IN_A_ROW] = overflow ? numbers[IN_A_ROW] + 1 : 0;
    numbers[SKIPPED] += overflow;
}
