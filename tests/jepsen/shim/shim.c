/* Preloaded into a node's process: keeps a journal from which a loss of power can be made up, disturbs its disk, and bends its clock.
 *
 *   node ── pwrite, rename, fdatasync, … ──▶ here ──▶ the kernel
 *                                             │
 *                     journal: what was there before each change, and what a sync has made durable
 *
 * A process that is killed leaves the kernel's cache intact. With the journal, whoever killed it takes back what no sync covered.
 * A change and its record are made under one lock, so the journal has them in the order in which they happened. Only what lies in
 * the data folder counts.
 *
 * Environment: SHIM_DATA the data folder, SHIM_JOURNAL the journal's folder on the same file system, SHIM_CONTROL the file with
 * `struct control`. Without them nothing is changed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* What the harness sets while the process runs. tests/jepsen/src/machine/control.rs writes the same. */
struct control {
    int64_t clock_offset_ms;
    int64_t clock_frozen_at_ms; /* 0: it runs */
    uint32_t sync_stall_ms;
    uint32_t sync_errors;   /* so many syncs fail */
    uint32_t disk_is_full;  /* writes that need room fail */
    uint32_t sync_lies;     /* syncs are answered and cover nothing */
    uint32_t write_errors;  /* so many writes fail */
    uint32_t read_errors;   /* so many reads fail */
};

/* A record of the journal: this, then `before_len` bytes that were there, or two paths that end with a zero byte.
 * tests/jepsen/src/machine/journal.rs reads the same. */
struct record {
    uint32_t magic;
    uint32_t kind;
    uint64_t inode;
    uint64_t offset;
    uint64_t len;        /* of the write; of a sync, also one that failed, the end of the journal when it began */
    uint64_t file_len;   /* before */
    uint64_t before_len; /* bytes that follow */
};

