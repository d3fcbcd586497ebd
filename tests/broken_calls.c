/* For LD_PRELOAD: calls to the system that fail as those of a full or broken disk do. See broken_disks.py.

   BROKEN_PATH    calls about files whose path begins with this; or "fd:1", about that descriptor
   BROKEN_CALLS   their names, with commas around each: ",write,fsync,"; opening counts only if it is for writing
   BROKEN_AFTER   how many of them succeed first
   BROKEN_TIMES   how many fail then
   BROKEN_ERRNO   the error; 0: a write that writes only half of the bytes
   BROKEN_LOG     a file that gets the name of each call that failed */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long seen;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int is_meant(const char *path, int fd) {
    const char *wanted = getenv("BROKEN_PATH");
    char link[64], own[4097];
    if (!wanted) return 0;
    if (!strncmp(wanted, "fd:", 3)) return fd >= 0 && fd == atoi(wanted + 3);
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, own, sizeof own - 1);
        if (n < 0) return 0;
        own[n] = 0;
        path = own;
    }
    return !strncmp(path, wanted, strlen(wanted));
}

/* Does this call fail? Sets errno. */
static int fails(const char *call, const char *path, int fd) {
    char name[64];
    const char *calls = getenv("BROKEN_CALLS"), *log = getenv("BROKEN_LOG");
    snprintf(name, sizeof name, ",%s,", call);
    if (!calls || !strstr(calls, name) || !is_meant(path, fd)) return 0;
    long n = __sync_fetch_and_add(&seen, 1) - number("BROKEN_AFTER");
    if (n < 0 || n >= number("BROKEN_TIMES")) return 0;
    if (log) {
        int out = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        syscall(SYS_write, out, name, strlen(name));
        syscall(SYS_close, out);
    }
    errno = number("BROKEN_ERRNO");
    return 1;
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define OPEN(name)                                                                             \
    int name(const char *path, int flags, ...) {                                               \
        va_list more;                                                                          \
        va_start(more, flags);                                                                 \
        mode_t mode = va_arg(more, mode_t);                                                    \
        va_end(more);                                                                          \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT);                                    \
        if (writes && !(flags & O_DIRECTORY) && fails("open", path, -1)) return -1;            \
        return REAL(int, name, const char *, int, ...)(path, flags, mode);                     \
    }
#define ON_FD(type, name, call, parameters, arguments)                                         \
    type name parameters {                                                                     \
        if (fails(call, NULL, fd)) return -1;                                                  \
        return ((type (*) parameters)dlsym(RTLD_NEXT, #name))arguments;                        \
    }
#define ON_PATH(name, call, parameters, arguments)                                             \
    int name parameters {                                                                      \
        if (fails(call, path, -1)) return -1;                                                  \
        return ((int (*) parameters)dlsym(RTLD_NEXT, #name))arguments;                         \
    }

OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
    if (fails("write", NULL, fd)) {
        if (errno || size < 2) return errno ? -1 : (ssize_t)syscall(SYS_write, fd, data, size);
        size /= 2;
    }
    return syscall(SYS_write, fd, data, size);
}

int close(int fd) {
    int failed = fails("close", NULL, fd), error = errno, result = syscall(SYS_close, fd);
    if (!failed) return result;
    errno = error;
    return -1;
}

ON_FD(ssize_t, pwrite64, "write", (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, writev, "write", (int fd, const struct iovec *parts, int n), (fd, parts, n))
ON_FD(ssize_t, read, "read", (int fd, void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pread64, "read", (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(int, fsync, "fsync", (int fd), (fd))
ON_FD(int, fdatasync, "fsync", (int fd), (fd))
ON_FD(int, ftruncate64, "truncate", (int fd, off_t size), (fd, size))
ON_FD(int, flock, "flock", (int fd, int operation), (fd, operation))
ON_FD(int, fstatvfs64, "statvfs", (int fd, struct statvfs64 *info), (fd, info))
ON_FD(int, unlinkat, "unlink", (int fd, const char *name, int flags), (fd, name, flags))
ON_FD(int, fchmod, "chmod", (int fd, mode_t mode), (fd, mode))
ON_PATH(truncate64, "truncate", (const char *path, off_t size), (path, size))
ON_PATH(statvfs64, "statvfs", (const char *path, struct statvfs64 *info), (path, info))
ON_PATH(mkdir, "mkdir", (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, "rename", (const char *path, const char *to), (path, to))
ON_PATH(chmod, "chmod", (const char *path, mode_t mode), (path, mode))
ON_PATH(unlink, "unlink", (const char *path), (path))
ON_PATH(rmdir, "rmdir", (const char *path), (path))
