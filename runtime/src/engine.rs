//! The wasmtime engines: their settings, the pools that sandboxes come from, and the clock that interrupts
//! guests. Owns no code and no instance.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use marcato_api::Bytes;
use sha2::{Digest as _, Sha256};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Strategy, WasmBacktraceDetails,
};

use crate::code_memory::FromFile;
use crate::config::PoolConfig;
use crate::error::RuntimeError;
use crate::link::INTERFACES;
use crate::share::Shares;
use crate::totals::HostTotals;

/// How often running guests are interrupted: to look at their CPU budget and to let others run.
const TICK: Duration = Duration::from_millis(2);

/// Time without a live sandbox after which the ticker sleeps until there is one.
const IDLE: Duration = Duration::from_secs(1);

/// Core instances, memories and tables that a component may be made of.
pub(crate) const CORE_INSTANCES: u32 = 64;
pub(crate) const MEMORIES: u32 = 4;
pub(crate) const TABLES: u32 = 16;

/// Stack of a guest's calls; wasmtime's own default, written down.
pub(crate) const STACK_BYTES: usize = 512 << 10;

/// Elements of one table: a Python component's have over 20,000.
pub(crate) const TABLE_ELEMENTS: usize = 100_000;

/// What a component's calls look like. Each has an engine, for what lets calls of WASI 0.3 run beside each other is paid
/// for in every call between guest and host, and guests of WASI 0.2 have no use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// WASI 0.2: a call ends before the next begins.
    Plain,
    /// WASI 0.3: calls, streams and futures.
    Concurrent,
}

/// One engine per dialect, and what is done to all of them.
#[derive(Clone)]
pub(crate) struct Engines {
    plain: Engine,
    concurrent: Engine,
}

impl Engines {
    fn new(mut settings: impl FnMut(Dialect) -> Config) -> wasmtime::Result<Self> {
        Ok(Self {
            plain: Engine::new(&settings(Dialect::Plain))?,
            concurrent: Engine::new(&settings(Dialect::Concurrent))?,
        })
    }

    pub(crate) const fn of(&self, dialect: Dialect) -> &Engine {
        match dialect {
            Dialect::Plain => &self.plain,
            Dialect::Concurrent => &self.concurrent,
        }
    }

    fn increment_epoch(&self) {
        self.plain.increment_epoch();
        self.concurrent.increment_epoch();
    }
}

/// The settings that machine code depends on; the compiler process has to use the same.
pub(crate) fn code_config(dialect: Dialect) -> Config {
    let mut config = Config::new();
    match dialect {
        Dialect::Plain => config.concurrency_support(false),
        Dialect::Concurrent => config.wasm_component_model_async(true),
    };
    config
        .strategy(Strategy::Cranelift)
        .wasm_component_model(true)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // Nothing unwinds through guests but wasmtime itself, by frame pointers; a trap names its functions without
        // the offsets. Without either, code files are smaller and there is nothing to register when one is mapped.
        .native_unwind_info(false)
        .generate_address_map(false)
        .memory_init_cow(true);
    config
}

/// The engines with their ticker.
pub(crate) struct Machine {
    pub(crate) engines: Engines,
    pub(crate) totals: Arc<HostTotals>,
    pub(crate) shares: Shares,
    ticker: Arc<Ticker>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Ticker {
    parked: AtomicBool,
    stop: AtomicBool,
}

impl Machine {
    pub(crate) fn new(pool: &PoolConfig, shares: Shares) -> Result<Self, RuntimeError> {
        check(pool)?;
        let unavailable =
            |e: wasmtime::Error| RuntimeError::Pool { sandboxes: pool.sandboxes, reason: format!("{e:#}") };
        let engines = Engines::new(|dialect| {
            let mut config = code_config(dialect);
            // The stack of one guest is never seen by another, not even through a defect of the compiler.
            config.async_stack_zeroing(true);
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling(pool)));
            // Elsewhere an instruction cache has to be told, which wasmtime does by itself.
            if cfg!(target_arch = "x86_64") {
                config.with_custom_code_memory(Some(Arc::new(FromFile)));
            }
            config
        })
        .map_err(unavailable)?;
        let totals = Arc::new(HostTotals::new(pool.sandboxes, pool.memory));
        let ticker = Arc::new(Ticker::default());
        let thread = std::thread::Builder::new()
            .name("marcato-epoch".into())
            .spawn({
                let (engines, totals, ticker) = (engines.clone(), Arc::clone(&totals), Arc::clone(&ticker));
                let shares = shares.clone();
                move || ticker.run(&engines, &totals, &shares)
            })
            .map_err(|e| unavailable(e.into()))?;
        Ok(Self { engines, totals, shares, ticker, thread: Some(thread) })
    }

    /// Counts a new sandbox; the ticker runs while there is one. False: there are as many as there may be.
    pub(crate) fn enter(&self) -> bool {
        if !self.totals.enter() {
            return false;
        }
        if self.ticker.parked.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        true
    }

    pub(crate) fn leave(&self) {
        self.totals.leave();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ticker.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread only sleeps and counts; there is no panic to hand on.
            let _ = thread.join();
        }
    }
}

