// One launch from its request to its report: memory, threadgroups in turn, and what the machine itself catches.
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>

#include "fibre.h"
#include "memory.h"
#include "shadow.h"
#include "state.h"

namespace em {

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGVTALRM};
constexpr int SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;
static struct sigaction previous[SIGNAL_COUNT];
static sigjmp_buf launcher;
static pthread_t launching;
static bool guarded = false;
constexpr int NOT_A_NUMBER_PAIR = 0x7fff;  // NaN as half and bfloat, and twice as float

// SIGVTALRM comes at intervals of half the patience. At the second in one go of a fibre it is at its end.
static em_u64 seen_switches;

static void set_timer(double seconds, itimerval* before) {
  itimerval timer = {};
  timer.it_value.tv_sec = (time_t)seconds;
  timer.it_value.tv_usec = (suseconds_t)((seconds - (double)timer.it_value.tv_sec) * 1e6);
  timer.it_interval = timer.it_value;
  setitimer(ITIMER_VIRTUAL, &timer, before);
}

static void tell(int signal, const char* address) {
  const char* thread = this_thread();
  current = nullptr;  // its frames may be what is broken
  const Region* near = region_near(address);
  if (signal == SIGVTALRM)
    fail("endless", nullptr, "%s goes on for %g s without coming to a barrier or its end", thread,
         launch.request->patience);
  else if (signal == SIGFPE)
    fail("arithmetic", nullptr, "%s divides an integer by zero", thread);
  else if (signal == SIGILL || signal == SIGTRAP)
    fail("memory", nullptr, "%s runs into undefined behaviour that the compiler made a trap of", thread);
  else if (in_guard(address))
    fail("bounds", nullptr, "%s overruns its stack of %llu bytes", thread, STACK);
  else if (near && near->buffer->role == EM_INPUT && region_of(address))
    fail("read-only", nullptr, "%s writes to %s, an input", thread, describe(near, address));
  else if (near)
    fail("bounds", nullptr, "%s accesses %s", thread, describe(near, address));
  else
    fail("memory", nullptr, "%s accesses address %p, which is no buffer's", thread, (const void*)address);
}

static void on_signal(int signal, siginfo_t* about, void*) {
  if (signal == SIGVTALRM) {
    if (!guarded) return;
    // Sent to the process, and so to any of its threads.
    if (!pthread_equal(pthread_self(), launching)) {
      pthread_kill(launching, signal);
      return;
    }
    bool same = current && seen_switches == switches;
    seen_switches = switches;
    if (!same) return;
  }
  if (guarded && current && pthread_equal(pthread_self(), launching)) {
    tell(signal, (const char*)about->si_addr);
    siglongjmp(launcher, 1);
  }
  // Not ours: as before the launch, and once more.
  for (int i = 0; i < SIGNAL_COUNT; i++)
    if (SIGNALS[i] == signal) sigaction(signal, &previous[i], nullptr);
}

static void guard(bool begin) {
  static char* alternate = nullptr;
  static stack_t before;
  static itimerval timer_before;
  constexpr size_t SIZE = 64 * 1024;
  if (begin) {
    if (!alternate)
      alternate = (char*)mmap(nullptr, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t stack = {};
    stack.ss_sp = alternate;
    stack.ss_size = SIZE;
    sigaltstack(&stack, &before);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    launching = pthread_self();
    for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &action, &previous[i]);
    guarded = true;
    set_timer(launch.request->patience / 2, &timer_before);
  } else {
    setitimer(ITIMER_VIRTUAL, &timer_before, nullptr);
    guarded = false;
    for (int i = 0; i < SIGNAL_COUNT; i++)
      // A late tick may still come, and by default it would end the process.
      if (SIGNALS[i] != SIGVTALRM || previous[i].sa_handler != SIG_DFL) sigaction(SIGNALS[i], &previous[i], nullptr);
    if (before.ss_flags & SS_DISABLE || !before.ss_sp) {
      before.ss_flags = SS_DISABLE;
      before.ss_size = SIZE;
    }
    sigaltstack(&before, nullptr);
  }
}

static void poison_threadgroup_memory() {
  unsigned short* words = (unsigned short*)launch.request->threadgroup_memory;
  for (em_u64 i = 0; i < launch.request->threadgroup_bytes / 2; i++) words[i] = NOT_A_NUMBER_PAIR;
}

static void run_groups() {
  const em_u32* groups = launch.request->groups;
  em_u64 count = (em_u64)groups[0] * groups[1] * groups[2];
  if (!count) return;
  em_u64 bytes = count * sizeof(em_u32);
  void* got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (got == MAP_FAILED) {
    fail("launch", nullptr, "no room for an order of %llu threadgroups", count);
    return;
  }
  em_u32* order = (em_u32*)got;
  mix_order(order, (em_u32)count, launch.request->order, launch.request->seed);
  launch.order = order;
  // Declared volatile: it lives through a jump from a signal.
  volatile em_u64 done = 0;
  if (!sigsetjmp(launcher, 1)) {
    for (; done < count && !launch.report->failed; done = done + 1) {
      locate_group(order[done], launch.group);
      launch.serial++;
      poison_threadgroup_memory();
      run_group();
    }
  }
  munmap(order, bytes);
}

}  // namespace em

using namespace em;

void em_launch(const em_request* request, em_report* report) {
  static em_u32 serial = 0;
  em_u64 count = (em_u64)request->groups[0] * request->groups[1] * request->groups[2];
  memset(report, 0, sizeof *report);
  launch = Launch{};
  launch.request = request;
  launch.report = report;
  launch.threads = request->group_size[0] * request->group_size[1] * request->group_size[2];
  launch.serial = serial;
  launch.first_serial = serial + 1;
  serial += (em_u32)count;
  Dl_info object;
  if (dladdr((void*)request->entry, &object)) launch.object = (char*)object.dli_fbase;
  if (!map_regions()) return;
  static void* arguments[MAX_BUFFERS];
  for (em_u32 i = 0; i < region_count; i++) arguments[i] = regions[i].begin + regions[i].buffer->first;
  launch.arguments = arguments;
  current = nullptr;
  if (!request->checked || prepare_shadow()) {
    guard(true);
    run_groups();
    guard(false);
  }
  if (!report->failed) {
    if (request->checked)
      check_covered();
    else
      check_slack();
  }
  copy_out_and_unmap();
}
