//! Attacks on the host's side of calls: handles, logs, waiting, randomness, clocks, files, sockets.

use std::io::Write as _;

use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::http::types::{Fields, OutgoingRequest, ResponseOutparam};
use wasip2::io::poll;
use wasip2::sockets::network::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::{instance_network, ip_name_lookup, tcp_create_socket, udp_create_socket};

use crate::bodies::DAY_NS;
use crate::{Ask, text};

pub(crate) fn run(ask: &Ask, out: ResponseOutparam) {
    match ask.path.as_str() {
        "/handles" => handles(ask, out),
        "/fields" => fields(ask, out),
        "/hold-fields" => hold_fields(ask, out),
        "/log" => log(ask, out),
        "/sleep" => {
            monotonic_clock::subscribe_duration(ask.number("ms") * 1_000_000).block();
            text(out, "awake\n");
        }
        "/poll" => {
            let far: Vec<_> =
                (0..ask.number("n").max(1)).map(|_| monotonic_clock::subscribe_duration(DAY_NS)).collect();
            let _ = poll::poll(&far.iter().collect::<Vec<_>>());
            text(out, "polled\n");
        }
        "/random" => {
            let bytes = wasip2::random::random::get_random_bytes(ask.number("bytes"));
            text(out, format!("random {}\n", bytes.len()));
        }
        "/clock" => text(out, format!("{}\n", finest_step(ask.number("steps").max(1)))),
        "/probe" => probe(ask, out),
        "/wall" => text(out, format!("{}\n", wall_clock::now().nanoseconds)),
        "/files" => files(out),
        "/sockets" => sockets(ask, out),
        _ => text(out, "no such attack\n"),
    }
}

/// Makes handles and keeps them all.
fn handles(ask: &Ask, out: ResponseOutparam) {
    let n = ask.number("n");
    match ask.text("kind").as_str() {
        "pollable" => {
            let held: Vec<_> = (0..n).map(|_| monotonic_clock::subscribe_duration(DAY_NS)).collect();
            text(out, format!("held {}\n", held.len()));
        }
        "request" => {
            let held: Vec<_> = (0..n).map(|_| OutgoingRequest::new(Fields::new())).collect();
            text(out, format!("held {}\n", held.len()));
        }
        "stdout" => {
            let held: Vec<_> = (0..n).map(|_| wasip2::cli::stdout::get_stdout()).collect();
            text(out, format!("held {}\n", held.len()));
        }
        _ => {
            let held: Vec<_> = (0..n).map(|_| Fields::new()).collect();
            text(out, format!("held {}\n", held.len()));
        }
    }
}

/// Host memory by way of fields: `n` of `size` bytes each, in one resource, or copies of it.
fn fields(ask: &Ask, out: ResponseOutparam) {
    let (fields, mut held) = (Fields::new(), Vec::new());
    let value = vec![b'a'; usize::try_from(ask.number("size")).unwrap_or(0)];
    let mut bytes = 0;
    for n in 0..ask.number("n") {
        if ask.number("clone") > 0 {
            if n == 0 && fields.append("x-big", &value).is_err() {
                return text(out, "refused 0\n");
            }
            held.push(fields.clone());
        } else if fields.append(&format!("x-{n}"), &value).is_err() {
            return text(out, format!("refused {bytes}\n"));
        }
        bytes += value.len();
    }
    text(out, format!("held {bytes}\n"));
    drop(held);
}

/// Host memory by way of many resources, each small enough for itself: `n` of `size` bytes, kept for `ms`.
fn hold_fields(ask: &Ask, out: ResponseOutparam) {
    let (mut held, mut bytes) = (Vec::new(), 0);
    let value = vec![b'a'; usize::try_from(ask.number("size")).unwrap_or(0)];
    for _ in 0..ask.number("n") {
        let fields = Fields::new();
        if fields.append("x-big", &value).is_err() {
            break;
        }
        bytes += value.len();
        held.push(fields);
    }
    if ask.number("ms") > 0 {
        monotonic_clock::subscribe_duration(ask.number("ms") * 1_000_000).block();
    }
    text(out, format!("held {bytes}\n"));
    drop(held);
}

/// Times the same work, `n` rounds of nothing, ten times, by both clocks: the nanoseconds of each.
fn probe(ask: &Ask, out: ResponseOutparam) {
    let wall = || {
        let now = wall_clock::now();
        now.seconds * 1_000_000_000 + u64::from(now.nanoseconds)
    };
    let mut said = String::new();
    for _ in 0..10 {
        let (begin, wall_begin) = (monotonic_clock::now(), wall());
        (0..ask.number("n")).for_each(|n| {
            std::hint::black_box(n);
        });
        let (end, wall_end) = (monotonic_clock::now(), wall());
        said.push_str(&format!("{} {}\n", end - begin, wall_end.saturating_sub(wall_begin)));
    }
    text(out, said);
}

fn log(ask: &Ask, out: ResponseOutparam) {
    let mut stdout = std::io::stdout().lock();
    let n = ask.number("n").max(1);
    match ask.text("kind").as_str() {
        "long" => {
            let block = vec![b'l'; 64 << 10];
            (0..n).for_each(|_| drop(stdout.write_all(&block)));
        }
        "binary" => {
            let all: Vec<u8> = (0..=255).filter(|b| *b != b'\n').collect();
            (0..n).for_each(|_| drop(stdout.write_all(&all).and_then(|()| stdout.write_all(b"\n"))));
        }
        "said" => drop(stdout.write_all(&ask.bytes("text")).and_then(|()| stdout.write_all(b"\n"))),
        _ => (0..n).for_each(|line| drop(writeln!(stdout, "flood {line} {}", "f".repeat(100)))),
    }
    drop(stdout.flush());
    text(out, "logged\n");
}

/// The smallest step that the clock makes, in nanoseconds: what a guest can time its neighbours with.
fn finest_step(steps: u64) -> u64 {
    let mut finest = u64::MAX;
    for _ in 0..steps {
        let first = monotonic_clock::now();
        let mut next = monotonic_clock::now();
        while next == first {
            next = monotonic_clock::now();
        }
        finest = finest.min(next - first);
    }
    finest
}

fn files(out: ResponseOutparam) {
    let open = wasip2::filesystem::preopens::get_directories().len();
    let passwd = std::fs::read("/etc/passwd").is_ok();
    let wrote = std::fs::write("/tmp/hostile", "x").is_ok();
    text(out, format!("preopens {open} read {passwd} wrote {wrote}\n"));
}

fn sockets(ask: &Ask, out: ResponseOutparam) {
    let network = instance_network::instance_network();
    let name = ip_name_lookup::resolve_addresses(&network, &ask.text("name")).is_ok();
    let port = u16::try_from(ask.number("port")).unwrap_or(1);
    let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (127, 0, 0, 1) });
    let tcp = tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4)
        .and_then(|socket| socket.start_connect(&network, address).map(|()| socket))
        .is_ok_and(|socket| {
            socket.subscribe().block();
            socket.finish_connect().is_ok()
        });
    let udp = udp_create_socket::create_udp_socket(IpAddressFamily::Ipv4)
        .and_then(|socket| {
            socket
                .start_bind(&network, IpSocketAddress::Ipv4(Ipv4SocketAddress { port: 0, address: (127, 0, 0, 1) }))?;
            socket.finish_bind()
        })
        .is_ok();
    text(out, format!("name {name} tcp {tcp} udp {udp}\n"));
}
