# Sums up a CSV that is sent to it: for each column of numbers its count, least, mean, median and greatest value.
# Plain standard library; the names of wasi:http are what componentize-py makes of the interfaces.
import csv
import io
import json
import statistics

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam


def summary(text: str) -> dict[str, dict[str, float]]:
    """Numbers by column; a column with anything else in it is left out."""
    rows = list(csv.DictReader(io.StringIO(text)))
    result = {}
    for name in rows[0] if rows else []:
        try:
            values = [float(row[name]) for row in rows if row[name]]
        except (TypeError, ValueError):
            continue
        if values:
            result[name] = {
                "count": len(values),
                "min": min(values),
                "mean": statistics.fmean(values),
                "median": statistics.median(values),
                "max": max(values),
            }
    return result


def read(request: IncomingRequest) -> str:
    """The request's body."""
    parts = []
    with request.consume() as body, body.stream() as stream:
        while True:
            try:
                parts.append(stream.blocking_read(65536))
            except Err as error:
                if isinstance(error.value, StreamError_Closed):
                    return b"".join(parts).decode()
                raise


class IncomingHandler(exports.IncomingHandler):
    """The exported handler; componentize-py looks for this name."""

    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        """One request."""
        status, answer = 200, None
        try:
            answer = summary(read(request))
        except (UnicodeDecodeError, csv.Error) as error:
            status, answer = 400, {"error": str(error)}
        content = json.dumps(answer).encode() + b"\n"
        response = OutgoingResponse(Fields.from_list([("content-type", b"application/json")]))
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            # A stream takes 4096 bytes at once.
            for start in range(0, len(content), 4096):
                stream.blocking_write_and_flush(content[start : start + 4096])
        OutgoingBody.finish(body, None)
