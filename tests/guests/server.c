// An HTTP server in C, on WASI 0.2's wasi:http/incoming-handler: answers with what it was asked.

#include "http.h"

EXPORT("wasi:http/incoming-handler@0.2.12#handle") void handle(uint32_t request, uint32_t out) {
    text path = path_of(request);
    answer ours = begin(out, fields(NULL, 0));
    say(ours, TEXT("hello from C: "));
    say(ours, path);
    finish(ours, 0, 0);
}