enum { MAGIC = 0x4a524e4c };
enum { WRITE = 1, RESIZE = 2, SYNC = 3, CREATE = 4, RENAME = 5, REMOVE = 6, SYNC_DIR = 7, SYNC_FAILED = 8 };
enum { FDS_MAX = 65536, DIRTY_MAX = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char data_dir[PATH_MAX], journal_dir[PATH_MAX];
static size_t data_dir_len;
static int journal = -1;
static uint64_t journal_end, kept_number;
/* Counts how often the journal was emptied: a position in it means something within one of these times only. */
static uint64_t journal_age;
static volatile struct control *control;
/* The inode of each open file of the data folder; 0 for all others. */
static uint64_t inode_of[FDS_MAX];
static char is_dir[FDS_MAX];
/* What no sync covers yet: inodes of files, and of folders with changed names. */
static uint64_t dirty[DIRTY_MAX], dirtied_at[DIRTY_MAX];
static int dirty_count;

#define REAL(type, name, ...)                                  \
    static type (*real_##name)(__VA_ARGS__);                   \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name)

static void give_up(const char *what) {
    dprintf(2, "shim: %s: %s\n", what, strerror(errno));
    abort();
}

static void write_whole(int fd, const void *bytes, size_t len) {
    REAL(ssize_t, write, int, const void *, size_t);
    for (const char *at = bytes; len > 0;) {
        ssize_t written = real_write(fd, at, len);
        if (written < 0) {
            if (errno == EINTR) continue;
            give_up("the journal cannot be written");
        }
        at += written;
        len -= written;
    }
}

/* Goes on behind the last whole record of a process that was killed: what it had not synced is still only in the cache. Which
 * files that were is not known here, so this journal stays until power is lost. */
static void continue_journal(int fd) {
    REAL(ssize_t, pread64, int, void *, size_t, off64_t);
    struct record record;
    struct stat stat_of;
    if (fstat(fd, &stat_of) != 0) give_up("fstat of the journal");
    while (real_pread64(fd, &record, sizeof record, journal_end) == sizeof record && record.magic == MAGIC) {
        uint64_t next = journal_end + sizeof record + record.before_len;
        if (next > (uint64_t)stat_of.st_size) break;
        journal_end = next;
    }
    if (ftruncate(fd, journal_end) != 0) give_up("the journal cannot be cut");
    if (journal_end > 0) dirty[dirty_count++] = 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *data = getenv("SHIM_DATA"), *folder = getenv("SHIM_JOURNAL"), *path = getenv("SHIM_CONTROL");
    if (!data || !folder || !path) return;
    snprintf(data_dir, sizeof data_dir, "%s", data);
    data_dir_len = strlen(data_dir);
    snprintf(journal_dir, sizeof journal_dir, "%s", folder);
    char name[PATH_MAX + 16];
    snprintf(name, sizeof name, "%s/journal", folder);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) give_up(path);
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) give_up("the control file cannot be mapped");
    close(fd);
    int opened = open(name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (opened < 0) give_up(name);
    continue_journal(opened);
    control = mapped;
    journal = opened;
}

/* Whether a path is in the data folder; `full` gets it without relative parts at its start. */
static int is_data(const char *path, char *full) {
    if (journal < 0) return 0;
    if (path[0] == '/') {
        snprintf(full, PATH_MAX, "%s", path);
    } else {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        if (snprintf(full, PATH_MAX, "%s/%s", here, path) >= PATH_MAX) return 0;
    }
    return strncmp(full, data_dir, data_dir_len) == 0 && (full[data_dir_len] == '/' || full[data_dir_len] == 0);
}

static uint64_t inode_of_dir_of(const char *path) {
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    struct stat stat_of;
    if (!slash) return 0;
    *slash = 0;
    return stat(dir, &stat_of) == 0 ? stat_of.st_ino : 0;
}

static void mark_dirty(uint64_t inode) {
    for (int at = 0; at < dirty_count; at++) {
        if (dirty[at] == inode) {
            dirtied_at[at] = journal_end;
            return;
        }
    }
    if (dirty_count == DIRTY_MAX) give_up("too many files are dirty");
    dirty[dirty_count] = inode;
    dirtied_at[dirty_count++] = journal_end;
}

static void append(struct record record, const void *before) {
    record.magic = MAGIC;
    write_whole(journal, &record, sizeof record);
    if (record.before_len) write_whole(journal, before, record.before_len);
    journal_end += sizeof record + record.before_len;
}

static void append_paths(uint32_t kind, uint64_t dir, const char *first, const char *second) {
    char both[2 * PATH_MAX];
    size_t len = strlen(first) + 1;
    memcpy(both, first, len);
    memcpy(both + len, second, strlen(second) + 1);
    len += strlen(second) + 1;
    append((struct record){.kind = kind, .inode = dir, .before_len = len}, both);
    mark_dirty(dir);
}

/* A second name, in the journal's folder, for a file that loses its own; "" when there is none. */
static void keep_file(const char *path, char *kept) {
    snprintf(kept, PATH_MAX, "%.4000s/kept-%d-%llu", journal_dir, getpid(), (unsigned long long)kept_number++);
    unlink(kept);
    if (link(path, kept) != 0) kept[0] = 0;
}

/* Records what a change of bytes [offset, offset+len) of a file takes away. */
static void record_change(uint32_t kind, int fd, uint64_t offset, uint64_t len) {
    REAL(ssize_t, pread64, int, void *, size_t, off64_t);
    struct stat stat_of;
    if (fstat(fd, &stat_of) != 0) give_up("fstat");
    uint64_t file_len = stat_of.st_size;
    uint64_t before_len = offset >= file_len ? 0 : (offset + len > file_len ? file_len - offset : len);
    char *before = before_len ? malloc(before_len) : NULL;
    if (before_len) {
        REAL(int, open64, const char *, int, ...);
        REAL(int, close, int);
        int reader = fd;
        if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) {
            char name[64];
            snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
            reader = real_open64(name, O_RDONLY | O_CLOEXEC);
        }
        for (uint64_t done = 0; done < before_len;) {
            ssize_t got = real_pread64(reader, before + done, before_len - done, offset + done);
            if (got <= 0) give_up("the bytes before cannot be read");
            done += got;
        }
        if (reader != fd) real_close(reader);
    }
    append((struct record){.kind = kind, .inode = inode_of[fd], .offset = offset, .len = len, .file_len = file_len,
                           .before_len = before_len},
           before);
    free(before);
    mark_dirty(inode_of[fd]);
}

