//! Builds the one C++ function, and writes libtorch's folder into the binaries' run path, which tch itself does not.
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/device/memory.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    let beside = Path::new(&lib).with_file_name("include");
    let include = std::env::var("LIBTORCH_INCLUDE").map_or(beside, |root| Path::new(&root).join("include"));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(include)
        .file("src/device/memory.cpp")
        .compile("scanside_memory");
}
