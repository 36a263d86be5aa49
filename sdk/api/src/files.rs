//! The files that an app brings along: a tar archive in a custom section of its component.
//!
//! Owns the form, for both ends: `marcato push` packs, the host unpacks. Only plain files with plain relative paths
//! exist in it, so it is stricter than tar (POSIX.1-1988 ustar, which any tar can list): no link, no device, no `..`, no
//! empty folder. The same files give the same bytes. Pure functions over bytes; no I/O.

use std::collections::{BTreeMap, BTreeSet};

/// The custom section's name.
pub const SECTION: &str = "marcato.files";

/// Most files.
pub const MAX_FILES: usize = 10_000;

/// Longest archive: contents, and 512 to 1,023 bytes for each file.
pub const MAX_BYTES: usize = 32 << 20;

/// Longest path, in bytes; what ustar can hold.
pub const MAX_PATH: usize = 255;

/// Most folders above a file.
pub const MAX_DEPTH: usize = 32;

const BLOCK: usize = 512;
const NAME: usize = 100;
const PREFIX: usize = 155;

/// Why files cannot be packed or unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// More than [`MAX_FILES`].
    #[error("more than {MAX_FILES} files")]
    TooMany,
    /// Longer than [`MAX_BYTES`].
    #[error("the files have more than {} MiB together", MAX_BYTES >> 20)]
    TooLarge,
    /// A path that is not plain and relative, or too long.
    #[error("{path:?} is no path for a bundled file: {why}")]
    Path {
        /// Which, cut.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not the form that is written here.
    #[error("the section {SECTION} is damaged: {0}")]
    Damaged(&'static str),
}

fn path_error(path: &str, why: &'static str) -> FilesError {
    FilesError::Path { path: path.chars().take(MAX_PATH).collect(), why }
}

/// Checks one path.
fn check(path: &str) -> Result<(), FilesError> {
    let bad = |why| Err(path_error(path, why));
    if path.is_empty() || path.len() > MAX_PATH {
        return bad("it has no name, or more than 255 bytes");
    }
    if path.contains(|c: char| c.is_control() || c == '\\') {
        return bad("control characters and backslashes are not taken");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("it is not relative and plain");
    }
    if path.split('/').count() > MAX_DEPTH + 1 {
        return bad("it has more than 32 folders above it");
    }
    Ok(())
}

/// Where ustar cuts a path into prefix and name.
fn cut(path: &str) -> Option<(&str, &str)> {
    if path.len() <= NAME {
        return Some(("", path));
    }
    let at =
        path.char_indices().filter(|(i, c)| *c == '/' && *i <= PREFIX && path.len() - i - 1 <= NAME).map(|(i, _)| i);
    at.min().map(|i| (&path[..i], &path[i + 1..]))
}

/// A path under a file is none.
fn check_folders<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> Result<(), FilesError> {
    let all: BTreeSet<&str> = paths.clone().collect();
    for path in paths {
        if path.match_indices('/').any(|(at, _)| all.contains(&path[..at])) {
            return Err(path_error(path, "a folder above it is a file"));
        }
    }
    Ok(())
}

/// Packs files, by path.
pub fn pack(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, FilesError> {
    if files.len() > MAX_FILES {
        return Err(FilesError::TooMany);
    }
    check_folders(files.keys().map(String::as_str))?;
    let mut out = Vec::new();
    for (path, bytes) in files {
        check(path)?;
        let (prefix, name) = cut(path).ok_or_else(|| path_error(path, "its last part has more than 100 bytes"))?;
        if out.len() + bytes.len() > MAX_BYTES {
            return Err(FilesError::TooLarge);
        }
        out.extend_from_slice(&header(prefix, name, bytes.len()));
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    if out.len() > MAX_BYTES { Err(FilesError::TooLarge) } else { Ok(out) }
}

/// The one header that there is for these values.
fn header(prefix: &str, name: &str, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000444\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn text(field: &[u8]) -> Result<&str, FilesError> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).map_err(|_| FilesError::Damaged("a path that is not UTF-8"))
}

/// Unpacks what [`pack`] made: paths and contents. Anything else is refused.
pub fn unpack(archive: &[u8]) -> Result<Vec<(String, &[u8])>, FilesError> {
    if archive.len() > MAX_BYTES {
        return Err(FilesError::TooLarge);
    }
    let mut files: Vec<(String, &[u8])> = Vec::new();
    let mut rest = archive;
    loop {
        let (block, after) = rest.split_first_chunk::<BLOCK>().ok_or(FilesError::Damaged("it is cut off"))?;
        if block.iter().all(|b| *b == 0) {
            if after != [0; BLOCK] {
                return Err(FilesError::Damaged("there is something behind its end"));
            }
            break;
        }
        let digits = std::str::from_utf8(&block[124..135]).ok();
        let size = digits.and_then(|d| usize::from_str_radix(d, 8).ok()).ok_or(FilesError::Damaged("a size"))?;
        let (prefix, name) = (text(&block[345..500])?, text(&block[..NAME])?);
        // There is but one header for a file: whatever else tar knows is not in it.
        if *block != header(prefix, name, size) {
            return Err(FilesError::Damaged("a header is not as push writes it"));
        }
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        check(&path)?;
        if cut(&path) != Some((prefix, name)) {
            return Err(FilesError::Damaged("a path is not cut as push cuts it"));
        }
        if files.last().is_some_and(|(last, _)| *last >= path) {
            return Err(FilesError::Damaged("its paths are not in order"));
        }
        if files.len() == MAX_FILES {
            return Err(FilesError::TooMany);
        }
        let padded = size.next_multiple_of(BLOCK);
        let (Some(data), Some(next)) = (after.get(..size), after.get(padded..)) else {
            return Err(FilesError::Damaged("a file is cut off"));
        };
        if after[size..padded].iter().any(|b| *b != 0) {
            return Err(FilesError::Damaged("there is something behind a file's end"));
        }
        files.push((path, data));
        rest = next;
    }
    check_folders(files.iter().map(|(path, _)| path.as_str()))?;
    Ok(files)
}

/// Puts an archive into a component or module, as its last section.
#[must_use]
pub fn append(mut wasm: Vec<u8>, archive: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    leb(&mut body, SECTION.len());
    body.extend_from_slice(SECTION.as_bytes());
    wasm.push(0);
    leb(&mut wasm, body.len() + archive.len());
    wasm.extend_from_slice(&body);
    wasm.extend_from_slice(archive);
    wasm
}

fn leb(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value == 0 { byte } else { byte | 0x80 });
        if value == 0 {
            return;
        }
    }
}

