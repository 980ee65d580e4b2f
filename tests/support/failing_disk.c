/* Loaded with LD_PRELOAD: writes and syncs of files whose path holds FAIL_PATH fail with FAIL_ERRNO while
   the file FAIL_WHILE exists. What a failing disk does, without a failing disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(int descriptor) {
    const char *wanted = getenv("FAIL_PATH"), *flag = getenv("FAIL_WHILE");
    char link[64], path[PATH_MAX];
    int saved = errno;
    if (!wanted || !flag || access(flag, F_OK) != 0) {
        errno = saved;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (size <= 0) return 0;
    path[size] = 0;
    if (!strstr(path, wanted)) return 0;
    errno = atoi(getenv("FAIL_ERRNO"));
    return 1;
}

ssize_t write(int descriptor, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return fails(descriptor) ? -1 : real(descriptor, data, size);
}

ssize_t writev(int descriptor, const struct iovec *pieces, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    return fails(descriptor) ? -1 : real(descriptor, pieces, count);
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    return fails(descriptor) ? -1 : real(descriptor);
}
