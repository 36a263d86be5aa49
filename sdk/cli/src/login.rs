//! Where the CLI finds its server: the saved login, and the environment that overrides it.
//!
//! Owns `$XDG_CONFIG_HOME/marcato/login.json` (mode 0600: it holds a token), and `ca.pem` beside it for other programs. A
//! saved token only ever goes to the server that it was saved for.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use marcato_client::{AdminClient, Trust};
use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};

/// A saved login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// `https://HOST:PORT`.
    pub(crate) admin: String,
    /// The pinned authority.
    pub(crate) ca_pem: String,
    /// The bearer token.
    pub(crate) token: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("admin", &self.admin).finish_non_exhaustive()
    }
}

/// What the environment says; it overrides the saved login.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    admin: Option<String>,
    ca: Option<PathBuf>,
    token: Option<String>,
}

impl Overrides {
    /// Reads `MARCATO_ADMIN`, `MARCATO_CA` (a file) and `MARCATO_TOKEN`; empty counts as absent.
    pub(crate) fn from_env() -> Self {
        let var = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self { admin: var("MARCATO_ADMIN"), ca: var("MARCATO_CA").map(PathBuf::from), token: var("MARCATO_TOKEN") }
    }
}

/// The file of the saved login. Errors: neither `XDG_CONFIG_HOME` nor `HOME` is set.
pub(crate) fn file() -> Result<PathBuf> {
    let dir = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = dir("XDG_CONFIG_HOME").or_else(|| dir("HOME").map(|h| h.join(".config")));
    let base = base.context("neither XDG_CONFIG_HOME nor HOME is set")?;
    Ok(base.join("marcato/login.json"))
}

/// Reads the saved login; `None` when there is none.
pub(crate) fn load(file: &Path) -> Result<Option<Login>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
    };
    // serde's message quotes what it met; this file holds a token, so only the place is told.
    let login = serde_json::from_str(&text).map_err(|e| {
        Failure::new(
            Code::NotLoggedIn,
            format!("{} is damaged (line {}, column {})", file.display(), e.line(), e.column()),
        )
        .next("marcato login URL")
    })?;
    Ok(Some(login))
}

/// Writes the login so that it is there whole or not at all, readable by its owner only.
pub(crate) fn save(file: &Path, login: &Login) -> Result<()> {
    let dir = file.parent().context("the login file has no folder")?;
    let write = || -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // tempfile makes it with mode 0600.
        let mut temp = tempfile::NamedTempFile::new_in(dir)?;
        temp.write_all(serde_json::to_string_pretty(login)?.as_bytes())?;
        temp.as_file().sync_all()?;
        temp.persist(file).map_err(|e| e.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// Removes the saved login; says whether there was one.
pub(crate) fn remove(file: &Path) -> Result<bool> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot remove {}", file.display())),
    }
}

/// Writes a secret to a new file of mode 0600, replacing what was there.
pub(crate) fn write_private(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(bytes)?;
    out.sync_all()
}

/// The server to talk to, out of the saved login and the environment.
pub(crate) fn resolve(saved: Option<&Login>, overrides: &Overrides) -> Result<Login> {
    let missing = |what: &str| {
        Failure::new(Code::NotLoggedIn, format!("not logged in: {what}"))
            .next("marcato login URL --token-file FILE, or set MARCATO_ADMIN, MARCATO_CA and MARCATO_TOKEN")
    };
    let same = |saved: &Login| overrides.admin.as_ref().is_none_or(|a| trimmed(a) == trimmed(&saved.admin));
    let admin = overrides.admin.clone().or_else(|| saved.map(|s| s.admin.clone()));
    let admin = admin.ok_or_else(|| missing("no server is known"))?;
    let ca_pem = match (&overrides.ca, saved) {
        (Some(file), _) => std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the authority's certificate {} (MARCATO_CA)", file.display()))?,
        (None, Some(saved)) if same(saved) => saved.ca_pem.clone(),
        _ => {
            return Err(
                missing("MARCATO_ADMIN names another server than the saved login, and MARCATO_CA is not set").into()
            );
        }
    };
    let token = match (&overrides.token, saved) {
        (Some(token), _) => token.clone(),
        // The saved token was given to the saved authority; another one must not get it.
        (None, Some(saved)) if same(saved) && ca_pem == saved.ca_pem => saved.token.clone(),
        _ => return Err(missing("the saved token belongs to another server, and MARCATO_TOKEN is not set").into()),
    };
    Ok(Login { admin, ca_pem, token })
}

