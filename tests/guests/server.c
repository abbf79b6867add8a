// An HTTP server in C, on WASI 0.2's wasi:http/incoming-handler: answers with what it was asked. No library: a bindings generator
// would write the declarations, which are the canonical ABI of the interfaces (component-model, CanonicalABI.md).

#include <stddef.h>
#include <stdint.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define TYPES "wasi:http/types@0.2.0"
#define STREAMS "wasi:io/streams@0.2.0"

// What a function with several results writes: whether it failed, or whether there is something; and a handle or a text.
typedef struct { uint8_t tag; uint32_t first, second; } outcome;

IMPORT(TYPES, "[static]fields.from-list") void fields_from_list(const void *entries, size_t count, outcome *to);
IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(uint32_t request, outcome *to);
IMPORT(TYPES, "[constructor]outgoing-response") uint32_t new_response(uint32_t headers);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(uint32_t response, outcome *to);
IMPORT(TYPES, "[method]outgoing-body.write") void body_write(uint32_t body, outcome *to);
IMPORT(TYPES, "[static]outgoing-body.finish")
void body_finish(uint32_t body, int32_t has_trailers, uint32_t trailers, void *to);
IMPORT(TYPES, "[static]response-outparam.set")
void set_response(uint32_t out, int32_t failed, uint32_t response, int32_t a, int64_t b, int32_t c, int32_t d, int32_t e, int32_t f);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush")
void stream_write(uint32_t stream, const char *text, size_t length, outcome *to);
IMPORT(STREAMS, "[resource-drop]output-stream") void drop_stream(uint32_t stream);

static uint8_t heap[64 << 10];
static size_t used;

// Memory for what the host hands over. An instance answers one request, so nothing is given back.
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    used = (used + align - 1) / align * align;
    if (old_size != 0 || size > sizeof heap - used) __builtin_trap();
    void *given = heap + used;
    used += size;
    return given;
}

__attribute__((export_name("wasi:http/incoming-handler@0.2.0#handle"))) void handle(uint32_t request, uint32_t out) {
    static const char greeting[] = "hello from C: ";
    static uint64_t error[8];
    outcome path, made, body, stream;
    request_path(request, &path);
    fields_from_list(NULL, 0, &made);
    uint32_t response = new_response(made.first);
    response_body(response, &body);
    set_response(out, 0, response, 0, 0, 0, 0, 0, 0);
    body_write(body.first, &stream);
    stream_write(stream.first, greeting, sizeof greeting - 1, &made);
    stream_write(stream.first, (const char *)(uintptr_t)path.first, path.second, &made);
    drop_stream(stream.first);
    body_finish(body.first, 0, 0, error);
}
