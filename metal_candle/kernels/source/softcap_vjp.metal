// The gradient of cap · tanh(x / cap): cotangent · (1 - tanh²(x / cap)). Two arrays are read and one is written, once.
// Laid out as in softcap.metal.
constexpr int CHUNKS = 2;

const uint n = x_shape[0];
const uint step = 4 * threads_per_threadgroup.x;
const uint first = threadgroup_position_in_grid.x * step * CHUNKS + 4 * thread_position_in_threadgroup.x;

float upstream[4 * CHUNKS];
float values[4 * CHUNKS];
mc_load_rows<T, CHUNKS, true, false>(cotangent, x, x, first, step, n, upstream, values, values);
_Pragma("unroll")
for (int i = 0; i < 4 * CHUNKS; ++i) {
  // 1 - tanh² is 1 / cosh², which cancels nothing where tanh is near 1. Infinite, it gives 0.
  const float c = metal::precise::cosh(values[i] / cap[0]);
  upstream[i] /= c * c;
}
_Pragma("unroll")
for (int chunk = 0; chunk < CHUNKS; ++chunk) {
  mc_store4<T>(of_x, first + chunk * step, n, upstream + 4 * chunk);
}