impl Ticker {
    fn run(&self, engines: &Engines, totals: &HostTotals, shares: &Shares) {
        let mut last = Instant::now();
        let mut busy_at = last;
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            engines.increment_epoch();
            let now = Instant::now();
            let waits = shares.balance(now - last);
            last = now;
            if waits || totals.sandboxes.load(Ordering::SeqCst) > 0 {
                busy_at = now;
            }
            // By then no app is behind: none has used anything for as long.
            if now - busy_at > IDLE + TICK * 2 {
                self.parked.store(true, Ordering::SeqCst);
                if totals.sandboxes.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.parked.store(false, Ordering::SeqCst);
                last = Instant::now();
                busy_at = last;
            }
        }
    }
}

fn check(pool: &PoolConfig) -> Result<(), RuntimeError> {
    let checks = [
        ("sandboxes", u64::from(pool.sandboxes), 1, 100_000),
        ("memory", pool.memory.0, 1 << 16, 1 << 48),
        ("memory_per_sandbox", pool.memory_per_sandbox.0, 1 << 16, 4 << 30),
        ("keep_resident", pool.keep_resident.0, 0, 1 << 30),
        ("code_memory", pool.code_memory.0, 0, 1 << 48),
        ("code_idle_ms", pool.code_idle_ms.0, 1, 1 << 40),
    ];
    match checks.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value)) {
        Some((field, value, min, max)) => Err(RuntimeError::PoolConfig { field, value, min, max }),
        None => Ok(()),
    }
}

fn size(bytes: Bytes) -> usize {
    usize::try_from(bytes.0).unwrap_or(usize::MAX)
}

fn pooling(pool: &PoolConfig) -> PoolingAllocationConfig {
    let sandboxes = pool.sandboxes;
    // Most components have one memory and one table; those of JavaScript and Python have a few more.
    let shared = |each: u32| sandboxes.saturating_mul(each).max(MEMORIES.max(TABLES).max(CORE_INSTANCES));
    let mut config = PoolingAllocationConfig::new();
    config
        .total_component_instances(sandboxes)
        .total_core_instances(shared(8))
        .total_memories(shared(1).max(MEMORIES))
        .total_tables(shared(4))
        .total_stacks(shared(2))
        .total_gc_heaps(sandboxes)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_memories_per_module(MEMORIES)
        .max_tables_per_module(TABLES)
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(size(pool.memory_per_sandbox))
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        // Slots that stay warm hold `keep_resident` each: what an idle host pays for speed.
        .max_unused_warm_slots(16)
        .linear_memory_keep_resident(size(pool.keep_resident))
        .table_keep_resident(size(pool.keep_resident).min(1 << 20))
        .async_stack_keep_resident(64 << 10)
        .pagemap_scan(Enabled::Auto);
    config
}

/// Feeds what is hashed to SHA-256.
struct ShaHasher(Sha256);

impl Hasher for ShaHasher {
    fn finish(&self) -> u64 {
        let hash: [u8; 32] = self.0.clone().finalize().into();
        u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// The key of code that this build can load, as 16 digits: the hash has wasmtime's version, every setting of both engines,
/// and the state of the interfaces that it was linked with.
pub(crate) fn code_key() -> wasmtime::Result<String> {
    let engines = Engines::new(code_config)?;
    let mut hasher = ShaHasher(Sha256::new());
    engines.plain.precompile_compatibility_hash().hash(&mut hasher);
    engines.concurrent.precompile_compatibility_hash().hash(&mut hasher);
    INTERFACES.hash(&mut hasher);
    Ok(hex::encode(&hasher.0.finalize()[..8]))
}
