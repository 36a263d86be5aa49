//! The report as Markdown.

use crate::moments::Moments;
use crate::rounds::Measured;

/// Renders the whole report.
pub fn render(machine: &str, measured: &[Measured], moments: Option<&Moments>, notes: &[String]) -> String {
    let mut text = format!(
        "# Latest run\n\n{machine}\n\nThe load generator shares the machine with what it loads: trust CPU per request most, then ratios\n\
         within this run. Medians over the rounds; CPU with its spread. CPU and memory are those of the servers only.\n\n\
         | subject | connections | requests/s | CPU us/request (least to most) | p50 us | p99 us | RSS MB | errors |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for m in measured {
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
    if let Some(m) = moments {
        text.push_str(&format!(
            "\n| moment | median |\n|---|---|\n\
             | `marcato up` on an empty folder, until ready | {:.0} ms |\n\
             | `marcato up` on existing data, until the app answers | {:.0} ms |\n\
             | `marcato push` of a new component of {:.0} KB, until 200 | {:.0} ms |\n\
             | first request on a host with the code on disk | {:.2} ms |\n\
             | `marcato up` at rest, RSS of all processes | {:.1} MB |\n\
             | the same, shared memory counted once (PSS) | {:.1} MB |\n",
            m.start_fresh_ms,
            m.start_again_ms,
            m.push_size as f64 / 1e3,
            m.push_ms,
            m.first_request_ms,
            m.idle_resident as f64 / 1e6,
            m.idle_proportional as f64 / 1e6,
        ));
    }
    for note in notes {
        text.push_str(&format!("\n{note}\n"));
    }
    text
}
