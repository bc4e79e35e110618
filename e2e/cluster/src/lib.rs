//! The local cluster: a real Kubernetes on this machine, without a container engine.
//!
//! Tests of an operator are worth what their API server is worth, so this starts the real one: etcd, API server,
//! controller manager, scheduler, kubelet on containerd and runc, kube-proxy, CoreDNS, all of them ordinary
//! processes on the host. The Kubernetes programs are compiled from their published Go modules once per machine
//! ([`binaries`]); containerd, runc and the CNI plugins are the distribution's packages ([`packages`]).
//!
//! Three decisions shape the rest:
//!
//! * **One address.** The node's bridge gets the first address of the pod range, and every component listens on
//!   that address alone. The cluster is unreachable from outside the machine, pods reach it at a routable
//!   address, and two programs clash only when the other listens on all addresses.
//! * **Everything of ours is recognised by its path.** Each component has the root or run folder in its command
//!   line, so `/proc` is the list of what runs ([`process`]); pid files are written for people and tests, never
//!   trusted for a kill. The same holds for mounts, cgroups, the bridge and the packet filter rules, which is why
//!   [`cleanup`] works from whatever a crash left.
//! * **The cluster's data is disposable.** etcd runs without fsync. When a component died, `up` starts it again
//!   with its data; when none is alive, everything is wiped and made anew.

pub mod binaries;
pub mod cidr;
pub mod clash;
pub mod cleanup;
pub mod cluster;
pub mod component;
pub mod config;
pub mod health;
pub mod images;
pub mod iptables;
pub mod kind;
pub mod lock;
pub mod network;
pub mod objects;
pub mod packages;
pub mod pki;
pub mod process;
pub mod progress;
pub mod record;
pub mod settings;
pub mod shell;
