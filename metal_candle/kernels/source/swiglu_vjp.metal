// The gradients of silu(gate) · up: of gate c · up · (s + gate · s · (1 - s)), of up c · gate · s, with the cotangent c
// and s = sigmoid(gate). Three arrays are read and two are written, once. Flat arrays of one size.
//
// A thread takes CHUNKS times four neighbours, a threadgroup apart, so that its reads are under way together.
constexpr int CHUNKS = 2;

const uint n = gate_shape[0];
const uint step = 4 * threads_per_threadgroup.x;
const uint first = threadgroup_position_in_grid.x * step * CHUNKS + 4 * thread_position_in_threadgroup.x;

float upstream[4 * CHUNKS];
float g[4 * CHUNKS];
float u[4 * CHUNKS];
mc_load_rows<T, CHUNKS, true, true>(cotangent, gate, up, first, step, n, upstream, g, u);
_Pragma("unroll")
for (int i = 0; i < 4 * CHUNKS; ++i) {
  // exp(-g) of a very negative g is infinite, and s then 0, as it should be. Of halves the rounding exceeds what the
  // faster function loses.
  const float s = 1.0f / (1.0f + (sizeof(T) == 2 ? metal::fast::exp(-g[i]) : metal::exp(-g[i])));
  const float silu = g[i] * s;
  g[i] = upstream[i] * u[i] * (s + silu * (1.0f - s));
  u[i] = upstream[i] * silu;
}
_Pragma("unroll")
for (int chunk = 0; chunk < CHUNKS; ++chunk) {
  mc_store4<T>(of_gate, first + chunk * step, n, g + 4 * chunk);
  mc_store4<T>(of_up, first + chunk * step, n, u + 4 * chunk);
}
