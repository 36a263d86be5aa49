//! Compiled code by digest: mapped at the first request that needs it, shared by all instances of one component, and
//! dropped when nobody needed it for a while or when others need the room.
//!
//! Owns: which code is mapped, and how much. Does not own: whether a file may be trusted ([`CodeSource`]), nor sandboxes,
//! which keep the code that they run alive. Request flow: `sandbox` -> here, the first time; afterwards one pointer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use marcato_api::{Bytes, Digest};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::cache::CodeSource;
use crate::error::LoadError;
use crate::files::Files;
use crate::link::Linkers;
use crate::runtime::blocking;
use crate::sandbox::Pre;

/// What mapped code costs beside its file: types, names, a descriptor and some mappings of the kernel's, of which a
/// process may have 65,530 (`vm.max_map_count`).
const OVERHEAD: u64 = 128 << 10;

/// Code that is mapped and linked.
pub(crate) struct Ready {
    pub(crate) pre: Pre,
    /// What it brought along to read.
    pub(crate) files: Option<Files>,
    /// What it counts for against the limit: as if all of it were resident.
    bytes: u64,
}

/// Why code is not there. All that waited for it get the same.
type NotReady = Arc<LoadError>;
type Loading = Shared<BoxFuture<'static, Result<Arc<Ready>, NotReady>>>;

/// The code of one component, mapped or not. Instances hold it.
struct Book {
    digest: Digest,
    ready: ArcSwapOption<Ready>,
    loading: Mutex<Option<Loading>>,
    /// Nanoseconds on the shelf's clock.
    used_at: AtomicU64,
    /// It was mapped once and speaks WASI 0.3: true for ever, for the digest is that of its bytes.
    concurrent: AtomicBool,
}

/// How much stays mapped, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) memory: Bytes,
    pub(crate) idle: Duration,
}

/// All code of a runtime. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CodeShelf(Arc<Shelf>);

struct Shelf {
    linkers: Arc<Linkers>,
    source: Arc<dyn CodeSource>,
    policy: Policy,
    began: Instant,
    books: Mutex<Books>,
    mapped: Mutex<Mapped>,
    loads: AtomicU64,
    drops: AtomicU64,
}

/// Every book that somebody holds.
#[derive(Default)]
struct Books {
    by_digest: HashMap<Digest, Weak<Book>>,
    /// Dead entries are cleared away when there are so many in all.
    clear_at: usize,
}

/// Those that are mapped, as far as is known: one whose last instance is gone may still be among them.
#[derive(Default)]
struct Mapped {
    books: Vec<(Weak<Book>, u64)>,
    /// Ends by itself when nothing is mapped.
    sweeper: Option<AbortOnDropHandle<()>>,
}

/// One component's code, for an instance.
#[derive(Clone)]
pub(crate) struct CodeHandle {
    shelf: CodeShelf,
    book: Arc<Book>,
}

/// How much code is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeUsage {
    /// Components whose code is mapped.
    pub mapped: usize,
    /// What they count for against the limit.
    pub bytes: Bytes,
    /// How often code was mapped since the start.
    pub loads: u64,
    /// How often it was dropped, cold or for want of room.
    pub drops: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps and lists of whole entries: usable whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CodeHandle {
    /// The code: at once when it is mapped, else after one load, whoever asked first.
    pub(crate) async fn get(&self) -> Result<Arc<Ready>, NotReady> {
        self.book.used_at.store(self.shelf.0.now(), Ordering::Relaxed);
        match self.book.ready.load_full() {
            Some(ready) => Ok(ready),
            None => self.shelf.load(&self.book).await,
        }
    }

    /// Whether it is known to speak WASI 0.3. False before its first load.
    pub(crate) fn is_concurrent(&self) -> bool {
        self.book.concurrent.load(Ordering::Relaxed)
    }
}

impl CodeShelf {
    pub(crate) fn new(linkers: Arc<Linkers>, source: Arc<dyn CodeSource>, policy: Policy) -> Self {
        Self(Arc::new(Shelf {
            linkers,
            source,
            policy,
            began: Instant::now(),
            books: Mutex::default(),
            mapped: Mutex::default(),
            loads: AtomicU64::new(0),
            drops: AtomicU64::new(0),
        }))
    }

    /// The code of `digest`, to be mapped when it is asked for.
    pub(crate) fn handle(&self, digest: &Digest) -> CodeHandle {
        let mut books = lock(&self.0.books);
        let known = books.by_digest.get(digest).and_then(Weak::upgrade);
        let book = known.unwrap_or_else(|| {
            if books.by_digest.len() >= books.clear_at {
                books.by_digest.retain(|_, book| book.strong_count() > 0);
                books.clear_at = 2 * books.by_digest.len() + 64;
            }
            let book = Arc::new(Book {
                digest: digest.clone(),
                ready: ArcSwapOption::empty(),
                loading: Mutex::new(None),
                used_at: AtomicU64::new(0),
                concurrent: AtomicBool::new(false),
            });
            books.by_digest.insert(digest.clone(), Arc::downgrade(&book));
            book
        });
        CodeHandle { shelf: self.clone(), book }
    }

    /// Maps and links code, and drops it again. Errors: what the first request would find.
    pub(crate) async fn check(&self, digest: &Digest) -> Result<(), LoadError> {
        self.0.fetch(digest).await.map(drop)
    }

