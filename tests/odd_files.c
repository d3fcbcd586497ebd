/* For LD_PRELOAD: a folder whose file system behaves as some network file systems do. See odd_files.py.

   ODD_PATH     the folder; nothing else is changed
   ODD_RULES    what happens there, separated by spaces, each  CALL:WHAT:AFTER:TIMES
                CALL    open stat list read write fsync fsyncdir close rename mkdir unlink rmdir chmod utime flock link
                        symlink truncate statvfs
                WHAT    an error number: the call fails with it; +5: it is done, and reports error 5 all the same;
                        ~200: it takes so many milliseconds longer; or a word, see below
                AFTER   how many calls are as usual before that, TIMES how many are not (-1: all)
                words   flock:ok     every process gets the lock
                        stat:ino     a file has another inode number each time;  stat:net  it is on no device
                        stat:coarse  dates are even seconds;  stat:future, stat:past  they are off by a day
                        stat:empty   a file has 0 bytes
                        read:half    fewer bytes come than were asked for;  write:half  fewer are written
                        unlink:silly an open file gets the name .nfs... instead
                        statvfs:zero 0 bytes free, of 0
   odd_set(path, rules) does the same from within the process. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct rule { char call[16], what[16]; long after, times; };
static struct rule rules[64];
static int n_rules;
static char top[PATH_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long inode = 1 << 20;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void odd_set(const char *path, const char *text) {
    char copy[4096], *end, *word;
    pthread_mutex_lock(&lock);
    snprintf(top, sizeof top, "%s", path ? path : "");
    snprintf(copy, sizeof copy, "%s", text ? text : "");
    n_rules = 0;
    for (word = strtok_r(copy, " ", &end); word && n_rules < 64; word = strtok_r(NULL, " ", &end)) {
        struct rule *r = rules + n_rules;
        if (sscanf(word, "%15[^:]:%15[^:]:%ld:%ld", r->call, r->what, &r->after, &r->times) == 4) n_rules++;
    }
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void start(void) { odd_set(getenv("ODD_PATH"), getenv("ODD_RULES")); }

/* Is this file in the folder? By its path, relative to an open folder, or by its descriptor. */
static int inside(int fd, const char *path) {
    char link[64], full[2 * PATH_MAX] = "";
    if (!*top) return 0;
    if (!path || (*path != '/' && fd != AT_FDCWD)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, full, PATH_MAX);
        if (n < 0) return 0;
        full[n] = 0;
        if (path) strcat(strcat(full, "/"), path);
    } else if (*path != '/' && getcwd(full, PATH_MAX)) {
        strcat(strcat(full, "/"), path);
    } else {
        snprintf(full, sizeof full, "%s", path);
    }
    size_t n = strlen(top);
    return !strncmp(full, top, n) && (full[n] == '/' || !full[n]);
}

/* What happens to this call: "" if nothing. */
static const char *odd(const char *call, int fd, const char *path) {
    const char *what = "";
    int error = errno;
    if (n_rules && inside(fd, path)) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < n_rules && !*what; i++) {
            struct rule *r = rules + i;
            if (strcmp(r->call, call) || !r->times) continue;
            if (r->after > 0) r->after--;
            else {
                if (r->times > 0) r->times--;
                what = r->what;
            }
        }
        pthread_mutex_unlock(&lock);
        if (*what == '~') {
            long ms = atol(what + 1);
            nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
            what = "";
        }
    }
    errno = error;
    return what;
}

static int fails(const char *what) {
    if (*what < '0' || *what > '9') return 0;
    errno = atoi(what);
    return 1;
}

/* The result of a call that was done; with +5 an error all the same. */
static int after(const char *what, int result) {
    if (*what != '+' || result < 0) return result;
    errno = atoi(what + 1);
    return -1;
}

