//! libtorch's CUDA form under a program that was linked against the CPU form.
//!
//! A PyTorch of the same release carries both forms. Libraries of two builds in one process would be asking for trouble, and
//! what a process has loaded it cannot give back, so the program starts itself again with that PyTorch's folder first in
//! `LD_LIBRARY_PATH` and `libtorch_cuda.so` in `LD_PRELOAD`: everything then comes from there.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names libtorch's CUDA form: `libtorch_cuda.so`, or the folder that holds it.
const VARIABLE: &str = "SCANSIDE_TORCH_CUDA";
const CPU: &str = "libtorch_cpu.so";
const CUDA: &str = "libtorch_cuda.so";
/// The release that tch's bindings are made for.
const VERSION: &str = "2.11.0";
/// Prints the package's folder without loading it.
const FIND: &str = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";

/// The folder of the CUDA form, which is loaded when this returns; one sentence where that cannot be.
pub(super) fn load() -> Result<PathBuf, String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|e| {
        format!("/proc/self/maps, which tells the libraries that are loaded, cannot be read: {e}")
    })?;
    if let Some(loaded) = mapped(&maps, CUDA) {
        return Ok(loaded);
    }
    let folder = find(&maps)?;
    let preload = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    if preload.to_string_lossy().split([' ', ':']).any(|entry| entry == CUDA) {
        return Err(format!(
            "{} cannot be loaded, for the reason that the loader gives above; it needs the libraries that PyTorch installs \
             beside it",
            folder.join(CUDA).display()
        ));
    }
    if let Some(found) = version(&folder).filter(|found| found.split('+').next() != Some(VERSION)) {
        return Err(format!(
            "{} belongs to PyTorch {found}, expected {VERSION}",
            folder.join(CUDA).display()
        ));
    }
    let program =
        std::env::current_exe().map_err(|e| format!("this program's own file is not known: {e}"))?;
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // The loader would split the folder's name at a space in LD_PRELOAD, so that has the bare name.
    again.args(arguments).env("LD_LIBRARY_PATH", before(folder.as_os_str(), ":", paths));
    again.env("LD_PRELOAD", before(CUDA.as_ref(), " ", preload));
    // Replaces this process; it comes back only where that failed.
    Err(format!("the program cannot be started again with {}: {}", folder.join(CUDA).display(), again.exec()))
}

/// The folder of the CUDA form: the one that the user names, the one that the CPU form was loaded from, or PyTorch's.
fn find(maps: &str) -> Result<PathBuf, String> {
    let holds = |folder: &Path| folder.join(CUDA).is_file();
    if let Some(named) = std::env::var_os(VARIABLE) {
        let named = PathBuf::from(named);
        let folder = if named.is_dir() { named.as_path() } else { named.parent().unwrap_or(Path::new("")) };
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        return if holds(&folder) {
            Ok(folder)
        } else {
            Err(format!(
                "{VARIABLE} is {}, expected {CUDA} of PyTorch {VERSION} or the folder that holds it",
                named.display()
            ))
        };
    }
    if let Some(folder) = mapped(maps, CPU).filter(|folder| holds(folder)) {
        return Ok(folder);
    }
    let output = Command::new("python3").args(["-c", FIND]).output();
    let printed =
        output.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let folder = printed.map(|package| Path::new(package.trim()).join("lib"));
    folder.filter(|folder| holds(folder)).ok_or_else(|| {
        format!(
            "there is no {CUDA}: python3 finds no PyTorch with it; install PyTorch {VERSION} for CUDA, or set {VARIABLE} to \
             the folder that holds it"
        )
    })
}

/// The folder that a library was loaded from, out of the text of `/proc/self/maps`.
fn mapped(maps: &str, library: &str) -> Option<PathBuf> {
    maps.lines().find_map(|line| {
        let path = Path::new(&line[line.find('/')?..]);
        (path.file_name()? == library).then(|| path.parent().map(Path::to_owned))?
    })
}

/// The release that a `lib` folder belongs to, where PyTorch (`version.py`) or a bare libtorch (`build-version`) says so.
fn version(folder: &Path) -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(folder.parent()?.join(name)).ok();
    if let Some(text) = read("version.py") {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ ="))?;
        return Some(line.trim().trim_matches(['\'', '"']).to_owned());
    }
    read("build-version").map(|text| text.trim().to_owned())
}

/// `first`, then what was there before.
fn before(first: &std::ffi::OsStr, separator: &str, rest: OsString) -> OsString {
    let mut all = first.to_owned();
    if !rest.is_empty() {
        all.push(separator);
        all.push(rest);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_library_is_found_by_its_whole_name() {
        let maps = "7f00-7f01 r-xp 00000000 fe:00 12   /opt/my torch/lib/libtorch_cpu.so\n\
                    7f02-7f03 r-xp 00000000 00:00 0\n7f04-7f05 r--p 00000000 fe:00 13   /usr/lib/libtorch_cuda.so.old\n";
        assert_eq!(mapped(maps, CPU), Some("/opt/my torch/lib".into()));
        assert_eq!(mapped(maps, CUDA), None);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(mapped(&maps, CPU).is_some_and(|folder| folder.join(CPU).is_file()), "{maps}");
    }

    #[test]
    fn releases_are_read_as_pytorch_and_libtorch_write_them() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("lib");
        assert_eq!(version(&lib), None);
        std::fs::write(folder.path().join("build-version"), "2.9.1+cu129\n").unwrap();
        assert_eq!(version(&lib).as_deref(), Some("2.9.1+cu129"));
        let text = "from typing import Optional\n\n__version__ = '2.11.0+cu130'\ndebug = False\n";
        std::fs::write(folder.path().join("version.py"), text).unwrap();
        assert_eq!(version(&lib).as_deref(), Some("2.11.0+cu130"));
    }

    #[test]
    fn what_was_preloaded_already_stays() {
        assert_eq!(before(CUDA.as_ref(), " ", OsString::new()), CUDA);
        assert_eq!(before("/a".as_ref(), ":", "/b:/c".into()), "/a:/b:/c");
    }
}
