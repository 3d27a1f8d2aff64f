/* Preloaded into a process: writes down every write to a file named data.mdb, and every wait for the disk.
 *
 * An entry of the log ($WRITE_LOG), little-endian:  kind (1 byte)  offset (8)  length (8)  the bytes
 * kind: w written, d written and waited for (O_DSYNC), s waited for all that was written, m a mark of the process's own
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd(void) {
    static int fd = -1;
    if (fd < 0) fd = open(getenv("WRITE_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return fd;
}

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length) {
        long done = syscall(SYS_write, log_fd(), at, length);
        if (done <= 0) abort();
        at += done;
        length -= done;
    }
}

static void note(char kind, uint64_t offset, const void *bytes, uint64_t length) {
    put(&kind, 1);
    put(&offset, 8);
    put(&length, 8);
    put(bytes, length);
}

void mark(uint64_t number) { note('m', number, "", 0); }

static int is_data(int fd) {
    char link[64], path[PATH_MAX];
    strcpy(link, "/proc/self/fd/");
    char digits[16];
    int n = 0, rest = fd;
    do digits[n++] = '0' + rest % 10; while (rest /= 10);
    char *end = link + strlen(link);
    while (n) *end++ = digits[--n];
    *end = 0;
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length >= 8 && !memcmp(path + length - 8, "data.mdb", 8);
}

static char kind_of(int fd) { return fcntl(fd, F_GETFL) & O_DSYNC ? 'd' : 'w'; }

static ssize_t real_pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    ssize_t done = real_pwrite(fd, bytes, length, offset);
    if (done > 0 && is_data(fd)) note(kind_of(fd), offset, bytes, done);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

/* LMDB does not look at what these do beyond their result: written part by part they are the same. */
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    ssize_t all = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = pwrite64(fd, parts[i].iov_base, parts[i].iov_len, offset + all);
        if (done < 0) return all ? all : done;
        all += done;
    }
    return all;
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(fd, parts, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!is_data(fd)) return syscall(SYS_writev, fd, parts, count);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t done = pwritev64(fd, parts, count, offset);
    if (done > 0) lseek(fd, offset + done, SEEK_SET);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    if (fd < 3 || !is_data(fd)) return syscall(SYS_write, fd, bytes, length);
    struct iovec part = {(void *)bytes, length};
    return writev(fd, &part, 1);
}

int fdatasync(int fd) {
    int result = syscall(SYS_fdatasync, fd);
    if (!result && is_data(fd)) note('s', 0, "", 0);
    return result;
}

int fsync(int fd) {
    int result = syscall(SYS_fsync, fd);
    if (!result && is_data(fd)) note('s', 0, "", 0);
    return result;
}
