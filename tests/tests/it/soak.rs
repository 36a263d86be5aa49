//! The short form of the soak: nothing is left behind by good requests nor by hostile ones. The long one is
//! `cargo xtask soak`.

use anyhow::{Context, Result};

use crate::cluster;

/// What a short run may still take to reach its level: caches, buffers of threads.
const WARMING: u64 = 6 << 20;
/// The same of a worker, whose two pools keep up to 16 slots of 2 MiB warm each.
const WARMING_POOLS: u64 = 64 << 20;

fn flat(before: u64, after: u64, slack: u64) -> bool {
    after <= before + (before / 100).max(slack)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_mixed_requests_leave_nothing_behind() -> Result<()> {
    let cluster = cluster(1).await?;
    let report = marcato_tests::soak(&cluster, 20_000, 20, 16, |_| {}).await?;
    println!("{}", report.table());
    assert!(report.failed.is_empty(), "good requests failed: {:#?}", report.failed);
    let (first, last) = report.ends().context("samples")?;
    assert_eq!(
        first.processes.keys().collect::<Vec<_>>(),
        last.processes.keys().collect::<Vec<_>>(),
        "the same processes"
    );
    for (name, before) in &first.processes {
        let after = last.processes.get(name).context("compared above")?;
        assert!(flat(before.descriptors, after.descriptors, 4), "{name}: descriptors {before:?} {after:?}");
        assert!(flat(before.threads, after.threads, 2), "{name}: threads {before:?} {after:?}");
        let warming = if name.starts_with("worker") { WARMING_POOLS } else { WARMING };
        assert!(flat(before.private_bytes, after.private_bytes, warming), "{name}: memory {before:?} {after:?}");
    }
    assert!(flat(first.files, last.files, 2), "files: {} then {}", first.files, last.files);
    Ok(())
}
