//! Fuzz targets: the archive of an app's files, and the section that it travels in. Both come from whoever pushes.

use std::collections::BTreeMap;

use marcato_fuzz::{Edits, Input, target};

use super::*;

const WORDS: &[&[u8]] = &[
    b"../",
    b"/",
    b"./",
    b"\\",
    b"\0",
    b"a/b",
    b"ustar\x0000",
    b"0000444\0",
    b"00000000000\0",
    b"77777777777",
    b"\xc3\xbc",
    &[0; BLOCK],
];

fn archive() -> Vec<u8> {
    let long = format!("{}/{}", "d".repeat(150), "n".repeat(100));
    let files = ["a.html", "b/c", &long, "ü"].map(|path| (path.to_owned(), path.as_bytes().to_vec()));
    pack(&BTreeMap::from(files)).unwrap()
}

/// A header's checksum made right again, so that what stands behind it is looked at.
fn with_sums(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(BLOCK).filter(|b| b[257..].starts_with(b"ustar")) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

/// What is taken is what `pack` makes of the same files, byte for byte: nothing else is in it, and every bound holds.
#[test]
fn fuzz_archive() {
    let good = archive();
    target!(3000, |input: &(bool, Input)| {
        let (sums, input) = input;
        let mut bytes = input.bytes(&[&good], WORDS);
        if *sums {
            bytes = with_sums(bytes);
        }
        let Ok(files) = unpack(&bytes) else { return };
        let paths: Vec<_> = files.iter().map(|(path, _)| path.clone()).collect();
        let files: BTreeMap<_, _> = files.into_iter().map(|(path, data)| (path, data.to_vec())).collect();
        assert_eq!(paths.len(), files.len(), "none twice");
        assert_eq!(pack(&files).as_deref(), Ok(bytes.as_slice()), "{paths:?}");
        for path in paths {
            assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path:?}");
        }
    });
}

/// Whatever files there are: they come out as they went in, or are refused for a reason that `check` gives, too.
#[test]
fn fuzz_pack() {
    target!(1000, |input: &Vec<(Input, Vec<u8>)>| {
        let path =
            |input: &Input| input.text(&["a/b", "index.html", "ü/x.y"], &["/", "..", "a", "\u{0}", "ü", "\\", "."]);
        let files: BTreeMap<_, _> = input.iter().take(6).map(|(at, data)| (path(at), data.clone())).collect();
        match pack(&files) {
            Ok(packed) => {
                let out: BTreeMap<_, _> = unpack(&packed).unwrap().into_iter().map(|(p, d)| (p, d.to_vec())).collect();
                assert_eq!(out, files);
            }
            Err(FilesError::Path { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    });
}

/// A section that was appended is found, unless what stands before it was none or had one already.
#[test]
fn fuzz_section() {
    let archive = archive();
    let plain = b"\0asm\x0d\0\x01\0\0\x02\x01x\x01\x03abc".to_vec();
    let with = append(plain.clone(), b"short");
    target!(3000, |input: &(u8, Edits)| {
        let (which, edits) = input;
        let words: &[&[u8]] =
            &[b"\0", b"\x80", b"\xff\xff\xff\xff\xff", b"marcato.files", b"\x0dmarcato.files", b"\x80\x00"];
        let bytes = edits.apply(if which % 2 == 0 { &plain } else { &with }, words);
        let found = section(&bytes);
        if let Ok(Some(found)) = found {
            assert!(bytes.len() - found.len() >= 8 + SECTION.len(), "it lies within, behind its name");
        }
        let appended = append(bytes.clone(), &archive);
        match found {
            Ok(None) if bytes.len() >= 8 => assert_eq!(section(&appended), Ok(Some(archive.as_slice()))),
            Ok(Some(_)) => assert_eq!(section(&appended), Err(FilesError::Damaged("there are two"))),
            _ => drop(section(&appended)),
        }
    });
}
