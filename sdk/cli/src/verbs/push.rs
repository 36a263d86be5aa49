//! `push`: from a component on disk to a URL that answers.
//!
//! Flow: read manifest and component, check both here, upload unless the digest is known, make the
//! app, its services and the revision, wait until it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use marcato_api::{
    AdminApi, App, AppName, AppState, AppStatus, AppUpdate, Digest, NewApp, NewRevision, NewService, OrgName, Problem,
    ProblemKind, Revision, RevisionConfig, ServiceKind, SpaceName,
};
use marcato_client::AdminClient;

use crate::component::{self, Inspected};
use crate::failure::{Code, Failure};
use crate::manifest::{FILE_NAME, Manifest};
use crate::output::Output;
use crate::wait::{self, WaitArgs};

/// Push a component and wait until it answers
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// A folder with marcato.toml, a manifest, or a bare .wasm component
    #[arg(default_value = ".", value_name = "DIR|FILE")]
    path: PathBuf,
    /// The app's name, instead of the manifest's or the file's
    #[arg(long)]
    name: Option<AppName>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What is pushed, read and checked.
struct Plan {
    app: AppName,
    manifest: Option<Manifest>,
    bytes: Vec<u8>,
    digest: Digest,
    inspected: Inspected,
}

/// What is there already.
struct Present {
    status: Option<AppStatus>,
}

/// How it came out, for `--json`.
#[derive(serde::Serialize)]
struct Pushed<'a> {
    app: &'a AppName,
    revision: u64,
    digest: &'a Digest,
    uploaded: bool,
    phase: marcato_api::RevisionPhase,
    urls: &'a [String],
    generated: &'a BTreeMap<String, String>,
}

pub(crate) async fn push(args: PushArgs, out: Output) -> Result<()> {
    let plan = read(&args, out)?;
    if !out.json {
        out.note(format!("{} is {}", plan.app, plan.inspected.kind()));
    }
    let client = crate::login::client()?;
    let present = Present::read(&client, &plan.app).await?;
    plan.check_existing(&client, &present).await?;
    let uploaded = upload(&client, &plan, out).await?;
    let app = ensure_app(&client, &plan).await.map_err(in_manifest)?;
    ensure_services(&client, &plan).await?;
    let (revision, generated) = make_revision(&client, &plan, &present, &app).await.map_err(in_manifest)?;

    // From here on the generated values are in force, so they are shown whatever comes.
    let outcome = if args.wait.no_wait {
        client.app_status(&plan.app).await.map_err(Into::into)
    } else {
        wait::for_revision(&client, out, &plan.app, revision.number, args.wait.timeout, Code::BadComponent).await
    };
    let status = match outcome {
        Ok(status) => status,
        Err(e) => {
            report(out, &plan, &revision, uploaded, &[], &generated, false)?;
            return Err(e);
        }
    };
    let revision = status.revision.as_ref().unwrap_or(&revision);
    report(out, &plan, revision, uploaded, &status.urls, &generated, true)?;
    if !out.json && status.app.state == AppState::Stopped {
        out.note(format!("{} is stopped; next: marcato start {}", plan.app, plan.app));
    }
    Ok(())
}

fn report(
    out: Output,
    plan: &Plan,
    revision: &Revision,
    uploaded: bool,
    urls: &[String],
    generated: &BTreeMap<String, String>,
    serves: bool,
) -> Result<()> {
    if out.json {
        if !serves && generated.is_empty() {
            return Ok(());
        }
        return out.value(&Pushed {
            app: &plan.app,
            revision: revision.number.0,
            digest: &plan.digest,
            uploaded,
            phase: revision.phase,
            urls,
            generated,
        });
    }
    if serves {
        let what = if uploaded { "uploaded" } else { "known already" };
        out.line(format!("{} revision {} ({}, {what})", plan.app, revision.number, plan.digest.short()))?;
        for url in urls {
            out.line(format!("  {url}"))?;
        }
    }
    if !generated.is_empty() {
        out.line("Generated, shown only now:")?;
        for (key, value) in generated {
            out.line(format!("  {key}={value}"))?;
        }
    }
    Ok(())
}

