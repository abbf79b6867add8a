/* Greets, shows its environment and arguments, then ticks like a small server that is always there.
 *
 *   --ticks=N        stop after N ticks (default 0: go on for ever)
 *   --every=SECONDS  time between two ticks (default 5)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* The number behind "--name=" among the arguments. All of them are searched, the first too: a runtime may leave out
 * the program's own name. */
static unsigned option(int argc, char **argv, const char *name, unsigned otherwise) {
  size_t length = strlen(name);
  for (int i = 0; i < argc; i++) {
    if (strncmp(argv[i], name, length) == 0) {
      char *end;
      unsigned long number = strtoul(argv[i] + length, &end, 10);
      if (end == argv[i] + length || *end != '\0') {
        fprintf(stderr, "not a number: %s\n", argv[i]);
        exit(2);
      }
      return (unsigned)number;
    }
  }
  return otherwise;
}

int main(int argc, char **argv) {
  /* A log is no terminal: without this, libc would keep lines back until its buffer is full. */
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
  unsigned ticks = option(argc, argv, "--ticks=", 0);
  unsigned every = option(argc, argv, "--every=", 5);

  const char *name = getenv("NAME");
  printf("Hello, %s!\n", name ? name : "world");
  for (char **variable = environ; *variable; variable++) {
    printf("env %s\n", *variable);
  }
  for (int i = 0; i < argc; i++) {
    printf("arg %s\n", argv[i]);
  }

  for (unsigned tick = 1; ticks == 0 || tick <= ticks; tick++) {
    printf("tick %u\n", tick);
    if (tick != ticks) {
      sleep(every);
    }
  }
  return 0;
}
