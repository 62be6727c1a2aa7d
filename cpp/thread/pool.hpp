// The threads. The caller starts at once and works like any other; who comes late finds nothing
// left to do and costs nothing. No OpenMP: its runtimes hang in forked children and end the process
// when a thread cannot be made.
#pragma once

namespace thalweg {

// The most threads a step may use, the caller's included.
int get_num_threads();
void set_num_threads(int count);

// Makes the workers for steps on this many threads. False if the system refused one; then there are
// as many as it gave, and it is not asked again until set_num_threads().
bool make_workers(int threads);

// In a forked child: the parent's workers are not there.
void abandon_workers();

// Calls work(context) on this thread, and on up to threads - 1 idle workers for as long as this
// thread is in it.
// Returns when all have left it. `work` takes its share from a common counter and throws nothing.
// Sleeping workers are woken if it is worth that by itself, or if the calls come so close together
// that the workers will not sleep again between them.
void run_on(int threads, void (*work)(void*), void* context, bool worth_waking);

} // namespace thalweg