fn trimmed(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// The authority's certificate as a file, for other programs: `MARCATO_CA`, or the pinned one, written beside the login.
pub(crate) fn ca_file() -> Result<PathBuf> {
    let overrides = Overrides::from_env();
    if let Some(given) = overrides.ca {
        return Ok(given);
    }
    let saved = file()?;
    let login = resolve(load(&saved)?.as_ref(), &overrides)?;
    let path = saved.with_file_name("ca.pem");
    if std::fs::read_to_string(&path).ok().as_ref() != Some(&login.ca_pem) {
        write_private(&path, login.ca_pem.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

/// A client for the server to talk to.
pub(crate) fn client() -> Result<AdminClient> {
    let overrides = Overrides::from_env();
    let saved = load(&file()?)?;
    let login = resolve(saved.as_ref(), &overrides)?;
    connect(&login)
}

/// A client for this login.
pub(crate) fn connect(login: &Login) -> Result<AdminClient> {
    let trust = Trust::from_pem(login.ca_pem.as_bytes())?;
    Ok(AdminClient::new(&login.admin, &trust, Some(login.token.trim()))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn login() -> Login {
        Login { admin: "https://a:1".into(), ca_pem: "CA".into(), token: "mt_secret".into() }
    }

    #[test]
    fn the_file_is_private_and_survives_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("marcato/login.json");
        assert_eq!(load(&file).unwrap(), None);
        save(&file, &login()).unwrap();
        save(&file, &login()).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        assert_eq!(load(&file).unwrap(), Some(login()));
        assert!(remove(&file).unwrap());
        assert!(!remove(&file).unwrap());
    }

    #[test]
    fn a_damaged_file_asks_for_a_login_and_tells_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("login.json");
        for garbage in
            ["", "{", "[]", "\u{0}", "{\"admin\":1}", "{\"admin\":\"a\",\"ca_pem\":\"b\",\"token\":{\"mt_secret\":1}}"]
        {
            std::fs::write(&file, garbage).unwrap();
            let error = load(&file).unwrap_err();
            assert_eq!(crate::failure::judge(&error).unwrap().code, Code::NotLoggedIn);
            assert!(!format!("{error:?}").contains("mt_secret"));
        }
        assert!(!format!("{:?}", login()).contains("mt_secret"));
    }

    #[test]
    fn the_environment_overrides_and_a_saved_token_stays_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, "OTHER").unwrap();
        let overrides = |admin: Option<&str>, ca: Option<&Path>, token: Option<&str>| Overrides {
            admin: admin.map(Into::into),
            ca: ca.map(Into::into),
            token: token.map(Into::into),
        };
        let none = overrides(None, None, None);
        assert!(resolve(None, &none).is_err());
        assert_eq!(resolve(Some(&login()), &none).unwrap(), login());
        assert_eq!(resolve(Some(&login()), &overrides(Some("https://a:1/"), None, None)).unwrap().token, "mt_secret");
        assert_eq!(resolve(Some(&login()), &overrides(None, None, Some("mt_x"))).unwrap().token, "mt_x");
        assert!(resolve(Some(&login()), &overrides(Some("https://b:1"), None, None)).is_err());
        assert!(resolve(Some(&login()), &overrides(Some("https://b:1"), None, Some("t"))).is_err());
        assert!(resolve(Some(&login()), &overrides(Some("https://b:1"), Some(&ca), None)).is_err());
        assert!(resolve(Some(&login()), &overrides(None, Some(&ca), None)).is_err());
        let all = resolve(None, &overrides(Some("https://b:1"), Some(&ca), Some("t"))).unwrap();
        assert_eq!((all.admin.as_str(), all.ca_pem.as_str(), all.token.as_str()), ("https://b:1", "OTHER", "t"));
    }
}
