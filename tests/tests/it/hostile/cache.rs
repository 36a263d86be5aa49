//! Attacks on compiled code on the host's disk: bytes flipped, files of two apps exchanged, cut, or taken
//! from another host. What it would do is not shown: it would run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use marcato_tests::{Cluster, Deploy, guest, until};

use super::arena::text_component;
use crate::cluster;

/// Files of compiled code anywhere under a cluster's data.
fn code(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            code(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "cwasm") {
            found.push(path);
        }
    }
    Ok(())
}

fn code_of(cluster: &Cluster, component: &Path) -> Result<PathBuf> {
    let digest = marcato_api::Digest::of(&fs::read(component)?);
    let mut all = Vec::new();
    code(cluster.data(), &mut all)?;
    let of = |p: &PathBuf| p.to_string_lossy().contains(digest.hex());
    all.into_iter().find(of).with_context(|| format!("no compiled code of {digest}"))
}

/// Replaced and not written to: a mapped file that is written to is another matter, and the file's owner's.
fn replace(file: &Path, bytes: &[u8]) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, bytes)?;
    Ok(fs::rename(new, file)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_code_is_never_run_and_is_compiled_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let says = |name: &str| {
        let body = "(call $answer (local.get $out))";
        text_component(folder.path(), name, &format!("(data (memory $own) (i32.const 8) \"{name}\")"), body, "")
    };
    let names = ["flipped", "cut", "emptied", "signed", "swapped-a", "swapped-b", "foreign"];
    let components = names.iter().map(|n| says(n)).collect::<Result<Vec<_>>>()?;
    let behaviour = guest("guest-behaviour")?;
    let asynchronous = guest("guest-async")?;
    // The same component compiled by another host: right in every byte but the signature.
    let foreign = {
        let other = cluster(1).await?;
        other.admin()?.deploy(&components[6], &Deploy::new("foreign")).await?;
        fs::read(code_of(&other, &components[6])?)?
    };
    let mut cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    for (name, component) in names.iter().zip(&components) {
        admin.deploy(component, &Deploy::new(name)).await?;
    }
    admin.deploy(&behaviour, &Deploy::new("second")).await?;
    admin.deploy(&asynchronous, &Deploy::new("third")).await?;

    let files = components.iter().map(|c| code_of(&cluster, c)).collect::<Result<Vec<_>>>()?;
    let file = |n: usize| -> Result<&PathBuf> { files.get(n).context("a file") };
    let mut flipped = fs::read(file(0)?)?;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    replace(file(0)?, &flipped)?;
    let cut = fs::read(file(1)?)?;
    replace(file(1)?, &cut[..cut.len() - 4096])?;
    replace(file(2)?, b"")?;
    let mut signed = fs::read(file(3)?)?;
    let last = signed.len() - 1;
    signed[last] ^= 0x80;
    replace(file(3)?, &signed)?;
    for (one, other) in
        [(file(4)?.clone(), file(5)?.clone()), (code_of(&cluster, &behaviour)?, code_of(&cluster, &asynchronous)?)]
    {
        let (a, b) = (fs::read(&one)?, fs::read(&other)?);
        replace(&one, &b)?;
        replace(&other, &a)?;
    }
    let own = fs::read(file(6)?)?;
    ensure!(own != foreign, "two hosts sign with two keys");
    replace(file(6)?, &foreign)?;

    cluster.crash_and_restart().await?;
    for name in names {
        served(&cluster, name, "").await?;
    }
    served(&cluster, "second", "hello\n").await?;
    served(&cluster, "third", "hello from WASI 0.3\n").await?;
    let logs = cluster.logs();
    for reason in ["its signature is not by this host's key", "it is too short"] {
        ensure!(logs.contains(reason), "the log does not say {reason:?}");
    }
    ensure!(fs::read(file(6)?)? != foreign, "the foreign file is gone");
    Ok(())
}

/// Waits until the app answers, and with its own words: no other answer may come.
async fn served(cluster: &Cluster, name: &str, expect: &str) -> Result<()> {
    let target = cluster.app(name)?;
    until(&format!("{name} to be served again"), Duration::from_secs(60), || async {
        let answer = target.get("/").await?;
        match answer.status {
            200 if answer.text() == expect => Ok(Some(())),
            200 => bail!("{name} answered {:?}", answer.text()),
            other => bail!("{name}: {other}"),
        }
    })
    .await
}
