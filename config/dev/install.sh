#!/bin/sh
# Installs what building, testing and the demo need on Debian and is not there yet; asks for
# nothing and starts no service. `make demo` and `make test` call it; Rust itself is expected.
set -eu

if ! command -v cargo >/dev/null 2>&1; then
    echo "cargo is missing: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer from https://rustup.rs" >&2
    exit 1
fi

missing=""
need() { # package, then the file or command that shows it is there
    case "$2" in
        /*) for file in $2; do [ -e "$file" ] && return 0; done ;;
        *) command -v "$2" >/dev/null 2>&1 && return 0 ;;
    esac
    missing="$missing $1"
}
need build-essential cc
need build-essential make
need cmake cmake
# libpg_query's bindings are generated with libclang and its own headers.
need libclang-dev '/usr/lib/llvm-*/lib/libclang*.so /usr/lib/llvm-*/lib/libclang*.so.1'
need postgresql '/usr/lib/postgresql/*/bin/postgres'
need libzookeeper-java /usr/share/java/zookeeper.jar
need default-jre-headless java
need iproute2 ip
# Faults of the lab: packets that are dropped, disks that fail, clocks that jump.
need nftables nft
need e2fsprogs mkfs.ext4
need libfaketime '/usr/lib/*/faketime/libfaketimeMT.so.1'
need procps ps
need openssl openssl
# promtool checks the alert rules.
need prometheus promtool
# Snapshots and streams are tested on a real pool: zfs-fuse, unless there is a ZFS already.
command -v /usr/sbin/zfs >/dev/null 2>&1 || command -v zfs >/dev/null 2>&1 || need zfs-fuse zfs-fuse
[ -n "$missing" ] || exit 0

sudo=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || { echo "missing packages:$missing; install them as root (there is no sudo here)" >&2; exit 1; }
    sudo=sudo
fi
command -v apt-get >/dev/null 2>&1 || { echo "missing packages:$missing; this is not Debian, install their like" >&2; exit 1; }

echo "installing:$missing"
# Debian's package would otherwise create a cluster of its own and start it on port 5432.
no_cluster=/etc/postgresql-common/createcluster.d/manatee-install.conf
$sudo mkdir -p "$(dirname "$no_cluster")"
echo "create_main_cluster = false" | $sudo tee "$no_cluster" >/dev/null
# And Prometheus' package a server: refuse all services while installing.
no_services=/usr/sbin/policy-rc.d
made_policy=""
if [ ! -e "$no_services" ]; then
    made_policy="$no_services"
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$no_services" >/dev/null
    $sudo chmod 755 "$no_services"
fi
trap '$sudo rm -f "$no_cluster" $made_policy' EXIT
$sudo apt-get update -q
# shellcheck disable=SC2086  # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
