// A gRPC server in C, on wasi:http: h2c and trailers are the host's matter, messages and status ours (grpc, PROTOCOL-HTTP2.md).
//
//     boats.Harbour/Greet         answers {1: NAME} with {1: "ahoy, NAME"}
//     boats.Harbour/GreetThrice   three times (server streaming)
//     grpc.health.v1.Health/Check says SERVING

#include "http.h"

#define PREFIX_BYTES 5
#define UNIMPLEMENTED "12"

static char asked[4096], reply[4096];

static int is(text path, const char *name) {
    size_t at = 0;
    while (at < path.length && name[at] == path.start[at] && name[at] != 0) at++;
    return at == path.length && name[at] == 0;
}

static size_t append(char *to, size_t at, text what) {
    for (size_t i = 0; i < what.length; i++) to[at + i] = what.start[i];
    return at + what.length;
}

// The request's first message, after its prefix of a flag and four bytes of length.
static text message(uint32_t request) {
    outcome body, stream, piece;
    size_t length = 0;
    request_body(request, &body);
    body_read(body.first, &stream);
    while (stream_read(stream.first, sizeof asked, &piece), piece.tag == 0) {
        if (piece.second > sizeof asked - length) __builtin_trap();
        length = append(asked, length, (text){(const char *)(uintptr_t)piece.first, piece.second});
    }
    return length < PREFIX_BYTES ? (text){asked, 0} : (text){asked + PREFIX_BYTES, length - PREFIX_BYTES};
}

// A message whose field 1 is a short text, with its prefix.
static text greeting(text name) {
    size_t end = append(reply, PREFIX_BYTES + 2, TEXT("ahoy, "));
    end = append(reply, end, name);
    reply[PREFIX_BYTES - 1] = (char)(end - PREFIX_BYTES);
    reply[PREFIX_BYTES] = 1 << 3 | 2;
    reply[PREFIX_BYTES + 1] = (char)(end - PREFIX_BYTES - 2);
    return (text){reply, end};
}

EXPORT("wasi:http/incoming-handler@0.2.12#handle") void handle(uint32_t request, uint32_t out) {
    text path = path_of(request), given = message(request), status = TEXT("0");
    field head = {TEXT("content-type"), TEXT("application/grpc")};
    answer ours = begin(out, fields(&head, 1));
    int times = is(path, "/boats.Harbour/Greet") ? 1 : is(path, "/boats.Harbour/GreetThrice") ? 3 : 0;
    if (times > 0) {
        // {1: NAME}, of less than 100 bytes: a byte for the field, one for the length.
        if (given.length < 2 || given.length > 100) __builtin_trap();
        for (text said = greeting((text){given.start + 2, given.length - 2}); times > 0; times--) say(ours, said);
    } else if (is(path, "/grpc.health.v1.Health/Check")) {
        say(ours, TEXT("\0\0\0\0\2\10\1"));
    } else {
        status = TEXT(UNIMPLEMENTED);
    }
    field trailer = {TEXT("grpc-status"), status};
    finish(ours, 1, fields(&trailer, 1));
}
