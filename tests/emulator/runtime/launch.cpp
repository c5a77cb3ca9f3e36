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

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGVTALRM, SIGINT};
constexpr int SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;
static struct sigaction previous[SIGNAL_COUNT];
static sigjmp_buf launcher;
static pthread_t launching;
static volatile bool guarded = false;
static volatile bool passed_on = false;  // SIGINT came to another thread first
constexpr int NOT_A_NUMBER_PAIR = 0x7fff;  // NaN as half and bfloat, and twice as float

// SIGVTALRM comes at intervals of half the patience. At the second in one go of a fibre, or in one threadgroup, that is
// at its end.
static em_u64 seen_switches;
static em_u32 seen_serial;
// Where a thread that did not end had read what nobody had written, the others get as long again between them.
static em_u32 late;
constexpr em_u32 LATE = 200;

static void set_timer(double seconds, itimerval* before) {
  itimerval timer = {};
  timer.it_value.tv_sec = (time_t)seconds;
  timer.it_value.tv_usec = (suseconds_t)((seconds - (double)timer.it_value.tv_sec) * 1e6);
  timer.it_interval = timer.it_value;
  setitimer(ITIMER_VIRTUAL, &timer, before);
}

static void tell(int signal, const char* address) {
  const char* thread = this_thread();
  current->wait = STOPPED;
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
    fail("bounds", nullptr, "%s has more private memory than the %llu bytes that a thread gets", thread, STACK);
  else if (near && near->buffer->role == EM_INPUT && region_of(address))
    fail("read-only", nullptr, "%s writes %s; %s is an input", thread, index_of(near, address), near->buffer->name);
  else if (near)
    fail("bounds", nullptr, "%s accesses %s; %s", thread, index_of(near, address), size_of(near));
  else if (const char* below = below_zero(address, 0, &near))
    fail("bounds", nullptr, "%s accesses %s; %s", thread, below, size_of(near));
  else
    fail("memory", nullptr, "%s accesses address %p, which is no buffer's", thread, (const void*)address);
}

static const struct sigaction& before_launch(int signal) {
  int i = 0;
  while (SIGNALS[i] != signal) i++;
  return previous[i];
}

static bool has_function(const struct sigaction& action) {
  return action.sa_flags & SA_SIGINFO || (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
}

// Python's own handler only takes a note, which Python reads once the launch is over.
static void on_interrupt(siginfo_t* about, void* context) {
  const struct sigaction& action = before_launch(SIGINT);
  if (passed_on)
    passed_on = false;
  else if (action.sa_flags & SA_SIGINFO)
    action.sa_sigaction(SIGINT, about, context);
  else
    action.sa_handler(SIGINT);
  if (!guarded || !launch.request->interruptible) return;
  if (!pthread_equal(pthread_self(), launching)) {
    passed_on = true;
    pthread_kill(launching, SIGINT);
    return;
  }
  ended = true;
  launch.report->interrupted = 1;
  if (current && !busy) siglongjmp(launcher, 1);
}

static void on_signal(int signal, siginfo_t* about, void* context) {
  if (signal == SIGINT) return on_interrupt(about, context);
  if (signal == SIGVTALRM) {
    if (!guarded) return;
    // Sent to the process, and so to any of its threads.
    if (!pthread_equal(pthread_self(), launching)) {
      pthread_kill(launching, signal);
      return;
    }
    bool same = current && seen_switches == switches;
    tired = seen_serial == launch.serial;
    seen_switches = switches;
    seen_serial = launch.serial;
    if (launch.spent && ++late == LATE) ended = true;
    if (!current || busy || !(same || ended)) return;
    if (!launch.spent) {
      launch.spent = true;
      late = 0;
      set_timer(launch.request->patience / LATE, nullptr);
    }
  }
  if (guarded && current && pthread_equal(pthread_self(), launching)) {
    tell(signal, (const char*)about->si_addr);
    siglongjmp(launcher, 1);
  }
  // Not ours: as before the launch, and once more.
  sigaction(signal, &before_launch(signal), nullptr);
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
    guarded = true;
    for (int i = 0; i < SIGNAL_COUNT; i++) {
      sigaction(SIGNALS[i], nullptr, &previous[i]);
      if (SIGNALS[i] != SIGINT || has_function(previous[i])) sigaction(SIGNALS[i], &action, nullptr);
    }
    set_timer(launch.request->patience / 2, &timer_before);
  } else {
    setitimer(ITIMER_VIRTUAL, &timer_before, nullptr);
    guarded = false;
    for (int i = 0; i < SIGNAL_COUNT; i++)
      // A late tick may still come, and by default it would end the process.
      if (SIGNALS[i] != SIGVTALRM || has_function(previous[i])) sigaction(SIGNALS[i], &previous[i], nullptr);
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
  // Declared volatile: they live through a jump from a signal, which comes back to here.
  volatile em_u64 done = 0;
  volatile bool begun = false;
  sigsetjmp(launcher, 1);
  current = nullptr;
  while (done < count && !launch.report->failed && !ended && !(launch.spent && !begun)) {
    if (!begun) {
      locate_group(order[done], launch.group);
      launch.serial++;
      poison_threadgroup_memory();
      begun = true;
      run_group();
    } else {
      go_on();
    }
    begun = false;
    done = done + 1;
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
  pending.is = false;
  ended = passed_on = false;
  seen_serial = 0;
  if (!request->checked || prepare_shadow()) {
    guard(true);
    run_groups();
    guard(false);
  }
  if (pending.is && !report->failed && !report->interrupted) tell_pending();
  if (!report->failed && !report->interrupted) {
    if (request->checked)
      check_covered();
    else
      check_slack();
  }
  copy_out_and_unmap();
}
