// Metal's language in C++, for the run pass: what the text that MLX generates needs in front of it. The runtime below
// it (runtime/) runs a threadgroup's threads as fibres. No standard header is included: they take longer to compile
// than a kernel.
#pragma once

#include "runtime/interface.h"
#include "shim/numbers.h"
#include "shim/vectors.h"
#include "shim/math.h"
#include "shim/threads.h"
#include "shim/mlx.h"

using namespace metal;

// Address spaces are the check pass's business; here they would keep the accesses from being instrumented. Threadgroup
// memory is a section of its own, by which the runtime knows it.
#define device
#define constant
#define thread
#define kernel
#define threadgroup EM_GAP static EM_SECTION
