//! How a command's answer begins: its header section (RFC 3875, section 6).

use http::header::{CONNECTION, LOCATION, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};

/// Longest header section.
pub(super) const BYTES: usize = 64 << 10;

/// Most fields in it.
const FIELDS: usize = 256;

/// What a header section says.
#[derive(Debug, PartialEq)]
pub(super) enum Head {
    /// The answer's status and fields; a body follows.
    Answer(StatusCode, HeaderMap),
    /// Section 6.2.2: answer as for this path.
    Local(Uri),
}

/// Collects the bytes of a header section.
#[derive(Debug, Default)]
pub(super) struct Section {
    text: Vec<u8>,
    /// Where the present line begins.
    line: usize,
}

impl Section {
    /// Takes bytes. Gives the head and the bytes behind it, once its last line is there. Errors: what is wrong, for
    /// the app's log.
    pub(super) fn feed<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Head, &'a [u8])>, String> {
        for (at, byte) in bytes.iter().enumerate() {
            if *byte != b'\n' {
                if self.text.len() == BYTES {
                    return Err(format!("the command's header is longer than {BYTES} bytes"));
                }
                self.text.push(*byte);
                continue;
            }
            if matches!(self.text.get(self.line..), Some(b"" | b"\r")) {
                self.text.truncate(self.line);
                return parse(&self.text).map(|head| Some((head, &bytes[at + 1..])));
            }
            self.text.push(b'\n');
            self.line = self.text.len();
        }
        Ok(None)
    }

    /// Why there is no answer, when the command ends here.
    pub(super) fn missing(&self) -> String {
        if self.text.is_empty() {
            "the command ended without an answer: a CGI program writes header lines, an empty line and the body".into()
        } else {
            format!("the command ended within its header: {:?}", shown(&self.text))
        }
    }
}

/// The beginning of a text, printable.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned()
}

