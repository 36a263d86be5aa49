//! Debug tokens: who may read an app's log may also have its errors explain themselves.

use jiff::Timestamp;
use marcato_api::{ApiResult, AppName, DebugToken, NewDebugToken, Outcome, Role};

use super::session::{OrProblem, Session, invalid};

/// How long a token is good for when nobody says.
const USUAL_TTL_S: u64 = 3_600;
/// The longest: it cannot be taken back.
const MAX_TTL_S: u64 = 86_400;

impl Session {
    pub(crate) async fn create_debug_token(&self, app: &AppName, new: NewDebugToken) -> ApiResult<DebugToken> {
        const ACTION: &str = "app.debug";
        let target = format!("app/{app}");
        // As for reading the app's log: it shows nothing else.
        let (found, _) = self.visible_app(app, Role::Viewer, ACTION).await?;
        let ttl_s = match new.ttl_s.unwrap_or(USUAL_TTL_S) {
            ttl_s @ 1..=MAX_TTL_S => Ok(ttl_s),
            other => Err(invalid("ttl_s", format!("{other} is not within 1 to {MAX_TTL_S}"))),
        };
        let ttl_s = self.failed(ACTION, target.clone(), ttl_s).await?;
        // Whole seconds, as the token has them.
        let ends_s = Timestamp::now().as_second().saturating_add_unsigned(ttl_s);
        let expires_at = Timestamp::from_second(ends_s).unwrap_or(Timestamp::MAX);
        // Before it is handed out: there is none that the audit log does not know.
        let deed = self.deed(ACTION, target, format!("a debug token, until {expires_at}"));
        self.api.state.record(&deed, Outcome::Ok).await.or_problem()?;
        let token = self.api.debug.key(&found).token(app, ends_s.unsigned_abs());
        Ok(DebugToken { app: app.clone(), token, expires_at })
    }
}
