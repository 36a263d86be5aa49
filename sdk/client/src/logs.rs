//! Reading a stream of JSON lines: an app's log.

use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use marcato_api::{ApiResult, LogLine, Problem, ProblemKind};

/// Longest line that is read: 16 KiB of text grow at most sixfold as JSON.
const LINE_LIMIT_BYTES: usize = 256 << 10;

struct Reader {
    body: Incoming,
    buffer: BytesMut,
    /// How far the buffer was searched for a line end.
    searched: usize,
    ended: bool,
}

/// The lines of a body. Ends after the first error; blank lines (keep-alive) are skipped.
pub(crate) fn lines(body: Incoming) -> impl Stream<Item = ApiResult<LogLine>> + Send {
    let reader = Reader { body, buffer: BytesMut::new(), searched: 0, ended: false };
    stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(line)) => Some((Ok(line), Some(reader))),
            Ok(None) => None,
            Err(problem) => Some((Err(problem), None)),
        }
    })
}

impl Reader {
    async fn next(&mut self) -> ApiResult<Option<LogLine>> {
        loop {
            while let Some(line) = self.take_line() {
                if !line.trim_ascii().is_empty() {
                    return parse(&line).map(Some);
                }
            }
            if self.ended {
                let rest = std::mem::take(&mut self.buffer);
                self.searched = 0;
                return if rest.trim_ascii().is_empty() { Ok(None) } else { parse(&rest).map(Some) };
            }
            if self.buffer.len() > LINE_LIMIT_BYTES {
                return Err(Problem::new(ProblemKind::Internal, "a log line is longer than any can be"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => {
                    let why = crate::call::root_cause(&e);
                    return Err(Problem::new(ProblemKind::Unavailable, format!("the log broke off: {why}")));
                }
                None => self.ended = true,
            }
        }
    }

    fn take_line(&mut self) -> Option<Bytes> {
        let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.searched + at + 1).freeze();
        self.searched = 0;
        Some(line)
    }
}

fn parse(line: &[u8]) -> ApiResult<LogLine> {
    serde_json::from_slice(line)
        .map_err(|e| Problem::new(ProblemKind::Internal, format!("a log line cannot be read: {e}")))
}