fn read_leb(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (n, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[n + 1..]));
        }
    }
    None
}

/// The archive in a component or module; `None` when it has none. Looks at the outermost sections only, which have
/// the same form in both.
pub fn section(wasm: &[u8]) -> Result<Option<&[u8]>, FilesError> {
    let mut rest = wasm.get(8..).unwrap_or_default();
    let mut found = None;
    while let Some((id, after)) = rest.split_first() {
        let cut = FilesError::Damaged("the file is cut off");
        let (size, body) = read_leb(after).ok_or_else(|| cut.clone())?;
        let content = body.get(..size).ok_or(cut)?;
        rest = &body[size..];
        if *id != 0 {
            continue;
        }
        let Some((length, named)) = read_leb(content) else { continue };
        if named.get(..length) == Some(SECTION.as_bytes()) && found.replace(&named[length..]).is_some() {
            return Err(FilesError::Damaged("there are two"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        entries.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn files_come_out_as_they_went_in() {
        let long = format!("{}/{}", "d".repeat(150), "n".repeat(100));
        let packed = pack(&files(&[("a.html", "<p>"), ("b/c", ""), (&long, "x"), ("ü", "y")])).unwrap();
        assert_eq!(packed, pack(&files(&[("ü", "y"), (&long, "x"), ("b/c", ""), ("a.html", "<p>")])).unwrap());
        let out = unpack(&packed).unwrap();
        let paths: Vec<_> = out.iter().map(|(p, b)| (p.as_str(), b.len())).collect();
        assert_eq!(paths, [("a.html", 3), ("b/c", 0), (long.as_str(), 1), ("ü", 1)]);
        for header in [b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"] {
            let plain = [header.as_slice(), b"\0\x02\x01x"].concat();
            assert_eq!(section(&plain), Ok(None));
            let with = append(plain, &packed);
            assert_eq!(section(&with), Ok(Some(packed.as_slice())));
            assert!(section(&append(with, &packed)).is_err(), "two");
        }
        assert_eq!(unpack(&pack(&BTreeMap::new()).unwrap()), Ok(vec![]));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused_on_both_sides() {
        let deep = "d/".repeat(33) + "f";
        let long = "n".repeat(101);
        for path in ["", "/a", "a//b", "a/", "../a", "a/../b", "./a", "a\0b", "a\nb", "a\\b", &deep, &long] {
            assert!(matches!(pack(&files(&[(path, "x")])), Err(FilesError::Path { .. })), "{path:?}");
            if path.len() <= NAME && !path.contains('\0') {
                let mut forged = header("", path, 0).to_vec();
                forged.resize(3 * BLOCK, 0);
                assert!(unpack(&forged).is_err(), "{path:?}");
            }
        }
        assert!(pack(&files(&[("a", "x"), ("a/b", "x")])).is_err(), "a file that is a folder");
    }

    #[test]
    fn links_devices_and_disorder_are_refused() {
        let good = pack(&files(&[("a", "1"), ("b", "2")])).unwrap();
        for kind in b"1234567xgLKS5\0" {
            let mut bytes = good.clone();
            bytes[156] = *kind;
            assert!(unpack(&bytes).is_err(), "{kind}");
        }
        let swapped = [&good[1024..2048], &good[..1024], &good[2048..]].concat();
        let twice = [&good[..1024], &good[..1024], &good[2048..]].concat();
        assert!(unpack(&swapped).is_err() && unpack(&twice).is_err());
        assert!(unpack(&[good.as_slice(), b"x"].concat()).is_err());
    }

    /// Found by the fuzz target: other bytes for the same files.
    #[test]
    fn nothing_hides_between_files_nor_in_the_cut_of_a_path() {
        let long = format!("{}/{}/{}", "d".repeat(60), "e".repeat(60), "f");
        let good = pack(&files(&[(&long, "x")])).unwrap();
        let mut hidden = good.clone();
        hidden[BLOCK + 1] = b'!';
        assert_eq!(unpack(&hidden), Err(FilesError::Damaged("there is something behind a file's end")));
        let other = [header(&long[..121], &long[122..], 1).as_slice(), &good[BLOCK..]].concat();
        assert_eq!(unpack(&other), Err(FilesError::Damaged("a path is not cut as push cuts it")));
        let short = pack(&files(&[("a/b", "x")])).unwrap();
        let other = [header("a", "b", 1).as_slice(), &short[BLOCK..]].concat();
        assert!(unpack(&other).is_err());
    }

    #[test]
    fn bounds_hold() {
        let many: BTreeMap<_, _> = (0..=MAX_FILES).map(|n| (n.to_string(), Vec::new())).collect();
        assert_eq!(pack(&many), Err(FilesError::TooMany));
        let large = BTreeMap::from([("a".to_owned(), vec![0; MAX_BYTES])]);
        assert_eq!(pack(&large), Err(FilesError::TooLarge));
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        let packed = pack(&files(&[("a/b", "12"), ("c", "3")])).unwrap();
        let good = append(b"\0asm\x0d\0\x01\0".to_vec(), &packed);
        for at in 0..packed.len() {
            assert!(unpack(&packed[..at]).is_err());
            for value in [0, 1, b'/', b'.', b'7', 0x7f, 0x80, 0xff] {
                let mut bytes = packed.clone();
                bytes[at] = value;
                for (path, _) in unpack(&bytes).unwrap_or_default() {
                    assert!(check(&path).is_ok());
                }
            }
        }
        for at in 0..good.len().min(60) {
            let _ = section(&good[..at]);
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = section(&bytes);
            }
        }
    }
}
