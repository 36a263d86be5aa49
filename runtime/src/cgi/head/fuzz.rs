//! Fuzz target: the header section that a command writes, which is a guest's.

use marcato_fuzz::{Input, target};

use super::*;

const GOOD: &[&[u8]] = &[
    b"Status: 200 OK\r\nContent-Type: text/plain\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nbody",
    b"Location: /x?y\n\nbody",
    b"content-type:text/html\nTransfer-Encoding: chunked\nConnection: close\nContent-Length: 4\n\nbody",
    b"Location: https://e.org/x\nStatus: 301\n\n",
];
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b":",
    b" ",
    b"\t",
    b"Status: ",
    b"200",
    b"99",
    b"404 x",
    b"Location: ",
    b"/",
    b"//",
    b"Connection: x\n",
    b"Transfer-Encoding: chunked\n",
    b"Keep-Alive: 5\n",
    b"a: b\n",
    b"\0",
    b"\x7f",
    b"\xff",
    b"x-marcato-error: x\n",
    b"\r\n\r\n",
    b"Upgrade: h2c\n",
];

/// What becomes of a command's output, fed in pieces: the head and how much lies behind it, or why there is none.
fn fed(bytes: &[u8], piece: usize) -> Result<Option<(Head, usize)>, String> {
    let mut section = Section::default();
    let mut taken = 0;
    for part in bytes.chunks(piece.max(1)) {
        taken += part.len();
        if let Some((head, rest)) = section.feed(part)? {
            return Ok(Some((head, bytes.len() - taken + rest.len())));
        }
    }
    let missing = section.missing();
    assert!(missing.len() < 400, "{missing}");
    Ok(None)
}

/// However it comes in pieces, it says the same. What is taken has a final status, no field of the connection, no
/// byte that ends a line, and reads the same when it is written again.
#[test]
fn fuzz_cgi_head() {
    target!(4000, |input: &(u8, Input)| {
        let (piece, input) = input;
        let bytes = input.bytes(GOOD, WORDS);
        let whole = fed(&bytes, bytes.len());
        assert_eq!(whole, fed(&bytes, *piece as usize % 16 + 1));
        match whole {
            Ok(Some((Head::Answer(status, headers), behind))) => {
                assert!((200..600).contains(&status.as_u16()) && headers.len() <= FIELDS && behind <= bytes.len());
                let mut again = format!("Status: {}\n", status.as_u16()).into_bytes();
                for (name, value) in &headers {
                    assert!(![CONNECTION, TRANSFER_ENCODING, UPGRADE, TE, TRAILER].contains(name), "{name}");
                    assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "{value:?}");
                    again.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"].concat());
                }
                again.extend_from_slice(b"\nrest");
                assert_eq!(fed(&again, again.len()), Ok(Some((Head::Answer(status, headers), 4))));
            }
            Ok(Some((Head::Local(uri), _))) => {
                assert!(uri.path().starts_with('/') && uri.authority().is_none(), "{uri}");
            }
            Ok(None) => {}
            Err(why) => assert!(why.len() < 600, "{why}"),
        }
    });
}
