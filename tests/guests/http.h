// WASI 0.2's wasi:http for servers in C. No library: a bindings generator would write these declarations, which are the canonical
// ABI of the interfaces (component-model, CanonicalABI.md).

#include <stddef.h>
#include <stdint.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))
#define TYPES "wasi:http/types@0.2.12"
#define STREAMS "wasi:io/streams@0.2.12"

// What a function with several results writes: whether it failed, or whether there is something; and a handle or a text.
typedef struct { uint8_t tag; uint32_t first, second; } outcome;

typedef struct { const char *start; size_t length; } text;
typedef struct { text name, value; } field;

#define TEXT(literal) ((text){literal, sizeof literal - 1})

IMPORT(TYPES, "[static]fields.from-list") void fields_from_list(const field *entries, size_t count, outcome *to);
IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(uint32_t request, outcome *to);
IMPORT(TYPES, "[method]incoming-request.consume") void request_body(uint32_t request, outcome *to);
IMPORT(TYPES, "[method]incoming-body.stream") void body_read(uint32_t body, outcome *to);
IMPORT(TYPES, "[constructor]outgoing-response") uint32_t new_response(uint32_t headers);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(uint32_t response, outcome *to);
IMPORT(TYPES, "[method]outgoing-body.write") void body_write(uint32_t body, outcome *to);
IMPORT(TYPES, "[static]outgoing-body.finish")
void body_finish(uint32_t body, int32_t has_trailers, uint32_t trailers, void *to);
IMPORT(TYPES, "[static]response-outparam.set")
void set_response(uint32_t out, int32_t failed, uint32_t response, int32_t a, int64_t b, int32_t c, int32_t d, int32_t e, int32_t f);
IMPORT(STREAMS, "[method]input-stream.blocking-read") void stream_read(uint32_t stream, uint64_t most, outcome *to);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush")
void stream_write(uint32_t stream, const char *start, size_t length, outcome *to);
IMPORT(STREAMS, "[resource-drop]output-stream") void drop_stream(uint32_t stream);

static uint8_t heap[64 << 10];
static size_t used;

// Memory for what the host hands over. An instance answers one request, so nothing is given back.
EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    used = (used + align - 1) / align * align;
    if (old_size != 0 || size > sizeof heap - used) __builtin_trap();
    void *given = heap + used;
    used += size;
    return given;
}

static text path_of(uint32_t request) {
    outcome path;
    request_path(request, &path);
    return (text){(const char *)(uintptr_t)path.first, path.second};
}

static uint32_t fields(const field *entries, size_t count) {
    outcome made;
    fields_from_list(entries, count, &made);
    return made.first;
}

// An answer that has begun: write to the stream, then finish.
typedef struct { uint32_t body, stream; } answer;

static answer begin(uint32_t out, uint32_t headers) {
    outcome body, stream;
    uint32_t response = new_response(headers);
    response_body(response, &body);
    set_response(out, 0, response, 0, 0, 0, 0, 0, 0);
    body_write(body.first, &stream);
    return (answer){body.first, stream.first};
}

static void say(answer to, text what) {
    outcome done;
    stream_write(to.stream, what.start, what.length, &done);
}

static void finish(answer what, int has_trailers, uint32_t trailers) {
    static uint64_t error[8];
    drop_stream(what.stream);
    body_finish(what.body, has_trailers, trailers, error);
}
