//! Where a new instance goes: spread over zones, then hosts, then towards the data, then the emptier host.

use std::collections::BTreeMap;

use marcato_api::{AppName, Bytes, HostId, HostState, InstanceState, Revision};

use crate::inputs::{HostInput, Inputs, Placed};

/// The hosts and how full they are, while a plan is being made.
pub(crate) struct Fleet<'a> {
    inputs: &'a Inputs,
    /// Instances and the memory that one sandbox of each may take, by host.
    load: BTreeMap<&'a HostId, (u32, Bytes)>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(inputs: &'a Inputs) -> Self {
        let mut load: BTreeMap<_, _> = inputs.hosts.iter().map(|h| (&h.id, (0, Bytes(0)))).collect();
        for placed in &inputs.placement.instances {
            let revision =
                inputs.apps.iter().find(|a| a.app.name == placed.app).and_then(|a| a.revisions.get(&placed.revision));
            if let (Some(entry), Some(revision)) = (load.get_mut(&placed.host), revision) {
                entry.0 += 1;
                entry.1.0 += revision.config.limits.memory_bytes.0;
            }
        }
        Self { inputs, load }
    }

    pub(crate) fn host(&self, id: &HostId) -> Option<&'a HostInput> {
        self.inputs.hosts.iter().find(|h| h.id == *id)
    }

    /// Picks a host for one more instance beside `siblings`, and counts it there. `None`: nothing fits.
    pub(crate) fn place(&mut self, app: &AppName, revision: &Revision, siblings: &[Placed]) -> Option<HostId> {
        let memory = revision.config.limits.memory_bytes;
        let owners: Vec<&HostId> = revision
            .config
            .bindings
            .iter()
            .filter_map(|b| self.inputs.services.iter().find(|s| !s.deleted && s.name == b.service))
            .map(|s| &s.owner)
            .collect();
        let running = |host: &HostId| {
            siblings
                .iter()
                .filter(|p| p.app == *app && p.revision == revision.number && p.state == InstanceState::Running)
                .filter(|p| p.host == *host)
                .count()
        };
        let in_zone =
            |zone: &str| self.inputs.hosts.iter().filter(|h| h.zone == zone).map(|h| running(&h.id)).sum::<usize>();
        let best =
            self.inputs.hosts.iter().filter(|h| h.state == HostState::Up && self.fits(h, memory)).min_by_key(|h| {
                let (count, _) = self.load.get(&h.id).copied().unwrap_or_default();
                (in_zone(&h.zone), running(&h.id), !owners.contains(&&h.id), count, &h.id)
            })?;
        let entry = self.load.entry(&best.id).or_default();
        entry.0 += 1;
        entry.1.0 += memory.0;
        Some(best.id.clone())
    }

    fn fits(&self, host: &HostInput, memory: Bytes) -> bool {
        let Some(inventory) = &host.inventory else { return false };
        let (_, used) = self.load.get(&host.id).copied().unwrap_or_default();
        used.0 + memory.0 <= inventory.capacity.memory_bytes.0
    }

    /// Why nothing fits, in words.
    pub(crate) fn why_not(&self, memory: Bytes) -> String {
        if self.inputs.hosts.is_empty() {
            return "no host has joined yet".into();
        }
        let up = self.inputs.hosts.iter().filter(|h| h.state == HostState::Up).count();
        if up == 0 {
            return format!("none of the {} hosts answers; see `marcato hosts`", self.inputs.hosts.len());
        }
        format!("none of the {up} hosts that answer has {memory} of memory left")
    }
}
