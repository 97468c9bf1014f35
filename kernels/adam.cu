// The Adam optimiser: one launch updates all parameters of a network.
//
//   g     = gradient + l2 * parameter                            l2: 0, or the weight of a penalty l2/2 * p^2
//   m     = beta1 * m + (1 - beta1) * g                          exponential moving average of the gradients
//   v     = beta2 * v + (1 - beta2) * g^2                        exponential moving average of their squares
//   p    -= rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
//
//   The rate at step t = 1 .. steps rises linearly for `warmup` steps, times half a cosine from 1 to 0:
//   rate  = base_rate * min(t / warmup, 1) * (1 + cos(pi * (t - 1) / steps)) / 2             steps 0: no cosine
//
//   array        shape   adam_schedule   adam_step
//   step         (1)     in              in and out     steps done
//   rates        (3)     out             in             rate, 1 - beta1^t, 1 - beta2^t
//   parameters   (P)                     in and out
//   gradients    (P)                     in
//   m, v         (P)                     in and out
//   l2           (P)                     in
//   loss         (1)                     in             this step's loss
//   losses       (R)                     out            the last R losses; that of step t is element (t - 1) % R
//
//   kernel           grid           block   global reads a thread    writes
//   adam_schedule    1              1       1                        3
//   adam_step        ceil(P/256)    256     8, thread 0: 10          3, thread 0: 5
//
// The step counter, the rate and the losses live on the device. So a step needs nothing from the host, and the host
// fetches the losses of many steps at once: waiting for each loss would take longer than the step.
//
// One thread computes the rate, and all others need it. So it has a launch of its own, which needs no gradients and may
// run on a side stream beside forward and backward. adam_step raises the counter, where no other thread reads it.
//
//   first step, gradient 3:      m .3 (corrected 3)   v .009 (corrected 9)   p -= rate * 3 / sqrt(9), one rate long
//   first step, gradient .003:   as long. Adam follows the sign and the steadiness of a gradient, not its size.
//
// Kingma & Ba, "Adam: a method for stochastic optimization" (2015). Read next: gather_normalise.cu.

extern "C" __global__ void adam_schedule(const int* __restrict__ step, float* __restrict__ rates, float base_rate,
                                         int warmup, int steps, float beta1, float beta2) {
    int t = step[0] + 1;
    float warmup_factor = t < warmup ? (float)t / warmup : 1.0f;
    float progress = steps == 0 ? 0.0f : t <= steps ? (float)(t - 1) / steps : 1.0f;
    rates[0] = base_rate * warmup_factor * 0.5f * (1.0f + cosf(3.14159265358979f * progress));
    rates[1] = -expm1f(t * logf(beta1));  // 1 - beta1^t; near t = 1 the subtraction would lose half the digits
    rates[2] = -expm1f(t * logf(beta2));
}

extern "C" __global__ void adam_step(float* __restrict__ parameters, const float* __restrict__ gradients,
                                     float* __restrict__ m, float* __restrict__ v, const float* __restrict__ l2,
                                     const float* __restrict__ rates, int* __restrict__ step,
                                     const float* __restrict__ loss, float* __restrict__ losses, float beta1,
                                     float beta2, float epsilon, int count, int R) {
    int element = thread_number();  // 0 .. count - 1, and the last block's surplus
    if (element >= count) return;
    float gradient = gradients[element] + l2[element] * parameters[element];
    m[element] = beta1 * m[element] + (1.0f - beta1) * gradient;
    v[element] = beta2 * v[element] + (1.0f - beta2) * gradient * gradient;
    float m_hat = m[element] / rates[1];
    float v_hat = v[element] / rates[2];
    parameters[element] -= rates[0] * m_hat / (sqrtf(v_hat) + epsilon);
    if (element == 0) {
        losses[step[0] % R] = loss[0];
        step[0] += 1;
    }
}