#define WRAP(call, name, fd, path, parameters, arguments)           \
    int name parameters {                                           \
        const char *what = odd(call, fd, path);                     \
        return fails(what) ? -1 : after(what, REAL(name) arguments); \
    }

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    const char *what = odd("open", folder, path);
    return fails(what) ? -1 : REAL(openat64)(folder, path, flags, mode);
}
#define MODE(mode) va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more);
int open(const char *path, int flags, ...) { MODE(mode) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(mode) return open_at(AT_FDCWD, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(mode) return open_at(folder, path, flags, mode); }

static int changed(const char *what, int result, struct stat64 *s) {
    if (result < 0) return result;
    if (!strcmp(what, "ino")) s->st_ino = __sync_fetch_and_add(&inode, 1);
    if (!strcmp(what, "net")) s->st_dev = 77;
    if (!strcmp(what, "coarse")) s->st_mtim.tv_sec &= ~1, s->st_mtim.tv_nsec = 0;
    if (!strcmp(what, "future")) s->st_mtim.tv_sec += 86400, s->st_ctim.tv_sec += 86400;
    if (!strcmp(what, "past")) s->st_mtim.tv_sec -= 86400, s->st_ctim.tv_sec -= 86400;
    if (!strcmp(what, "empty") && S_ISREG(s->st_mode)) s->st_size = 0;
    return after(what, result);
}
#define STAT(name, fd, path, parameters, arguments)                     \
    int name parameters {                                               \
        const char *what = odd("stat", fd, path);                       \
        return fails(what) ? -1 : changed(what, REAL(name) arguments, s); \
    }
STAT(stat64, AT_FDCWD, path, (const char *path, struct stat64 *s), (path, s))
STAT(lstat64, AT_FDCWD, path, (const char *path, struct stat64 *s), (path, s))
STAT(fstat64, fd, NULL, (int fd, struct stat64 *s), (fd, s))
STAT(fstatat64, fd, path, (int fd, const char *path, struct stat64 *s, int flags), (fd, path, s, flags))

static size_t part(const char *what, size_t size) { return !strcmp(what, "half") && size > 1 ? size / 2 : size; }
#define MOVE(call, name, parameters, arguments)                         \
    ssize_t name parameters {                                           \
        const char *what = odd(call, fd, NULL);                         \
        if (fails(what)) return -1;                                     \
        size = part(what, size);                                        \
        return REAL(name) arguments;                                    \
    }
MOVE("read", read, (int fd, void *data, size_t size), (fd, data, size))
MOVE("read", pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
MOVE("write", write, (int fd, const void *data, size_t size), (fd, data, size))
MOVE("write", pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))

int fsync(int fd) {
    struct stat64 s;
    int is_folder = !REAL(fstat64)(fd, &s) && S_ISDIR(s.st_mode);
    const char *what = odd(is_folder ? "fsyncdir" : "fsync", fd, NULL);
    return fails(what) ? -1 : after(what, REAL(fsync)(fd));
}
int close(int fd) {
    const char *what = n_rules ? odd("close", fd, NULL) : "";
    int failed = fails(what), error = errno, result = REAL(close)(fd);
    if (!failed) return result;
    errno = error;
    return -1;
}
int flock(int fd, int operation) {
    const char *what = odd("flock", fd, NULL);
    if (!strcmp(what, "ok")) return 0;
    return fails(what) ? -1 : REAL(flock)(fd, operation);
}
int statvfs64(const char *path, struct statvfs64 *s) {
    const char *what = odd("statvfs", AT_FDCWD, path);
    int result = fails(what) ? -1 : REAL(statvfs64)(path, s);
    if (!result && !strcmp(what, "zero")) s->f_blocks = s->f_bfree = s->f_bavail = s->f_files = s->f_ffree = 0;
    return result;
}

/* NFS gives a file that is removed while it is open another name. */
static int silly(int folder, const char *path) {
    char own[PATH_MAX], link[64], target[PATH_MAX], name[2 * PATH_MAX], *slash;
    int dir = REAL(openat64)(folder, path, O_PATH | O_NOFOLLOW), is_open = 0, n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    if (dir < 0 || (n = readlink(link, own, sizeof own - 1)) < 0) return 0;
    own[n] = 0;
    DIR *fds = REAL(opendir)("/proc/self/fd");
    for (struct dirent64 *e; fds && (e = REAL(readdir64)(fds));) {
        if (atoi(e->d_name) == dir) continue;
        snprintf(link, sizeof link, "/proc/self/fd/%.20s", e->d_name);
        if ((n = readlink(link, target, sizeof target - 1)) > 0 && (target[n] = 0, !strcmp(target, own))) is_open = 1;
    }
    if (fds) closedir(fds);
    REAL(close)(dir);
    if (!(slash = strrchr(own, '/')) || !is_open) return 0;
    snprintf(name, sizeof name, "%.*s/.nfs%08lx", (int)(slash - own), own, __sync_fetch_and_add(&inode, 1));
    return !REAL(rename)(own, name);
}
int unlink(const char *path) {
    const char *what = odd("unlink", AT_FDCWD, path);
    if (!strcmp(what, "silly") && silly(AT_FDCWD, path)) return 0;
    return fails(what) ? -1 : after(what, REAL(unlink)(path));
}
int unlinkat(int fd, const char *path, int flags) {
    const char *what = odd(flags & AT_REMOVEDIR ? "rmdir" : "unlink", fd, path);
    if (!strcmp(what, "silly") && silly(fd, path)) return 0;
    return fails(what) ? -1 : after(what, REAL(unlinkat)(fd, path, flags));
}

DIR *opendir(const char *path) { return fails(odd("list", AT_FDCWD, path)) ? NULL : REAL(opendir)(path); }
DIR *fdopendir(int fd) { return fails(odd("list", fd, NULL)) ? NULL : REAL(fdopendir)(fd); }

WRAP("rename", rename, AT_FDCWD, path, (const char *path, const char *to), (path, to))
WRAP("rename", renameat, fd, path, (int fd, const char *path, int other, const char *to), (fd, path, other, to))
WRAP("mkdir", mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
WRAP("mkdir", mkdirat, fd, path, (int fd, const char *path, mode_t mode), (fd, path, mode))
WRAP("rmdir", rmdir, AT_FDCWD, path, (const char *path), (path))
WRAP("chmod", chmod, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
WRAP("chmod", fchmod, fd, NULL, (int fd, mode_t mode), (fd, mode))
WRAP("chmod", fchmodat, fd, path, (int fd, const char *path, mode_t mode, int flags), (fd, path, mode, flags))
WRAP("utime", futimens, fd, NULL, (int fd, const struct timespec t[2]), (fd, t))
WRAP("utime", utimensat, fd, path, (int fd, const char *path, const struct timespec t[2], int flags),
     (fd, path, t, flags))
WRAP("link", link, AT_FDCWD, path, (const char *path, const char *to), (path, to))
WRAP("link", linkat, fd, path, (int fd, const char *path, int other, const char *to, int flags),
     (fd, path, other, to, flags))
WRAP("symlink", symlink, AT_FDCWD, to, (const char *path, const char *to), (path, to))
WRAP("symlink", symlinkat, fd, to, (const char *path, int fd, const char *to), (path, fd, to))
WRAP("truncate", truncate64, AT_FDCWD, path, (const char *path, off64_t size), (path, size))
WRAP("truncate", ftruncate64, fd, NULL, (int fd, off64_t size), (fd, size))