fn read(args: &PushArgs, out: Output) -> Result<Plan> {
    let path = &args.path;
    let is_wasm = path.extension().is_some_and(|e| e == "wasm");
    let (manifest, file, base) = if path.is_dir() || path.extension().is_some_and(|e| e == "toml") {
        let manifest_file = if path.is_dir() { path.join(FILE_NAME) } else { path.clone() };
        if !manifest_file.exists() {
            return Err(Failure::new(Code::BadComponent, format!("there is no {}", manifest_file.display()))
                .next("marcato push FILE.wasm, or write a marcato.toml (docs/manifest.md)")
                .into());
        }
        let manifest = Manifest::load(&manifest_file)?;
        let base = manifest_file.parent().unwrap_or(Path::new("."));
        let file = base.join(&manifest.component);
        (Some(manifest), file, base.to_owned())
    } else if is_wasm || path.is_file() {
        if path.parent().is_some_and(|dir| dir.join(FILE_NAME).exists()) {
            out.note(format!("pushing {} alone; the {FILE_NAME} beside it is not read", path.display()));
        }
        (None, path.clone(), PathBuf::new())
    } else {
        return Err(Failure::new(Code::BadComponent, format!("there is no {}", path.display())).into());
    };
    let app = match (&args.name, &manifest) {
        (Some(name), _) => name.clone(),
        (None, Some(manifest)) => manifest.name.clone(),
        (None, None) => name_of(&file)?,
    };
    let bytes = std::fs::read(&file).map_err(|e| {
        let hint =
            if manifest.is_some() { "build it first, or correct component in marcato.toml" } else { "build it first" };
        Failure::new(Code::BadComponent, format!("cannot read the component {}: {e}", file.display())).next(hint)
    })?;
    let inspected = component::inspect(&bytes, &file.display().to_string())?;
    if let Some(manifest) = &manifest {
        inspected.check_bindings(&manifest.bindings.iter().map(|b| b.kind).collect())?;
        inspected.check_reuse(&manifest.config().reuse)?;
    }
    let bytes = match manifest.as_ref().and_then(|m| m.files.as_ref()) {
        Some(folder) => crate::files::bundle(bytes, &base.join(folder))?,
        None => bytes,
    };
    let digest = Digest::of(&bytes);
    Ok(Plan { app, manifest, bytes, digest, inspected })
}

/// `my_app.wasm` becomes `my-app`.
fn name_of(file: &Path) -> Result<AppName> {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let name: String =
        stem.to_lowercase().chars().map(|c| if matches!(c, '_' | '.' | ' ') { '-' } else { c }).collect();
    AppName::new(name.trim_matches('-')).map_err(|_| {
        Failure::new(Code::Usage, format!("no app name can be made of {stem:?}"))
            .next("the same with --name NAME")
            .into()
    })
}

/// A setting that the server refuses is the manifest's fault here, not the command line's.
fn in_manifest(e: anyhow::Error) -> anyhow::Error {
    let invalid = e.downcast_ref::<Problem>().filter(|p| p.kind == ProblemKind::Invalid);
    match invalid.map(ToString::to_string) {
        Some(text) => Failure::new(Code::BadComponent, text).into(),
        None => e,
    }
}

impl Present {
    async fn read(client: &AdminClient, app: &AppName) -> Result<Self> {
        match client.app_status(app).await {
            Ok(status) => Ok(Self { status: Some(status) }),
            Err(p) if p.kind == ProblemKind::NotFound => Ok(Self { status: None }),
            Err(p) => Err(p.into()),
        }
    }

    fn config(&self) -> Option<&RevisionConfig> {
        self.status.as_ref()?.revision.as_ref().map(|r| &r.config)
    }

    fn env_keys(&self) -> Vec<String> {
        self.config().map(|c| c.env.keys().cloned().collect()).unwrap_or_default()
    }
}

impl Plan {
    /// A bare component keeps the app's configuration: its bindings and reuse must fit.
    async fn check_existing(&self, client: &AdminClient, present: &Present) -> Result<()> {
        if self.manifest.is_some() {
            return Ok(());
        }
        let config = present.config();
        self.inspected.check_reuse(&config.map_or_else(Default::default, |c| c.reuse))?;
        if !self.inspected.needs_bindings() {
            return Ok(());
        }
        let bound: BTreeSet<_> = config.iter().flat_map(|c| &c.bindings).map(|b| &b.service).collect();
        let kinds: BTreeSet<ServiceKind> = if bound.is_empty() {
            BTreeSet::new()
        } else {
            let services = client.list_services().await?.items;
            services.iter().filter(|s| bound.contains(&s.name)).map(|s| s.kind).collect()
        };
        self.inspected.check_bindings(&kinds)?;
        Ok(())
    }

