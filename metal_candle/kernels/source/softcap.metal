// cap · tanh(x / cap): one array is read and one is written, once. Flat arrays of one size.
//
// A thread takes CHUNKS times four neighbours, a threadgroup apart, so that its reads are under way together.
constexpr int CHUNKS = 2;

const uint n = x_shape[0];
const uint step = 4 * threads_per_threadgroup.x;
const uint first = threadgroup_position_in_grid.x * step * CHUNKS + 4 * thread_position_in_threadgroup.x;

float values[4 * CHUNKS];
mc_load_rows<T, CHUNKS, false, false>(x, x, x, first, step, n, values, values, values);
_Pragma("unroll")
for (int i = 0; i < 4 * CHUNKS; ++i) {
  // Some fast tanh of a large number is NaN: infinity by infinity.
  values[i] = cap[0] * metal::precise::tanh(values[i] / cap[0]);
}
_Pragma("unroll")
for (int chunk = 0; chunk < CHUNKS; ++chunk) {
  mc_store4<T>(y, first + chunk * step, n, values + 4 * chunk);
}
