//! Inputs are what they are said to be, a failure is one, and no panic is missed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic;

use serde_json::{Value, json};

use crate::*;

#[test]
fn without_changes_an_input_is_the_good_one() {
    let near = |n, edits| Input::Near(n, Edits(edits));
    assert_eq!(near(1, vec![]).text(&["one", "two"], &[]), "two");
    assert_eq!(near(2, vec![Edit::Word(3, 0)]).text(&["one", "two"], &["!"]), "one!");
    assert_eq!(near(0, vec![Edit::Cut(2), Edit::Set(1, b'x')]).text(&["abc"], &[]), "ax");
    assert_eq!(near(0, vec![Edit::Number(1, 22)]).bytes(&[&[9; 4]], &[]), [9, 0, 0, 9]);
    assert_eq!(near(0, vec![Edit::Remove(0, 63)]).text(&["abc"], &[]), "");
    assert_eq!(Input::Words(vec![0, 1, 2]).text(&[], &["a", "b"]), "aba");
}

#[test]
fn changes_reach_every_place_and_never_fail() {
    let good = b"0123456789".as_slice();
    let changed = RefCell::new([false; 10]);
    target!(3000, |edits: &Edits| {
        let bytes = edits.apply(good, &[b"word"]);
        for (at, byte) in good.iter().enumerate() {
            changed.borrow_mut()[at] |= bytes.get(at) != Some(byte);
        }
        drop(edits.apply(&[], &[]));
    });
    assert_eq!(changed.into_inner(), [true; 10]);
}

#[test]
fn json_stays_json_and_gets_into_every_shape() {
    let good = [json!({"a": [1, {"b": "c"}], "d/~e": null})];
    let kinds = RefCell::new(BTreeSet::new());
    target!(3000, |input: &JsonInput| {
        let bytes = input.bytes(&good, &["word"]);
        if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
            for place in ["", "/a", "/a/1/b", "/d~1~0e", "/word", "/a2"] {
                if let Some(value) = value.pointer(place) {
                    kinds.borrow_mut().insert((place, value.is_null()));
                }
            }
        }
    });
    let kinds = kinds.into_inner();
    for place in ["", "/a", "/a/1/b", "/d~1~0e"] {
        assert!(kinds.contains(&(place, true)) && kinds.contains(&(place, false)), "{place}: {kinds:?}");
    }
    assert!(kinds.iter().any(|(p, _)| *p == "/word") && kinds.iter().any(|(p, _)| *p == "/a2"), "{kinds:?}");
}

#[test]
fn a_failure_fails_the_target_and_a_caught_panic_is_seen() {
    let failed = panic::catch_unwind(|| {
        target!(1000, |input: &Input| assert!(input.bytes(&[b"abc"], &[]).len() != 2));
    });
    assert!(failed.is_err(), "an input of two bytes is found");
    let watch = PanicWatch::begin();
    let caught = panic::catch_unwind(|| panic!("on purpose"));
    assert!(caught.is_err());
    let seen = panic::catch_unwind(panic::AssertUnwindSafe(|| watch.end()));
    assert!(seen.unwrap_err().downcast_ref::<String>().unwrap().contains("on purpose"));
    PanicWatch::begin().end();
}
