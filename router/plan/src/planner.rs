//! The planner: each app by itself over one shared view of the hosts, then each host's share.

use std::collections::{BTreeMap, HashMap};

use marcato_api::AppName;

use crate::app::plan_app;
use crate::host::host_plans;
use crate::inputs::{Inputs, Placed, Plan};
use crate::place::Fleet;

/// Makes a plan. The same inputs give the same plan, and a plan applied to itself changes nothing.
#[must_use]
pub fn plan(inputs: &Inputs) -> Plan {
    let mut fleet = Fleet::new(inputs);
    let mut plan = Plan {
        placement: inputs.placement.clone(),
        hosts: BTreeMap::new(),
        phases: Vec::new(),
        endpoints: BTreeMap::new(),
        notes: BTreeMap::new(),
        unsettled: false,
    };
    let mut placed_by_app: HashMap<&AppName, Vec<Placed>> = HashMap::with_capacity(inputs.apps.len());
    for (known, placed) in inputs.placement.instances.iter().zip(std::mem::take(&mut plan.placement.instances)) {
        placed_by_app.entry(&known.app).or_default().push(placed);
    }
    for app in &inputs.apps {
        let placed = placed_by_app.remove(&app.app.name).unwrap_or_default();
        plan_app(inputs, app, placed, &mut fleet, &mut plan);
    }
    // What is left belongs to apps that were deleted: nothing of it is wanted, so it is not placed again.
    plan.placement.instances.sort_by(|a, b| a.id.cmp(&b.id));
    plan.hosts = host_plans(inputs, &plan.placement);
    plan
}
