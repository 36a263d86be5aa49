//! Why a request was not done, and how that is told: as a page, or as JSON under `/api`.

use marcato_guest::{access, keyvalue};
use serde_json::json;

use crate::http::{Reply, Request};
use crate::pages::layout;

#[derive(Debug)]
pub(crate) enum Problem {
    /// Nobody is logged in.
    LogIn,
    /// The right is missing. Recorded where it was found missing.
    Forbidden(String),
    /// The form's token is missing or wrong, or another site sent the request.
    Forged,
    NotFound(String),
    BadRequest(String),
    /// A field has a value that is not allowed.
    Invalid(String),
    Conflict(String),
    MethodNotAllowed,
    /// Too many attempts; seconds to wait.
    Throttled(u64),
    /// A service of the platform failed; nothing was written.
    Service(String),
}

impl From<access::Error> for Problem {
    fn from(error: access::Error) -> Self {
        match error {
            access::Error::NotFound(id) => Self::NotFound(format!("There is no user {id}.")),
            access::Error::Conflict(why) => Self::Conflict(why),
            access::Error::Invalid((field, message)) => Self::Invalid(format!("{field}: {message}")),
            access::Error::NoSuchBinding => Self::Service("the register is not bound".to_owned()),
            access::Error::DiskFull => Self::Service("the disk is full".to_owned()),
            access::Error::Corrupt(why) => Self::Service(format!("the register is damaged: {why}")),
            access::Error::Unavailable(why) => Self::Service(why),
        }
    }
}

impl From<keyvalue::Error> for Problem {
    fn from(error: keyvalue::Error) -> Self {
        Self::Service(match error {
            keyvalue::Error::NoSuchStore => "the key-value store is not bound".to_owned(),
            keyvalue::Error::AccessDenied => "the key-value store is not granted".to_owned(),
            keyvalue::Error::Other(why) => why,
        })
    }
}

impl Problem {
    fn parts(&self) -> (u16, &'static str, String) {
        let own = |text: &str| text.to_owned();
        match self {
            Self::LogIn => (401, "Please log in", own("This needs a session.")),
            Self::Forbidden(what) => (403, "You have no right to do this", own(what)),
            Self::Forged => (
                403,
                "This form is not valid any more",
                own("It was sent from another place or has expired. Go back, reload the page and try again."),
            ),
            Self::NotFound(what) => (404, "Not found", own(what)),
            Self::BadRequest(what) => (400, "The request is not well formed", own(what)),
            Self::Invalid(what) => (422, "A field is not valid", own(what)),
            Self::Conflict(what) => (409, "This clashes with what is stored", own(what)),
            Self::MethodNotAllowed => (405, "Not offered", own("This address does not take that method.")),
            Self::Throttled(seconds) => {
                (429, "Too many attempts", format!("Please wait {seconds} s before you try again."))
            }
            Self::Service(_) => (
                503,
                "The register cannot answer now",
                own("Nothing was changed. Please try again; if it lasts, tell the operator."),
            ),
        }
    }

    /// The words for a form that is shown again.
    pub(crate) fn message(&self) -> String {
        self.parts().2
    }

    pub(crate) fn status(&self) -> u16 {
        self.parts().0
    }

    pub(crate) fn reply(&self, request: &Request, who: Option<&layout::Bar>) -> Reply {
        if let Self::Service(why) = self {
            // For the operator only: a page tells no inner workings.
            eprintln!("service failed: {why}");
        }
        let (status, title, detail) = self.parts();
        if matches!(self, Self::LogIn) && !request.is_api() {
            return Reply::redirect("/login");
        }
        let reply = if request.is_api() {
            let body = json!({"type": "about:blank", "title": title, "status": status, "detail": detail});
            Reply::json(status, &body).with("content-type", "application/problem+json")
        } else {
            Reply::page(status, layout::message_page(who, status, title, &detail))
        };
        match self {
            Self::Throttled(seconds) => reply.with("retry-after", seconds.to_string()),
            Self::Service(_) => reply.with("retry-after", "5"),
            Self::LogIn => reply.with("www-authenticate", "Bearer"),
            _ => reply,
        }
    }
}
