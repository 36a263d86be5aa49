//! Attacks with log lines: floods, lines without end, bytes that are no text, lines in another's name.

use std::time::Duration;

use anyhow::Result;
use marcato_api::LogStream;
use marcato_tests::{guest, until};

use super::arena::{Arena, wild};

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_cut_counted_and_takes_no_line_of_a_neighbour() -> Result<()> {
    let arena = Arena::enter().await?;
    let flood = arena.deploy("flood", &guest("guest-hostile")?, wild).await?;
    // Below the rate every line is kept: the attack without its limit.
    assert_eq!(flood.works("/log?kind=rate&n=500").await?, "logged");
    let kept = until("500 lines", Duration::from_secs(20), || async {
        let n = arena.admin.logs("flood").await?.iter().filter(|l| l.text.starts_with("flood ")).count();
        Ok((n >= 500).then_some(n))
    })
    .await?;
    assert_eq!(kept, 500);
    let said = arena.cluster.app("neighbour")?;
    for round in 0..3 {
        assert_eq!(flood.works("/log?kind=rate&n=60000").await?, "logged");
        said.get(&format!("/say?text=neighbour-{round}")).await?;
    }
    let cut = until("a line that tells what was dropped", Duration::from_secs(20), || async {
        flood.get("/").await?;
        Ok(arena.admin.logs("flood").await?.into_iter().find(|line| line.text.contains("dropped")))
    })
    .await?;
    assert!(cut.stream == LogStream::Platform && cut.text.contains("log_rate"), "{}", cut.text);
    for round in 0..3 {
        arena.admin.logged("neighbour", &format!("neighbour-{round}")).await?;
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_binary_lines_are_cut_and_made_text() -> Result<()> {
    let arena = Arena::enter().await?;
    let app = arena.deploy("long-lines", &guest("guest-hostile")?, wild).await?;
    app.works("/log?kind=long&n=4").await?;
    app.works("/log?kind=binary&n=3").await?;
    arena.admin.logged("long-lines", "lllll").await?;
    arena.admin.logged("long-lines", "!\"#$%").await?;
    let lines = arena.admin.logs("long-lines").await?;
    assert!(lines.iter().all(|l| l.text.len() <= 16 << 10), "no line is longer than 16 KiB");
    assert!(lines.iter().any(|l| l.text.len() == 16 << 10), "one of 256 KiB came in pieces");
    arena.unharmed().await
}

/// A guest says what the platform would say, and what a terminal would obey.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_in_the_platforms_name_stays_the_guests() -> Result<()> {
    let arena = Arena::enter().await?;
    let app = arena.deploy("forger", &guest("guest-hostile")?, wild).await?;
    let forged = concat!(
        "x%0alimit cpu_ms (1 ms) reached: forged%0a",
        "{%22stream%22:%22platform%22,%22text%22:%22forged%22,%22request_id%22:%22another%22}%0a",
        "2026-01-01T00:00:00Z neighbour-r1-0 - platform: forged%0d%1b[2J%1b]0;forged%07%00 end"
    )
    .replace(' ', "%20");
    let answer = app.get(&format!("/log?kind=said&text={forged}")).await?;
    arena.admin.logged("forger", "forged").await?;
    let lines = arena.admin.logs("forger").await?;
    let said: Vec<_> = lines.iter().filter(|l| l.text.contains("forged")).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    for line in said {
        assert_eq!((line.stream, line.app.as_str()), (LogStream::Stdout, "forger"), "{}", line.text);
        assert_eq!(line.request_id, answer.header("x-request-id"), "{}", line.text);
    }
    let neighbours = arena.admin.logs("neighbour").await?;
    assert!(neighbours.iter().all(|l| !l.text.contains("forged")), "it is in nobody else's log");
    let printed = arena.cluster.cli(&["logs", "forger"]).await?;
    let text = String::from_utf8_lossy(&printed.stdout);
    assert!(text.contains(" out: limit cpu_ms") && !text.contains("platform: limit"), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "nothing for a terminal: {text:?}");
    arena.unharmed().await
}
