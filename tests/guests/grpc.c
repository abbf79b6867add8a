// A gRPC server in C, on wasi:http: h2c and trailers are the host's matter, messages and status ours (grpc, PROTOCOL-HTTP2.md).
//
//     boats.Harbour/Greet         answers {1: NAME} with {1: "ahoy, NAME"}
//     boats.Harbour/GreetThrice   three times (server streaming)
//     boats.Harbour/GreetAll      answers them all with one greeting (client streaming)
//     boats.Harbour/GreetEach     answers each as it comes, while others are still to come (bidirectional streaming)
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

// The request's messages, one after the other as they come, each after a prefix of a flag and four bytes of length.
static uint32_t coming;
static size_t held, taken;

static void listen(uint32_t request) {
    outcome body, stream;
    request_body(request, &body);
    body_read(body.first, &stream);
    coming = stream.first;
}

static int have(size_t bytes) {
    while (held - taken < bytes) {
        outcome piece;
        if (held == sizeof asked) __builtin_trap();
        stream_read(coming, sizeof asked - held, &piece);
        if (piece.tag != 0) return 0;
        held = append(asked, held, (text){(const char *)(uintptr_t)piece.first, piece.second});
    }
    return 1;
}

static int next(text *message) {
    if (!have(PREFIX_BYTES)) return 0;
    const uint8_t *length = (const uint8_t *)asked + taken + 1;
    message->length = (size_t)length[0] << 24 | (size_t)length[1] << 16 | (size_t)length[2] << 8 | length[3];
    if (!have(PREFIX_BYTES + message->length)) __builtin_trap();
    message->start = asked + taken + PREFIX_BYTES;
    taken += PREFIX_BYTES + message->length;
    return 1;
}

// {1: NAME}, of less than 100 bytes: a byte for the field, one for the length.
static int next_name(text *name) {
    if (!next(name)) return 0;
    if (name->length < 2 || name->length > 100) __builtin_trap();
    *name = (text){name->start + 2, name->length - 2};
    return 1;
}

// Of a call of one message: that, once the client has said that there is no other.
static text only_name(void) {
    text name, other;
    if (!next_name(&name) || next(&other)) __builtin_trap();
    return name;
}

static text all_names(void) {
    static char together[100];
    size_t length = 0;
    for (text name; next_name(&name);) {
        if (length + name.length + 2 > sizeof together) __builtin_trap();
        if (length > 0) length = append(together, length, TEXT(", "));
        length = append(together, length, name);
    }
    return (text){together, length};
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
    text path = path_of(request), status = TEXT("0");
    field head = {TEXT("content-type"), TEXT("application/grpc")};
    answer ours = begin(out, fields(&head, 1));
    listen(request);
    if (is(path, "/boats.Harbour/Greet")) {
        say(ours, greeting(only_name()));
    } else if (is(path, "/boats.Harbour/GreetThrice")) {
        text said = greeting(only_name());
        for (int times = 3; times > 0; times--) say(ours, said);
    } else if (is(path, "/boats.Harbour/GreetAll")) {
        say(ours, greeting(all_names()));
    } else if (is(path, "/boats.Harbour/GreetEach")) {
        for (text name; next_name(&name);) say(ours, greeting(name));
    } else if (is(path, "/grpc.health.v1.Health/Check")) {
        say(ours, TEXT("\0\0\0\0\2\10\1"));
    } else {
        status = TEXT(UNIMPLEMENTED);
    }
    field trailer = {TEXT("grpc-status"), status};
    finish(ours, 1, fields(&trailer, 1));
}
