//! The keys of `device.toml`. What stands here is also what `docs/config.md` and `scanside config example` say.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::layers::Layers;
use super::schema::{Key, Section, accepts, section};
use super::units::Size;
use super::value::{AeTitle, Listen, Network, Precision, Source, Timeout, Uids, Value, Weights};
use crate::{Broker, TopicLevel};

section! {
    /// The box itself.
    "" Keys {
        /// The site's name: a level of every MQTT topic.
        site: TopicLevel = required, "north", restart;
        /// The device's name within its site: a level of every MQTT topic, and part of every result.
        device: TopicLevel = required, "ct-2", restart;
        /// Folder of everything that the service keeps: received instances, queue, results, plugins, the device's key.
        /// It is made when it is not there. One service a folder.
        data_dir: PathBuf = required, "/var/lib/scanside", restart;
        /// The frozen network that the task plugins were fitted on.
        backbone: PathBuf = required, "/var/lib/scanside/backbone.safetensors", restart;
        /// Slices encoded at a time. Without it, as many as there are cores.
        threads: Option<u32> = unset, 4, restart;
        /// How tasks on the same backbone hold its weights: `merged`, each with weights of its own; `shared`, one backbone in memory for all, each
        /// task with its factors beside it, which takes some per cent more time; `auto`, merged while there is ample memory, shared when there is
        /// not. The two round otherwise, so results say which it was.
        weights: Weights = "auto", "shared", restart;
        /// Arithmetic of the products with a vision transformer's weights: `f32`; `bf16` or `int8`, which take less time where the processor has
        /// instructions for them (AVX-512 with BF16 or VNNI, on ARM BF16 or the dot product), and are `f32` elsewhere. A task is computed so only if it
        /// reproduces its golden cases within the tolerances that its plugin states, otherwise in `f32`; results say which it was.
        precision: Precision = "f32", "bf16", restart;
    }
    sections {
        /// `[dicom]`.
        dicom: Dicom;
        /// `[series]`.
        series: Series;
        /// `[mqtt]`.
        mqtt: Mqtt;
        /// `[store]`.
        store: Store;
        /// `[infer]`.
        infer: Infer;
        /// `[updates]`.
        updates: Updates;
        /// `[gate]`.
        gate: Gate;
        /// `[http]`.
        http: Http;
    }
}

section! {
    /// The DICOM listener (C-ECHO and C-STORE), and who may send.
    "dicom" Dicom {
        /// The title that scanners must call; any other is refused.
        ae_title: AeTitle = required, "SCANSIDE", restart;
        /// Address and port to listen on. For scanners on the network, the address that they reach, or `0.0.0.0:11112` for every one.
        listen: SocketAddr = required, "127.0.0.1:11112", restart;
        /// The calling AE titles that may send. An empty list lets every title in; the title is a name, not a proof.
        calling: Vec<AeTitle> = [], ["CT1", "MR1"], now;
        /// The addresses and networks that may connect; others are turned away before a byte is read. An empty list lets every address in.
        peers: Vec<Network> = [], ["10.1.2.3", "10.1.0.0/16"], now;
        /// Associations at a time; one more is rejected for the time being ("local limit exceeded").
        max_associations: u32 = 16, 4, now;
        /// Largest PDU that a scanner may send.
        max_pdu: Size = "128KiB", "64KiB", now;
        /// Largest instance; a larger one is refused as soon as it is known to be.
        max_instance: Size = "2GB", "4GB", now;
        /// An association that has lasted so long is ended, whatever it does.
        association_deadline: Duration = "1h", "4h", now;
        /// An association that has said nothing for so long is ended.
        idle_timeout: Duration = "30s", "2min", now;
    }
    sections {
        /// `[dicom.tls]`.
        tls: DicomTls;
    }
}

section! {
    /// TLS for the DICOM listener (PS3.15, annex B). Without a certificate the listener speaks plain DICOM.
    "dicom.tls" DicomTls {
        /// This device's certificate and those between it and its root, PEM.
        cert: Option<PathBuf> = unset, "/etc/scanside/dicom.crt", restart;
        /// The certificate's private key, PEM.
        key: Option<PathBuf> = unset, "/etc/scanside/dicom.key", restart;
        /// The authorities whose certificates scanners must show, PEM. Without it scanners need none.
        client_ca: Option<PathBuf> = unset, "/etc/scanside/scanners-ca.crt", restart;
    }
    sections {}
}

