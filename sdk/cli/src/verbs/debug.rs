//! `app debug`: a token with which an app's errors explain themselves to whoever sends it.
//!
//! The token is the result and goes to stdout; when it ends and how to send it go to stderr.

use anyhow::Result;
use clap::Args;
use marcato_api::{AdminApi, AppName, NewDebugToken};

use crate::manifest::Interval;
use crate::output::{Output, clean, time};

/// Make a token with which errors of the platform name the limit, the trap and the instance
#[derive(Debug, Args)]
pub(crate) struct DebugArgs {
    /// Which app
    app: AppName,
    /// How long it is good for, at most 24h
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = |t: &str| t.parse::<Interval>())]
    valid_for: Interval,
}

pub(crate) async fn run(args: DebugArgs, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    // First: a token that cannot be shown would be made for nothing.
    let ca = if out.json { None } else { Some(crate::login::ca_file()?) };
    let ttl_s = Some(args.valid_for.0.0.div_ceil(1000));
    let made = client.create_debug_token(&args.app, NewDebugToken { ttl_s }).await?;
    if let Some(ca) = ca {
        // The URL is what makes the line ready, not what was asked for.
        let urls = client.app_status(&args.app).await.map(|status| status.urls).unwrap_or_default();
        let url = urls.first().map_or("URL", String::as_str);
        out.note(format!("For {} until {}. Send it along with requests:", made.app, time(made.expires_at)));
        out.note(format!(
            "  curl -i --cacert {} -H 'Marcato-Debug: {}' {}",
            quoted(&ca.display().to_string()),
            clean(&made.token),
            quoted(url)
        ));
    }
    out.done(&made, &made.token)
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", clean(word).replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("https://a.localhost:8443/"), "https://a.localhost:8443/");
        assert_eq!(quoted("/home/a b/ca.pem"), "'/home/a b/ca.pem'");
        assert_eq!(quoted("it's $(x)"), r"'it'\''s $(x)'");
    }
}
