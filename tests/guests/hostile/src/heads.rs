//! Attacks with heads: what a response's status and fields may be.

use wasip2::http::types::{Fields, OutgoingResponse, ResponseOutparam};

use crate::{Ask, respond, text};

pub(crate) fn run(ask: &Ask, out: ResponseOutparam) {
    let fields = Fields::new();
    match ask.path.as_str() {
        // One field: as the query says, byte by byte.
        "/inject" | "/header" => {
            let size = usize::try_from(ask.number("size")).unwrap_or(0);
            let value = if size > 0 { vec![b'a'; size] } else { ask.bytes("value") };
            let name = String::from_utf8_lossy(&ask.bytes("name")).into_owned();
            if let Err(error) = fields.append(&name, &value) {
                return text(out, format!("refused {error:?}\n"));
            }
            respond(out, OutgoingResponse::new(fields), b"set\n");
        }
        "/many-headers" => {
            let mut set = 0;
            for n in 0..ask.number("count") {
                if fields.append(&format!("x-h{n}"), b"v").is_err() {
                    break;
                }
                set += 1;
            }
            respond(out, OutgoingResponse::new(fields), format!("set {set}\n").as_bytes());
        }
        "/length" => {
            let _ = fields.append("content-length", ask.text("announced").as_bytes());
            let sent = usize::try_from(ask.number("sent")).unwrap_or(0);
            respond(out, OutgoingResponse::new(fields), &vec![b'x'; sent]);
        }
        _ => {
            let response = OutgoingResponse::new(fields);
            let code = u16::try_from(ask.number("code")).unwrap_or(0);
            match response.set_status_code(code) {
                Ok(()) => respond(out, response, b"as asked\n"),
                Err(()) => text(out, "refused\n"),
            }
        }
    }
}