section! {
    /// When a series counts as complete: at the first of these. An instance that comes later makes a revision, which names the result that it replaces.
    "series" Series {
        /// At the end of the association that brought it. Turn it off for scanners that use an association for each image.
        association_end: bool = true, false, now;
        /// As soon as there are as many instances as the instances themselves announce, where they do.
        expected_count: bool = true, false, now;
        /// When no instance has come for so long.
        idle: Timeout = "60s", "5min", now;
        /// So long after its first instance, in any case: every series ends.
        max_age: Duration = "90min", "4h", now;
    }
    sections {}
}

section! {
    /// The MQTT 5 broker that results go to. Each result stays on the disk until the broker has acknowledged it.
    "mqtt" Mqtt {
        /// The broker: `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS. Ports are 1883 and 8883 unless given.
        url: Broker = required, "mqtt://127.0.0.1:1883", restart;
        /// The authorities that the broker's certificate must come from, PEM; needed for `mqtts`.
        ca: Option<PathBuf> = unset, "/etc/scanside/broker-ca.crt", restart;
        /// This device's certificate for the broker, PEM, where the broker asks for one.
        cert: Option<PathBuf> = unset, "/etc/scanside/mqtt.crt", restart;
        /// The certificate's private key, PEM.
        key: Option<PathBuf> = unset, "/etc/scanside/mqtt.key", restart;
        /// User name, where the broker asks for one.
        user: Option<String> = unset, "scanside-ct-2", restart;
        /// A file with the user's password on its first line, not readable by everybody. The password itself never stands in this file.
        password_file: Option<PathBuf> = unset, "/etc/scanside/mqtt.password", restart;
        /// How DICOM UIDs stand in what is published: `plain`; `hashed` with this device's secret key (HMAC-SHA-256, `DATA_DIR/device.key`); or
        /// `auto`, which is plain over TLS or the loopback address and hashed elsewhere. `plain` is refused where others could read along.
        uids: Uids = "auto", "hashed", restart;
        /// A sign of life when nothing else is said; after one and a half times this without one the broker publishes the Will: `offline`.
        keep_alive: Duration = "30s", "2min", restart;
        /// How often queue lengths, disk and temperatures go to `health`.
        health_interval: Duration = "60s", "5min", now;
        /// A health message that could not be delivered for so long is dropped by the broker.
        health_expiry: Duration = "5min", "1h", now;
    }
    sections {}
}

section! {
    /// What is kept on the disk. Acknowledged instances and undelivered results are never dropped to make room: a full store refuses new instances.
    "store" Store {
        /// What the store may take up.
        max_size: Size = "20GB", "200GB", now;
        /// What it leaves free on the disk.
        min_free: Size = "1GB", "5GB", now;
        /// Instances and results of a finished series are deleted after so long.
        retention: Duration = "7d", "30d", now;
        /// A series that brought the service down so often goes into quarantine, and the queue goes on.
        max_tries: u32 = 3, 5, now;
    }
    sections {}
}

section! {
    /// How series are classified.
    "infer" Infer {
        /// Publish a preliminary result (`"final": false`) after each quarter of the slices, where the task allows it.
        preliminary: bool = false, true, now;
    }
    sections {}
}

section! {
    /// Signed plugins: whom to trust, and where they come from.
    "updates" Updates {
        /// The trusted root of the fleet's signed repository, a `root.json` that came to this device by a way you trust. With it, only plugins
        /// that the repository has signed are installed; without it any plugin is, and every result says `"trust": "unsigned"`.
        root: Option<PathBuf> = unset, "/etc/scanside/root.json", restart;
        /// Where the repository is: `https://HOST/PATH`, a folder (a USB stick, a share), or `mqtt`, for sites that open one port only. With it and
        /// `updates.root`, the device follows the desired state that operators publish.
        source: Option<Source> = unset, "https://updates.example.org/scanside", restart;
        /// The authorities that the https server's certificate must come from, PEM; needed for `https`.
        ca: Option<PathBuf> = unset, "/etc/ssl/certs/ca-certificates.crt", restart;
        /// How often the signed metadata is looked at again, so that a revoked key is noticed.
        interval: Duration = "1h", "6h", now;
    }
    sections {}
}

section! {
    /// What a plugin must do on this device before it goes live, and again from time to time: reproduce its golden cases within these limits.
    "gate" Gate {
        /// Longest time for all golden cases together.
        time: Duration = "2min", "30s", now;
        /// Most memory that merging the plugin and running its golden cases may take beyond what is in use.
        memory: Size = "4GB", "1GB", now;
        /// How often the active plugins run their golden cases again; also after a change of program or kernel. One that fails is taken down.
        interval: Duration = "24h", "7d", now;
    }
    sections {}
}

section! {
    /// `/healthz` and Prometheus' `/metrics`, without authentication: keep it on the loopback address.
    "http" Http {
        /// Address and port, or `off`.
        listen: Listen = "127.0.0.1:9464", "off", restart;
    }
    sections {}
}
