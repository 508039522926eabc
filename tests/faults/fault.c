/* Counts what a run changes on disk under FAULT_ROOT, in all its processes, and does something at number FAULT_AT:
   kill    SIGKILL to this process and to the run (CONTIMG_RUN_PID)
   full    from there on every write fails with ENOSPC
   quota   with EDQUOT
   What follows on the same file from the same process, with nothing in between, counts as one. FAULT_STATE is a file that
   all processes share: two counters. FAULT_LOG, where it is given, gets a line for each. FAULT_DIRTY: a folder that gets a
   mark, by device and inode, for each file that was written and not yet flushed (fsync). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static _Atomic long *counters; /* [0] events, [1] whether the disk is full */
static const char *root, *mode, *logname, *dirty;
static long at;
static __thread int inside;
static char last[PATH_MAX];
static pid_t last_pid;

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
  const char *state = getenv("FAULT_STATE"), *number = getenv("FAULT_AT");
  root = getenv("FAULT_ROOT"), mode = getenv("FAULT_MODE"), logname = getenv("FAULT_LOG"), dirty = getenv("FAULT_DIRTY");
  at = number ? atol(number) : 0;
  if (!state || !root) return;
  int fd = open(state, O_RDWR);
  if (fd < 0) return;
  void *where = mmap(NULL, 2 * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (where != MAP_FAILED) counters = where;
}

static int under(const char *path) { return strncmp(path, root, strlen(root)) == 0; }

