//! Tokens and the audit log.

use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{ApiResult, Event, HostId, NewToken, PageOf, Problem, ProblemKind, Role, Token, TokenSecret};

use super::apps::limit;
use super::session::{OrProblem, Session, invalid};
use super::state_problem;
use crate::auth;
use crate::state::TokenRecord;

/// Longest lifetime: ten years.
const MAX_TTL_S: u64 = 10 * 365 * 86_400;

impl Session {
    pub(crate) async fn list_tokens(&self) -> ApiResult<PageOf<Token>> {
        self.may(Role::Admin, None, "token.list", "tokens").await?;
        let tokens = self.api.state.tokens().await.or_problem()?;
        Ok(PageOf { items: tokens.into_iter().map(|t| t.token).collect(), next: None })
    }

    pub(crate) async fn create_token(&self, name: &str, new: NewToken) -> ApiResult<TokenSecret> {
        // A token's name is an actor in events and part of a path: it has the alphabet of all names.
        HostId::new(name).map_err(|_| invalid("name", "use 1 to 63 lower-case letters, digits or inner hyphens"))?;
        let target = format!("token/{name}");
        self.may(Role::Admin, None, "token.create", &target).await?;
        let result = self.make_token(name, new).await;
        self.failed("token.create", target, result).await
    }

    async fn make_token(&self, name: &str, new: NewToken) -> ApiResult<TokenSecret> {
        let taken = || Problem::new(ProblemKind::Conflict, format!("there is a token {name} already"));
        if name == "system" || name == "unknown" {
            return Err(invalid("name", "this name stands for the platform in the audit log"));
        }
        let now = Timestamp::now();
        let expires_at = match new.ttl_s {
            None => None,
            Some(ttl @ 1..=MAX_TTL_S) => Some(now + Duration::from_secs(ttl)),
            Some(_) => return Err(invalid("ttl_s", format!("expected 1 to {MAX_TTL_S}"))),
        };
        let (secret, sha256) = auth::new_secret(auth::TOKEN_PREFIX);
        let token = Token { name: name.to_owned(), role: new.role, org: new.org, created_at: now, expires_at };
        let detail = format!(
            "role {:?}, {}, {}",
            token.role,
            token.org.as_ref().map_or_else(|| "every org".to_owned(), |o| format!("org {o}")),
            expires_at.map_or_else(|| "no end".to_owned(), |t| format!("until {t}")),
        );
        let deed = self.deed("token.create", format!("token/{name}"), detail.to_lowercase());
        let record = TokenRecord { token: token.clone(), sha256 };
        match self.api.state.create_token(&record, &deed).await {
            Ok(()) => Ok(TokenSecret { token, secret }),
            Err(e) if e.conflict().is_some() => Err(taken()),
            Err(e) => Err(state_problem(&e)),
        }
    }

    pub(crate) async fn delete_token(&self, name: &str) -> ApiResult<()> {
        let target = format!("token/{name}");
        self.may(Role::Admin, None, "token.delete", &target).await?;
        let found = self.api.state.token(name).await.or_problem()?;
        let (_, version) =
            found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no token {name}")))?;
        // Without this, a slip would lock everyone out for good.
        let tokens = self.api.state.tokens().await.or_problem()?;
        let others = tokens.iter().filter(|t| t.token.name != name);
        let admin_left = others
            .filter(|t| t.token.role == Role::Admin && t.token.org.is_none())
            .any(|t| t.token.expires_at.is_none_or(|end| end > Timestamp::now()));
        if !admin_left {
            let why = "it is the last admin token; make another one first";
            return self.failed("token.delete", target, Err(Problem::new(ProblemKind::Conflict, why))).await;
        }
        let deed = self.deed("token.delete", target, "");
        self.api.state.remove_token(name, version, &deed).await.or_problem()
    }

    pub(crate) async fn list_events(&self, after: Option<String>, wanted: u32) -> ApiResult<PageOf<Event>> {
        let wanted = limit(wanted)?;
        self.may(Role::Viewer, None, "event.list", "events").await?;
        let after = after.map(|a| a.parse()).transpose();
        let after = after.map_err(|_| invalid("after", "expected an event's number"))?;
        let (items, next) = self.api.state.events(after, wanted).await.or_problem()?;
        Ok(PageOf { items, next })
    }
}
