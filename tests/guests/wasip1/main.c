/* What a WASI 0.1 program may expect of the platform, check by check: one line "name ok" or "name FAILED" each. Written
 * after what the wasi-testsuite (github.com/WebAssembly/wasi-testsuite, tests/c) tests, for a read-only file system. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void check(const char *name, int holds) { printf("%s %s\n", name, holds ? "ok" : "FAILED"); }

/* Whether it failed with one of these. */
static int refused(int result, int first, int second) {
    return result == -1 && (errno == first || errno == second);
}

static void clocks(void) {
    struct timespec a, b;
    check("clock_getres-monotonic", !clock_getres(CLOCK_MONOTONIC, &a) && (a.tv_sec || a.tv_nsec));
    check("clock_getres-realtime", !clock_getres(CLOCK_REALTIME, &a) && (a.tv_sec || a.tv_nsec));
    int read = !clock_gettime(CLOCK_MONOTONIC, &a) && !clock_gettime(CLOCK_MONOTONIC, &b);
    check("clock_gettime-monotonic", read && (b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec >= a.tv_nsec)));
    check("clock_gettime-realtime", !clock_gettime(CLOCK_REALTIME, &a) && a.tv_sec > 1700000000);
    struct timespec nap = {0, 5000000};
    clock_gettime(CLOCK_MONOTONIC, &a);
    int slept = !nanosleep(&nap, NULL);
    clock_gettime(CLOCK_MONOTONIC, &b);
    check("poll_oneoff-sleep", slept && (b.tv_sec - a.tv_sec) * 1000000000LL + b.tv_nsec - a.tv_nsec >= 4000000);
}

static void files(void) {
    char buffer[16];
    int fd = open("/text.txt", O_RDONLY);
    check("fopen-with-access", fd >= 0);
    check("pread-with-access", pread(fd, buffer, 4, 2) == 4 && !memcmp(buffer, "ead-", 4));
    check("lseek", read(fd, buffer, 4) == 4 && lseek(fd, 0, SEEK_CUR) == 4 && lseek(fd, 0, SEEK_SET) == 0 &&
                       lseek(fd, 0, SEEK_END) == 12 && read(fd, buffer, 1) == 0);
    struct stat by_fd, by_path;
    check("stat-dev-ino", !fstat(fd, &by_fd) && !stat("/text.txt", &by_path) && by_fd.st_ino == by_path.st_ino &&
                              by_fd.st_dev == by_path.st_dev && by_fd.st_size == 12 && S_ISREG(by_fd.st_mode));
    check("pwrite-without-access", pwrite(fd, "x", 1, 0) == -1);
    check("fd_sync", !fsync(fd) && !fdatasync(fd));
    check("fd_advise", !posix_fadvise(fd, 0, 12, POSIX_FADV_SEQUENTIAL));
    struct timespec times[2] = {{1, 0}, {1, 0}};
    check("set_times", refused(futimens(fd, times), EPERM, EROFS) && refused(utimensat(AT_FDCWD, "/text.txt", times, 0), EPERM, EROFS));
    check("truncate", refused(ftruncate(fd, 1), EINVAL, EPERM));
    close(fd);

    int seen[2] = {0, 0}, others = 0;
    DIR *folder = opendir("/folder");
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, "file-0")) seen[0]++;
        else if (!strcmp(entry->d_name, "file-1")) seen[1]++;
        else if (entry->d_name[0] != '.') others++;
    }
    if (folder) closedir(folder);
    check("fdopendir-with-access", seen[0] == 1 && seen[1] == 1 && !others);

    check("fopen-missing", refused(open("/none", O_RDONLY), ENOENT, ENOENT));
    check("open-for-writing", refused(open("/text.txt", O_WRONLY), EPERM, EROFS));
    check("open-truncating", refused(open("/text.txt", O_RDWR | O_TRUNC), EPERM, EROFS));
    check("create", refused(open("/new", O_WRONLY | O_CREAT, 0600), EPERM, EROFS));
    check("mkdir", refused(mkdir("/new", 0700), EPERM, EROFS));
    check("unlink", refused(unlink("/text.txt"), EPERM, EROFS));
    check("rmdir", refused(rmdir("/folder"), EPERM, EROFS));
    check("rename", refused(rename("/text.txt", "/other"), EPERM, EROFS));
    check("link", refused(link("/text.txt", "/other"), EPERM, EROFS));
    check("symlink", refused(symlink("text.txt", "/other"), EPERM, EROFS));
    check("dotdot", refused(open("/../key", O_RDONLY), EPERM, ENOENT));
    check("dotdot-deep", refused(open("/folder/../../../../etc/passwd", O_RDONLY), EPERM, ENOENT));
    check("proc", refused(open("/proc/self/environ", O_RDONLY), ENOENT, EPERM));
}

static void rest(void) {
    unsigned char random[2][32];
    check("random_get", !getentropy(random[0], 32) && !getentropy(random[1], 32) && memcmp(random[0], random[1], 32));
    check("sock_shutdown-invalid_fd", refused(shutdown(999, SHUT_RD), EBADF, EBADF));
    check("sock_shutdown-not_sock", refused(shutdown(1, SHUT_RD), ENOTSOCK, EBADF));
    check("environ", getenv("REQUEST_METHOD") && !strcmp(getenv("REQUEST_METHOD"), "GET"));
    char byte;
    check("stdin-empty", read(0, &byte, 1) == 0);
    check("isatty", !isatty(0) && !isatty(1) && !isatty(2));
}

int main(int argc, char **argv) {
    printf("Content-Type: text/plain\n\n");
    check("args", argc == 1 && argv[0]);
    clocks();
    files();
    rest();
    return 0;
}
