//! `files = "public/"`: a folder on its way into the component that is pushed.
//!
//! Owns the walk over the folder; the archive's form and bounds are `marcato_api::files`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use marcato_api::files::{self, MAX_BYTES, MAX_FILES};

use crate::component;
use crate::failure::{Code, Failure};

/// The component with all files of `folder` in it.
pub(crate) fn bundle(wasm: Vec<u8>, folder: &Path) -> Result<Vec<u8>> {
    let refused = |why: String| Failure::new(Code::BadComponent, format!("files = {}: {why}", folder.display()));
    if files::section(&wasm).map_err(|e| refused(e.to_string()))?.is_some() {
        return Err(refused("the component has bundled files already".into()).into());
    }
    let archive = collect(folder).and_then(|all| files::pack(&all).map_err(|e| e.to_string())).map_err(refused)?;
    let whole = files::append(wasm, &archive);
    if whole.len() > component::MAX_BYTES {
        let limit = marcato_api::Bytes(component::MAX_BYTES as u64);
        return Err(refused(format!("component and files are longer than {limit} together")).into());
    }
    Ok(whole)
}

/// Every file below `folder`, by its path there.
fn collect(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    let (mut size, mut open) = (0, vec![(folder.to_owned(), String::new())]);
    while let Some((dir, prefix)) = open.pop() {
        let failed = |path: &Path, e: std::io::Error| format!("cannot read {}: {e}", path.display());
        for entry in std::fs::read_dir(&dir).map_err(|e| failed(&dir, e))? {
            let entry = entry.map_err(|e| failed(&dir, e))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|e| failed(&dir, e))?);
            let name =
                entry.file_name().into_string().map_err(|n| format!("{} is not UTF-8", PathBuf::from(n).display()))?;
            let inside = format!("{prefix}{name}");
            if kind.is_dir() {
                open.push((path, format!("{inside}/")));
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).map_err(|e| failed(&path, e))?;
                size += bytes.len();
                found.insert(inside, bytes);
                if size > MAX_BYTES || found.len() > MAX_FILES {
                    return Err(format!("at most {MAX_FILES} files of {} MiB together are taken", MAX_BYTES >> 20));
                }
            } else {
                return Err(format!("{} is neither a file nor a folder; links are not taken", path.display()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn a_folder_goes_into_the_component_and_the_same_one_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/empty")).unwrap();
        std::fs::write(dir.path().join("index.html"), "<p>").unwrap();
        std::fs::write(dir.path().join("a/.b"), "x").unwrap();
        let whole = bundle(PLAIN.to_vec(), dir.path()).unwrap();
        assert_eq!(whole, bundle(PLAIN.to_vec(), dir.path()).unwrap());
        let archive = files::section(&whole).unwrap().unwrap();
        let paths: Vec<_> = files::unpack(archive).unwrap().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a/.b", "index.html"]);
        assert!(bundle(whole, dir.path()).unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn links_and_folders_that_are_not_there_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert!(bundle(PLAIN.to_vec(), dir.path()).unwrap_err().to_string().contains("links are not taken"));
        assert!(bundle(PLAIN.to_vec(), &dir.path().join("none")).is_err());
    }
}
