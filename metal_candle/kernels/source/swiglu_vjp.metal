// The gradients of silu(gate) · up: of gate c · up · (s + gate · s · (1 - s)), of up c · gate · s, with the cotangent c
// and s = sigmoid(gate). Three arrays are read and two are written, once. Flat arrays of one size.
//
// EACH elements a thread, a threadgroup apart: neighbouring threads have neighbouring elements, and all of a thread's
// reads are under way together.
constexpr uint EACH = 4;

const uint n = gate_shape[0];
const uint threads = threads_per_threadgroup.x;
const uint start = threadgroup_position_in_grid.x * threads * EACH + thread_position_in_threadgroup.x;

float upstream[EACH];
float g[EACH];
float u[EACH];
_Pragma("unroll")
for (uint i = 0; i < EACH; i++) {
  const uint at = start + i * threads;
  if (at < n) {
    upstream[i] = float(cotangent[at]);
    g[i] = float(gate[at]);
    u[i] = float(up[at]);
  }
}
_Pragma("unroll")
for (uint i = 0; i < EACH; i++) {
  const uint at = start + i * threads;
  if (at < n) {
    // exp(-g) of a very negative g is infinite, and s then 0, as it should be.
    const float s = 1.0f / (1.0f + metal::exp(-g[i]));
    const float silu = g[i] * s;
    of_gate[at] = T(upstream[i] * u[i] * (s + silu * (1.0f - s)));
    of_up[at] = T(upstream[i] * silu);
  }
}
