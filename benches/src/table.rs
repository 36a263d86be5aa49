//! The report as Markdown.

use crate::fair::Beside;
use crate::idle::Idle;
use crate::moments::Moments;
use crate::rounds::Measured;

/// What a run gave.
#[derive(Debug, Clone, Copy)]
pub struct Results<'a> {
    /// Loads.
    pub measured: &'a [Measured],
    /// Moments, where they were taken.
    pub moments: Option<&'a Moments>,
    /// Apps at rest, where they were measured.
    pub idle: Option<&'a Idle>,
    /// An app beside others, where it was measured.
    pub fair: &'a [Beside],
}

/// Renders the whole report.
pub fn render(machine: &str, results: &Results<'_>, notes: &[String]) -> String {
    let mut text = format!(
        "# Latest run\n\n{machine}\n\nThe load generator shares the machine with what it loads: trust CPU per request most, then ratios\n\
         within this run. Medians over the rounds; CPU with its spread. CPU and memory are those of the servers only.\n\n\
         | subject | connections | requests/s | CPU us/request (least to most) | p50 us | p99 us | RSS MB | errors |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for m in results.measured {
        let (cpu, least, most) = m.cpu_us();
        text.push_str(&format!(
            "| {} | {} | {:.0} | {cpu:.0} ({least:.0} to {most:.0}) | {:.0} | {:.0} | {:.0} | {} |\n",
            m.name,
            m.connections,
            m.per_second(),
            m.p50_us(),
            m.p99_us(),
            m.resident() / 1e6,
            m.errors()
        ));
    }
    if let Some(m) = results.moments {
        text.push_str(&format!(
            "\n| moment | median |\n|---|---|\n\
             | `marcato up` on an empty folder, until ready | {:.0} ms |\n\
             | `marcato up` on existing data, until the app answers | {:.0} ms |\n\
             | `marcato push` of a new component of {:.0} KB, until 200 | {:.0} ms |\n\
             | first request on a host with the code on disk | {:.2} ms |\n\
             | a worker killed, until the next answer at its host | {:.0} ms |\n\
             | `marcato up` at rest, RSS of all processes | {:.1} MB |\n\
             | the same, shared memory counted once (PSS) | {:.1} MB |\n",
            m.start_fresh_ms,
            m.start_again_ms,
            m.push_size as f64 / 1e3,
            m.push_ms,
            m.first_request_ms,
            m.worker_again_ms,
            m.idle_resident as f64 / 1e6,
            m.idle_proportional as f64 / 1e6,
        ));
    }
    if let Some(idle) = results.idle {
        text.push_str(&rest(idle));
    }
    if !results.fair.is_empty() {
        text.push_str(&beside(results.fair));
    }
    for note in notes {
        text.push_str(&format!("\n{note}\n"));
    }
    text
}

fn beside(fair: &[Beside]) -> String {
    let mut text =
        "\n| a neighbour at 200 requests/s beside | p50 us | p99 us | slowest us | errors | answers to the others |\n\
                    |---|---|---|---|---|---|\n"
            .to_owned();
    for b in fair {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            b.name, b.p50_us, b.p99_us, b.max_us, b.errors, b.hostile_answers
        ));
    }
    text
}

fn rest(idle: &Idle) -> String {
    let mut text = "\n| apps at rest on one host | told until ready | killed and started until ready | RSS MB | PSS MB |\n|---|---|---|---|---|\n".to_owned();
    for r in &idle.rests {
        text.push_str(&format!(
            "| {} | {:.0} ms | {:.0} ms | {:.1} | {:.1} |\n",
            r.apps,
            r.told_ms,
            r.again_ms,
            r.resident as f64 / 1e6,
            r.proportional as f64 / 1e6
        ));
    }
    text.push_str("\n| first request, code on disk | times | cold p50 ms | cold p99 ms | warm p50 ms | warm p99 ms |\n|---|---|---|---|---|---|\n");
    for c in &idle.colds {
        text.push_str(&format!(
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} |\n",
            c.name, c.times, c.cold_p50_ms, c.cold_p99_ms, c.warm_p50_ms, c.warm_p99_ms
        ));
    }
    text
}
