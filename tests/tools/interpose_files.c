/* Comes before the system's libraries (LD_PRELOAD) and fails what is asked of the files in one
   folder. Off until fail_call is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096], failing[32];
static int failing_nth, failing_error, calls;

/* Of these calls on files below the folder, this one fails with this error: the first one is 1. An
   error of 0: a write takes half. Returns how many there were since the last time. */
int fail_call(const char *below, const char *call, int nth, int error) {
    int before = calls;
    snprintf(folder, sizeof folder, "%s", below);
    snprintf(failing, sizeof failing, "%s", call);
    failing_nth = nth;
    failing_error = error;
    calls = 0;
    return before;
}

static int fails(const char *call, const char *path) {
    if (!*folder || strcmp(call, failing) || !strstr(path, folder)) return 0;
    return ++calls == failing_nth;
}

static int fails_open(const char *call, int file) {
    char link[64], path[4096];
    if (!*folder || strcmp(call, failing)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int fail(void) {
    errno = failing_error;
    return -1;
}

int fsync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return fails_open("fsync", file) ? fail() : real(file);
}

int flock(int file, int how) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return fails_open("flock", file) ? fail() : real(file, how);
}

int close(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    int failed = fails_open("close", file), result = real(file);
    return failed ? fail() : result;
}

ssize_t read(int file, void *data, size_t count) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    if (!fails_open("read", file)) return real(file, data, count);
    return failing_error ? fail() : real(file, data, (count + 1) / 2);
}

ssize_t write(int file, const void *data, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!fails_open("write", file)) return real(file, data, count);
    return failing_error ? fail() : real(file, data, (count + 1) / 2);
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return fails("rename", to) ? fail() : real(from, to);
}

int unlink(const char *path) {
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    return fails("unlink", path) ? fail() : real(path);
}

int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    va_list rest;
    va_start(rest, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
    va_end(rest);
    return fails("open", path) ? fail() : real(path, flags, mode);
}
