//! Attacks on processor and memory: spin, grow, recurse, and every way to trap.

#![allow(unsafe_code, reason = "to reach outside of its memory is what this guest tries")]

use core::arch::wasm32::{memory_grow, memory_size};
use std::hint::black_box;

use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{Fields, OutgoingBody, OutgoingResponse, ResponseOutparam};

use crate::{Ask, begin, text, write};

const PAGE: u64 = 64 << 10;

pub(crate) fn run(ask: &Ask, out: ResponseOutparam) {
    match ask.path.as_str() {
        "/spin" => {
            let end = monotonic_clock::now() + ask.number("ms") * 1_000_000;
            while monotonic_clock::now() < end {
                (0..10_000_u64).for_each(|n| {
                    black_box(n);
                });
            }
            text(out, "spun\n");
        }
        "/grow" => {
            let (mut got, want) = (0, ask.number("mb") << 20);
            while got < want && memory_grow::<0>(16) != usize::MAX {
                got += 16 * PAGE;
            }
            if ask.number("ms") > 0 {
                monotonic_clock::subscribe_duration(ask.number("ms") * 1_000_000).block();
            }
            text(out, format!("grew {}\n", got >> 20));
        }
        // Says how much of its new memory somebody else left something in, and leaves something itself.
        "/fill" => {
            let pages = usize::try_from(ask.number("mb") << 4).unwrap_or(0);
            let start = memory_grow::<0>(pages);
            if start == usize::MAX {
                return text(out, "refused\n");
            }
            let (mut dirty, first) = (0_u64, start * PAGE as usize);
            for at in first..first + pages * PAGE as usize {
                let byte = at as *mut u8;
                // SAFETY: within the memory that was just grown, which nobody else uses.
                unsafe {
                    dirty += u64::from(byte.read_volatile() != 0);
                    byte.write_volatile(0xA5);
                }
            }
            text(out, format!("dirty {dirty}\n"));
        }
        "/recurse" => text(out, format!("deep {}\n", recurse(ask.number("depth")))),
        "/oob" => {
            let end = memory_size::<0>() as u64 * PAGE;
            let at = if ask.number("near") > 0 { end } else { 0xFFFF_FFF0 };
            // SAFETY: none; outside of the memory, where it has to trap.
            let byte = unsafe { (at as usize as *const u8).read_volatile() };
            text(out, format!("read {byte}\n"));
        }
        "/unreachable" => core::arch::wasm32::unreachable(),
        "/divide" => {
            // `trunc` of what is no number traps, as a division by zero would; Rust checks divisions itself.
            // SAFETY: none; it has to trap.
            let n: i32 = unsafe { black_box(f32::NAN).to_int_unchecked() };
            text(out, format!("divided {n}\n"));
        }
        "/call" => {
            // SAFETY: none; a function of another type, which has to trap.
            let wrong: fn(u64, u64) -> u64 = unsafe { std::mem::transmute(black_box(recurse_once as fn(u64) -> u64)) };
            text(out, format!("called {}\n", wrong(1, 2)));
        }
        _ => trap(ask, out),
    }
}

fn trap(ask: &Ask, out: ResponseOutparam) {
    let when = ask.text("when");
    if when == "before" {
        core::arch::wasm32::unreachable();
    }
    let Some((body, stream)) = begin(out, OutgoingResponse::new(Fields::new())) else { return };
    if when == "after-head" {
        core::arch::wasm32::unreachable();
    }
    let _ = write(&stream, &[b'x'; 200_000]);
    if when == "in-body" {
        core::arch::wasm32::unreachable();
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
    if when == "after-body" {
        core::arch::wasm32::unreachable();
    }
    drop(Bomb);
}

/// Traps when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        core::arch::wasm32::unreachable();
    }
}

fn recurse_once(n: u64) -> u64 {
    n + 1
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let room = black_box([depth; 16]);
    if depth == 0 { room[0] } else { recurse(depth - 1) + 1 + (room[1] - room[2]) }
}
