/* Loaded with LD_PRELOAD: one operation that changes what is below a folder is hit by a fault.

   FAULT_BELOW  the folder; nothing else is counted, nor is what depends on the clock (progress, logs)
   FAULT_LOG    a file that gets a line for every operation
   FAULT_AT     number of the operation that is hit, from 1; with FAULT_ALL every one from there on
   FAULT_KIND   kill: the process dies, in the midst of a write
                short: a write takes a part of its bytes and says so
                a number: the operation fails with that errno

   Writes to one file, one after another, count as one operation. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

enum { PROCEED, FAIL, PART, DIE };

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static long counted;
static char written[PATH_MAX];

static int is_counted(const char *path) {
    const char *below = getenv("FAULT_BELOW");
    if (!below || !path || strncmp(path, below, strlen(below)) != 0) return 0;
    return !strstr(path, "/state/progress") && !strstr(path, "/state/build.log") &&
           !strstr(path, "/state/lock") && !strstr(path, "/state/fence");
}

static void note(const char *operation, const char *path) {
    const char *log = getenv("FAULT_LOG");
    char line[PATH_MAX + 32];
    if (!log) return;
    int size = snprintf(line, sizeof line, "%s %s\n", operation, path);
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
    syscall(SYS_write, file, line, size);
    syscall(SYS_close, file);
}

/* What happens to an operation; errno is set if it fails. */
static int fate(const char *operation, const char *path) {
    int saved = errno, result = PROCEED, is_write = !strcmp(operation, "write");
    const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
    if (!is_counted(path)) {
        errno = saved;
        return PROCEED;
    }
    pthread_mutex_lock(&guard);
    if (!is_write || strcmp(written, path)) {
        counted++;
        note(operation, path);
        if (at && kind && (counted == atol(at) || (getenv("FAULT_ALL") && counted > atol(at)))) {
            if (!strcmp(kind, "kill")) result = DIE;
            else if (!strcmp(kind, "short")) result = is_write ? PART : PROCEED;
            else result = FAIL, saved = atoi(kind);
        }
    }
    snprintf(written, sizeof written, "%s", is_write ? path : "");
    pthread_mutex_unlock(&guard);
    if (result == DIE && !is_write) kill(getpid(), SIGKILL);
    errno = saved;
    return result;
}

static char *path_of(int descriptor, char *path) {
    char link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    path[size < 0 ? 0 : size] = 0;
    return path;
}

static char *path_at(int folder, const char *name, char *path) {
    char parent[PATH_MAX];
    if (name[0] == '/' || folder == AT_FDCWD) snprintf(path, PATH_MAX, "%s", name);
    else snprintf(path, PATH_MAX, "%.2000s/%.2000s", path_of(folder, parent), name);
    return path;
}

ssize_t write(int descriptor, const void *data, size_t size) {
    char path[PATH_MAX];
    int result = fate("write", path_of(descriptor, path));
    if (result == FAIL) return -1;
    if (result == PROCEED) return REAL(write)(descriptor, data, size);
    ssize_t part = REAL(write)(descriptor, data, size / 2 + (size == 1));
    if (result == DIE) kill(getpid(), SIGKILL);
    return part;
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    char path[PATH_MAX];
    int result = fate("write", path_of(descriptor, path));
    if (result == FAIL) return -1;
    if (result == PROCEED) return REAL(pwrite64)(descriptor, data, size, offset);
    ssize_t part = REAL(pwrite64)(descriptor, data, size / 2 + (size == 1), offset);
    if (result == DIE) kill(getpid(), SIGKILL);
    return part;
}

ssize_t writev(int descriptor, const struct iovec *pieces, int count) {
    char path[PATH_MAX];
    int result = fate("write", path_of(descriptor, path));
    if (result == FAIL) return -1;
    if (result == PROCEED) return REAL(writev)(descriptor, pieces, count);
    ssize_t part = REAL(writev)(descriptor, pieces, 1);
    if (result == DIE) kill(getpid(), SIGKILL);
    return part;
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    char path[PATH_MAX];
    int result = fate("write", path_of(fileno(file), path));
    if (result == FAIL) return 0;
    if (result == DIE) {
        REAL(fwrite)(data, size, count / 2, file);
        fflush(file);
        kill(getpid(), SIGKILL);
    }
    return REAL(fwrite)(data, size, count, file);
}

int fsync(int descriptor) {
    char path[PATH_MAX];
    return fate("sync", path_of(descriptor, path)) == FAIL ? -1 : REAL(fsync)(descriptor);
}

int ftruncate64(int descriptor, off64_t size) {
    char path[PATH_MAX];
    if (fate("truncate", path_of(descriptor, path)) == FAIL) return -1;
    return REAL(ftruncate64)(descriptor, size);
}

int rename(const char *from, const char *to) {
    return fate("rename", to) == FAIL ? -1 : REAL(rename)(from, to);
}

int unlink(const char *path) { return fate("unlink", path) == FAIL ? -1 : REAL(unlink)(path); }

int rmdir(const char *path) { return fate("rmdir", path) == FAIL ? -1 : REAL(rmdir)(path); }

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    const char *operation = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    if (fate(operation, path_at(folder, name, path)) == FAIL) return -1;
    return REAL(unlinkat)(folder, name, flags);
}

int mkdir(const char *path, mode_t mode) {
    return fate("mkdir", path) == FAIL ? -1 : REAL(mkdir)(path, mode);
}

FILE *fopen(const char *path, const char *mode) {
    if (strpbrk(mode, "wa") && fate("create", path) == FAIL) return NULL;
    return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    if (strpbrk(mode, "wa") && fate("create", path) == FAIL) return NULL;
    return REAL(fopen64)(path, mode);
}

#define OPEN(name)                                                        \
    int name(const char *path, int flags, ...) {                          \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest);                                                     \
        if (flags & O_CREAT && fate("create", path) == FAIL) return -1;   \
        return REAL(name)(path, flags, mode);                             \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                      \
    int name(int folder, const char *file, int flags, ...) {              \
        char path[PATH_MAX];                                              \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest);                                                     \
        if (flags & O_CREAT && fate("create", path_at(folder, file, path)) == FAIL) return -1; \
        return REAL(name)(folder, file, flags, mode);                     \
    }
OPENAT(openat)
OPENAT(openat64)