    fn owner(&self) -> (OrgName, SpaceName) {
        let manifest = self.manifest.as_ref();
        (
            manifest.and_then(|m| m.org.clone()).unwrap_or_else(OrgName::default_org),
            manifest.and_then(|m| m.space.clone()).unwrap_or_else(SpaceName::default_space),
        )
    }
}

async fn upload(client: &AdminClient, plan: &Plan, out: Output) -> Result<bool> {
    if client.has_component(&plan.digest).await? {
        return Ok(false);
    }
    let bar = out.upload_bar(plan.bytes.len() as u64, format!("uploading {}", plan.digest.short()));
    let progress = bar.clone();
    let sent = client
        .put_component_with_progress(&plan.digest, plan.bytes.clone(), move |n| progress.set_position(n))
        .await
        .context("the upload failed");
    bar.finish_and_clear();
    sent.map(|()| true)
}

/// Makes the app, or brings instances and routes to what the manifest says.
async fn ensure_app(client: &AdminClient, plan: &Plan) -> Result<App> {
    let (org, space) = match (&plan.manifest, client.get_app(&plan.app).await) {
        // A bare component goes to whatever org has the app.
        (None, Ok(app)) => return Ok(app.value),
        (_, Err(p)) if p.kind != ProblemKind::NotFound => return Err(p.into()),
        _ => plan.owner(),
    };
    let instances = plan.manifest.as_ref().and_then(|m| m.instances);
    let routes = plan.manifest.as_ref().and_then(Manifest::routes);
    let new = NewApp { org, space, instances: instances.unwrap_or(1), routes: routes.clone().unwrap_or_default() };
    let app = client.put_app(&plan.app, new).await?.value;
    let update = AppUpdate {
        instances: instances.filter(|n| *n != app.instances),
        routes: routes.filter(|r| !same_routes(r, &app.routes)),
        ..AppUpdate::default()
    };
    if update == AppUpdate::default() {
        return Ok(app);
    }
    Ok(client.update_app(&plan.app, update, None).await?.value)
}

fn same_routes(a: &[marcato_api::Route], b: &[marcato_api::Route]) -> bool {
    a.iter().collect::<BTreeSet<_>>() == b.iter().collect::<BTreeSet<_>>()
}

async fn ensure_services(client: &AdminClient, plan: &Plan) -> Result<()> {
    let (org, space) = plan.owner();
    for binding in plan.manifest.iter().flat_map(|m| &m.bindings) {
        let new = NewService { kind: binding.kind, org: org.clone(), space: space.clone() };
        client
            .put_service(&binding.service, new)
            .await
            .with_context(|| format!("the service {} of binding {:?} cannot be made", binding.service, binding.name))?;
    }
    Ok(())
}

async fn make_revision(
    client: &AdminClient,
    plan: &Plan,
    present: &Present,
    app: &App,
) -> Result<(Revision, BTreeMap<String, String>)> {
    let (env, generated) = match &plan.manifest {
        Some(manifest) => manifest.env_changes(&present.env_keys()),
        None => Default::default(),
    };
    let config = match &plan.manifest {
        Some(manifest) => Some(manifest.config()),
        // A bare component takes over the configuration that is there.
        None if app.current.is_some() => None,
        None => Some(RevisionConfig::default()),
    };
    let new = NewRevision {
        digest: Some(plan.digest.clone()),
        config,
        env,
        bind: Vec::new(),
        unbind: Vec::new(),
        reason: "push".into(),
    };
    let revision = client.create_revision(&plan.app, new, None).await?;
    Ok((revision, generated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_becomes_an_app_name() {
        for (file, name) in [("x/Hello.wasm", "hello"), ("my_app.v2.wasm", "my-app-v2"), ("_a_.wasm", "a")] {
            assert_eq!(name_of(Path::new(file)).unwrap().as_str(), name);
        }
        for bad in ["ü.wasm", "_.wasm", ".wasm"] {
            let error = name_of(Path::new(bad));
            assert!(error.is_err() || bad == ".wasm", "{bad}");
        }
    }

    #[test]
    fn routes_are_compared_as_a_set() {
        let route = |s| marcato_api::Route::parse(s).unwrap();
        assert!(same_routes(&[route("a"), route("b/x")], &[route("b/x"), route("a")]));
        assert!(!same_routes(&[route("a")], &[route("a"), route("b")]));
    }
}