static int path_of(int fd, char *path) {
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(name, path, PATH_MAX - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return path[0] == '/';
}

static void absolute(int dirfd, const char *path, char *whole) {
  char folder[PATH_MAX] = "";
  if (path[0] == '/') { snprintf(whole, PATH_MAX, "%s", path); return; }
  if (dirfd == AT_FDCWD) { if (!getcwd(folder, sizeof folder)) folder[0] = 0; }
  else if (!path_of(dirfd, folder)) folder[0] = 0;
  if (snprintf(whole, PATH_MAX, "%s/%s", folder, path) >= PATH_MAX) whole[0] = 0;
}

static void mark(int fd, int is_dirty) {
  struct stat found;
  char name[PATH_MAX];
  if (!dirty || fstat(fd, &found)) return;
  snprintf(name, sizeof name, "%s/%lu.%lu", dirty, (unsigned long)found.st_dev, (unsigned long)found.st_ino);
  if (is_dirty) close(creat(name, 0600));
  else unlink(name);
}

/* 0, or the error that the call is to end with */
static int event(const char *what, const char *path, int takes_room) {
  if (!counters || inside || !under(path)) return 0;
  if (takes_room && atomic_load(&counters[1])) return strcmp(mode, "quota") ? ENOSPC : EDQUOT;
  size_t length = strlen(path);
  if (length > 4 && strcmp(path + length - 4, "-shm") == 0) return 0; /* SQLite's shared memory */
  char now[PATH_MAX];
  snprintf(now, sizeof now, "%s %.*s", takes_room ? "write" : what, PATH_MAX - 32, path);
  char *partial = strstr(now, ".partial"); /* what lies beside its name is one thing, however many files it has */
  if (partial && partial[8] == '/') snprintf(now, sizeof now, "%.*s", (int)(strstr(path, ".partial") - path + 8), path);
  if (last_pid == getpid() && strcmp(now, last) == 0) return 0;
  last_pid = getpid();
  strcpy(last, now);
  long number = atomic_fetch_add(&counters[0], 1) + 1;
  if (logname) {
    inside = 1;
    int fd = open(logname, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (fd >= 0) { dprintf(fd, "%ld %d %s %s\n", number, getpid(), what, path); close(fd); }
    inside = 0;
  }
  if (!mode || number != at) return 0;
  if (strcmp(mode, "kill") == 0) {
    const char *run = getenv("CONTIMG_RUN_PID");
    if (run) kill(atoi(run), SIGKILL);
    kill(getpid(), SIGKILL);
  } else {
    atomic_store(&counters[1], 1);
    return takes_room ? (strcmp(mode, "quota") ? ENOSPC : EDQUOT) : 0;
  }
  return 0;
}

static int on_fd(const char *what, int fd) {
  char path[PATH_MAX];
  if (!counters || inside || !path_of(fd, path) || !under(path)) return 0;
  int error = event(what, path, 1);
  if (!error) mark(fd, 1);
  return error;
}

#define FAIL_IF(test) do { int error_ = (test); if (error_) { errno = error_; return -1; } } while (0)

ssize_t write(int fd, const void *b, size_t n) { REAL(write); FAIL_IF(on_fd("write", fd)); return real(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); FAIL_IF(on_fd("write", fd)); return real(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); FAIL_IF(on_fd("write", fd)); return real(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { REAL(writev); FAIL_IF(on_fd("write", fd)); return real(fd, v, n); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { REAL(pwritev); FAIL_IF(on_fd("write", fd)); return real(fd, v, n, o); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); FAIL_IF(on_fd("truncate", fd)); return real(fd, n); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); FAIL_IF(on_fd("truncate", fd)); return real(fd, n); }
int posix_fallocate(int fd, off_t o, off_t n) { REAL(posix_fallocate); int e = on_fd("allocate", fd); return e ? e : real(fd, o, n); }
ssize_t copy_file_range(int a, off64_t *ao, int b, off64_t *bo, size_t n, unsigned f) {
  REAL(copy_file_range); FAIL_IF(on_fd("write", b)); return real(a, ao, b, bo, n, f); }
ssize_t sendfile(int out, int in, off_t *o, size_t n) {
  ssize_t (*real)(int, int, off_t *, size_t) = dlsym(RTLD_NEXT, "sendfile"); FAIL_IF(on_fd("write", out)); return real(out, in, o, n); }

/* fopen'ed files: their buffer is written by glibc's own calls */
size_t fwrite(const void *b, size_t s, size_t n, FILE *f) {
  REAL(fwrite); int e = on_fd("write", fileno(f)); if (e) { errno = e; return 0; } return real(b, s, n, f); }

int fsync(int fd) { REAL(fsync); int done = real(fd); if (!done && counters && !inside) mark(fd, 0); return done; }
int fdatasync(int fd) { REAL(fdatasync); int done = real(fd); if (!done && counters && !inside) mark(fd, 0); return done; }

static int on_path(const char *what, int dirfd, const char *path, int takes_room) {
  char whole[PATH_MAX];
  if (!counters || inside || !path) return 0;
  absolute(dirfd, path, whole);
  return event(what, whole, takes_room);
}

int rename(const char *a, const char *b) { REAL(rename); FAIL_IF(on_path("rename", AT_FDCWD, b, 0)); return real(a, b); }
int renameat(int d, const char *a, int e, const char *b) { REAL(renameat); FAIL_IF(on_path("rename", e, b, 0)); return real(d, a, e, b); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) {
  REAL(renameat2); FAIL_IF(on_path("rename", e, b, 0)); return real(d, a, e, b, f); }
int unlink(const char *p) { REAL(unlink); FAIL_IF(on_path("unlink", AT_FDCWD, p, 0)); return real(p); }
int unlinkat(int d, const char *p, int f) { REAL(unlinkat); FAIL_IF(on_path("unlink", d, p, 0)); return real(d, p, f); }
int remove(const char *p) { REAL(remove); FAIL_IF(on_path("unlink", AT_FDCWD, p, 0)); return real(p); }
int rmdir(const char *p) { REAL(rmdir); FAIL_IF(on_path("rmdir", AT_FDCWD, p, 0)); return real(p); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); FAIL_IF(on_path("mkdir", AT_FDCWD, p, 1)); return real(p, m); }
int mkdirat(int d, const char *p, mode_t m) { REAL(mkdirat); FAIL_IF(on_path("mkdir", d, p, 1)); return real(d, p, m); }
int symlink(const char *a, const char *b) { REAL(symlink); FAIL_IF(on_path("link", AT_FDCWD, b, 1)); return real(a, b); }
int link(const char *a, const char *b) { REAL(link); FAIL_IF(on_path("link", AT_FDCWD, b, 1)); return real(a, b); }
