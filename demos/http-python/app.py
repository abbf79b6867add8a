# mypy: ignore-errors
"""An HTTP API in Python: GET /greet?name=Ada answers with JSON."""

import json
import os
from urllib.parse import parse_qs, urlsplit

import wit_world.exports
from componentize_py_types import Ok
from wit_world.imports.types import Fields, Method_Get, OutgoingBody, OutgoingResponse, ResponseOutparam


class IncomingHandler(wit_world.exports.IncomingHandler):
    def handle(self, request, response_out):
        status, answer = reply(request)
        print(status, request.path_with_query(), flush=True)
        head = OutgoingResponse(Fields.from_list([("content-type", b"application/json")]))
        head.set_status_code(status)
        body = head.body()
        ResponseOutparam.set(response_out, Ok(head))
        # Given back before the body is finished: it is a part of it.
        with body.write() as stream:
            stream.blocking_write_and_flush(json.dumps(answer).encode() + b"\n")
        OutgoingBody.finish(body, None)


def reply(request):
    if not isinstance(request.method(), Method_Get):
        return 405, {"error": "only GET"}
    url = urlsplit(request.path_with_query() or "/")
    if url.path != "/greet":
        return 404, {"error": f"{url.path} is not known; try /greet?name=Ada"}
    name = parse_qs(url.query).get("name", ["world"])[0]
    return 200, {"greeting": f"{os.environ.get('GREETING', 'Hello')}, {name}!"}
