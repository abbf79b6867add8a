# mypy: ignore-errors
"""A server of WASI 0.3: GET answers with the path and the Host, POST gives the body back in upper case, as it comes."""

import componentize_py_async_support
import wit_world
import wit_world.exports
from componentize_py_types import Ok
from wit_world.imports.types import Fields, Method_Post, Request, Response


class Handler(wit_world.exports.Handler):
    async def handle(self, request):
        what = f"{request.get_authority()}{request.get_path_with_query()}\n"
        writer, reader = wit_world.byte_stream()
        if isinstance(request.get_method(), Method_Post):
            body, _ = Request.consume_body(request, no_error())
            writing = shout(body, writer)
        else:
            writing = say(what, writer)
        componentize_py_async_support.spawn(writing)
        print("asked for", what, end="", flush=True)
        response, _ = Response.new(Fields.from_list([("content-type", b"text/plain")]), reader, no_trailers())
        return response


async def say(text, writer):
    with writer:
        await writer.write_all(text.encode())


async def shout(body, writer):
    with body, writer:
        while not body.writer_dropped:
            await writer.write_all((await body.read(65536)).upper())


def no_trailers():
    return wit_world.result_option_types_fields_types_error_code_future(lambda: Ok(None))[1]


def no_error():
    return wit_world.result_unit_types_error_code_future(lambda: Ok(None))[1]
