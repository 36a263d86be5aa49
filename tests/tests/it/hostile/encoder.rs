//! Components byte by byte, for what no text format would write: bombs for the compiler.

use std::iter::repeat_n;

/// An unsigned number as LEB128.
fn number(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (n & 0x7f) as u8;
        n >>= 7;
        if n == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [number(bytes.len()), bytes.to_vec()].concat()
}

fn section(id: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![id], sized(bytes)].concat()
}

/// A component of one module with functions of type `[i64] -> [i64]`, given as locals and code.
fn component(functions: &[Vec<u8>], data: Option<&[u8]>) -> Vec<u8> {
    let count = number(functions.len());
    let types = section(1, &[1, 0x60, 1, 0x7e, 1, 0x7e]);
    let declared = section(3, &[count.clone(), vec![0; functions.len()]].concat());
    let memory = section(5, &[vec![1, 0], number(data.map_or(1, |d| d.len() / (64 << 10) + 1))].concat());
    let code = section(10, &[count, functions.iter().flat_map(|f| sized(f)).collect()].concat());
    let data = data.map_or_else(Vec::new, |d| section(11, &[vec![1, 0, 0x41, 0, 0x0b], sized(d)].concat()));
    let module = [b"\0asm\x01\0\0\0".to_vec(), types, declared, memory, code, data].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
}

/// One function: no locals of its own, this code, its parameter as result.
fn function(code: &[u8]) -> Vec<u8> {
    [&[0], code, &[0x20, 0, 0x0b]].concat()
}

/// Blocks within blocks.
pub(super) fn nested(depth: usize) -> Vec<u8> {
    let code: Vec<u8> = [2, 0x40].repeat(depth).into_iter().chain(repeat_n(0x0b, depth)).collect();
    component(&[function(&code)], None)
}

/// Functions without number.
pub(super) fn functions(count: usize) -> Vec<u8> {
    component(&vec![function(&[0x20, 0, 0x20, 0, 0x7c, 0x1a]); count], None)
}

/// A jump with so many ways.
pub(super) fn jumps(ways: usize) -> Vec<u8> {
    let code = [vec![2, 0x40, 0x41, 0, 0x0e], number(ways), vec![0; ways + 1], vec![0x0b]].concat();
    component(&[function(&code)], None)
}

/// So many locals, each in use over the whole function.
pub(super) fn locals(count: usize, functions: usize) -> Vec<u8> {
    let uses: Vec<u8> = (1..=count.min(2_000)).flat_map(|n| [vec![0x20, 0, 0x21], number(n)].concat()).collect();
    let sums: Vec<u8> = (1..=count.min(2_000)).flat_map(|n| [vec![0x20], number(n), vec![0x7c]].concat()).collect();
    let body = [vec![1], number(count), vec![0x7e], uses, vec![0x20, 0], sums, vec![0x0b]].concat();
    component(&vec![body; functions], None)
}

/// One function of so many operations.
pub(super) fn long(operations: usize) -> Vec<u8> {
    let code = [0x20, 0, 0x20, 0, 0x7e, 0x42, 3, 0x7c, 0x1a].repeat(operations);
    component(&[function(&code)], None)
}

/// So many values at once, none of which can be forgotten.
pub(super) fn values(count: usize) -> Vec<u8> {
    let code: Vec<u8> = [0x20, 0, 0x42, 3, 0x7e].repeat(count).into_iter().chain(repeat_n(0x7c, count - 1)).collect();
    component(&[function(&[&code[..], &[0x1a]].concat())], None)
}

/// So many branches in one function.
pub(super) fn branches(count: usize) -> Vec<u8> {
    let code = [vec![2, 0x40], [0x20, 0, 0xa7, 0x0d, 0].repeat(count), vec![0x0b]].concat();
    component(&[function(&code)], None)
}

/// Data of so many bytes.
pub(super) fn data(bytes: usize) -> Vec<u8> {
    component(&[function(&[])], Some(&vec![0xA5; bytes]))
}

/// A section that says that it is longer than everything.
pub(super) fn lying() -> Vec<u8> {
    [b"\0asm\x0d\0\x01\0\x01".to_vec(), vec![0xff, 0xff, 0xff, 0xff, 0x0f], vec![0; 64]].concat()
}

/// Components within components.
pub(super) fn components(depth: usize) -> Vec<u8> {
    (0..depth)
        .fold(b"\0asm\x0d\0\x01\0".to_vec(), |inner, _| [b"\0asm\x0d\0\x01\0".to_vec(), section(4, &inner)].concat())
}
