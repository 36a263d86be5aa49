//! Attacks with a component's bytes: cut, flipped, made up, lying about themselves, or made to keep a
//! compiler busy. Each is pushed as a tenant would.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::Method;
use marcato_api::{AppName, Digest, admin_paths};
use marcato_tests::{Admin, Deploy, guest};
use rand::{Rng as _, SeedableRng as _};

use super::arena::{Arena, tame, text_component};
use super::encoder;

/// Pushes bytes as an app and takes the app away again; gives why it was refused, if it was.
async fn push(
    admin: &Admin,
    folder: &Path,
    name: &str,
    bytes: &[u8],
    call: bool,
    arena: &Arena,
) -> Result<Option<String>> {
    let file = folder.join(format!("{name}.wasm"));
    std::fs::write(&file, bytes)?;
    let result = admin.deploy(&file, &Deploy::new(name).with(tame)).await;
    if result.is_ok() && call {
        // Whatever it does, it does in its sandbox: an answer, an error, not silence.
        let asked = arena.app(name)?.get("/").await;
        ensure!(asked.is_ok(), "{name}: {asked:?}");
    }
    admin.raw(Method::DELETE, &admin_paths::app(&AppName::new(name)?), "", Vec::new()).await?;
    Ok(result.err().map(|error| format!("{error:#}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_beginning_of_a_good_component_is_taken_for_one() -> Result<()> {
    let arena = Arena::enter().await?;
    let folder = tempfile::tempdir()?;
    let small = text_component(folder.path(), "small", "", "(call $answer (local.get $out))", "")?;
    let good = std::fs::read(&small)?;
    assert_eq!(push(&arena.admin, folder.path(), "whole", &good, true, &arena).await?, None, "as a whole it is good");
    let big = std::fs::read(guest("guest-hostile")?)?;
    let cuts =
        |bytes: &[u8], count: usize| (0..count).map(|n| bytes[..bytes.len() * n / count].to_vec()).collect::<Vec<_>>();
    for (n, bytes) in cuts(&good, 14).into_iter().chain(cuts(&big, 8)).enumerate() {
        let size = bytes.len();
        let refused = push(&arena.admin, folder.path(), &format!("cut-{n}"), &bytes, false, &arena).await?;
        ensure!(refused.is_some(), "the first {size} bytes were taken");
    }
    arena.unharmed().await
}

/// A flipped bit may leave a component good; then it runs, and in its sandbox.
#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_and_random_bytes_harm_nobody() -> Result<()> {
    let arena = Arena::enter().await?;
    let folder = tempfile::tempdir()?;
    let good = std::fs::read(text_component(folder.path(), "good", "", "(call $answer (local.get $out))", "")?)?;
    // A fixed seed: a failure comes again.
    let mut random = rand::rngs::StdRng::seed_from_u64(4);
    let mut refused = 0;
    for n in 0..24 {
        let mut bytes = good.clone();
        for _ in 0..1 + n % 3 {
            let at = random.random_range(8..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        refused +=
            u32::from(push(&arena.admin, folder.path(), &format!("flip-{n}"), &bytes, true, &arena).await?.is_some());
    }
    assert!(refused > 4, "most flips break it: {refused}");
    for n in 0..6 {
        let mut bytes = good[..8].to_vec();
        bytes.extend((0..random.random_range(1..8192)).map(|_| random.random::<u8>()));
        let why = push(&arena.admin, folder.path(), &format!("noise-{n}"), &bytes, true, &arena).await?;
        ensure!(why.is_some(), "noise was taken");
    }
    arena.unharmed().await
}

/// Large enough to be felt and small enough for a test: ten times as many blocks or ways reach `compile_time`
/// (60 s), which the runtime's own tests show with a small limit.
#[tokio::test(flavor = "multi_thread")]
async fn bombs_for_the_compiler_end_within_its_limits() -> Result<()> {
    let arena = Arena::enter().await?;
    let folder = tempfile::tempdir()?;
    // Small ones compile, so that the large ones are what they seem. None has a handler: that is the last check.
    for (name, bytes) in [
        ("small-nest", encoder::nested(10)),
        ("small-functions", encoder::functions(10)),
        ("small-jumps", encoder::jumps(10)),
        ("small-locals", encoder::locals(10, 2)),
        ("small-long", encoder::long(10)),
        ("small-values", encoder::values(10)),
        ("small-branches", encoder::branches(10)),
        ("small-data", encoder::data(1000)),
    ] {
        let why = push(&arena.admin, folder.path(), name, &bytes, false, &arena).await?.unwrap_or_default();
        ensure!(why.contains("no HTTP handler"), "{name}: {why}");
    }
    for (name, bytes) in [
        ("nest", encoder::nested(20_000)),
        ("functions", encoder::functions(30_000)),
        ("jumps", encoder::jumps(40_000)),
        ("locals", encoder::locals(49_000, 4)),
        ("too-many-locals", encoder::locals(4_000_000_000, 1)),
        ("long", encoder::long(30_000)),
        ("values", encoder::values(10_000)),
        ("branches", encoder::branches(20_000)),
        ("data", encoder::data(24 << 20)),
        ("lying", encoder::lying()),
        ("components", encoder::components(3_000)),
    ] {
        let begin = Instant::now();
        let why = push(&arena.admin, folder.path(), name, &bytes, false, &arena).await?.unwrap_or_default();
        eprintln!("{name}: {} bytes, {:.1} s: {:.120}", bytes.len(), begin.elapsed().as_secs_f32(), why);
        ensure!(!why.is_empty(), "{name} was taken for an app");
        ensure!(begin.elapsed() < Duration::from_secs(75), "{name} took {:?}", begin.elapsed());
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_under_a_wrong_digest_is_refused() -> Result<()> {
    let arena = Arena::enter().await?;
    let good = std::fs::read(guest("guest-hostile")?)?;
    let right = admin_paths::component(&Digest::of(&good));
    let put = async |path: &str, bytes: Vec<u8>| arena.admin.raw(Method::PUT, path, "application/wasm", bytes).await;
    assert!(put(&right, good.clone()).await?.status < 300, "under its own it is taken");
    let mut changed = good.clone();
    changed[5000] ^= 1;
    assert_eq!(put(&right, changed.clone()).await?.status, 422);
    assert_eq!(put(&admin_paths::component(&Digest::of(&changed)), good.clone()).await?.status, 422);
    assert_eq!(put(&admin_paths::component(&Digest::of(b"")), good.clone()).await?.status, 422);
    let path = admin_paths::component(&Digest::of(b""));
    for odd in
        [path.to_uppercase().replace("/V1/COMPONENTS", "/v1/components"), format!("{path}%00"), format!("{path}/../x")]
    {
        let answer = put(&odd, good.clone()).await?;
        ensure!(answer.status >= 400, "{odd}: {}", answer.status);
    }
    arena.unharmed().await
}