fn parse(text: &[u8]) -> Result<Head, String> {
    let mut headers = HeaderMap::new();
    let mut status = None;
    for line in text.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let wrong = |what: &str| format!("the command's header has {what}: {:?}", shown(line));
        let colon = line.iter().position(|b| *b == b':').ok_or_else(|| wrong("a line without a colon"))?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| wrong("a name that is none"))?;
        let value = line[colon + 1..].trim_ascii();
        if name == "status" {
            let code = value.get(..3).filter(|_| matches!(value.get(3), None | Some(b' ')));
            let code = code.and_then(|c| StatusCode::from_bytes(c).ok()).filter(|c| (200..600).contains(&c.as_u16()));
            if status.replace(code.ok_or_else(|| wrong("a status that is none"))?).is_some() {
                return Err(wrong("a second status"));
            }
            continue;
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| wrong("a value that is none"))?;
        // The connection is the platform's.
        if [CONNECTION, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(&name)
            || name == "keep-alive"
        {
            continue;
        }
        if headers.len() == FIELDS {
            return Err(format!("the command's header has more than {FIELDS} fields"));
        }
        headers.append(name, value);
    }
    if status.is_none() && headers.is_empty() {
        return Err("the command's header is empty: it needs Content-Type, Location or Status".into());
    }
    let location = headers.get(LOCATION).and_then(|l| l.to_str().ok());
    let status = match (status, location) {
        (Some(status), _) => status,
        (None, Some(path)) if path.starts_with('/') && !path.starts_with("//") && headers.len() == 1 => {
            let no_path = |e| format!("the command's Location {:?} is no path: {e}", shown(path.as_bytes()));
            let uri = path.parse().map_err(no_path)?;
            return Ok(Head::Local(uri));
        }
        (None, Some(_)) => StatusCode::FOUND,
        (None, None) => StatusCode::OK,
    };
    Ok(Head::Answer(status, headers))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head, String> {
        let mut section = Section::default();
        match section.feed(text.as_bytes())? {
            Some((head, rest)) => {
                assert_eq!(rest, b"body");
                Ok(head)
            }
            None => Err(section.missing()),
        }
    }

    fn answer(text: &str) -> (u16, Vec<(String, String)>) {
        match head(text) {
            Ok(Head::Answer(status, headers)) => {
                let text = |v: &HeaderValue| v.to_str().expect("text").to_owned();
                (status.as_u16(), headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect())
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn the_four_kinds_of_answer_are_told_apart() {
        let html = ("content-type".to_owned(), "text/html".to_owned());
        assert_eq!(answer("Content-Type: text/html\n\nbody"), (200, vec![html.clone()]));
        assert_eq!(answer("Status: 404 Not Found\r\ncontent-type:text/html\r\n\r\nbody"), (404, vec![html.clone()]));
        let away = ("location".to_owned(), "https://e.org/x".to_owned());
        assert_eq!(answer("Location: https://e.org/x\n\nbody"), (302, vec![away.clone()]));
        assert_eq!(
            answer("Status: 301\nLocation: https://e.org/x\nContent-Type: text/html\n\nbody"),
            (301, vec![away, html])
        );
        assert_eq!(head("Location: /x?y\n\nbody"), Ok(Head::Local(Uri::from_static("/x?y"))));
        // Not a path of this app, or more than a redirect: the client's business.
        assert_eq!(answer("Location: //e.org/\n\nbody").0, 302);
        assert_eq!(answer("Location: /x\nSet-Cookie: a=1\n\nbody").0, 302);
        assert_eq!(answer("Status: 204\n\nbody"), (204, vec![]));
    }

    #[test]
    fn an_answer_comes_in_pieces() {
        let text = b"Set-Cookie: a\r\nSet-Cookie: b\r\nTransfer-Encoding: chunked\r\n\r\nbody";
        for size in 1..text.len() {
            let mut section = Section::default();
            let mut seen = None;
            for piece in text.chunks(size) {
                if seen.is_none() {
                    seen = section.feed(piece).expect("fine").map(|(head, _)| head);
                }
            }
            let Some(Head::Answer(_, headers)) = seen else { panic!("{seen:?}") };
            assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
            assert!(!headers.contains_key(TRANSFER_ENCODING));
        }
    }

    #[test]
    fn what_is_no_header_is_refused_with_a_reason() {
        for (text, why) in [
            ("", "without an answer"),
            ("Content-Type: text/html\n", "within its header"),
            ("\nbody", "is empty"),
            ("<html>\n\nbody", "without a colon"),
            ("a b: c\n\nbody", "a name that is none"),
            (" folded: x\n\nbody", "a name that is none"),
            ("x: a\u{1}b\n\nbody", "a value that is none"),
            ("Status: 99\n\nbody", "a status that is none"),
            ("Status: 100 Continue\n\nbody", "a status that is none"),
            ("Status: 2000\n\nbody", "a status that is none"),
            ("Status: 200\nStatus: 200\n\nbody", "a second status"),
            ("Location: /a b\n\nbody", "is no path"),
        ] {
            let said = head(text).expect_err(text);
            assert!(said.contains(why), "{text:?}: {said}");
        }
        assert!(head(&"x".repeat(BYTES + 1)).expect_err("too long").contains("longer"));
        // Found by the fuzz target: all of it was in the message.
        let said = head(&format!("Location: /a {}\n\n", "b".repeat(BYTES / 2))).expect_err("no path");
        assert!(said.contains("is no path") && said.len() < 200, "{} bytes", said.len());
        assert!(head(&("a: b\n".repeat(FIELDS + 1) + "\nbody")).expect_err("too many").contains("more than"));
    }

    #[test]
    fn garbage_is_refused_or_taken_and_never_more() {
        let good = b"Status: 200 OK\r\nContent-Type: text/plain\r\nLocation: /x\r\n\r\nbody";
        for at in 0..good.len() {
            for value in [0, b'\n', b'\r', b':', b' ', 0x7f, 0x80, 0xff] {
                let mut bytes = *good;
                bytes[at] = value;
                let mut section = Section::default();
                if let Ok(Some((Head::Answer(status, headers), _))) = section.feed(&bytes) {
                    assert!(status.as_u16() >= 200 && headers.len() < 4);
                }
            }
        }
    }
}
