# A guest in Python: another toolchain's component, unchanged, and of real size. It uses the standard
# library (json, urllib) as any program does, and the names that componentize-py makes of wasi:http.
import json
from urllib.parse import parse_qs, urlsplit

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam

# Counts the requests of one sandbox, so that reuse shows.
served = 0


def read(request: IncomingRequest) -> bytes:
    """The request's body."""
    with request.consume() as body, body.stream() as stream:
        parts = []
        while True:
            try:
                parts.append(stream.blocking_read(65536))
            except Err as error:
                if isinstance(error.value, StreamError_Closed):
                    return b"".join(parts)
                raise


def send(response_out: ResponseOutparam, status: int, kind: str, content: bytes) -> None:
    """Answers. A stream takes 4096 bytes at once."""
    response = OutgoingResponse(Fields.from_list([("content-type", kind.encode())]))
    response.set_status_code(status)
    body = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    with body.write() as stream:
        for start in range(0, len(content), 4096):
            stream.blocking_write_and_flush(content[start : start + 4096])
    OutgoingBody.finish(body, None)


class IncomingHandler(exports.IncomingHandler):
    """The exported handler; componentize-py looks for this name."""

    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        """One request."""
        global served
        served += 1
        url = urlsplit(request.path_with_query() or "/")
        if url.path == "/":
            send(response_out, 200, "text/plain", b"hello from Python\n")
        elif url.path == "/counter":
            send(response_out, 200, "text/plain", f"{served}\n".encode())
        elif url.path == "/echo":
            send(response_out, 200, "application/octet-stream", read(request))
        elif url.path == "/json":
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            send(response_out, 200, "application/json", json.dumps({"path": url.path, "query": query}).encode())
        elif url.path == "/throw":
            raise ValueError("thrown, as asked")
        else:
            send(response_out, 404, "text/plain", b"no such page\n")
