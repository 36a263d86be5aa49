//! Attacks on memory: growing, tables, many memories, and looking for what others left in it.

use anyhow::Result;
use marcato_tests::guest;

use super::arena::{Arena, tame, text_component, wild};

fn megabytes(said: &str) -> u64 {
    said.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_ends_at_memory_bytes() -> Result<()> {
    let arena = Arena::enter().await?;
    assert!(megabytes(&arena.wild()?.works("/grow?mb=400").await?) >= 400);
    let tame = arena.tame()?;
    let answer = tame.get("/grow?mb=400").await?;
    assert!(megabytes(answer.text().trim()) <= 32, "{}", answer.text());
    tame.logged(answer.header("x-request-id"), "limit memory_bytes").await?;
    arena.unharmed().await
}

/// Each sandbox is within its own limit; together they would not be within the instance's.
#[tokio::test(flavor = "multi_thread")]
async fn many_sandboxes_end_at_instance_memory_bytes() -> Result<()> {
    let arena = Arena::enter().await?;
    let greedy = |c: &mut marcato_api::RevisionConfig| {
        tame(c);
        c.limits.memory_bytes = marcato_api::Bytes::mib(64);
        c.limits.instance_memory_bytes = marcato_api::Bytes::mib(96);
        c.limits.cpu_ms = marcato_api::Millis(5_000);
    };
    let total = arena.deploy("greedy", &guest("guest-hostile")?, greedy).await?;
    let wide = arena.deploy("generous", &guest("guest-hostile")?, wild).await?;
    let path = "/fill?mb=48";
    for answer in futures::future::join_all((0..4).map(|_| wide.get(path))).await {
        assert_eq!(answer?.text(), "dirty 0\n", "without the limit each gets its memory");
    }
    let mut refused = 0;
    for answer in futures::future::join_all((0..8).map(|_| total.get(path))).await {
        let answer = answer?;
        if answer.text().contains("dirty") {
            continue;
        }
        refused += 1;
        assert!(answer.status == 503 || answer.text() == "refused\n", "{} {}", answer.status, answer.text());
        total.logged(answer.header("x-request-id"), "limit instance_memory_bytes").await?;
    }
    assert!(refused > 0, "eight of 48 MiB do not fit into 96");
    arena.unharmed().await
}

fn table(elements: u32, tables: u32) -> (String, String) {
    let fields = (0..tables).map(|n| format!("(table $t{n} 1 funcref)")).collect();
    let grow = |n| {
        format!(
            "(if (i32.eq (table.grow $t{n} (ref.null func) (i32.const {elements})) (i32.const -1)) (then unreachable))"
        )
    };
    let body: String = (0..tables).map(grow).collect();
    (fields, format!("{body} (call $answer (local.get $out))"))
}

/// The sizes of tables are fixed: 100,000 elements each, a million in all.
#[tokio::test(flavor = "multi_thread")]
async fn tables_end_at_their_elements() -> Result<()> {
    let arena = Arena::enter().await?;
    let folder = tempfile::tempdir()?;
    for (name, elements, tables, works) in
        [("one-table", 90_000, 1, true), ("huge-table", 4_000_000, 1, false), ("many-tables", 90_000, 14, false)]
    {
        let (fields, body) = table(elements, tables);
        let app = arena.deploy(name, &text_component(folder.path(), name, &fields, &body, "")?, wild).await?;
        let answer = app.get("/").await?;
        assert_eq!(answer.status, if works { 200 } else { 500 }, "{name}");
        if tables > 1 {
            app.logged(answer.header("x-request-id"), "table_elements").await?;
        }
    }
    arena.unharmed().await
}

/// What a component is made of is known before any of it runs.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_instances_are_refused() -> Result<()> {
    let arena = Arena::enter().await?;
    let folder = tempfile::tempdir()?;
    let answer = "(call $answer (local.get $out))";
    let many = |n: u32, what: &str| what.repeat(n as usize);
    let instances = |n| format!("(core module $empty) {}", many(n, "(core instance (instantiate $empty))"));
    let cases = [
        ("two-memories", many(1, "(memory 1)"), String::new(), true),
        ("ten-tables", many(9, "(table 1 funcref)"), String::new(), true),
        ("ten-instances", String::new(), instances(8), true),
        ("thousand-instances", String::new(), instances(1000), false),
    ];
    for (name, fields, more, works) in cases {
        let file = text_component(folder.path(), name, &fields, answer, &more)?;
        match arena.deploy(name, &file, wild).await {
            Ok(app) if works => assert_eq!(app.works("/").await?, "", "{name}"),
            // It cannot be known at push when it is the sandbox that has no room: then it is the request's error.
            Ok(app) => assert!(app.get("/").await?.status >= 500, "{name} was served"),
            Err(error) => assert!(!works && format!("{error:#}").contains("Failed"), "{name}: {error:#}"),
        }
    }
    arena.unharmed().await
}

/// One app fills its memory and ends; another takes the same slots of the pool and looks.
#[tokio::test(flavor = "multi_thread")]
async fn new_memory_is_empty_whoever_had_it_before() -> Result<()> {
    let arena = Arena::enter().await?;
    let (first, second) = (arena.wild()?, arena.tame()?);
    for _ in 0..6 {
        let both = futures::future::join_all([first.get("/fill?mb=24"), second.get("/fill?mb=8")]).await;
        for answer in both {
            assert_eq!(answer?.text(), "dirty 0\n");
        }
    }
    arena.unharmed().await
}
