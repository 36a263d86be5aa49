//! Panics that somebody caught: a runtime that runs a connection's task, a server's own net.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

static HOOK: Once = Once::new();

/// Sees every panic on this thread, caught or not, from its making on. Made within a case, for the engine of the
/// targets puts its own hook in place before the first one.
///
/// A runtime of one thread runs a server's tasks on the thread of the test, so nothing of it is missed, and no other
/// test is heard.
#[derive(Debug)]
pub struct PanicWatch(());

impl PanicWatch {
    /// Watches from now on.
    #[must_use]
    pub fn begin() -> Self {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                SEEN.with(|seen| seen.borrow_mut().push(info.to_string()));
                before(info);
            }));
        });
        SEEN.with(|seen| seen.borrow_mut().clear());
        Self(())
    }

    /// Panics when anything did.
    pub fn end(self) {
        let seen = SEEN.with(|seen| std::mem::take(&mut *seen.borrow_mut()));
        assert!(seen.is_empty(), "something panicked, and was caught: {}", seen.join("; "));
    }
}
