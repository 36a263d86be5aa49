//! The drill: one attack, made by machine code that is free to call the kernel, inside a worker's confinement or
//! outside of it. It stands for a guest that broke WebAssembly's sandbox. Only tests start it; it is not installed.
//!
//! `marcato-drill MODE [--read PATH]... [--keep FD]... [--user ID] [--group FOLDER] ATTACK [ARGUMENT]...`, where the mode is `free`
//! (nothing is taken, but what would change the machine happens to a copy of it), `entered` (all but the filter of system calls, to see the other layers alone), `sealed` (as a
//! worker is when guests run) or `compiler`. Exit code 0: done, what was gained is on standard output. 10: refused.

#![allow(clippy::print_stdout, reason = "its standard output is its answer")]

mod attacks;

use std::process::ExitCode;
use std::sync::mpsc;

use marcato_confine::{ConfinementReport, Plan, enter, seal};

/// The attack was refused.
const REFUSED: u8 = 10;
/// The drill itself could not be carried out.
const BROKEN: u8 = 20;

struct Order {
    mode: String,
    plan: Plan,
    attack: String,
    arguments: Vec<String>,
}

fn order() -> Option<Order> {
    let mut words = std::env::args().skip(1);
    let mode = words.next()?;
    let mut plan = Plan::worker(Vec::new(), Vec::new());
    let attack = loop {
        match words.next()?.as_str() {
            "--read" => plan.read_only.push(words.next()?.into()),
            "--keep" => plan.keep_open.push(words.next()?.parse().ok()?),
            "--group" => plan.cgroup = Some(words.next()?.into()),
            "--user" => plan.unprivileged_user = words.next()?.parse().ok().map(|id| (id, id)),
            attack => break attack.to_owned(),
        }
    };
    if mode == "compiler" {
        let compiler = Plan::compiler(Vec::new());
        plan = Plan { read_only: plan.read_only, keep_open: plan.keep_open, ..compiler };
    }
    Some(Order { mode, plan, attack, arguments: words.collect() })
}

fn main() -> ExitCode {
    let Some(order) = order() else {
        println!(
            "usage: marcato-drill MODE [--read PATH] [--keep FD] [--user ID] [--group FOLDER] ATTACK [ARGUMENT]..."
        );
        return ExitCode::from(BROKEN);
    };
    let mut report = ConfinementReport::default();
    if order.mode == "free" {
        if !attacks::harmless_to_the_machine(&order.attack) {
            return ExitCode::from(REFUSED);
        }
    } else {
        match enter(&order.plan) {
            Ok(entered) => report = entered,
            Err(e) => {
                println!("cannot enter: {e} ({:?})", std::error::Error::source(&e));
                return ExitCode::from(BROKEN);
            }
        }
    }
    // Made before the filter, so that the attack shows that it holds for every thread.
    let (go, wait) = mpsc::channel();
    let (attack, arguments) = (order.attack, order.arguments);
    let thread = std::thread::spawn(move || match wait.recv() {
        Ok(report) => attacks::run(&attack, &arguments, &report),
        Err(_) => Err(std::io::Error::other("no order")),
    });
    if matches!(order.mode.as_str(), "sealed" | "compiler")
        && let Err(e) = seal(&order.plan, &mut report)
    {
        println!("cannot seal: {e}");
        return ExitCode::from(BROKEN);
    }
    let sent = go.send(report);
    match (sent, thread.join()) {
        (Ok(()), Ok(Ok(gained))) => {
            println!("{gained}");
            ExitCode::SUCCESS
        }
        (Ok(()), Ok(Err(e))) => {
            println!("{e}");
            ExitCode::from(REFUSED)
        }
        _ => ExitCode::from(BROKEN),
    }
}
