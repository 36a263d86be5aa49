//! Attacks with clocks: a guest that times what others do, by what its own work takes beside them.

use anyhow::{Context, Result, ensure};
use marcato_tests::guest;

use super::arena::{Arena, Prey, wild};

const MS: u64 = 1_000_000;
const TIMES: usize = 10;

/// What one round of work took, in nanoseconds: `TIMES` times, by each clock that the guest has.
async fn probe(app: &Prey, loops: u64) -> Result<Vec<Vec<u64>>> {
    let said = app.works(&format!("/probe?n={loops}")).await?;
    let rows: Vec<Vec<u64>> = said
        .lines()
        .map(|line| line.split(' ').map(|n| n.parse().with_context(|| said.clone())).collect())
        .collect::<Result<_>>()?;
    ensure!(rows.len() == TIMES, "{said}");
    let clocks = rows[0].len();
    Ok((0..clocks).map(|clock| rows.iter().map(|row| row[clock]).collect()).collect())
}

fn median(times: &[u64]) -> u64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

/// So much work that it takes some 20 to 40 microseconds, as the guest's own exact clock has it: few of its rounds meet
/// the tick of a coarse one.
async fn short_work(app: &Prey) -> Result<u64> {
    let mut loops = 1_000;
    while median(&probe(app, loops).await?[0]) < MS / 50 {
        loops *= 2;
        ensure!(loops < 1 << 40, "no work takes any time");
    }
    Ok(loops)
}

/// With exact clocks a guest tells some work from three times as much, both far below a millisecond: enough to see a
/// neighbour that shares its core. With coarse ones, by the operator's policy, both take the same: nothing.
#[tokio::test(flavor = "multi_thread")]
async fn coarse_clocks_tell_nothing_below_a_millisecond() -> Result<()> {
    let arena = Arena::enter().await?;
    for kind in ["hostile", "swarm"] {
        let app = arena.deploy(&format!("prober-{kind}"), &guest(&format!("guest-{kind}"))?, wild).await?;
        let loops = short_work(&app).await?;
        let (short, long) = (probe(&app, loops).await?, probe(&app, 3 * loops).await?);
        for (clock, (short, long)) in short.iter().zip(&long).enumerate() {
            let (few, many) = (median(short), median(long));
            ensure!(few > 0 && few < many, "{kind}, clock {clock}: told apart: {short:?} {long:?}");
            ensure!(short.iter().any(|ns| ns % MS != 0), "{kind}, clock {clock}: {short:?}");
        }
        ensure!(median(&short[0]) < MS, "{kind}: {short:?}");

        app.policy(arena.cluster, "--coarse-clocks").await?;
        let (short, long) = (probe(&app, loops).await?, probe(&app, 3 * loops).await?);
        for (clock, (short, long)) in short.iter().zip(&long).enumerate() {
            let all = short.iter().chain(long);
            ensure!(all.clone().all(|ns| ns % MS == 0), "{kind}, clock {clock}: {short:?} {long:?}");
            ensure!((median(short), median(long)) == (0, 0), "{kind}, clock {clock}: {short:?} {long:?}");
        }
        if kind == "hostile" {
            // Each tick of both, waited for: not one is finer.
            let step: u64 = app.works("/clock?steps=20").await?.parse()?;
            ensure!(step >= MS && step.is_multiple_of(MS), "{step}");
            let wall: u64 = app.works("/wall").await?.parse()?;
            ensure!(wall.is_multiple_of(MS), "{wall}");
        }
        app.no_policy(arena.cluster).await?;
        let exact = probe(&app, loops).await?;
        ensure!(exact[0].iter().any(|ns| ns % MS != 0), "{kind}: exact again: {exact:?}");
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_goes_forward_whatever_is_asked_of_it() -> Result<()> {
    let arena = Arena::enter().await?;
    let step: u64 = arena.wild()?.works("/clock?steps=200").await?.parse()?;
    assert!(step > 0, "a step is no step back");
    arena.unharmed().await
}
