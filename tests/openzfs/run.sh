#!/bin/sh
# The conformance test of storage, and a bootstrap and a rollback rejoin with real servers, on genuine OpenZFS: in an
# emulated Debian, because the host has no module. Needs root, network, and about 4 GB below target/openzfs; an hour the
# first time on a slow machine, minutes later. Prints the verdict. OPENZFS_TESTS names other tests of the sitter's instead,
# such as the whole ladder: data::rejoin::ladder_tests::every_rung_holds_on_real_divergence_and_leads_to_the_next_when_interrupted.
set -eu
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "make test-openzfs needs root" >&2; exit 1; }
place=$PWD/target/openzfs
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
# How long the guest may take, in seconds: everything is emulated.
bound=${OPENZFS_BOUND:-7200}
tests=${OPENZFS_TESTS:-storage::conformance::zfs_conforms data::rejoin::ladder_tests::bootstraps_and_rolls_back}
mkdir -p "$place"

missing=""
for pair in debootstrap:debootstrap qemu-system-x86:qemu-system-x86_64 e2fsprogs:mkfs.ext4; do
    command -v "${pair#*:}" >/dev/null 2>&1 || missing="$missing ${pair%%:*}"
done
# shellcheck disable=SC2086
[ -z "$missing" ] || apt-get install -y --no-install-recommends $missing

# The system: Debian 12 with its kernel, the module built for that, and PostgreSQL. Made once.
if [ ! -e "$place/system.img" ]; then
    root=$place/root
    rm -rf "$root"
    packages=linux-image-cloud-amd64,linux-headers-cloud-amd64,zfs-dkms,zfsutils-linux,systemd-sysv,udev,kmod,postgresql-15
    debootstrap --variant=minbase --components=main,contrib --include="$packages" bookworm "$root" "$mirror"
    cp tests/openzfs/guest.service "$root/etc/systemd/system/"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../guest.service "$root/etc/systemd/system/multi-user.target.wants/guest.service"
    # Its own PostgreSQL is not wanted, only the programs.
    rm -f "$root"/etc/systemd/system/multi-user.target.wants/postgresql.service
    cp "$root"/boot/vmlinuz-* "$place/vmlinuz"
    cp "$root"/boot/initrd.img-* "$place/initrd"
    # Sources and headers were only for building.
    rm -rf "$root"/usr/src/* "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/dkms/zfs/*/build "$root"/boot/*
    rm -f "$place/system.new"
    mkfs.ext4 -q -d "$root" "$place/system.new" 3G
    rm -rf "$root"
    mv "$place/system.new" "$place/system.img"
fi

# What is tested. Of all packages, as everywhere: with fewer, dependencies would be built again with other features.
program=$(${CARGO:-cargo} test --workspace --exclude manatee-micro --lib --locked --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*manatee_sitter-[^"]*\)".*/\1/p' | tail -1)
[ -x "$program" ] || { echo "the tests were not built" >&2; exit 1; }
work=$place/work
rm -rf "$work"
mkdir -p "$work"
strip -o "$work/tests" "$program" 2>/dev/null || cp "$program" "$work/tests"
cp tests/openzfs/guest.sh "$work/"
echo "$tests" >"$work/list"
rm -f "$place/work.img"
mkfs.ext4 -q -d "$work" "$place/work.img" 512M

log=$place/console.log
# The guest's clock counts instructions, as if its processor did one each nanosecond: by its own time it is not much slower
# than a real machine, however long each takes here. PostgreSQL's and Manatee's own bounds hold there (a commit in 2 s, a
# connection in 2 s), which no emulated machine keeps by the host's time when that is busy. It costs the second processor.
# Changes to the system's disk are forgotten, and of the other only the console is of interest: what the guest flushes
# need not get to the host's disk.
timeout "$bound" qemu-system-x86_64 -accel tcg,thread=single -icount shift=0 -cpu max -smp 1 -m 2048 -nographic -nic none -no-reboot \
    -kernel "$place/vmlinuz" -initrd "$place/initrd" -append "root=/dev/vda rw console=ttyS0 panic=-1 quiet systemd.mask=serial-getty@ttyS0.service" \
    -drive "file=$place/system.img,if=virtio,format=raw,snapshot=on,cache=unsafe" -drive "file=$place/work.img,if=virtio,format=raw,cache=unsafe" \
    </dev/null >"$log" 2>&1 || echo "the guest did not end by itself within $bound s" >&2
tr -d '\r' <"$log" | sed -n '/^MANATEE: begin/,$p'
tr -d '\r' <"$log" | grep -q '^MANATEE: passed' || { echo "failed; the console is in $log" >&2; exit 1; }
