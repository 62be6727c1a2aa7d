/* Comes before the system's libraries (LD_PRELOAD) and fails or waits where a test asks for it.
   All of it is off until one of the first functions below is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int threads_asked, first_refused, last_refused;
static atomic_int allocations, failing_allocation;
static atomic_int waits_to_hold, holding;

/* Of the threads asked for from now on, these are refused; the first one is 1. */
void refuse_threads(int first, int last) {
    threads_asked = 0;
    first_refused = first;
    last_refused = last;
}
int count_threads_asked(void) { return threads_asked; }

/* This one of C++'s allocations from now on fails; 0: none. Returns how many there were. */
int fail_allocation(int nth) {
    int before = allocations;
    allocations = 0;
    failing_allocation = nth;
    return before;
}

/* The next timed wait of C++ stops with the mutex still locked; 0: lets it go on. */
void hold_wait(int on) { waits_to_hold = on; }
int is_holding(void) { return holding; }

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg) {
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
        next("pthread_create");
    int nth = ++threads_asked;
    if (first_refused && nth >= first_refused && nth <= last_refused) return EAGAIN;
    return real(thread, attr, start, arg);
}

static int fails(void) { return failing_allocation && ++allocations == failing_allocation; }

/* operator new, of a size that the real one answers with std::bad_alloc, also aligned and nothrow. */
static const size_t too_much = (size_t)1 << 62;

void *_Znwm(size_t size) {
    void *(*real)(size_t) = next("_Znwm");
    return real(fails() ? too_much : size);
}

void *_ZnwmSt11align_val_t(size_t size, size_t alignment) {
    void *(*real)(size_t, size_t) = next("_ZnwmSt11align_val_t");
    return real(fails() ? too_much : size, alignment);
}

void *_ZnwmRKSt9nothrow_t(size_t size, const void *nothrow) {
    void *(*real)(size_t, const void *) = next("_ZnwmRKSt9nothrow_t");
    return real(fails() ? too_much : size, nothrow);
}

void *aligned_alloc(size_t alignment, size_t size) {
    void *(*real)(size_t, size_t) = next("aligned_alloc");
    return fails() ? NULL : real(alignment, size);
}

/* Of large state; no other mapping of the tests' is both without a file and as large. */
void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (!real) real = next("mmap");
    if (file == -1 && length >= (size_t)4 << 20 && fails()) {
        errno = ENOMEM;
        return (void *)-1;
    }
    return real(address, length, protection, flags, file, offset);
}

/* What std::condition_variable::wait_for calls. */
int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *deadline) {
    int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *) =
        next("pthread_cond_clockwait");
    if (waits_to_hold) {
        for (holding = 1; waits_to_hold; usleep(1000)) {}
        holding = 0;
    }
    return real(condition, mutex, clock, deadline);
}
