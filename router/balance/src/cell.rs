//! The one thing that control and edge share: a cell that holds the current table.
//!
//! A store never blocks a load and a load never blocks a store, so that a control plane that hangs
//! or dies leaves traffic going on with the last table (invariant 1 of docs/architecture.md).

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::RouteTable;

/// Holds the current [`RouteTable`]; empty at first.
#[derive(Debug)]
pub struct TableCell(ArcSwap<RouteTable>);

impl TableCell {
    /// A cell with an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self(ArcSwap::from_pointee(RouteTable::empty()))
    }

    /// The current table, for a short look. Do not hold it across an await: it takes one of few
    /// cheap slots; clone the `Arc` that is needed out of it.
    pub fn load(&self) -> Guard<Arc<RouteTable>> {
        self.0.load()
    }

    /// The current table, to keep.
    #[must_use]
    pub fn load_full(&self) -> Arc<RouteTable> {
        self.0.load_full()
    }

    /// Replaces the table.
    pub fn store(&self, table: RouteTable) {
        self.0.store(Arc::new(table));
    }
}

impl Default for TableCell {
    fn default() -> Self {
        Self::new()
    }
}
