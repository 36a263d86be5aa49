//! Who is asking, and what they may do.
//!
//! Owns: passwords, logging in and out, the check of a session and of a form's token, and the decision
//! about rights. An administrator may do everything; a doctor what the register says about the subject
//! that the account is linked to. What is refused is recorded.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use marcato_guest::access::{self, Change, Subject};

use crate::App;
use crate::forms::{Fields, is_account_name, kind_word};
use crate::http::{Reply, Request};
use crate::problem::Problem;
use crate::session::{self, ABSOLUTE_MS, Session};
use crate::state::{self, Account, Role, Throttle};

pub(crate) const COOKIE: &str = "health";
const VISITOR_COOKIE: &str = "health-visitor";
const PASSWORD_MIN: usize = 10;
const PASSWORD_MAX: usize = 200;
/// The resource that stands for the list itself: seeing it and adding to it.
pub(crate) const REGISTER: &str = "register";

/// Somebody who is logged in.
pub(crate) struct User {
    pub(crate) account: Account,
    pub(crate) session: Session,
    /// What each form of this session carries.
    pub(crate) csrf: String,
    /// Came by `Authorization`, which no other site can make a browser send.
    bearer: bool,
}

impl User {
    pub(crate) fn name(&self) -> &str {
        &self.account.name
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.account.role == Role::Admin
    }
}

/// The user of a request's token. `None`: no token, or one that is not valid (any more).
pub(crate) fn user(app: &App, request: &Request) -> Result<Option<User>, Problem> {
    let bearer = request.header("authorization").and_then(|v| v.strip_prefix("Bearer "));
    let Some(token) = bearer.or_else(|| request.cookie(COOKIE)) else { return Ok(None) };
    let Some(key) = state::session_key(&app.state)? else { return Ok(None) };
    let Some(session) = Session::open(token, &key, app.now_ms) else { return Ok(None) };
    let account = state::account(&app.state, &session.account)?;
    let Some(account) = account.filter(|a| !a.disabled && a.epoch == session.epoch) else { return Ok(None) };
    let csrf = session.csrf(&key);
    Ok(Some(User { account, session, csrf, bearer: bearer.is_some() }))
}

/// Errors unless the request's form (or its header, for scripts) carries the session's token.
pub(crate) fn check_form(request: &Request, user: &User, fields: &Fields) -> Result<(), Problem> {
    if user.bearer {
        return Ok(());
    }
    let sent = request.header("x-csrf-token").unwrap_or(fields.raw("csrf"));
    if request.is_cross_site() || !session::same(sent, &user.csrf) { Err(Problem::Forged) } else { Ok(()) }
}

/// What somebody wants to do, for a refusal's words.
pub(crate) struct Wish<'a> {
    pub(crate) write: bool,
    pub(crate) resource: &'a str,
    pub(crate) subject: Option<&'a str>,
    pub(crate) what: &'a str,
}

