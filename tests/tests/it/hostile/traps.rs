//! A trap in every phase, of every kind: it ends its own sandbox and nothing else.

use anyhow::Result;

use super::arena::{Arena, text_component, wild as widest};

/// Nothing can be raised or switched off here: the check is the instruction set's.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_trap_ends_its_own_sandbox() -> Result<()> {
    let arena = Arena::enter().await?;
    let wild = arena.wild()?;
    for (path, named) in [
        ("/oob", "out of bounds"),
        ("/oob?near=1", "out of bounds"),
        ("/unreachable", "unreachable"),
        ("/divide", "invalid conversion"),
        ("/call", "indirect call"),
    ] {
        wild.fails(path, 500, named).await?;
        assert_eq!(wild.works("/").await?, "hello", "after {path}");
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_division_by_zero_and_a_null_call_trap() -> Result<()> {
    let arena = Arena::enter().await?;
    let folder = tempfile::tempdir()?;
    let null = "(type $none (func)) (table $t 1 funcref)";
    for (name, fields, body, named) in [
        ("division", "", "(drop (i32.div_u (i32.const 1) (local.get $out)))", ""),
        ("zero", "", "(drop (i32.div_u (local.get $out) (i32.const 0)))", "divide by zero"),
        ("overflow", "", "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", "overflow"),
        ("null", null, "(call_indirect $t (type $none) (i32.const 0))", "uninitialized element"),
        ("table-end", null, "(call_indirect $t (type $none) (i32.const 77))", "out of bounds"),
    ] {
        let body = format!("{body} (call $answer (local.get $out))");
        let app = arena.deploy(name, &text_component(folder.path(), name, fields, &body, "")?, widest).await?;
        if named.is_empty() {
            assert_eq!(app.works("/").await?, "", "a division that is allowed is none of these");
        } else {
            app.fails("/", 500, named).await?;
        }
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_in_any_phase_of_a_request_fails_that_request() -> Result<()> {
    let arena = Arena::enter().await?;
    let wild = arena.wild()?;
    for when in ["before", "after-head", "in-body", "after-body", "drop"] {
        let answer = wild.get(&format!("/trap?when={when}")).await;
        // What failed while it answered is an error or cut; what failed after it answered may have been whole.
        let cut = answer.as_ref().map_or(true, |a| a.status == 500);
        let late = ["after-body", "drop"].contains(&when) && answer.as_ref().is_ok_and(|a| a.body.len() == 200_000);
        assert!(cut || late, "{when}: {answer:?}");
    }
    let folder = tempfile::tempdir()?;
    let start = text_component(folder.path(), "start", "(func $no unreachable) (start $no)", "", "")?;
    arena.deploy("trap-in-start", &start, widest).await?.fails("/", 500, "unreachable").await?;
    wild.idle().await?;
    assert_eq!(wild.works("/").await?, "hello");
    arena.unharmed().await
}