    pub(crate) fn usage(&self) -> CodeUsage {
        let mapped = lock(&self.0.mapped);
        CodeUsage {
            mapped: mapped.books.len(),
            bytes: Bytes(mapped.books.iter().map(|(_, bytes)| bytes).sum()),
            loads: self.0.loads.load(Ordering::Relaxed),
            drops: self.0.drops.load(Ordering::Relaxed),
        }
    }

    /// Joins the load that is under way, or begins one. It goes on when the request that began it ends.
    async fn load(&self, book: &Arc<Book>) -> Result<Arc<Ready>, NotReady> {
        let loading = {
            let mut loading = lock(&book.loading);
            if let Some(ready) = book.ready.load_full() {
                return Ok(ready);
            }
            loading.get_or_insert_with(|| self.begin(book)).clone()
        };
        loading.await
    }

    fn begin(&self, book: &Arc<Book>) -> Loading {
        /// The next request tries again, whatever became of this load.
        struct Over(Arc<Book>);
        impl Drop for Over {
            fn drop(&mut self) {
                *lock(&self.0.loading) = None;
            }
        }
        let (shelf, over) = (self.clone(), Over(Arc::clone(book)));
        let task = tokio::spawn(async move {
            let book = &over.0;
            let ready = shelf.0.fetch(&book.digest).await.map(Arc::new).map_err(|error| {
                tracing::warn!(digest = %book.digest, %error, "code cannot be mapped");
                Arc::new(error)
            })?;
            book.concurrent.store(matches!(ready.pre, Pre::P3(_)), Ordering::Relaxed);
            book.ready.store(Some(Arc::clone(&ready)));
            shelf.mapped(book, ready.bytes);
            Ok(ready)
        });
        let task = AbortOnDropHandle::new(task);
        let lost = |e| Arc::new(LoadError::Read(std::io::Error::other(e)));
        async move { task.await.unwrap_or_else(|e| Err(lost(e))) }.boxed().shared()
    }

    /// Takes new code into account; what was not used for longest makes room.
    fn mapped(&self, new: &Arc<Book>, bytes: u64) {
        self.0.loads.fetch_add(1, Ordering::Relaxed);
        let mut mapped = lock(&self.0.mapped);
        mapped.books.retain(|(book, _)| book.strong_count() > 0);
        let mut total = bytes + mapped.books.iter().map(|(_, bytes)| bytes).sum::<u64>();
        if total > self.0.policy.memory.0 {
            let used_at = |book: &Weak<Book>| book.upgrade().map_or(0, |b| b.used_at.load(Ordering::Relaxed));
            mapped.books.sort_by_cached_key(|(book, _)| used_at(book));
            let mut count = 0;
            while total > self.0.policy.memory.0 && count < mapped.books.len() {
                total -= mapped.books[count].1;
                count += 1;
            }
            let dropped: Vec<_> = mapped.books.drain(..count).collect();
            self.0.unmap(dropped.into_iter().filter_map(|(book, _)| book.upgrade()));
        }
        mapped.books.push((Arc::downgrade(new), bytes));
        if mapped.sweeper.is_none() {
            let (shelf, idle) = (Arc::downgrade(&self.0), self.0.policy.idle);
            mapped.sweeper = Some(AbortOnDropHandle::new(tokio::spawn(sweep(shelf, idle))));
        }
    }
}

impl Shelf {
    fn now(&self) -> u64 {
        // 584 years.
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn fetch(&self, digest: &Digest) -> Result<Ready, LoadError> {
        let path = self.source.open(digest).await?;
        let (linkers, digest) = (Arc::clone(&self.linkers), digest.clone());
        blocking(move || {
            let size = std::fs::metadata(&path).map_err(LoadError::Read)?.len();
            let files = Files::beside(&path, &digest).map_err(LoadError::Read)?;
            Ok(Ready { pre: linkers.load(&digest, &path)?, files, bytes: size + OVERHEAD })
        })
        .await
        .map_err(LoadError::Read)?
    }

    fn unmap(&self, books: impl Iterator<Item = Arc<Book>>) {
        for book in books {
            book.ready.store(None);
            self.drops.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(digest = %book.digest, "code dropped");
        }
    }

    /// Drops what was not used for `idle`. True when nothing is left.
    fn drop_cold(&self, idle: Duration) -> bool {
        let before = self.now().saturating_sub(u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX));
        let mut mapped = lock(&self.mapped);
        let mut cold = Vec::new();
        mapped.books.retain(|(book, _)| match book.upgrade() {
            Some(book) if book.used_at.load(Ordering::Relaxed) <= before => {
                cold.push(book);
                false
            }
            Some(_) => true,
            None => false,
        });
        self.unmap(cold.into_iter());
        let empty = mapped.books.is_empty();
        if empty {
            mapped.sweeper = None;
        }
        empty
    }
}

async fn sweep(shelf: Weak<Shelf>, idle: Duration) {
    // Dropped at most a quarter late.
    let pause = (idle / 4).max(Duration::from_millis(10));
    loop {
        tokio::time::sleep(pause).await;
        let Some(shelf) = shelf.upgrade() else { return };
        if shelf.drop_cold(idle) {
            return;
        }
    }
}