/// Whether the user may read or write a resource.
pub(crate) fn may(app: &App, user: &User, write: bool, resource: &str) -> Result<bool, Problem> {
    if user.is_admin() {
        return Ok(true);
    }
    let Some(subject) = &user.account.subject else { return Ok(false) };
    match app.register.check(subject, resource) {
        Ok(allowed) => Ok(if write { allowed.write } else { allowed.read }),
        Err(access::Error::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Errors, and records it, when the user may not.
pub(crate) fn require(app: &App, user: &User, wish: &Wish<'_>) -> Result<(), Problem> {
    if may(app, user, wish.write, wish.resource)? {
        return Ok(());
    }
    let verb = if wish.write { "write" } else { "read" };
    refuse(app, user, wish.subject, &format!("{}: no {verb} right on {}", wish.what, wish.resource))?;
    Err(Problem::Forbidden(format!(
        "Your account has no {verb} right on {}. An administrator can grant it. This refusal was recorded.",
        wish.resource
    )))
}

/// Errors, and records it, unless the user is an administrator.
pub(crate) fn require_admin(app: &App, user: &User, what: &str) -> Result<(), Problem> {
    if user.is_admin() {
        return Ok(());
    }
    refuse(app, user, None, &format!("{what}: administrators only"))?;
    Err(Problem::Forbidden("Only administrators may do this. This refusal was recorded.".to_owned()))
}

fn refuse(app: &App, user: &User, subject: Option<&str>, detail: &str) -> Result<(), Problem> {
    Ok(app.register.record(user.name(), Change::Refused, subject, detail)?)
}

/// The resource of a subject: `patient/1001`.
pub(crate) fn resource_of(subject: &Subject) -> String {
    format!("{}/{}", kind_word(subject.kind), subject.id)
}

/// Whether a change of this subject needs an administrator: doctors write to patients only, or they
/// could give themselves a key or another name.
pub(crate) fn needs_admin(subject: &Subject) -> bool {
    !matches!(subject.kind, access::SubjectKind::Patient)
}

/// Checks name and password and gives a session and its token.
pub(crate) fn log_in(app: &App, request: &Request, name: &str, password: &str) -> Result<(Session, String), Problem> {
    let by_name = Throttle::account(name);
    let by_client = Throttle::client(request.client());
    by_client.admit(&app.state, app.now_ms)?;
    by_name.admit(&app.state, app.now_ms)?;
    let account = if is_account_name(name) { state::account(&app.state, name)? } else { None };
    let account = account.filter(|a| !a.disabled);
    // An unknown name costs as much as a known one, so time does not tell them apart.
    let hash = account.as_ref().map_or(NOBODY, |a| a.password_hash.as_str());
    let matches = password.len() <= 4 * PASSWORD_MAX && is_password(hash, password);
    let key = state::session_key(&app.state)?;
    let (Some(account), true, Some(key)) = (account, matches, key) else {
        let who = if is_account_name(name) { name } else { "unknown" };
        app.register.record(who, Change::Session, None, "log-in failed")?;
        return Err(Problem::Invalid("Name or password is wrong.".to_owned()));
    };
    by_name.clear(&app.state)?;
    by_client.clear(&app.state)?;
    app.register.record(name, Change::Session, None, "logged in")?;
    let session = Session {
        account: account.name,
        epoch: account.epoch,
        issued_ms: app.now_ms,
        seen_ms: app.now_ms,
        nonce: random_text()?,
    };
    let token = session.seal(&key);
    Ok((session, token))
}

/// Ends every session of the account.
pub(crate) fn log_out(app: &App, user: &User) -> Result<(), Problem> {
    let account = Account { epoch: user.account.epoch + 1, ..user.account.clone() };
    state::save_account(&app.state, &account)?;
    Ok(app.register.record(user.name(), Change::Session, None, "logged out")?)
}

/// A new account, not stored yet.
pub(crate) fn new_account(
    app: &App,
    name: &str,
    password: &str,
    role: Role,
    subject: Option<String>,
) -> Result<Account, Problem> {
    if !is_account_name(name) {
        return Err(Problem::Invalid(
            "Account name: use 1 to 64 lower-case letters, digits, '.', '_' or '-'.".to_owned(),
        ));
    }
    let password_hash = hash_password(name, password)?;
    Ok(Account {
        name: name.to_owned(),
        role,
        subject,
        password_hash,
        epoch: 1,
        disabled: false,
        created_ms: app.now_ms,
    })
}

/// Length is what makes a password strong (NIST SP 800-63B): no rules about its characters.
pub(crate) fn hash_password(name: &str, password: &str) -> Result<String, Problem> {
    let length = password.chars().count();
    if !(PASSWORD_MIN..=PASSWORD_MAX).contains(&length) {
        return Err(Problem::Invalid(format!("Password: use {PASSWORD_MIN} to {PASSWORD_MAX} characters.")));
    }
    if password.to_lowercase().contains(name) && length < name.len() + PASSWORD_MIN {
        return Err(Problem::Invalid("Password: it must not be built on the account name.".to_owned()));
    }
    let salt = SaltString::encode_b64(&random::<16>()?).map_err(|e| Problem::Service(e.to_string()))?;
    let hash = argon()?.hash_password(password.as_bytes(), &salt).map_err(|e| Problem::Service(e.to_string()))?;
    Ok(hash.to_string())
}

/// argon2id with 19 MiB, two passes, one lane: OWASP's first choice.
fn argon() -> Result<Argon2<'static>, Problem> {
    let params = Params::new(19 * 1024, 2, 1, None).map_err(|e| Problem::Service(e.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// A hash that no password has: its tag is all zeroes.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn is_password(hash: &str, password: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|h| Argon2::default().verify_password(password.as_bytes(), &h).is_ok())
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Problem::Service(format!("no random numbers: {e}")))?;
    Ok(bytes)
}

fn random_text() -> Result<String, Problem> {
    use base64::Engine;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random::<16>()?))
}

/// The session's cookie.
pub(crate) fn session_cookie(request: &Request, token: &str) -> String {
    cookie(request, COOKIE, token, ABSOLUTE_MS / 1000)
}

/// A cookie that removes the session's.
pub(crate) fn no_cookie(request: &Request) -> String {
    cookie(request, COOKIE, "", 0)
}

fn cookie(request: &Request, name: &str, value: &str, max_age_s: u64) -> String {
    let secure = if request.is_secure() { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}")
}

/// The token for the log-in form, and the cookie that it belongs to.
pub(crate) fn visitor_token(request: &Request, key: &[u8]) -> Result<(String, String), Problem> {
    let nonce = match request.cookie(VISITOR_COOKIE).filter(|n| n.len() == 22) {
        Some(nonce) => nonce.to_owned(),
        None => random_text()?,
    };
    let token = session::visitor_csrf(key, &nonce);
    let set = cookie(request, VISITOR_COOKIE, &nonce, 3600);
    Ok((token, set))
}

/// Errors unless the log-in form came from our page in this browser.
pub(crate) fn check_visitor(request: &Request, key: &[u8], fields: &Fields) -> Result<(), Problem> {
    let nonce = request.cookie(VISITOR_COOKIE).unwrap_or_default();
    let right = session::same(fields.raw("csrf"), &session::visitor_csrf(key, nonce));
    if nonce.is_empty() || !right || request.is_cross_site() { Err(Problem::Forged) } else { Ok(()) }
}

/// Writes the cookie anew when it is time.
pub(crate) fn refresh(app: &App, request: &Request, user: &User, reply: Reply) -> Result<Reply, Problem> {
    let has_cookie = reply.headers.iter().any(|(n, _)| *n == "set-cookie");
    match user.session.refreshed(app.now_ms) {
        Some(session) if !user.bearer && !has_cookie => match state::session_key(&app.state)? {
            Some(key) => Ok(reply.with("set-cookie", session_cookie(request, &session.seal(&key)))),
            None => Ok(reply),
        },
        _ => Ok(reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_verify_and_nobody_has_none() {
        let hash = hash_password("ada", "correct horse battery").expect("hashed");
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(is_password(&hash, "correct horse battery"));
        assert!(!is_password(&hash, "correct horse batter"));
        assert!(PasswordHash::new(NOBODY).is_ok(), "it costs as much as a real one");
        assert!(!is_password(NOBODY, "") && !is_password("garbage", "x"));
        for weak in ["short", "ada1234567"] {
            assert!(hash_password("ada", weak).is_err(), "{weak}");
        }
    }
}