/* Whether one of the errors that are left falls to this call. */
static int fails(volatile uint32_t *left) {
    uint32_t before = *left;
    while (before > 0)
        if (__atomic_compare_exchange_n(left, &before, before - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 1;
    return 0;
}

static int is_tracked(int fd) { return journal >= 0 && fd >= 0 && fd < FDS_MAX && inode_of[fd] != 0; }

static ssize_t write_tracked(int fd, const struct iovec *parts, int count, int64_t offset) {
    REAL(ssize_t, pwritev64, int, const struct iovec *, int, off64_t);
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (control->disk_is_full) {
        errno = ENOSPC;
        return -1;
    }
    if (fails(&control->write_errors)) {
        errno = EIO;
        return -1;
    }
    uint64_t len = 0;
    for (int at = 0; at < count; at++) len += parts[at].iov_len;
    pthread_mutex_lock(&lock);
    struct stat stat_of;
    uint64_t from = offset >= 0 ? (uint64_t)offset : (uint64_t)lseek64(fd, 0, SEEK_CUR);
    if (offset < 0 && (fcntl(fd, F_GETFL) & O_APPEND) && fstat(fd, &stat_of) == 0) from = stat_of.st_size;
    record_change(WRITE, fd, from, len);
    ssize_t written = offset >= 0 ? real_pwritev64(fd, parts, count, offset) : real_writev(fd, parts, count);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return written;
}

ssize_t write(int fd, const void *bytes, size_t len) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (!is_tracked(fd)) return real_write(fd, bytes, len);
    return write_tracked(fd, &(struct iovec){(void *)bytes, len}, 1, -1);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return is_tracked(fd) ? write_tracked(fd, parts, count, -1) : real_writev(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    if (!is_tracked(fd)) return real_pwrite64(fd, bytes, len, offset);
    return write_tracked(fd, &(struct iovec){(void *)bytes, len}, 1, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset) { return pwrite64(fd, bytes, len, offset); }

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    REAL(ssize_t, pwritev64, int, const struct iovec *, int, off64_t);
    return is_tracked(fd) ? write_tracked(fd, parts, count, offset) : real_pwritev64(fd, parts, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return pwritev64(fd, parts, count, offset); }

static int read_fails(int fd) {
    if (!is_tracked(fd) || is_dir[fd] || !fails(&control->read_errors)) return 0;
    errno = EIO;
    return 1;
}

ssize_t read(int fd, void *bytes, size_t len) {
    REAL(ssize_t, read, int, void *, size_t);
    return read_fails(fd) ? -1 : real_read(fd, bytes, len);
}

ssize_t pread64(int fd, void *bytes, size_t len, off64_t offset) {
    REAL(ssize_t, pread64, int, void *, size_t, off64_t);
    return read_fails(fd) ? -1 : real_pread64(fd, bytes, len, offset);
}

ssize_t pread(int fd, void *bytes, size_t len, off_t offset) { return pread64(fd, bytes, len, offset); }

int ftruncate64(int fd, off64_t len) {
    REAL(int, ftruncate64, int, off64_t);
    if (!is_tracked(fd)) return real_ftruncate64(fd, len);
    pthread_mutex_lock(&lock);
    record_change(RESIZE, fd, len, UINT32_MAX);
    int result = real_ftruncate64(fd, len);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

/* Everything is durable and nothing under way: the journal has no use any more. */
static void forget_if_clean(void) {
    if (dirty_count == 0 && journal_end > 0) {
        REAL(int, ftruncate64, int, off64_t);
        if (real_ftruncate64(journal, 0) != 0) give_up("the journal cannot be emptied");
        journal_end = 0;
        journal_age++;
    }
}

/* The kernel may count as clean now what is not on the disk: no later sync covers it. The journal stays until power is lost. */
static void sync_failed(int fd) {
    if (is_dir[fd]) return;
    pthread_mutex_lock(&lock);
    append((struct record){.kind = SYNC_FAILED, .inode = inode_of[fd], .len = journal_end}, NULL);
    mark_dirty(0);
    pthread_mutex_unlock(&lock);
}

static int sync_tracked(int fd, int (*real_sync)(int)) {
    uint32_t stall_ms = control->sync_stall_ms;
    if (stall_ms) usleep(stall_ms * 1000);
    if (fails(&control->sync_errors)) {
        sync_failed(fd);
        errno = EIO;
        return -1;
    }
    if (control->sync_lies) return 0;
    pthread_mutex_lock(&lock);
    uint64_t covered = journal_end, age = journal_age, inode = inode_of[fd];
    pthread_mutex_unlock(&lock);
    int result = real_sync(fd);
    if (result != 0) return result;
    pthread_mutex_lock(&lock);
    /* The journal may have been emptied meanwhile: then what it covered was durable already. */
    if (age != journal_age) covered = 0;
    append((struct record){.kind = is_dir[fd] ? SYNC_DIR : SYNC, .inode = inode, .len = covered}, NULL);
    for (int at = 0; at < dirty_count; at++) {
        if (dirty[at] == inode && dirtied_at[at] <= covered) {
            dirty[at] = dirty[--dirty_count];
            dirtied_at[at] = dirtied_at[dirty_count];
            break;
        }
    }
    forget_if_clean();
    pthread_mutex_unlock(&lock);
    return 0;
}

int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    return is_tracked(fd) ? sync_tracked(fd, real_fdatasync) : real_fdatasync(fd);
}

int fsync(int fd) {
    REAL(int, fsync, int);
    return is_tracked(fd) ? sync_tracked(fd, real_fsync) : real_fsync(fd);
}

static int open_tracked(const char *path, int flags, mode_t mode) {
    REAL(int, open64, const char *, int, ...);
    char full[PATH_MAX];
    if (!is_data(path, full)) return real_open64(path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before;
    int was_there = stat(full, &before) == 0;
    int empties = was_there && (flags & O_TRUNC) && before.st_size > 0;
    /* Emptied only once its bytes are in the journal. */
    int fd = real_open64(path, empties ? flags & ~O_TRUNC : flags, mode);
    int error = errno;
    struct stat stat_of;
    if (fd >= 0 && fd < FDS_MAX && fstat(fd, &stat_of) == 0) {
        inode_of[fd] = stat_of.st_ino;
        is_dir[fd] = S_ISDIR(stat_of.st_mode);
        if (!was_there) append_paths(CREATE, inode_of_dir_of(full), full, "");
        if (empties) {
            REAL(int, ftruncate64, int, off64_t);
            record_change(RESIZE, fd, 0, UINT32_MAX);
            if (real_ftruncate64(fd, 0) != 0) give_up("the file cannot be emptied");
        }
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE_OF(flags)                                    \
    mode_t mode = 0;                                      \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {              \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode = va_arg(rest, mode_t);                      \
        va_end(rest);                                     \
    }

int open64(const char *path, int flags, ...) {
    MODE_OF(flags);
    return open_tracked(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    MODE_OF(flags);
    return open_tracked(path, flags, mode);
}

int close(int fd) {
    REAL(int, close, int);
    if (fd >= 0 && fd < FDS_MAX) inode_of[fd] = 0;
    return real_close(fd);
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    char full_from[PATH_MAX], full_to[PATH_MAX], kept[PATH_MAX] = "";
    if (!is_data(from, full_from) || !is_data(to, full_to)) return real_rename(from, to);
    pthread_mutex_lock(&lock);
    struct stat stat_of;
    if (stat(full_to, &stat_of) == 0 && S_ISREG(stat_of.st_mode)) {
        /* As if the old file were removed first; nobody can see it in between. */
        keep_file(full_to, kept);
        append_paths(REMOVE, inode_of_dir_of(full_to), full_to, kept);
    }
    int result = real_rename(from, to), error = errno;
    if (result == 0) append_paths(RENAME, inode_of_dir_of(full_to), full_from, full_to);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    char full[PATH_MAX], kept[PATH_MAX] = "";
    if (!is_data(path, full)) return real_unlink(path);
    pthread_mutex_lock(&lock);
    keep_file(full, kept);
    int result = real_unlink(path), error = errno;
    if (result == 0) append_paths(REMOVE, inode_of_dir_of(full), full, kept);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    char full[PATH_MAX];
    int result = real_mkdir(path, mode), error = errno;
    if (result == 0 && is_data(path, full)) {
        pthread_mutex_lock(&lock);
        append_paths(CREATE, inode_of_dir_of(full), full, "");
        pthread_mutex_unlock(&lock);
    }
    errno = error;
    return result;
}

static int64_t bent_ms(const struct timespec *real) {
    int64_t frozen_at_ms = control->clock_frozen_at_ms;
    if (frozen_at_ms) return frozen_at_ms;
    return real->tv_sec * 1000 + real->tv_nsec / 1000000 + control->clock_offset_ms;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real_clock_gettime(clock, time);
    if (result == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ms = bent_ms(time);
        time->tv_nsec = ms % 1000 * 1000000 + (control->clock_frozen_at_ms ? 0 : time->tv_nsec % 1000000);
        time->tv_sec = ms / 1000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    *time = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
