// A guest scripted by its arguments: tool COMMAND [ARGUMENT...]

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
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
        size_t size = strtoul(arguments[2], NULL, 10), done = 0;
        char *data = malloc(size);
        memset(data, 'x', size);
        while (done < size) {
            ssize_t written = write(1, data + done, size - done);
            if (written < 0)
                return fail("write");
            done += written;
        }
        return 0;
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
