// A guest scripted by its arguments: tool COMMAND [ARGUMENT...]

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

// Writes all of it, in as many calls as the host wants.
static int put(int file, const char *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t written = write(file, data + done, size - done);
        if (written < 0)
            return fail("write");
        done += written;
    }
    return 0;
}

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static int same(const char *path, const char *text) {
    char content[256] = "";
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    content[fread(content, 1, sizeof content - 1, file)] = 0;
    fclose(file);
    return !strcmp(content, text);
}

// Not a tail call, and with little in linear memory: it must use up the call stack, not the C stack.
static int deeper(volatile int *depth) {
    volatile char frame[16];
    frame[*depth & 15] = (char)*depth;
    ++*depth;
    return deeper(depth) + frame[0];
}

int main(int count, char **arguments) {
    const char *command = count > 1 ? arguments[1] : "";

    if (!strcmp(command, "arguments")) {
        for (int i = 0; i < count; i++)
            printf("%s\n", arguments[i]);
        return 0;
    }
    if (!strcmp(command, "environment")) {
        for (char **item = environ; *item; item++)
            printf("%s\n", *item);
        return 0;
    }
    if (!strcmp(command, "exit")) {
        printf("exiting");
        fflush(stdout);
        _Exit(atoi(arguments[2]));
    }
    if (!strcmp(command, "interleave")) {  // N lines, in turn to stdout and stderr
        for (int i = 0; i < atoi(arguments[2]); i++) {
            char line[32];
            int size = snprintf(line, sizeof line, "%d\n", i);
            if (write(1 + i % 2, line, size) != size)
                return fail("write");
        }
        return 0;
    }
    if (!strcmp(command, "write")) {  // N bytes in one call, as far as the host takes them
        size_t size = strtoul(arguments[2], NULL, 10);
        char *data = malloc(size);
        memset(data, 'x', size);
        return put(1, data, size);
    }
    if (!strcmp(command, "lines")) {  // N lines, each in a call of its own
        for (int i = 0; i < atoi(arguments[2]); i++) {
            char line[32];
            if (put(1, line, snprintf(line, sizeof line, "line %d\n", i)))
                return 1;
        }
        return 0;
    }
    if (!strcmp(command, "endless")) {  // output without a newline, for ever
        char data[4096];
        memset(data, 'x', sizeof data);
        for (;;)
            if (put(1, data, sizeof data))
                return 1;
    }
    if (!strcmp(command, "cat")) {
        char data[65536];
        for (ssize_t size; (size = read(0, data, sizeof data)) != 0;)
            if (size < 0 || put(1, data, size))
                return fail("read");
        return put(1, "end\n", 4);
    }
    if (!strcmp(command, "read")) {
        FILE *file = fopen(arguments[2], "r");
        if (!file)
            return fail(arguments[2]);
        for (int c; (c = fgetc(file)) != EOF;)
            putchar(c);
        return 0;
    }
    if (!strcmp(command, "create")) {
        FILE *file = fopen(arguments[2], "w");
        if (!file)
            return fail(arguments[2]);
        fputs(arguments[3], file);
        return fclose(file) ? fail(arguments[2]) : 0;
    }
    if (!strcmp(command, "list")) {
        DIR *folder = opendir(arguments[2]);
        if (!folder)
            return fail(arguments[2]);
        for (struct dirent *entry; (entry = readdir(folder));)
            if (entry->d_name[0] != '.')
                printf("%s\n", entry->d_name);
        return 0;
    }
    if (!strcmp(command, "await")) {  // until the file has this content
        printf("awaiting\n");
        fflush(stdout);
        while (!same(arguments[2], arguments[3]))
            usleep(1000);
        printf("seen\n");
        return 0;
    }
    if (!strcmp(command, "link"))
        return symlink(arguments[2], arguments[3]) ? fail(arguments[3]) : 0;
    if (!strcmp(command, "move"))
        return rename(arguments[2], arguments[3]) ? fail(arguments[3]) : 0;
    if (!strcmp(command, "remove"))
        return remove(arguments[2]) ? fail(arguments[2]) : 0;
    if (!strcmp(command, "folder"))
        return mkdir(arguments[2], 0755) ? fail(arguments[2]) : 0;
    if (!strcmp(command, "open")) {  // as often as it goes
        int count = 0;
        while (open(arguments[2], O_RDONLY) >= 0)
            count++;
        printf("%d, then %s\n", count, strerror(errno));
        return 0;
    }
    if (!strcmp(command, "fill")) {  // a file of N bytes, in pieces of 64 KiB
        static char data[65536];
        int file = open(arguments[2], O_WRONLY | O_CREAT | O_TRUNC);
        if (file < 0)
            return fail(arguments[2]);
        for (long left = atol(arguments[3]); left > 0; left -= sizeof data)
            if (put(file, data, sizeof data))
                return 1;
        return 0;
    }
    if (!strcmp(command, "grow")) {  // by N MiB, one after the other, all of them used; then end with an exit code
        int wanted = atoi(arguments[2]), got = 0;
        for (; got < wanted; got++) {
            size_t page = __builtin_wasm_memory_grow(0, 16);
            if (page == (size_t)-1)
                break;
            memset((char *)(page << 16), 1, 1 << 20);
        }
        printf("%s\n", got == wanted ? "all" : "refused");
        fflush(stdout);
        _Exit(atoi(arguments[3]));
    }
    if (!strcmp(command, "clocks")) {
        double before = seconds(CLOCK_MONOTONIC);
        usleep(20000);
        printf("%d %d\n", (int)seconds(CLOCK_REALTIME), seconds(CLOCK_MONOTONIC) - before >= 0.02);
        return 0;
    }
    if (!strcmp(command, "burn")) {  // N milliseconds long, as fast as it goes
        printf("burning\n");
        fflush(stdout);
        double end = seconds(CLOCK_MONOTONIC) + atoi(arguments[2]) / 1e3;
        while (seconds(CLOCK_MONOTONIC) < end)
            for (volatile int i = 0; i < 100000; i++)
                ;
        return 0;
    }
    if (!strcmp(command, "spin")) {
        printf("spinning\n");
        fflush(stdout);
        for (volatile int i = 0;; i++)
            ;
    }
    if (!strcmp(command, "random")) {
        uint64_t value;
        if (getentropy(&value, sizeof value))
            return fail("getentropy");
        printf("%016llx\n", (unsigned long long)value);
        return 0;
    }
    if (!strcmp(command, "wait")) {
        printf("waiting\n");
        fflush(stdout);
        sleep(3600);
        return 0;
    }
    if (!strcmp(command, "begin")) {  // a line and the beginning of another, and then: exit, wait, spin
        put(1, "first\n", 6);
        put(1, "begun", 5);
        put(2, "ready\n", 6);
        while (strcmp(arguments[2], "exit"))
            if (!strcmp(arguments[2], "wait"))
                sleep(3600);
        return 0;
    }
    if (!strcmp(command, "flood")) {
        for (;;)
            write(1, "flood flood flood\n", 18);
    }
    if (!strcmp(command, "unreachable"))
        __builtin_trap();
    if (!strcmp(command, "out-of-bounds"))
        return *(volatile int *)0xfffffff0;
    if (!strcmp(command, "overflow")) {
        volatile int depth = 0;
        return deeper(&depth);
    }
    fprintf(stderr, "unknown command\n");
    return 2;
}
